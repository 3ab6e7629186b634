//! Starts of containers, and what is done for them in advance.

use bowline_nri::api::Event as NriEvent;

use super::containers::exec_base;
use super::*;
use crate::start::Opening;

/// When, after a container has started, the next pod's parts are made: beside the answer, or the call that follows it, that
/// would cost this pod what it saves the next one.
const SPARE_AFTER: Duration = Duration::from_millis(20);

impl Actor {
    pub(super) fn start(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(id) else {
            let _ = reply.send(Err(PodError::NotFound { what: "container", id: id.to_string() }));
            return;
        };
        if container.removal
            || !container.removing.is_empty()
            || self.stopping
            || self.record.life != PodLife::Ready
        {
            let _ = reply.send(Err(PodError::State(format!("container {id} or its pod is going away"))));
            return;
        }
        match container.life {
            // A retry joins the start that is under way.
            Life::Starting { .. } => container.starting.push(reply),
            Life::Created => {
                container.starting.push(reply);
                self.happen(id, Event::Start);
            }
            ref other => {
                let text = format!("container {id} is {}: only a created one can be started", other.name());
                let _ = reply.send(Err(PodError::State(text)));
            }
        }
    }

    /// Has the monitor make a new container as far as it can before anybody asks for its start.
    pub(super) fn begin_hold(
        &mut self,
        record: &ContainerRecord,
        compiled: &Arc<Compiled>,
        opening: Opening,
    ) -> Option<Hold> {
        let monitor = self.monitor.as_ref().filter(|monitor| monitor.is_fresh())?;
        let (hold, holding) = crate::hold::plan(&self.shared, monitor, record, compiled, opening);
        self.spawn(async move {
            holding.run().await;
            Done::Nothing
        });
        Some(hold)
    }

    pub(super) fn launch(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (record, shared) = (container.record.clone(), self.shared.clone());
        let (compiled, monitor) = (container.compiled.clone(), self.monitor.clone());
        let hold = container.hold.take();
        let pids = pids(&self.spec, &container.spec);
        let (operations, name) = (self.shared.operations.clone(), container.spec.name.clone());
        let told = self.told(id);
        let (id, spec) = (id.clone(), self.spec.clone());
        self.spawn(async move {
            let result = async {
                let failed = |error: PodError| {
                    let exit = Exit {
                        code: 128,
                        finished_at: now(),
                        reason: Some("StartError"),
                        message: crate::chain(&error),
                        ..Exit::default()
                    };
                    (exit, error)
                };
                if let Some(told) = told {
                    told.ask(NriEvent::StartContainer, "start the container").await.map_err(failed)?;
                }
                let monitor = monitor.ok_or_else(|| {
                    failed(PodError::State("the pod's monitor is gone; the pod must be made anew".into()))
                })?;
                let compiled = match compiled {
                    Some(compiled) => compiled,
                    None => recompile(&shared, spec, &record).await.map_err(failed)?,
                };
                start(shared, monitor, record, compiled, pids.map_err(failed)?, hold).await
            };
            let result = operations.run("StartContainer", &id, &name, result).await;
            Done::Started { id, result }
        });
    }

    pub(super) fn started(&mut self, id: &ContainerId, result: Result<Started, (Exit, PodError)>) {
        match result {
            Ok(started) => {
                if let Some(container) = self.containers.get_mut(id) {
                    let compiled = container.compiled.take();
                    container.plan = compiled.map(|compiled| Arc::new(exec_base(&compiled.plan)));
                }
                self.happen(id, Event::Started { pid: started.pid, at: started.at });
                self.answer_start(id, Ok(()));
                self.fill_spare_after(SPARE_AFTER);
            }
            Err((exit, error)) => {
                self.happen(id, Event::StartFailed { exit });
                self.answer_start(id, Err(error));
            }
        }
    }

    /// Containers whose start was begun by a daemon that died before the monitor heard of it.
    pub(super) fn settle_orphans(&mut self) {
        let orphans: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, container)| matches!(container.life, Life::Starting { .. }))
            .map(|(id, _)| id.clone())
            .collect();
        for id in orphans {
            let exit = Exit {
                code: 128,
                finished_at: now(),
                reason: Some("StartError"),
                message: "the daemon ended before the container was launched".into(),
                ..Exit::default()
            };
            self.happen(&id, Event::StartFailed { exit });
            // It may be held still.
            if let Some(monitor) = self.monitor.clone() {
                let forget = Request::Forget { container: *id.as_bytes() };
                self.spawn(async move {
                    let _ = monitor.call(forget, &[]).await;
                    Done::Nothing
                });
            }
        }
    }
}

async fn recompile(
    shared: &Arc<Shared>,
    spec: Arc<PodSpec>,
    record: &ContainerRecord,
) -> Result<Arc<Compiled>, PodError> {
    let (shared, record) = (shared.clone(), record.clone());
    blocking("compile the launch plan", move || {
        let stored =
            shared.store.read_config(&record.pod, &record.id).map_err(doing("read the container's spec"))?;
        crate::create::compile(&shared, &spec, &record, &stored).map(Arc::new)
    })
    .await
}

fn pids(pod: &PodSpec, spec: &ContainerSpec) -> Result<Pids, PodError> {
    let namespaces = &spec.security.namespaces;
    match crate::create::pid_mode(pod, spec) {
        NamespaceMode::Pod => Ok(Pids::Pod),
        NamespaceMode::Container | NamespaceMode::Node => Ok(Pids::Plan),
        NamespaceMode::Target => {
            let target = ContainerId::parse(&namespaces.target_id);
            let target = target.map_err(|error| PodError::Invalid(format!("target_id: {error}")))?;
            Ok(Pids::Of { container: *target.as_bytes() })
        }
    }
}
