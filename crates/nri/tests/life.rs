//! Plugins that come and go, answer and do not, against a runtime in name only.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bowline_nri::api::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, Event, FailurePolicy, KeyValue,
    PodSandbox, SynchronizeRequest, UpdateContainersRequest,
};
use bowline_nri::stub::{Answer, Heard, Plugin, Stub};
use bowline_nri::{Adjustment, Nri, NriConfig, NriError, Runtime, Work};
use tokio::net::UnixListener;
use tokio::sync::{Notify, Semaphore};

/// A runtime with these containers.
#[derive(Default)]
struct World {
    containers: Mutex<BTreeSet<String>>,
    updated: Mutex<Vec<String>>,
    evicted: Mutex<Vec<String>>,
}

impl Runtime for World {
    fn snapshot(&self, without: BTreeSet<String>) -> Work<'_, (Vec<PodSandbox>, Vec<Container>)> {
        let there = self.containers.lock().unwrap().difference(&without).cloned().collect::<Vec<_>>();
        let containers = there.into_iter().map(|id| container(&id)).collect();
        Box::pin(async move { (Vec::new(), containers) })
    }

    fn update(&self, update: ContainerUpdate) -> Work<'_, Result<(), String>> {
        Box::pin(async move {
            if !self.containers.lock().unwrap().contains(&update.container_id) {
                return Err("there is none".into());
            }
            self.updated.lock().unwrap().push(update.container_id);
            Ok(())
        })
    }

    fn evict(&self, eviction: ContainerEviction) -> Work<'_, Result<(), String>> {
        self.evicted.lock().unwrap().push(eviction.container_id);
        Box::pin(async { Ok(()) })
    }
}

fn container(id: &str) -> Container {
    Container { id: id.into(), name: id.into(), ..Container::default() }
}

type Said = Result<Answer, String>;

/// A plugin that writes down what it hears.
struct Recorder {
    policy: FailurePolicy,
    heard: Mutex<Vec<String>>,
    more: Notify,
    /// Closed: Synchronize waits.
    gate: Semaphore,
    answers: Mutex<BTreeMap<&'static str, Said>>,
    silent_on: Mutex<BTreeSet<&'static str>>,
}

impl Recorder {
    fn new() -> Arc<Recorder> {
        Recorder::with(FailurePolicy::default())
    }

    fn with(policy: FailurePolicy) -> Arc<Recorder> {
        Arc::new(Recorder {
            policy,
            heard: Mutex::default(),
            more: Notify::new(),
            gate: Semaphore::new(1),
            answers: Mutex::default(),
            silent_on: Mutex::default(),
        })
    }

    fn hear(&self, what: String) {
        self.heard.lock().unwrap().push(what);
        self.more.notify_waiters();
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    async fn wait_for(&self, what: &str) {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if self.heard().iter().any(|heard| heard == what) {
                return;
            }
            more.await;
        }
    }

    fn answer(&self, method: &'static str, answer: Said) {
        self.answers.lock().unwrap().insert(method, answer);
    }

    fn be_silent_on(&self, method: &'static str) {
        self.silent_on.lock().unwrap().insert(method);
    }
}

impl Plugin for Recorder {
    fn policy(&self) -> FailurePolicy {
        self.policy
    }

    fn synchronize(&self, everything: SynchronizeRequest) -> Work<'_, Result<Vec<ContainerUpdate>, String>> {
        Box::pin(async move {
            let ids: Vec<String> = everything.containers.into_iter().map(|one| one.id).collect();
            self.hear(format!("Synchronize {}", ids.join(",")));
            let _open = self.gate.acquire().await;
            Ok(Vec::new())
        })
    }

    fn call(&self, heard: Heard) -> Work<'_, Said> {
        Box::pin(async move {
            let Heard { call, pod, container, .. } = heard;
            let id = container.map(|container| container.id).or(pod.map(|pod| pod.id));
            self.hear(format!("{call} {}", id.unwrap_or_default()));
            let silent = self.silent_on.lock().unwrap().contains(call.as_str());
            if silent {
                std::future::pending::<()>().await;
            }
            self.answers.lock().unwrap().get(call.as_str()).cloned().unwrap_or(Ok(Answer::default()))
        })
    }
}

struct Daemon {
    nri: Nri,
    world: Arc<World>,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Daemon {
    async fn start(change: impl FnOnce(&mut NriConfig)) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let mut config = NriConfig::new("1.0");
        config.plugin_folder = folder.path().join("plugins");
        config.request_timeout = Duration::from_secs(2);
        change(&mut config);
        let socket = folder.path().join("nri.sock");
        let (nri, world) = (Nri::new(Some(config)), Arc::new(World::default()));
        nri.start(world.clone(), Some(UnixListener::bind(&socket).unwrap())).await;
        Daemon { nri, world, socket, _folder: folder }
    }

    async fn connect(&self, index: &str, name: &str, plugin: &Arc<Recorder>) -> Stub {
        Stub::connect(&self.socket, index, name, plugin.clone()).await.unwrap()
    }

    /// Connects a plugin and waits until it is synchronised.
    async fn join(&self, index: &str, name: &str, plugin: &Arc<Recorder>) -> Stub {
        let stub = self.connect(index, name, plugin).await;
        self.until(|| self.nri.plugins().iter().any(|known| known.name == format!("{index}-{name}"))).await;
        // Its queue is free once Synchronize is over: something that only tells goes through it.
        self.nri.tell(Event::PostUpdatePodSandbox, &PodSandbox::default(), None).await;
        plugin.heard.lock().unwrap().clear();
        stub
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        while !condition() {
            tokio::task::yield_now().await;
        }
    }

    /// Makes a container, as pods do.
    async fn create(&self, id: &str) -> Result<Option<Adjustment>, NriError> {
        let ticket = self.nri.begin();
        let made = self.nri.create_container(&ticket, || (PodSandbox::default(), container(id))).await?;
        self.world.containers.lock().unwrap().insert(id.to_owned());
        drop(ticket);
        Ok(made)
    }
}

fn adjustment(key: &str, value: &str) -> Said {
    let env = vec![KeyValue { key: key.into(), value: value.into() }];
    let adjust = Some(ContainerAdjustment { env, ..ContainerAdjustment::default() });
    Ok(Answer { adjust, ..Answer::default() })
}

#[tokio::test]
async fn with_nobody_there_nothing_is_asked() {
    let daemon = Daemon::start(|_| {}).await;
    assert!(!daemon.nri.active());
    assert!(daemon.create("c").await.unwrap().is_none());
    let none = Nri::new(None);
    let made = none.create_container(&none.begin(), || panic!("nobody wants to know")).await;
    assert!(made.unwrap().is_none());
}

#[tokio::test]
async fn plugins_are_asked_in_the_order_of_their_indices() {
    let daemon = Daemon::start(|_| {}).await;
    let (first, second) = (Recorder::new(), Recorder::new());
    let _two = daemon.join("20", "b", &second).await;
    let _one = daemon.join("10", "a", &first).await;
    let names: Vec<String> = daemon.nri.plugins().into_iter().map(|plugin| plugin.name).collect();
    assert_eq!(names, ["10-a", "20-b"]);
    first.answer("CreateContainer", adjustment("A", "1"));
    second.answer("CreateContainer", adjustment("B", "2"));
    let adjust = daemon.create("c").await.unwrap().unwrap();
    let env: Vec<&str> = adjust.wanted.env.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(env, ["A", "B"]);
    second.answer("CreateContainer", adjustment("A", "2"));
    let error = daemon.create("d").await.unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("10-a and 20-b"), "{text}");
}

#[tokio::test]
async fn an_error_of_a_plugin_fails_the_call_and_keeps_the_plugin() {
    let daemon = Daemon::start(|_| {}).await;
    let plugin = Recorder::new();
    let _stub = daemon.join("10", "a", &plugin).await;
    plugin.answer("CreateContainer", Err("not today".into()));
    let error = daemon.create("c").await.unwrap_err();
    assert!(matches!(&error, NriError::Plugin { plugin, .. } if plugin == "10-a"), "{error}");
    plugin.answer("CreateContainer", Ok(Answer::default()));
    daemon.create("c").await.unwrap();
    assert_eq!((daemon.nri.plugins().len(), daemon.nri.dropped()), (1, 0));
}

#[tokio::test]
async fn a_silent_plugin_is_dropped_and_the_call_goes_on() {
    let daemon = Daemon::start(|config| config.request_timeout = Duration::from_millis(100)).await;
    let (silent, other) = (Recorder::new(), Recorder::new());
    let stub = daemon.join("10", "a", &silent).await;
    let _other = daemon.join("20", "b", &other).await;
    silent.be_silent_on("CreateContainer");
    daemon.create("c").await.unwrap();
    stub.ended().await;
    daemon.until(|| daemon.nri.plugins().len() == 1).await;
    assert_eq!(daemon.nri.dropped(), 1);
    assert!(other.heard().contains(&"CreateContainer c".to_owned()));
}

#[tokio::test]
async fn a_plugin_may_want_calls_to_fail_with_it_and_to_stay() {
    let daemon = Daemon::start(|config| config.request_timeout = Duration::from_millis(100)).await;
    let plugin = Recorder::with(FailurePolicy { fail_request: true, keep_connected: true });
    let _stub = daemon.join("10", "a", &plugin).await;
    plugin.be_silent_on("CreateContainer");
    assert!(daemon.create("c").await.is_err());
    plugin.silent_on.lock().unwrap().clear();
    daemon.create("c").await.expect("it is there and answers");
    assert_eq!((daemon.nri.plugins().len(), daemon.nri.dropped()), (1, 0));
}

#[tokio::test]
async fn no_container_is_made_without_a_required_plugin() {
    let daemon = Daemon::start(|config| {
        config.request_timeout = Duration::from_millis(100);
        config.required_plugins = vec!["a".into()];
    })
    .await;
    let error = daemon.create("c").await.unwrap_err();
    assert!(matches!(error, NriError::Rejected { .. }), "{error}");
    let plugin = Recorder::new();
    let _stub = daemon.join("10", "a", &plugin).await;
    daemon.create("c").await.unwrap();
    // It is dropped while it is asked, and has not seen the container.
    plugin.be_silent_on("CreateContainer");
    assert!(matches!(daemon.create("d").await, Err(NriError::Rejected { .. })));
    assert!(matches!(daemon.create("e").await, Err(NriError::Rejected { .. })));
}

#[tokio::test]
async fn nobody_is_lost_while_a_plugin_joins() {
    let daemon = Daemon::start(|_| {}).await;
    let old = Recorder::new();
    let _old = daemon.join("00", "old", &old).await;
    daemon.create("before").await.unwrap();

    // Committed, and not visible yet.
    let committed = daemon.nri.begin();
    let describe = || (PodSandbox::default(), container("committed"));
    daemon.nri.create_container(&committed, describe).await.unwrap();
    // Asked of the plugin that is there, and not committed: it does not answer yet.
    let late = Recorder::new();
    let held = late.gate.acquire().await.unwrap();
    let _late = daemon.connect("10", "late", &late).await;
    daemon.until(|| daemon.nri.plugins().len() == 2).await;
    let during = daemon.create("during");
    tokio::pin!(during);
    tokio::select! {
        biased;
        _ = &mut during => panic!("it does not wait for Synchronize"),
        () = old.wait_for("CreateContainer during") => {}
    }
    assert_eq!(late.heard(), Vec::<String>::new(), "Synchronize waits for what is committed");
    daemon.world.containers.lock().unwrap().insert("committed".into());
    drop(committed);
    tokio::select! {
        _ = &mut during => panic!("it does not wait for Synchronize"),
        () = late.wait_for("Synchronize before,committed") => {}
    }
    drop(held);
    during.await.unwrap();
    daemon.create("after").await.unwrap();
    let creates: Vec<String> =
        late.heard().into_iter().filter(|heard| heard.starts_with("CreateContainer")).collect();
    assert_eq!(creates, ["CreateContainer during", "CreateContainer after"]);
}

#[tokio::test]
async fn what_is_on_its_way_out_is_not_shown() {
    let daemon = Daemon::start(|_| {}).await;
    daemon.create("stays").await.unwrap();
    daemon.create("goes").await.unwrap();
    daemon.nri.leaving("goes");
    let plugin = Recorder::new();
    let _stub = daemon.connect("10", "a", &plugin).await;
    plugin.wait_for("Synchronize stays").await;
}

#[tokio::test]
async fn plugins_may_ask_for_changes() {
    let daemon = Daemon::start(|_| {}).await;
    daemon.create("there").await.unwrap();
    let plugin = Recorder::new();
    let stub = daemon.join("10", "a", &plugin).await;
    let update = |id: &str| ContainerUpdate { container_id: id.into(), ..ContainerUpdate::default() };
    let request = UpdateContainersRequest {
        update: vec![update("there"), update("missing")],
        evict: vec![ContainerEviction { container_id: "there".into(), reason: "why not".into() }],
    };
    let failed = stub.update_containers(&request).await.unwrap();
    assert_eq!(failed, [update("missing")]);
    assert_eq!(*daemon.world.updated.lock().unwrap(), ["there"]);
    assert_eq!(*daemon.world.evicted.lock().unwrap(), ["there"]);
}

#[tokio::test]
async fn bad_names_do_not_register() {
    let daemon = Daemon::start(|config| config.registration_timeout = Duration::from_millis(200)).await;
    for (index, name) in [("1", "a"), ("10", "a/b"), ("xx", "a"), ("10", "")] {
        let refused = Stub::connect(&daemon.socket, index, name, Recorder::new()).await;
        assert!(refused.is_err(), "{index}-{name}");
    }
    // One that says nothing is not waited for for ever.
    let quiet = tokio::net::UnixStream::connect(&daemon.socket).await.unwrap();
    quiet.readable().await.unwrap();
    let mut byte = [0];
    assert_eq!(quiet.try_read(&mut byte).unwrap(), 0, "it is hung up on");
}
