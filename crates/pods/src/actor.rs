//! One pod's task: it alone changes the pod's state.
//!
//! Commands are taken in order and begun at once; what takes time runs as a task whose result comes back as
//! [`Done`]. So a stop that waits for a grace period holds up nobody, and whoever asks for the same thing twice waits
//! for the same result. Every way out of an operation answers those who wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bowline_launch_plan::LaunchPlan;
use bowline_model::container::{Effect, Event, Exit, Life};
use bowline_model::spec::{ContainerSpec, NamespaceMode, PodSpec, Resources};
use bowline_model::{ContainerId, SandboxId};
use bowline_monitor_proto::{self as proto, Pids, Request, slot::MAX_SLOTS};
use bowline_plan::Compiled;
use bowline_store::{ContainerRecord, LifeRecord, PodLife, PodRecord};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use crate::connect::Network;
use crate::create::{Made, Order};
use crate::error::doing;
use crate::events::PodEventKind;
use crate::exec::Ticket;
use crate::hold::Hold;
use crate::monitor::{Heard, Monitor};
use crate::nri::{Change, Turns};
use crate::shared::{Shared, blocking, in_place, now, random_id};
use crate::spare::Taken;
use crate::start::{Started, start};
use crate::view::PodView;
use crate::{PodError, checkpoint, operations, run_pod, stop_pod};

mod checkpointing;
mod containers;
mod plugins;
mod pod;
mod removing;
mod starting;

pub(crate) use pod::{exit_without_monitor, kill_leftovers};

pub(crate) type Reply<T> = oneshot::Sender<Result<T, PodError>>;

/// Commands that may wait; a caller that finds the queue full waits with its call.
const COMMANDS: usize = 64;
/// The most containers of a pod, those that have ended included.
const MAX_CONTAINERS: usize = 512;

/// What an actor is asked.
pub(crate) enum Command {
    Create {
        spec: Box<ContainerSpec>,
        /// An archive of a pod's checkpoint.
        restore: Option<PathBuf>,
        reply: Reply<ContainerId>,
    },
    /// Writes running containers; `all`: they must be all that run.
    Checkpoint {
        ids: Vec<ContainerId>,
        all: bool,
        order: checkpoint::Order,
        deadline: Option<std::time::Instant>,
        reply: Reply<()>,
    },
    Start {
        id: ContainerId,
        reply: Reply<()>,
    },
    Stop {
        id: ContainerId,
        kill_at: i64,
        reply: Reply<()>,
    },
    Remove {
        id: ContainerId,
        reply: Reply<()>,
    },
    ReopenLog {
        id: ContainerId,
        reply: Reply<()>,
    },
    Exec {
        id: ContainerId,
        reply: Reply<Ticket>,
    },
    Network {
        reply: Reply<Network>,
    },
    Update {
        id: ContainerId,
        resources: Box<Resources>,
        /// Who wants it: a plugin, which is not asked about it, or a client.
        by_plugin: Option<Box<Change>>,
        reply: Reply<()>,
    },
    UpdatePod {
        overhead: Option<Box<Resources>>,
        sum: Option<Box<Resources>>,
        reply: Reply<()>,
    },
    StopPod {
        reply: Reply<()>,
    },
    RemovePod {
        reply: Reply<()>,
    },
    /// Answered once nothing is under way.
    Quiesce {
        reply: oneshot::Sender<()>,
    },
}

/// A command, and the span that its work belongs to.
pub(crate) struct Asked(Command, Span);

impl Asked {
    /// By whoever asks just now.
    pub fn now(command: Command) -> Asked {
        Asked(command, Span::current())
    }
}

/// How others reach an actor.
#[derive(Clone)]
pub(crate) struct ActorHandle {
    pub id: SandboxId,
    pub spec: Arc<PodSpec>,
    pub commands: mpsc::Sender<Asked>,
    /// How bringing it up went, once that is known.
    pub born: watch::Receiver<Option<Result<(), PodError>>>,
}

/// Results of what runs beside the actor.
enum Done {
    Created {
        key: (String, u32),
        result: Result<Box<Made>, PodError>,
    },
    Started {
        id: ContainerId,
        result: Result<Started, (Exit, PodError)>,
    },
    Removed {
        id: ContainerId,
        result: Result<(), PodError>,
    },
    Updated {
        id: ContainerId,
        result: Result<Resources, PodError>,
        /// Plugins are told of it.
        tell: bool,
        reply: Reply<()>,
    },
    /// Plugins have been asked about the limits of the pod.
    PodUpdateAsked {
        overhead: Option<Box<Resources>>,
        sum: Option<Box<Resources>>,
        result: Result<(), PodError>,
        reply: Reply<()>,
    },
    /// Plugins have been told that the pod goes.
    RemovalTold,
    TakenDown {
        result: Result<(), PodError>,
    },
    /// Answered its caller itself.
    Nothing,
}

pub(crate) struct Container {
    pub record: ContainerRecord,
    pub spec: Arc<ContainerSpec>,
    pub life: Life,
    compiled: Option<Arc<Compiled>>,
    /// Its launch in advance.
    hold: Option<Hold>,
    /// The plan of a running container, for execs.
    plan: Option<Arc<LaunchPlan>>,
    starting: Vec<Reply<()>>,
    stopping: Vec<Reply<()>>,
    removing: Vec<Reply<()>>,
    /// Who wants it removed.
    remover: Span,
    /// The removal itself runs.
    removal: bool,
    wake_at: Option<i64>,
    /// The stop that is under way.
    stop: Option<operations::Guard>,
    /// Plugins have been told that it has ended.
    told_stop: bool,
    /// Plugins have been told that it goes.
    told_removal: bool,
}

/// A container on its way to be.
struct Creating {
    spec: Arc<ContainerSpec>,
    slot: u16,
    waiting: Vec<Reply<ContainerId>>,
}

pub(crate) struct Actor {
    shared: Arc<Shared>,
    spec: Arc<PodSpec>,
    record: PodRecord,
    monitor: Option<Arc<Monitor>>,
    heard: Option<mpsc::Receiver<Heard>>,
    commands: mpsc::Receiver<Asked>,
    containers: BTreeMap<ContainerId, Container>,
    creating: BTreeMap<(String, u32), Creating>,
    slots: BTreeSet<u16>,
    tasks: JoinSet<Done>,
    /// Those who wait for the pod to be down.
    stop_waiting: Vec<Reply<()>>,
    /// Those who wait for it to be gone.
    remove_waiting: Vec<Reply<()>>,
    quiesce: Vec<oneshot::Sender<()>>,
    /// Somebody wants it down; nothing new begins.
    stopping: bool,
    /// Who, until it is.
    ending: Span,
    /// The clean-up runs.
    taking_down: bool,
    gone: bool,
    /// The order of what plugins are told.
    turns: Turns,
    /// Plugins have been told that it is down.
    told_stop: bool,
    /// Plugins have been told that it goes; no, they are being told, yes.
    told_removal: Option<bool>,
}

/// Starts the actor of a new pod, which brings the pod up first of all.
pub(crate) fn spawn(
    shared: Arc<Shared>,
    id: SandboxId,
    spec: Arc<PodSpec>,
    spare: Option<Taken>,
) -> ActorHandle {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (tell, born) = watch::channel(None);
    let handle = ActorHandle { id: id.clone(), spec: spec.clone(), commands, born };
    let cause = Span::current();
    tokio::spawn(async move {
        let up = run_pod::bring_up(&shared, &id, &spec, spare);
        let up = cause.in_scope(|| shared.operations.run("RunPodSandbox", &id, &spec.metadata.name, up));
        // The pod outlives the call by far.
        drop(cause);
        match up.await {
            Ok(up) => {
                let actor = Actor::new(shared, spec, up.record, Some((up.monitor, up.heard)), receiver);
                actor.show();
                drop(up.ticket);
                actor.tell(PodEventKind::Created);
                actor.tell(PodEventKind::Started);
                tell.send_replace(Some(Ok(())));
                actor.serve().await;
            }
            Err((error, Some(record))) => {
                let mut actor = Actor::new(shared, spec, record, None, receiver);
                actor.told_stop = true;
                actor.show();
                actor.tell(PodEventKind::Created);
                tell.send_replace(Some(Err(error)));
                actor.serve().await;
            }
            Err((error, None)) => {
                forget(&shared, &id, &spec);
                tell.send_replace(Some(Err(error)));
            }
        }
    });
    handle
}

/// Starts the actor of a pod that was there before this daemon.
pub(crate) fn adopt(
    shared: Arc<Shared>,
    record: PodRecord,
    monitor: Option<(Arc<Monitor>, mpsc::Receiver<Heard>)>,
    containers: Vec<(ContainerRecord, Life)>,
) {
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let (_, born) = watch::channel(Some(Ok(())));
    let spec = Arc::new(record.spec.clone());
    let handle = ActorHandle { id: record.id.clone(), spec: spec.clone(), commands, born };
    let mut actor = Actor::new(shared.clone(), spec.clone(), record, monitor, receiver);
    for (record, life) in containers {
        actor.slots.insert(record.slot);
        actor.put(record, life, None, None);
    }
    actor.show();
    {
        let mut actors = shared.actors();
        actors.by_name.insert(spec.metadata.clone(), handle.clone());
        actors.by_id.insert(handle.id.clone(), handle);
    }
    tokio::spawn(actor.serve());
}

fn forget(shared: &Shared, id: &SandboxId, spec: &PodSpec) {
    let mut actors = shared.actors();
    actors.by_id.remove(id);
    if actors.by_name.get(&spec.metadata).is_some_and(|handle| handle.id == *id) {
        actors.by_name.remove(&spec.metadata);
    }
}

impl Actor {
    fn new(
        shared: Arc<Shared>,
        spec: Arc<PodSpec>,
        record: PodRecord,
        monitor: Option<(Arc<Monitor>, mpsc::Receiver<Heard>)>,
        commands: mpsc::Receiver<Asked>,
    ) -> Actor {
        let (monitor, heard) = monitor.unzip();
        Actor {
            shared,
            spec,
            record,
            monitor,
            heard,
            commands,
            containers: BTreeMap::new(),
            creating: BTreeMap::new(),
            slots: BTreeSet::new(),
            tasks: JoinSet::new(),
            stop_waiting: Vec::new(),
            remove_waiting: Vec::new(),
            quiesce: Vec::new(),
            stopping: false,
            ending: Span::none(),
            taking_down: false,
            gone: false,
            turns: Turns::default(),
            told_stop: false,
            told_removal: None,
        }
    }

    async fn serve(mut self) {
        // A start that a dead daemon began and the monitor never heard of ends here.
        self.settle_orphans();
        while !self.gone {
            let wake = self.containers.values().filter_map(|container| container.wake_at).min();
            let sleep =
                wake.map(|at| Instant::now() + Duration::from_nanos(u64::try_from(at - now()).unwrap_or(0)));
            tokio::select! {
                heard = next(&mut self.heard) => self.hear(heard),
                command = self.commands.recv() => match command {
                    Some(Asked(command, span)) => span.in_scope(|| self.obey(command)),
                    // Every handle is gone: the daemon ends.
                    None => break,
                },
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => match done {
                    Ok(done) => self.finish(done),
                    Err(error) => tracing::error!(pod = %self.record.id, %error, "a step of a pod failed badly"),
                },
                () = tokio::time::sleep_until(sleep.unwrap_or_else(Instant::now)), if sleep.is_some() => self.tick(),
            }
            self.go_on();
        }
        forget(&self.shared, &self.record.id, &self.spec);
        for reply in self.remove_waiting.drain(..).chain(self.stop_waiting.drain(..)) {
            let _ = reply.send(Ok(()));
        }
    }

    /// Has something done beside the actor, for whoever is being served.
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.tasks.spawn(work.in_current_span());
    }

    /// The same for somebody who asked earlier.
    fn spawn_for(&mut self, cause: Span, work: impl Future<Output = Done> + Send + 'static) {
        self.tasks.spawn(work.instrument(cause));
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Create { spec, restore, reply } => self.create(*spec, restore, reply),
            Command::Checkpoint { ids, all, order, deadline, reply } => {
                self.checkpoint(&ids, all, order, deadline, reply);
            }
            Command::Start { id, reply } => self.start(&id, reply),
            Command::Stop { id, kill_at, reply } => self.stop(&id, kill_at, reply),
            Command::Remove { id, reply } => self.remove(&id, reply),
            Command::ReopenLog { id, reply } => self.reopen_log(&id, reply),
            Command::Exec { id, reply } => drop(reply.send(self.ticket(&id))),
            Command::Network { reply } => drop(reply.send(self.network())),
            Command::Update { id, resources, by_plugin, reply } => {
                self.update(&id, *resources, by_plugin, reply);
            }
            Command::UpdatePod { overhead, sum, reply } => self.update_pod(overhead, sum, reply),
            Command::StopPod { reply } => self.stop_pod(reply),
            Command::RemovePod { reply } => self.remove_pod(reply),
            Command::Quiesce { reply } => self.quiesce.push(reply),
        }
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Created { key, result } => self.created(key, result),
            Done::Started { id, result } => self.started(&id, result),
            Done::Removed { id, result } => self.removed(&id, result),
            Done::Updated { id, result, tell, reply } => self.updated(&id, result, tell, reply),
            Done::PodUpdateAsked { overhead, sum, result, reply } => {
                self.pod_update_asked(overhead, sum, result, reply);
            }
            Done::RemovalTold => self.told_removal = Some(true),
            Done::TakenDown { result } => self.taken_down(result),
            Done::Nothing => {}
        }
    }

    fn hear(&mut self, heard: Option<Heard>) {
        match heard {
            Some(Heard::Event(proto::Event::ContainerExited { container, started_at, exit })) => {
                let id = ContainerId::from_bytes(container);
                let never_ran = started_at == 0 && exit.code == proto::FAILED_START;
                let exit = Exit {
                    code: exit.code,
                    oom: exit.oom,
                    finished_at: exit.finished_at,
                    reason: never_ran.then_some("StartError"),
                    ..Exit::default()
                };
                self.happen(&id, Event::Ended { started_at, exit });
            }
            Some(Heard::Event(_)) => {}
            Some(Heard::Lost) | None => self.lose_monitor(),
        }
    }

    fn tick(&mut self) {
        let time = now();
        let due: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, container)| container.wake_at.is_some_and(|at| at <= time))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            if let Some(container) = self.containers.get_mut(&id) {
                container.wake_at = None;
            }
            self.happen(&id, Event::Tick { now: time });
        }
    }

    /// Moves on what waits for something that has just happened.
    fn go_on(&mut self) {
        self.go_on_removing();
        self.go_on_stopping();
        if !self.quiesce.is_empty() && self.tasks.is_empty() {
            for reply in self.quiesce.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    /// Puts the pod where readers see it.
    fn show(&self) {
        let network = self.record.network.as_ref();
        self.shared.views.put_pod(PodView {
            id: self.record.id.clone(),
            spec: self.spec.clone(),
            ready: self.record.life == PodLife::Ready && !self.stopping,
            created_at: self.record.created_at,
            ips: network.map(|network| network.ips.clone()).unwrap_or_default(),
            cni_result: network.map_or("", |network| &network.result).into(),
            monitor: if self.monitor.is_some() { self.record.monitor } else { 0 },
            cgroup: self.record.cgroup.as_str().into(),
            resources: self.record.resources.clone(),
            selinux: self.record.selinux.clone().map(Arc::new),
        });
    }

    /// Tells of the pod itself; the record and the view come first.
    fn tell(&self, kind: PodEventKind) {
        self.shared.events.pod(&self.shared.views, kind, &self.record.id, None);
    }

    fn record_pod(&self) {
        if let Err(error) = self.shared.store.write_pod(&self.record) {
            tracing::error!(pod = %self.record.id, error = %crate::chain(&error), "the pod could not be recorded");
        }
    }
}

/// The next thing a monitor says; never, without one.
async fn next(heard: &mut Option<mpsc::Receiver<Heard>>) -> Option<Heard> {
    match heard {
        Some(heard) => heard.recv().await,
        None => std::future::pending().await,
    }
}
