//! Bringing a pod up.
//!
//! ```text
//!   record the intent, state folder --+-- CNI ADD -------------------+-- hosts file, record READY --+
//!                                     |                              |                              |
//!   network namespace ----------------+-- start and set up monitor --+-- commit --------------------+
//! ```
//!
//! With the systemd driver the monitor's scope is made between its start and its set-up (`scope.rs`), while the network
//! is attached.
//!
//! What stands below one another runs side by side. Whatever fails, [`undo`] takes down what may be there, in reverse; every part of
//! it is harmless for what is not there. If the network cannot be given back, the sandbox stays, NOTREADY, so that
//! its client stops and removes it later.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use bowline_cni::{PodNetworkRequest, PodRef, Prepared};
use bowline_linux::clone::Cloned;
use bowline_model::SandboxId;
use bowline_model::spec::{IdMapping, NamespaceMode, PodSpec, Protocol};
use bowline_monitor_proto::{Answer, IdRange, MonitorCgroup, PodLabels, Request, Setup, UserSetup};
use bowline_nri::Ticket;
use bowline_store::{NetworkRecord, PodLife, PodRecord, VERSION};
use tokio::sync::mpsc;

use crate::error::doing;
use crate::files::{self, PodFiles};
use crate::monitor::{self, Heard, Monitor};
use crate::operations::stage;
use crate::shared::{Shared, blocking, in_place};
use crate::spare::{Taken, Waiting};
use crate::{PodError, driver, netns, scope};

/// A pod that is up.
pub(crate) struct Up {
    pub record: PodRecord,
    pub monitor: Arc<Monitor>,
    pub heard: mpsc::Receiver<Heard>,
    /// Held until it is visible.
    pub ticket: Ticket,
}

/// How many events of one monitor may wait; a monitor that finds it full waits in its socket.
const EVENTS: usize = 64;

/// Whether what was made in advance is for this pod. One with users of its own makes its network itself: its user
/// namespace must own the network's.
pub(crate) fn takes_spare(spec: &PodSpec) -> bool {
    spec.security.namespaces.network != NamespaceMode::Node && crate::user::of_pod(spec).is_none()
}

/// Brings a pod up, or leaves nothing behind. `spare` was made in advance for this id.
pub(crate) async fn bring_up(
    shared: &Arc<Shared>,
    id: &SandboxId,
    spec: &Arc<PodSpec>,
    spare: Option<Taken>,
) -> Result<Up, (PodError, Option<PodRecord>)> {
    let driver = shared.config.cgroup_driver.driver;
    let cgroup = driver::pod_cgroup(driver, &shared.cgroup_root(), &spec.cgroup_parent, id);
    let cgroup = cgroup.map_err(|error| (error, None))?;
    let selinux = shared.selinux.label_pod(id, spec).map_err(|error| (error, None))?;
    let record = PodRecord {
        version: VERSION,
        boot: shared.host.boot.clone(),
        id: id.clone(),
        spec: (**spec).clone(),
        created_at: shared.created_now(),
        life: PodLife::Creating,
        cleaned: false,
        network: None,
        monitor: 0,
        // Of a scope those above it: it is systemd's, and goes with its unit.
        cgroup_made: missing_folders(shared, driver::slice_of(&cgroup, id).unwrap_or(&cgroup)),
        resources: Default::default(),
        selinux,
        cgroup,
    };
    let mut told = None;
    match steps(shared, record.clone(), spare, &mut told).await {
        Ok(up) => Ok(up),
        Err(error) => {
            tracing::warn!(pod = %id, error = %crate::chain(&error), "a pod could not be brought up");
            if let Some(told) = told {
                crate::nri::undo_pod(shared, &told).await;
            }
            Err((error, undo(shared, record).await))
        }
    }
}

/// Takes down what a failed or interrupted start may have left. The record that must stay, if the network does.
pub(crate) async fn undo(shared: &Arc<Shared>, mut record: PodRecord) -> Option<PodRecord> {
    match crate::stop_pod::take_down(shared, &record, None, &[]).await {
        Ok(()) => {
            let owner = shared.clone();
            let (shared, id) = (shared.clone(), record.id.clone());
            let removed = blocking("remove a pod's record", move || {
                shared.store.remove_pod(&id).map_err(doing("remove the pod's record"))
            });
            match removed.await {
                Ok(()) => owner.selinux.release(&record.id),
                Err(error) => {
                    tracing::error!(pod = %record.id, error = %crate::chain(&error), "a record is left behind");
                }
            }
            None
        }
        Err(error) => {
            tracing::error!(pod = %record.id, error = %crate::chain(&error), "a failed pod could not be taken down; it stays, not ready");
            record.life = PodLife::NotReady;
            if let Err(error) = shared.store.write_pod(&record) {
                tracing::error!(pod = %record.id, error = %crate::chain(&error), "could not record that");
            }
            Some(record)
        }
    }
}

/// How many folders at the end of a cgroup path are in no hierarchy yet: these go again with the pod.
fn missing_folders(shared: &Shared, path: &str) -> u32 {
    let there = |path: &str| {
        let exists = |root| rustix::fs::statat(root, path, rustix::fs::AtFlags::empty()).is_ok();
        shared.host.roots.iter().any(exists)
    };
    let mut rest = path;
    let mut missing = 0;
    while !rest.is_empty() && !there(rest) {
        missing += 1;
        rest = rest.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    missing
}

/// The hostname that the pod's processes see.
pub(crate) fn hostname(shared: &Shared, id: &SandboxId, spec: &PodSpec) -> String {
    if spec.security.namespaces.network == NamespaceMode::Node {
        shared.host.hostname.clone()
    } else if spec.hostname.is_empty() {
        id.short()
    } else {
        spec.hostname.clone()
    }
}

/// `told` becomes the record that plugins are told of, once they are.
async fn steps(
    shared: &Arc<Shared>,
    mut record: PodRecord,
    spare: Option<Taken>,
    told: &mut Option<PodRecord>,
) -> Result<Up, PodError> {
    let own_network = record.spec.security.namespaces.network != NamespaceMode::Node;
    crate::user::check_pod(shared, &record.spec)?;
    let own_users = crate::user::of_pod(&record.spec).is_some();
    // A namespace that only a descriptor keeps goes with us: it may come before the intent is recorded.
    let network = async {
        if !own_network || own_users {
            return Ok((None, None, None));
        }
        if let Some(taken) = spare
            && let Some(ready) = taken.arrived().await
        {
            return Ok((Some(Arc::new(ready.network)), ready.links, ready.monitor));
        }
        let make = || netns::make().map_err(doing("make a network namespace"));
        blocking("make a network namespace", make).await.map(|made| (Some(Arc::new(made)), None, None))
    };
    let (network, files) = tokio::join!(network, prepare(shared, &record));
    let ((network, links, waiting), files) = (network?, files?);
    let monitor = monitor_with_setup(shared, &record, &files, network.as_deref(), waiting);
    let (attached, started) = if own_users {
        // The pod's user namespace must own its network namespace, so the monitor makes both.
        let started = monitor.await?;
        let [_, network] = namespaces(&started.0.monitor).await?;
        (attach(shared, &record, Some(Arc::new(network)), links).await, Ok(started))
    } else {
        // The monitor first: it is at work while we are.
        let (started, attached) =
            tokio::join!(biased; monitor, attach(shared, &record, network.clone(), links));
        (attached, started)
    };
    let (mut uncommitted, heard, pid) = started?;
    record.monitor = pid;
    record.network = attached?;
    let monitor = uncommitted.monitor.clone();
    let ticket = shared.nri.begin();
    let asked = crate::nri::run_pod(shared, &ticket, &record).await;
    if shared.nri.active() {
        *told = Some(record.clone());
    }
    asked?;
    let _stage = stage("commit");
    // From here on it stays when we go: what is in its socket it reads before it sees the end. A record that cannot be
    // written still ends it.
    let commit = monitor.call(Request::Commit, &[]);
    record.life = PodLife::Ready;
    let written = {
        let (shared, record) = (shared.clone(), record.clone());
        in_place("record the pod", move || {
            write_names(&shared, &record)?;
            shared.store.write_pod(&record).map_err(doing("record the pod"))
        })
    };
    let (committed, written) = tokio::join!(biased; commit, written);
    if let Err(error) = written.and(expect_done(committed, "commit the pod's monitor")) {
        let _ = monitor.call(Request::Shutdown, &[]).await;
        return Err(error);
    }
    uncommitted.armed = false;
    Ok(Up { record, monitor, heard, ticket })
}

/// The intent, and the pod's folder. The intent comes first: whatever is made from here on can be found again by the id
/// that it holds.
async fn prepare(shared: &Arc<Shared>, record: &PodRecord) -> Result<PodFiles, PodError> {
    let _stage = stage("prepare");
    let (shared, record) = (shared.clone(), record.clone());
    in_place("prepare the pod", move || {
        shared.store.write_pod(&record).map_err(doing("record the pod"))?;
        files::make(&shared.config.state, &record.id).map_err(doing("make the pod's state folder"))
    })
    .await
}

async fn monitor_with_setup(
    shared: &Arc<Shared>,
    record: &PodRecord,
    files: &PodFiles,
    network: Option<&OwnedFd>,
    waiting: Option<Waiting>,
) -> Result<(Uncommitted, mpsc::Receiver<Heard>, i32), PodError> {
    let (monitor, heard, process) = start_monitor(shared, &record.id, waiting).await?;
    // The task that listens to the monitor keeps the connection; only hanging up ends both.
    let uncommitted = Uncommitted { monitor, armed: true };
    let pid = process.pid;
    // Before it has children, which are born where it is.
    let entered = scope::enter(shared, record, pid).await;
    // Only now: until it is waited for, its number is nobody else's.
    monitor::reap(process);
    entered?;
    set_up(shared, record, &uncommitted.monitor, files, network).await?;
    Ok((uncommitted, heard, pid))
}

fn write_names(shared: &Shared, record: &PodRecord) -> Result<(), PodError> {
    let ips = record.network.as_ref().map_or(&[][..], |network| &network.ips);
    let hostname = hostname(shared, &record.id, &record.spec);
    let label = shared.selinux.own_files(record);
    files::write_names(&shared.config.state, &record.id, &record.spec, &hostname, ips, label.as_deref())
        .map_err(doing("write the pod's hosts file"))
}

/// A monitor that must not outlive a failed start.
struct Uncommitted {
    monitor: Arc<Monitor>,
    armed: bool,
}

impl Drop for Uncommitted {
    fn drop(&mut self) {
        if self.armed {
            self.monitor.hang_up();
        }
    }
}

/// Talks to the monitor that waits for this pod, or starts one.
async fn start_monitor(
    shared: &Arc<Shared>,
    id: &SandboxId,
    waiting: Option<Waiting>,
) -> Result<(Arc<Monitor>, mpsc::Receiver<Heard>, Cloned), PodError> {
    let _stage = stage("start the monitor");
    let (process, socket) = match waiting.and_then(Waiting::go_on) {
        Some(there) => there,
        None => {
            let (shared, id) = (shared.clone(), id.to_string());
            let start = move || Waiting::start(&shared, &id);
            let gone = || PodError::failed("start the pod's monitor", "it ended at once");
            blocking("start the pod's monitor", start).await?.go_on().ok_or_else(gone)?
        }
    };
    let (send, heard) = mpsc::channel(EVENTS);
    let monitor = Monitor::attach(socket, send, true).map_err(doing("talk to the pod's monitor"))?;
    Ok((monitor, heard, process))
}

/// CNI ADD, for a pod with a network of its own.
async fn attach(
    shared: &Arc<Shared>,
    record: &PodRecord,
    network: Option<Arc<OwnedFd>>,
    links: Option<Prepared>,
) -> Result<Option<NetworkRecord>, PodError> {
    let Some(network) = network else { return Ok(None) };
    let _stage = stage("attach to the network");
    let (shared, id, spec) = (shared.clone(), record.id.clone(), record.spec.clone());
    let cgroup = format!("/{}", record.cgroup);
    in_place("attach the pod to the network", move || {
        let path = files::folder(&shared.config.state, &id).join("netns");
        let pinned = shared.cni.needs_netns_path();
        if pinned {
            netns::pin(&network, &path).map_err(doing("pin the pod's network namespace"))?;
        }
        let id = id.to_string();
        let ports = port_mappings(&spec)?;
        let dns = spec.dns.as_ref().map(|dns| bowline_cni::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        });
        let annotations: Vec<(String, String)> = spec.annotations.clone().into_iter().collect();
        let request = PodNetworkRequest {
            pod: pod_ref(&id, &spec),
            netns: network.as_fd(),
            netns_path: pinned.then_some(path.as_path()),
            if_name: netns::IF_NAME,
            port_mappings: &ports,
            dns: dns.as_ref(),
            bandwidth: None,
            cgroup_path: Some(&cgroup),
            annotations: &annotations,
            ips: &[],
            mac: None,
        };
        let added = shared.cni.add(&request, links).map_err(doing("attach the pod to the network"))?;
        Ok(Some(NetworkRecord {
            ips: added.ips.iter().map(ToString::to_string).collect(),
            result: added.result_json,
        }))
    })
    .await
}

/// How CNI names a pod.
pub(crate) fn pod_ref<'a>(id: &'a str, spec: &'a PodSpec) -> PodRef<'a> {
    let metadata = &spec.metadata;
    PodRef { sandbox_id: id, name: &metadata.name, namespace: &metadata.namespace, uid: &metadata.uid }
}

fn port_mappings(spec: &PodSpec) -> Result<Vec<bowline_cni::PortMapping>, PodError> {
    let published = spec.port_mappings.iter().filter(|mapping| mapping.host_port != 0);
    published
        .map(|mapping| {
            let host_ip = match mapping.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| {
                    PodError::Invalid(format!("port_mappings.host_ip: `{text}` is no IP address"))
                })?),
            };
            let protocol = match mapping.protocol {
                Protocol::Tcp => bowline_cni::Protocol::Tcp,
                Protocol::Udp => bowline_cni::Protocol::Udp,
                Protocol::Sctp => bowline_cni::Protocol::Sctp,
            };
            let (container_port, host_port) = (mapping.container_port, mapping.host_port);
            Ok(bowline_cni::PortMapping { protocol, container_port, host_port, host_ip })
        })
        .collect()
}

/// Tells the monitor what to build.
async fn set_up(
    shared: &Arc<Shared>,
    record: &PodRecord,
    monitor: &Monitor,
    files: &PodFiles,
    network: Option<&OwnedFd>,
) -> Result<(), PodError> {
    let _stage = stage("set the monitor up");
    let namespaces = &record.spec.security.namespaces;
    let host_network = namespaces.network == NamespaceMode::Node;
    let own_ipc = namespaces.ipc != NamespaceMode::Node;
    let text = |text: String| {
        CString::new(text).map_err(|_| PodError::Invalid("a name of the pod has a NUL inside".into()))
    };
    let sysctls = record
        .spec
        .sysctls
        .iter()
        .map(|(name, value)| Ok((text(name.replace('.', "/"))?, text(value.clone())?)));
    let monitors = text(shared.monitors_cgroup())?;
    // Where somebody else has made it, the kubelet as a rule, or systemd, there is nothing to do in advance.
    let ours = record.cgroup_made > 0 && driver::slice_of(&record.cgroup, &record.id).is_none();
    let group = if ours { record.cgroup.clone() } else { String::new() };
    // It is born in the folder of cgroup v2.
    let unified = shared.host.layout.unified();
    let joined = (0..shared.host.roots.len() as u8).filter(|hierarchy| Some(*hierarchy) != unified);
    let labels = record.selinux.as_ref().map(|labels| {
        Ok::<_, PodError>(PodLabels {
            mount: text(labels.mount.clone())?,
            process: text(labels.process.clone())?,
        })
    });
    let setup = Setup {
        sandbox: record.id.to_string(),
        layers: text(format!("{}/images/layers", crate::base::STORE))?,
        shm_size: if own_ipc { shared.config.shm_size } else { 0 },
        network: network.is_some(),
        own_ipc,
        hostname: if host_network { None } else { Some(text(hostname(shared, &record.id, &record.spec))?) },
        shared_pids: namespaces.pid == NamespaceMode::Pod,
        sysctls: sysctls.collect::<Result<_, PodError>>()?,
        hierarchies: shared.host.roots.len() as u8,
        unified,
        memory: shared.host.memory(),
        cgroups: joined.map(|hierarchy| MonitorCgroup { hierarchy, path: monitors.clone() }).collect(),
        group: text(group)?,
        user: crate::user::of_pod(&record.spec)
            .map(|user| UserSetup { uids: range(&user.uids), gids: range(&user.gids) }),
        labels: labels.transpose()?,
    };
    let mut descriptors =
        vec![shared.base.as_fd(), files.exits.as_fd(), files.listener.as_fd(), shared.null.as_fd()];
    descriptors.extend(network.map(|network| network.as_fd()));
    descriptors.extend(shared.host.roots.iter().map(|root| root.as_fd()));
    expect_done(monitor.call(Request::Setup { setup }, &descriptors).await, "set the pod up")
}

fn range(mapping: &IdMapping) -> IdRange {
    IdRange { inside: mapping.container_id, outside: mapping.host_id, length: mapping.length }
}

/// The pod's user namespace and the network namespace that it owns, of its monitor.
pub(crate) async fn namespaces(monitor: &Monitor) -> Result<[OwnedFd; 2], PodError> {
    let what = "ask the pod's monitor for its user namespace";
    let (answer, descriptors) = monitor.call(Request::Namespaces, &[]).await.map_err(doing(what))?;
    <[OwnedFd; 2]>::try_from(descriptors)
        .map_err(|_| PodError::failed(what, format!("the monitor answered {answer:?}")))
}

/// Anything but success is an error that says what the monitor said.
pub(crate) fn expect_done(
    answer: Result<(Answer, Vec<OwnedFd>), monitor::MonitorError>,
    what: &str,
) -> Result<(), PodError> {
    match answer.map_err(doing(what))?.0 {
        Answer::Done | Answer::Launched { .. } => Ok(()),
        // What the kernel says when `max_user_namespaces` is reached (user_namespaces(7)).
        Answer::Failed { errno, text, .. } if errno == rustix::io::Errno::NOSPC.raw_os_error() => {
            Err(PodError::Full(format!("could not {what}: {text}; see /proc/sys/user/max_*_namespaces")))
        }
        Answer::Failed { text, .. } => Err(PodError::failed(what, text)),
        Answer::Refused { why } => Err(PodError::failed(what, format!("the monitor refused: {why:?}"))),
        other => Err(PodError::failed(what, format!("the monitor answered {other:?}"))),
    }
}
