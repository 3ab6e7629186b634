//! NRI: what plugins are told, in which order, and what they can change. All need `--nri-socket`. They run alone: a plugin
//! that holds a call up holds up that of other cases.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bowline_cri_proto::v1;
use bowline_nri::Work;
use bowline_nri::api::{
    ContainerAdjustment, ContainerUpdate, FailurePolicy, KeyValue, LinuxContainerAdjustment,
    LinuxContainerUpdate, LinuxCpu, LinuxDevice, LinuxResources, Mount, OptionalFileMode, OptionalUInt64,
    SynchronizeRequest,
};
use bowline_nri::stub::{Answer, Heard, Plugin, Stub};
use tokio::sync::Semaphore;

use super::case::{Case, case, same};
use crate::container::{Ctr, CtrSpec};
use crate::node::{Found, Node, skip, until};
use crate::pod::Pod;

pub(super) const CASES: &[Case] = &[
    case!("nri/pod-order", "C", pod_order).serial().quick(),
    case!("nri/container-order", "C", container_order).serial().quick(),
    case!("nri/self-exit", "C", self_exit).serial(),
    case!("nri/run-hides", "C", run_hides).serial(),
    case!("nri/run-fails", "C", run_fails).serial(),
    case!("nri/stop-order", "C", stop_order).serial(),
    case!("nri/create-hides", "C", create_hides).serial(),
    case!("nri/late-plugin", "C", late_plugin).serial(),
    case!("nri/no-loss", "C", no_loss).serial(),
    case!("nri/adjust", "K", adjust).serial(),
    case!("nri/plugin-dies", "K", plugin_dies).serial(),
];

/// How long an event may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A plugin that writes down what it hears, and does with a call what it is told to do.
#[derive(Default)]
struct Recorder {
    policy: FailurePolicy,
    heard: Mutex<Vec<Heard>>,
    synchronized: Mutex<Option<SynchronizeRequest>>,
    /// By call.
    deeds: Mutex<BTreeMap<&'static str, Deed>>,
}

/// What becomes of a call.
#[derive(Clone)]
enum Deed {
    /// Answered once the semaphore has a permit.
    Hold(Arc<Semaphore>),
    /// Refused once, and then answered.
    FailOnce,
    /// Never answered.
    Nothing,
    /// Answered so.
    Say(Box<Answer>),
}

impl Recorder {
    fn set(&self, call: &'static str, deed: Deed) {
        lock(&self.deeds).insert(call, deed);
    }

    /// Has a call wait until the semaphore that comes back gets a permit.
    fn hold(&self, call: &'static str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.set(call, Deed::Hold(gate.clone()));
        gate
    }

    async fn do_it(&self, call: &str) -> Result<Answer, String> {
        let deed = {
            let mut deeds = lock(&self.deeds);
            let deed = deeds.get(call).cloned();
            if let Some(Deed::FailOnce) = deed {
                deeds.remove(call);
            }
            deed
        };
        match deed {
            None => Ok(Answer::default()),
            Some(Deed::Hold(gate)) => {
                // It stays open.
                if let Ok(permit) = gate.acquire().await {
                    permit.forget();
                    gate.add_permits(1);
                }
                Ok(Answer::default())
            }
            Some(Deed::FailOnce) => Err("the check wants it to fail".into()),
            Some(Deed::Nothing) => std::future::pending().await,
            Some(Deed::Say(answer)) => Ok(*answer),
        }
    }

    /// What was heard of one pod: calls, with the name of the container.
    fn of(&self, pod: &str) -> Vec<String> {
        let heard = lock(&self.heard);
        let about = heard.iter().filter(|heard| heard.pod.as_ref().is_some_and(|known| known.id == pod));
        about
            .filter(|heard| heard.call != "ValidateContainerAdjustment")
            .map(|heard| match &heard.container {
                Some(container) => format!("{} {}", heard.call, container.name),
                None => heard.call.clone(),
            })
            .collect()
    }

    /// The first time that it heard this.
    async fn first(&self, call: &str) -> Result<Heard> {
        until(&format!("{call} at the plugin"), PATIENCE, async || {
            let found = lock(&self.heard).iter().find(|heard| heard.call == call).cloned();
            Ok(found.map_or(Found::Not("nothing of it".into()), Found::Yes))
        })
        .await
    }

    async fn hears(&self, pod: &str, expected: &[&str]) -> Result<()> {
        until(&format!("{expected:?} at the plugin"), PATIENCE, async || {
            let heard = self.of(pod);
            Ok(if heard == expected { Found::Yes(()) } else { Found::Not(format!("{heard:?}")) })
        })
        .await
    }
}

impl Plugin for Recorder {
    fn policy(&self) -> FailurePolicy {
        self.policy
    }

    fn synchronize(&self, everything: SynchronizeRequest) -> Work<'_, Result<Vec<ContainerUpdate>, String>> {
        Box::pin(async move {
            *lock(&self.synchronized) = Some(everything);
            self.do_it("Synchronize").await.map(|answer| answer.update)
        })
    }

    fn call(&self, heard: Heard) -> Work<'_, Result<Answer, String>> {
        Box::pin(async move {
            let call = heard.call.clone();
            lock(&self.heard).push(heard);
            self.do_it(&call).await
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects a plugin.
async fn connect(node: &Node, index: &str, plugin: &Arc<Recorder>) -> Result<Stub> {
    let Some(socket) = &node.run.nri_socket else { return skip("no --nri-socket was given") };
    let name = format!("check-{}", node.run.name);
    let stub = Stub::connect(socket, index, &name, plugin.clone()).await;
    stub.with_context(|| format!("could not register at {}", socket.display()))
}

/// Connects a plugin that is synchronised when this comes back.
async fn plugin(node: &Node) -> Result<(Arc<Recorder>, Stub)> {
    let plugin = Arc::new(Recorder::default());
    let stub = connect(node, "00", &plugin).await?;
    synchronized(&plugin).await?;
    Ok((plugin, stub))
}

async fn synchronized(plugin: &Recorder) -> Result<SynchronizeRequest> {
    until("Synchronize at the plugin", PATIENCE, async || {
        let found = lock(&plugin.synchronized).clone();
        Ok(found.map_or(Found::Not("nothing of it".into()), Found::Yes))
    })
    .await
}

async fn pod_order(node: Node) -> Result<()> {
    let (plugin, _stub) = plugin(&node).await?;
    let pod = node.pod("order").run().await?;
    let ip = pod.ip().await?;
    pod.stop().await?;
    pod.stop().await?;
    pod.remove().await?;
    plugin.hears(&pod.id, &["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]).await?;
    for heard in lock(&plugin.heard).iter().filter(|heard| heard.call.ends_with("PodSandbox")) {
        let told = heard.pod.clone().unwrap_or_default();
        if told.id != pod.id {
            continue;
        }
        let asked = pod.config.metadata.clone().unwrap_or_default();
        same!(
            (&told.name, &told.namespace, &told.uid),
            (&asked.name, &asked.namespace, &asked.uid),
            "name, namespace and uid at {}",
            heard.call
        );
        if heard.call == "RunPodSandbox" {
            same!(told.ips.first(), Some(&ip.to_string()), "ips");
            let namespaces = told.linux.unwrap_or_default().namespaces;
            let network = namespaces.iter().find(|namespace| namespace.r#type == "network");
            ensure!(network.is_some_and(|network| !network.path.is_empty()), "namespaces: {namespaces:?}");
        }
    }
    Ok(())
}

/// The events of one container that every runtime tells; those after the fact come and go between them.
fn main_events(heard: Vec<String>) -> Vec<String> {
    heard.into_iter().filter(|call| !call.starts_with("Post")).collect()
}

async fn container_order(node: Node) -> Result<()> {
    let (plugin, _stub) = plugin(&node).await?;
    let pod = node.pod("order").run().await?;
    let container = pod.container("main").start().await?;
    container.stop(0).await?;
    container.remove().await?;
    let expected = [
        "RunPodSandbox",
        "CreateContainer main",
        "StartContainer main",
        "StopContainer main",
        "RemoveContainer main",
    ];
    until("the container's events", PATIENCE, async || {
        let heard = main_events(plugin.of(&pod.id));
        Ok(if heard == expected { Found::Yes(()) } else { Found::Not(format!("{heard:?}")) })
    })
    .await
}

async fn self_exit(node: Node) -> Result<()> {
    let (plugin, _stub) = plugin(&node).await?;
    let pod = node.pod("exit").run().await?;
    pod.container("main").cmd(&["exit", "7"]).start().await?;
    let expected = ["RunPodSandbox", "CreateContainer main", "StartContainer main", "StopContainer main"];
    until("Stop without a call", PATIENCE, async || {
        let heard = main_events(plugin.of(&pod.id));
        Ok(if heard == expected { Found::Yes(()) } else { Found::Not(format!("{heard:?}")) })
    })
    .await
}

async fn run_hides(node: Node) -> Result<()> {
    let (plugin, _stub) = plugin(&node).await?;
    let gate = plugin.hold("RunPodSandbox");
    let spec = node.pod("hidden");
    let looking = async {
        let looked = async {
            let id = plugin.first("RunPodSandbox").await?.pod.unwrap_or_default().id;
            let listed = node.list_pods(v1::PodSandboxFilter::default()).await?;
            ensure!(!listed.iter().any(|pod| pod.id == id), "the sandbox is listed while its hook is held");
            let config = Default::default();
            let early = Pod { node: node.clone(), id, config }.container("early");
            match tokio::time::timeout(Duration::from_secs(1), early.try_create()).await {
                Ok(Err(_)) => Ok(()),
                Ok(Ok(_)) => bail!("a container was made in a sandbox that is not there yet"),
                Err(_) => bail!("CreateContainer waits for the hook"),
            }
        }
        .await;
        gate.add_permits(1);
        looked
    };
    let (pod, looked) = tokio::join!(spec.run(), looking);
    looked?;
    let pod = pod?;
    same!(pod.status().await?.state, v1::PodSandboxState::SandboxReady as i32, "state");
    pod.container("main").start().await?;
    Ok(())
}

async fn run_fails(node: Node) -> Result<()> {
    let (plugin, _stub) = plugin(&node).await?;
    plugin.set("RunPodSandbox", Deed::FailOnce);
    let spec = node.pod("fails");
    ensure!(spec.try_run().await.is_err(), "the hook's error does not fail the call");
    same!(node.own_pods().await?.len(), 0, "sandboxes after the failure");
    spec.run().await?;
    Ok(())
}

async fn stop_order(node: Node) -> Result<()> {
    let (plugin, _stub) = plugin(&node).await?;
    let gate = plugin.hold("StopPodSandbox");
    let pod = node.pod("stops").run().await?;
    let container = pod.container("main").start().await?;
    let looking = async {
        let looked = async {
            plugin.first("StopPodSandbox").await?;
            let listed = node.own_containers().await?;
            same!(listed.len(), 1, "containers that are listed at the hook");
            same!(container.status().await?.state, v1::ContainerState::ContainerExited as i32, "state");
            same!(pod.status().await?.id, pod.id, "status of the sandbox");
            let heard = main_events(plugin.of(&pod.id));
            ensure!(
                heard.contains(&"StopContainer main".to_owned()),
                "the container's end comes later: {heard:?}"
            );
            Ok(())
        }
        .await;
        gate.add_permits(1);
        looked
    };
    let (stopped, looked) = tokio::join!(pod.stop(), looking);
    looked?;
    stopped?;
    pod.stop().await?;
    ensure!(pod.container("late").try_create().await.is_err(), "a container is made in a stopped sandbox");
    let heard = plugin.of(&pod.id);
    let count = |call: &str| heard.iter().filter(|heard| heard.starts_with(call)).count();
    same!((count("StopPodSandbox"), count("CreateContainer")), (1, 1), "events of {heard:?}");
    Ok(())
}

async fn create_hides(node: Node) -> Result<()> {
    let (plugin, _stub) = plugin(&node).await?;
    let pod = node.pod("hidden").run().await?;
    let gate = plugin.hold("CreateContainer");
    let looking = async {
        let looked = async {
            let id = plugin.first("CreateContainer").await?.container.unwrap_or_default().id;
            same!(node.own_containers().await?.len(), 0, "containers that are listed while the hook is held");
            let status = node.container_status(&id).await;
            ensure!(
                !status.is_ok_and(|status| status.state == v1::ContainerState::ContainerCreated as i32),
                "it is CREATED while the hook is held"
            );
            Ok(())
        }
        .await;
        gate.add_permits(1);
        looked
    };
    let (container, looked) = tokio::join!(pod.container("main").create(), looking);
    looked?;
    container?.start().await?;
    plugin.set("CreateContainer", Deed::FailOnce);
    ensure!(pod.container("fails").try_create().await.is_err(), "the hook's error does not fail the call");
    same!(node.own_containers().await?.len(), 1, "containers after the failure");
    let started = plugin.of(&pod.id).into_iter().filter(|heard| heard == "StartContainer fails").count();
    same!(started, 0, "starts of a container that was not made");
    pod.container("fails").start().await?;
    Ok(())
}

async fn late_plugin(node: Node) -> Result<()> {
    if node.run.nri_socket.is_none() {
        return skip("no --nri-socket was given");
    }
    let pod = node.pod("early").run().await?;
    let running = pod.container("running").start().await?;
    let created = pod.container("created").create().await?;
    let plugin = Arc::new(Recorder::default());
    let _stub = connect(&node, "10", &plugin).await?;
    let there = synchronized(&plugin).await?;
    ensure!(there.pods.iter().any(|known| known.id == pod.id), "the pod is missing");
    for container in [&running, &created] {
        let found = there.containers.iter().find(|known| known.id == container.id);
        let found = found.with_context(|| format!("container {} is missing", container.id))?;
        same!(found.pod_sandbox_id, pod.id, "pod_sandbox_id");
    }
    Ok(())
}

async fn no_loss(node: Node) -> Result<()> {
    if node.run.nri_socket.is_none() {
        return skip("no --nri-socket was given");
    }
    let pod = node.pod("many").run().await?;
    let mut all = vec![pod.container("before").start().await?];
    let plugin = Arc::new(Recorder::default());
    let gate = plugin.hold("Synchronize");
    let _stub = connect(&node, "10", &plugin).await?;
    synchronized(&plugin).await?;
    let during: Vec<CtrSpec> = ["during-1", "during-2", "during-3"].map(|name| pod.container(name)).into();
    let made = futures_util::future::join_all(during.into_iter().map(CtrSpec::start));
    let release = async {
        // Longer than a plugin has for any other call.
        tokio::time::sleep(Duration::from_secs(3)).await;
        gate.add_permits(1);
    };
    let (made, ()) = tokio::join!(made, release);
    all.extend(made.into_iter().collect::<Result<Vec<Ctr>>>()?);
    all.push(pod.container("after").start().await?);
    let shown = synchronized(&plugin).await?.containers;
    let missing = |container: &Ctr| {
        let create = |heard: &Heard| {
            heard.call == "CreateContainer"
                && heard.container.as_ref().is_some_and(|known| known.id == container.id)
        };
        !shown.iter().any(|known| known.id == container.id) && !lock(&plugin.heard).iter().any(create)
    };
    until("all containers at the plugin", PATIENCE, async || {
        let missing: Vec<&str> = all
            .iter()
            .filter(|container| missing(container))
            .map(|container| container.id.as_str())
            .collect();
        Ok(if missing.is_empty() { Found::Yes(()) } else { Found::Not(format!("{missing:?} are missing")) })
    })
    .await
}

fn wanted(env: &str, more: impl FnOnce(&mut ContainerAdjustment)) -> Deed {
    let mut adjust = ContainerAdjustment {
        env: vec![KeyValue { key: env.into(), value: "set".into() }],
        ..ContainerAdjustment::default()
    };
    more(&mut adjust);
    Deed::Say(Box::new(Answer { adjust: Some(adjust), ..Answer::default() }))
}

fn shares(value: u64) -> LinuxResources {
    let shares = Some(OptionalUInt64 { value });
    LinuxResources { cpu: Some(LinuxCpu { shares, ..LinuxCpu::default() }), ..LinuxResources::default() }
}

async fn adjust(node: Node) -> Result<()> {
    let (first, _first) = plugin(&node).await?;
    let second = Arc::new(Recorder::default());
    let _second = connect(&node, "50", &second).await?;
    synchronized(&second).await?;
    let pod = node.pod("adjusted").run().await?;
    let other = pod.container("other").start().await?;
    let volume = node.folder("volume")?;
    std::fs::write(volume.join("file"), "from a plugin")?;
    first.set(
        "CreateContainer",
        wanted("FROM_FIRST", |adjust| {
            adjust.mounts.push(Mount {
                destination: "/plugged".into(),
                r#type: "bind".into(),
                source: volume.to_string_lossy().into_owned(),
                options: vec!["rbind".into(), "ro".into()],
            });
            adjust.annotations.insert("check.example/plugged".into(), "yes".into());
            let resources = Some(shares(555));
            adjust.linux = Some(LinuxContainerAdjustment { resources, ..Default::default() });
        }),
    );
    let update = ContainerUpdate {
        container_id: other.id.clone(),
        linux: Some(LinuxContainerUpdate { resources: Some(shares(777)) }),
        ignore_failure: false,
    };
    let Deed::Say(mut answer) = wanted("FROM_SECOND", |adjust| {
        let null = LinuxDevice {
            path: "/dev/plugged".into(),
            r#type: "c".into(),
            major: 1,
            minor: 3,
            file_mode: Some(OptionalFileMode { value: 0o666 }),
            ..LinuxDevice::default()
        };
        adjust.linux = Some(LinuxContainerAdjustment { devices: vec![null], ..Default::default() });
    }) else {
        bail!("unreachable");
    };
    answer.update.push(update);
    second.set("CreateContainer", Deed::Say(answer));
    let container = pod.container("main").start().await?;
    let pid = container.host_pid().await?;
    let environment = std::fs::read(format!("/proc/{pid}/environ"))?;
    let environment = String::from_utf8_lossy(&environment);
    for name in ["FROM_FIRST=set", "FROM_SECOND=set"] {
        ensure!(environment.split('\0').any(|line| line == name), "the environment lacks {name}");
    }
    let root = format!("/proc/{pid}/root");
    same!(std::fs::read_to_string(format!("{root}/plugged/file"))?, "from a plugin", "the mount's file");
    ensure!(std::fs::metadata(format!("{root}/dev/plugged")).is_ok(), "the device is missing");
    let set = container.status().await?.resources.and_then(|limits| limits.linux).unwrap_or_default();
    same!(set.cpu_shares, 555, "cpu_shares of the container");
    let set = other.status().await?.resources.and_then(|limits| limits.linux).unwrap_or_default();
    same!(set.cpu_shares, 777, "cpu_shares of the other container");
    second.set("CreateContainer", wanted("FROM_FIRST", |_| {}));
    match pod.container("conflict").try_create().await {
        Ok(_) => bail!("two plugins set the same variable"),
        Err(status) => ensure!(status.message().contains("00-check"), "no plugin is named: {status}"),
    }
    same!(node.own_containers().await?.len(), 2, "containers after the conflict");
    Ok(())
}

async fn plugin_dies(node: Node) -> Result<()> {
    let (silent, stub) = plugin(&node).await?;
    let pod = node.pod("goes-on").run().await?;
    silent.set("CreateContainer", Deed::Nothing);
    pod.container("past-silence").start().await.context("a silent plugin stops containers")?;
    crate::patience::timeout(PATIENCE, stub.ended()).await.context("a silent plugin stays connected")?;
    let (dying, stub) = plugin(&node).await?;
    dying.set("CreateContainer", Deed::Nothing);
    let leaving = async {
        dying.first("CreateContainer").await?;
        drop(stub);
        anyhow::Ok(())
    };
    let (made, left) = tokio::join!(pod.container("past-death").start(), leaving);
    left?;
    made.context("a plugin that dies stops containers")?;
    let policy = FailurePolicy { fail_request: true, keep_connected: false };
    let strict = Arc::new(Recorder { policy, ..Recorder::default() });
    let _stub = connect(&node, "00", &strict).await?;
    synchronized(&strict).await?;
    strict.set("CreateContainer", Deed::Nothing);
    match pod.container("strict").try_create().await {
        Err(_) => Ok(()),
        // Its policy came with 0.12.5.
        Ok(_) => bail!("the policy of a silent plugin, to fail requests, is not followed"),
    }
}
