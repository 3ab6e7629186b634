//! Containers, as the actor sees them.

use bowline_nri::api::Event as NriEvent;

use super::*;
use crate::view::ContainerView;

impl Actor {
    // --- create ---------------------------------------------------------------------------------------------------

    pub(super) fn create(
        &mut self,
        spec: ContainerSpec,
        restore: Option<PathBuf>,
        reply: Reply<ContainerId>,
    ) {
        match self.begin_create(spec, restore, reply) {
            Ok(()) => {}
            Err((error, reply)) => drop(reply.send(Err(error))),
        }
    }

    fn begin_create(
        &mut self,
        spec: ContainerSpec,
        restore: Option<PathBuf>,
        reply: Reply<ContainerId>,
    ) -> Result<(), (PodError, Reply<ContainerId>)> {
        if self.stopping || self.record.life != PodLife::Ready {
            let text = format!("sandbox {} is not ready: no container can be made in it", self.record.id);
            return Err((PodError::State(text), reply));
        }
        let key = (spec.name.clone(), spec.attempt);
        let taken = |id: &str| {
            PodError::Exists(format!(
                "container {id} is attempt {} of `{}` already, with another configuration",
                key.1, key.0
            ))
        };
        if let Some(creating) = self.creating.get_mut(&key) {
            if *creating.spec != spec {
                return Err((taken("(being made)"), reply));
            }
            creating.waiting.push(reply);
            return Ok(());
        }
        let same =
            self.containers.values().find(|known| known.spec.name == key.0 && known.spec.attempt == key.1);
        if let Some(known) = same {
            let id = known.record.id.clone();
            // The resources may have been updated since; they are no part of the identity.
            let equal = ContainerSpec { resources: Resources::default(), ..(*known.spec).clone() }
                == ContainerSpec { resources: Resources::default(), ..spec };
            let answer = if equal { Ok(id) } else { Err(taken(&id.to_string())) };
            let _ = reply.send(answer);
            return Ok(());
        }
        let Some(slot) = (0..MAX_SLOTS).find(|slot| !self.slots.contains(slot)) else {
            return Err((PodError::Full("the pod has too many containers; remove some".into()), reply));
        };
        if self.containers.len() + self.creating.len() >= MAX_CONTAINERS {
            return Err((PodError::Full("the pod has too many containers; remove some".into()), reply));
        }
        if let Err(error) = self.check_target(&spec) {
            return Err((error, reply));
        }
        self.slots.insert(slot);
        let order = Order {
            id: ContainerId::from_bytes(random_id()),
            spec: spec.clone(),
            slot,
            created_at: self.shared.created_now(),
            restore,
            ahead: self.monitor.as_ref().is_some_and(|monitor| monitor.is_fresh()),
            before: self.shared.nri.active().then(|| self.turns.settled()),
        };
        self.creating.insert(key.clone(), Creating { spec: Arc::new(spec), slot, waiting: vec![reply] });
        let (shared, pod) = (self.shared.clone(), self.record.clone());
        let operations = self.shared.operations.clone();
        self.spawn(async move {
            let id = order.id.clone();
            let made = in_place("create a container", move || crate::create::create(&shared, &pod, order));
            let made = operations.run("CreateContainer", &id, &key.0, made).await;
            Done::Created { key, result: made.map(Box::new) }
        });
        Ok(())
    }

    /// The container whose PID namespace is to be joined must run.
    fn check_target(&self, spec: &ContainerSpec) -> Result<(), PodError> {
        let namespaces = &spec.security.namespaces;
        if namespaces.pid != NamespaceMode::Target {
            return Ok(());
        }
        let target = ContainerId::parse(&namespaces.target_id).ok().and_then(|id| self.containers.get(&id));
        match target {
            Some(target) if target.life.pid().is_some() => Ok(()),
            _ => Err(PodError::Invalid(format!(
                "security_context.namespace_options.target_id: `{}` is no running container of this pod",
                namespaces.target_id
            ))),
        }
    }

    pub(super) fn created(&mut self, key: (String, u32), result: Result<Box<Made>, PodError>) {
        let Some(creating) = self.creating.remove(&key) else { return };
        let answer = match result {
            Ok(made) => {
                let id = made.record.id.clone();
                let (record, compiled) = (made.record, Arc::new(made.compiled));
                let hold = made.opening.and_then(|opening| self.begin_hold(&record, &compiled, opening));
                self.put(record, Life::Created, Some(compiled), hold);
                drop(made.ticket);
                self.tell_of(&id, PodEventKind::Created);
                self.tell_plugins(&id, NriEvent::PostCreateContainer);
                Ok(id)
            }
            Err(error) => {
                self.slots.remove(&creating.slot);
                Err(error)
            }
        };
        for reply in creating.waiting {
            let _ = reply.send(answer.clone());
        }
    }

    /// Takes a container in, and shows it.
    pub(super) fn put(
        &mut self,
        record: ContainerRecord,
        life: Life,
        compiled: Option<Arc<Compiled>>,
        hold: Option<Hold>,
    ) {
        let id = record.id.clone();
        let spec = Arc::new(record.spec.clone());
        let wake_at = match &life {
            Life::Stopping { kill_at, .. } => Some(*kill_at),
            _ => None,
        };
        let container = Container {
            record,
            spec,
            life,
            compiled,
            hold,
            plan: None,
            starting: Vec::new(),
            stopping: Vec::new(),
            removing: Vec::new(),
            remover: Span::none(),
            removal: false,
            wake_at,
            stop: None,
            told_stop: false,
            told_removal: false,
        };
        self.containers.insert(id.clone(), container);
        self.show_container(&id);
    }

    // --- the life ---------------------------------------------------------------------------------------------------

    /// Lets something happen to a container, and does what follows from it.
    pub(super) fn happen(&mut self, id: &ContainerId, event: Event) {
        let Some(container) = self.containers.get_mut(id) else { return };
        // That it runs is safe with its monitor: the client need not wait until we have written it down too.
        let started = matches!(event, Event::Started { .. });
        let mut to_record = false;
        let Ok((life, effects)) = container.life.on(event) else { return };
        let changed = life != container.life;
        let before = std::mem::replace(&mut container.life, life);
        for effect in effects {
            match effect {
                Effect::Record if started => to_record = true,
                Effect::Record => self.record_container(id),
                Effect::Launch => self.launch(id),
                Effect::Signal => self.signal(id),
                Effect::Kill => self.kill(id),
                Effect::WakeAt(at) => {
                    if let Some(container) = self.containers.get_mut(id) {
                        container.wake_at = Some(at);
                    }
                }
            }
        }
        if changed {
            self.show_container(id);
            self.tell_change(id, &before);
            self.answer_ended(id);
        }
        if started {
            self.answer_start(id, Ok(()));
        }
        if to_record {
            self.record_container(id);
        }
    }

    pub(super) fn answer_start(&mut self, id: &ContainerId, answer: Result<(), PodError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for reply in container.starting.drain(..) {
            let _ = reply.send(answer.clone());
        }
    }

    /// Tells of what a container's life came to. An end that is heard of before the start tells of both.
    fn tell_change(&mut self, id: &ContainerId, before: &Life) {
        let Some(container) = self.containers.get(id) else { return };
        let ran = |life: &Life| match life {
            Life::Created | Life::Starting { .. } => false,
            Life::Running { .. } | Life::Stopping { .. } => true,
            Life::Exited { started_at, .. } => *started_at != 0,
        };
        let started = !ran(before) && ran(&container.life);
        let ended = matches!(container.life, Life::Exited { .. }) && !matches!(before, Life::Exited { .. });
        if started {
            self.tell_of(id, PodEventKind::Started);
            self.tell_plugins(id, NriEvent::PostStartContainer);
        }
        if ended {
            self.tell_of(id, PodEventKind::Stopped);
        }
    }

    pub(super) fn tell_of(&self, id: &ContainerId, kind: PodEventKind) {
        self.shared.events.container(&self.shared.views, kind, &self.record.id, id);
    }

    fn answer_ended(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if matches!(container.life, Life::Exited { .. }) {
            container.wake_at = None;
            container.stop = None;
            container.plan = None;
            container.compiled = None;
            let waiting = std::mem::take(&mut container.stopping);
            self.tell_stop(id, waiting);
        }
    }

    fn record_container(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.record.life = LifeRecord::from(&container.life);
        if let Err(error) = self.shared.store.write_container(&container.record) {
            tracing::error!(container = %id, error = %crate::chain(&error), "the container could not be recorded");
        }
    }

    fn show_container(&self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        let record = &container.record;
        self.shared.views.put_container(ContainerView {
            id: id.clone(),
            pod: record.pod.clone(),
            spec: container.spec.clone(),
            created_at: record.created_at,
            life: container.life.clone(),
            image: Arc::new(record.image.clone()),
            user: Arc::new(record.user.clone()),
            cgroup: record.cgroup.as_str().into(),
            stop_signal: record.stop_signal,
            log_path: record.log_path.as_str().into(),
            notes: record.notes.as_slice().into(),
            image_volumes: record.image_volumes.as_slice().into(),
        });
    }

    // --- stop -------------------------------------------------------------------------------------------------------

    pub(super) fn stop(&mut self, id: &ContainerId, kill_at: i64, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(id) else {
            // Removed while the call was on its way: it has ended.
            let _ = reply.send(Ok(()));
            return;
        };
        if !container.life.is_live() {
            let _ = reply.send(Ok(()));
            return;
        }
        container.stopping.push(reply);
        if container.stop.is_none() {
            let stop = self.shared.operations.begin("StopContainer", id, &container.spec.name);
            container.stop = Some(stop);
        }
        self.end(id, kill_at);
    }

    /// Asks a container to end by then; at once, if then is now.
    pub(super) fn end(&mut self, id: &ContainerId, kill_at: i64) {
        let time = now();
        self.happen(id, Event::Stop { kill_at });
        if kill_at <= time {
            self.happen(id, Event::Tick { now: time.max(kill_at) });
        }
    }

    fn signal(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        // With no grace at all, the kill follows at once; a signal before it would only be noise.
        if let Life::Stopping { kill_at, .. } = container.life
            && kill_at <= now()
        {
            return;
        }
        self.send_kill(id, container.record.stop_signal.number(), false);
    }

    fn kill(&mut self, id: &ContainerId) {
        self.send_kill(id, bowline_model::Signal::KILL.number(), true);
    }

    fn send_kill(&mut self, id: &ContainerId, signal: i32, everyone: bool) {
        let Some(monitor) = self.monitor.clone() else { return };
        let request = Request::Kill { container: *id.as_bytes(), signal, everyone };
        self.spawn(async move {
            // One that has ended already is told of by its exit.
            let _ = monitor.call(request, &[]).await;
            Done::Nothing
        });
    }

    // --- logs, execs, limits ----------------------------------------------------------------------------------------

    pub(super) fn reopen_log(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get(id) else {
            let _ = reply.send(Err(PodError::NotFound { what: "container", id: id.to_string() }));
            return;
        };
        let (Some(_), Some(monitor)) = (container.life.pid(), self.monitor.clone()) else {
            let _ = reply.send(Err(PodError::State(format!("container {id} is not running"))));
            return;
        };
        let (path, id) = (container.record.log_path.clone(), id.clone());
        let shared = self.shared.clone();
        self.spawn(async move {
            let _ = reply.send(reopen(shared, &monitor, &id, path).await);
            Done::Nothing
        });
    }

    pub(super) fn ticket(&mut self, id: &ContainerId) -> Result<Ticket, PodError> {
        let missing = || PodError::NotFound { what: "container", id: id.to_string() };
        let container = self.containers.get_mut(id).ok_or_else(missing)?;
        let not_running = || PodError::State(format!("container {id} is not running"));
        if container.life.pid().is_none() {
            return Err(not_running());
        }
        let monitor = self.monitor.clone().ok_or_else(not_running)?;
        let plan = match &container.plan {
            Some(plan) => plan.clone(),
            None => {
                // Taken over from another daemon: the stored spec gives the same plan again.
                let stored = self.shared.store.read_config(&container.record.pod, id);
                let stored = stored.map_err(doing("read the container's spec"))?;
                let compiled = crate::create::compile(&self.shared, &self.spec, &container.record, &stored)?;
                let plan = Arc::new(exec_base(&compiled.plan));
                container.plan = Some(plan.clone());
                plan
            }
        };
        Ok(Ticket { container: id.clone(), plan, monitor })
    }

    pub(super) fn update(
        &mut self,
        id: &ContainerId,
        resources: Resources,
        by_plugin: Option<Box<Change>>,
        reply: Reply<()>,
    ) {
        let Some(container) = self.containers.get(id) else {
            let _ = reply.send(Err(PodError::NotFound { what: "container", id: id.to_string() }));
            return;
        };
        if matches!(container.life, Life::Exited { .. }) {
            let _ = reply.send(Err(PodError::State(format!("container {id} has exited"))));
            return;
        }
        let running = container.life.is_live();
        let hold = container.hold.clone();
        let (shared, record) = (self.shared.clone(), container.record.clone());
        let told = if by_plugin.is_none() { self.told(id) } else { None };
        let id = id.clone();
        let stay = self.shared.operations.begin("UpdateContainerResources", &id, &record.spec.name);
        self.spawn(async move {
            let _stay = stay;
            let tell = told.is_some();
            let change = match (by_plugin, told) {
                (Some(change), _) => Ok(*change),
                (None, Some(told)) => told.ask_limits(&resources).await,
                (None, None) => Ok(Change { asked: resources, ..Change::default() }),
            };
            // One that is held has its cgroups already.
            let held = match hold {
                Some(hold) => hold.held().await,
                None => false,
            };
            let running = running || held;
            let result = match change {
                Ok(change) => {
                    blocking("update a container's limits", move || {
                        crate::start::update(&shared, &record, &change, running)
                    })
                    .await
                }
                Err(error) => Err(error),
            };
            Done::Updated { id, result, tell, reply }
        });
    }

    pub(super) fn updated(
        &mut self,
        id: &ContainerId,
        result: Result<Resources, PodError>,
        tell: bool,
        reply: Reply<()>,
    ) {
        let answer = match (result, self.containers.get_mut(id)) {
            (Ok(resources), Some(container)) => {
                container.record.spec.resources = resources;
                container.spec = Arc::new(container.record.spec.clone());
                // The plan of one that has not started yet holds the old limits.
                container.compiled = None;
                self.record_container(id);
                self.show_container(id);
                if tell {
                    self.tell_plugins(id, NriEvent::PostUpdateContainer);
                }
                Ok(())
            }
            (Ok(_), None) => Err(PodError::NotFound { what: "container", id: id.to_string() }),
            (Err(error), _) => Err(error),
        };
        let _ = reply.send(answer);
    }
}

/// What an exec takes over from its container's plan; the mount program is not part of it.
pub(super) fn exec_base(plan: &LaunchPlan) -> LaunchPlan {
    let mut base = plan.clone();
    base.steps = Vec::new();
    base.rootfs = None;
    for step in &mut base.cgroups {
        step.writes = Vec::new();
    }
    base
}

async fn reopen(
    shared: Arc<Shared>,
    monitor: &Monitor,
    id: &ContainerId,
    path: String,
) -> Result<(), PodError> {
    use std::os::fd::AsFd as _;
    if path.is_empty() {
        return Ok(());
    }
    let log = blocking("open a log", move || crate::start::open_log(&shared, &path)).await?;
    let request = Request::ReopenLog { container: *id.as_bytes() };
    let answer = monitor.call(request, &[log.as_fd()]).await;
    match answer.map_err(doing("reopen the log"))?.0 {
        proto::Answer::Refused { why: proto::Refusal::NotRunning | proto::Refusal::Unknown } => {
            Err(PodError::State(format!("container {id} is not running")))
        }
        answer => run_pod::expect_done(Ok((answer, Vec::new())), "reopen the log"),
    }
}
