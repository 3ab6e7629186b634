//! Checkpoints, as the actor sees them: which containers, and whether they run. The work is a task, as everything that
//! takes time; containers that end meanwhile end.

use super::*;
use crate::checkpoint::Subject;

impl Actor {
    pub(super) fn checkpoint(
        &mut self,
        ids: &[ContainerId],
        all: bool,
        order: checkpoint::Order,
        deadline: Option<std::time::Instant>,
        reply: Reply<()>,
    ) {
        match self.subjects(ids, all) {
            Err(error) => drop(reply.send(Err(error))),
            Ok((monitor, subjects)) => {
                let (shared, pod) = (self.shared.clone(), self.record.clone());
                let (kind, id, name) = match (all, subjects.as_slice()) {
                    (false, [one]) => {
                        ("CheckpointContainer", one.record.id.to_string(), one.record.spec.name.clone())
                    }
                    _ => ("CheckpointPod", pod.id.to_string(), pod.spec.metadata.name.clone()),
                };
                let operations = shared.operations.clone();
                self.spawn(async move {
                    let work = checkpoint::checkpoint(shared, pod, monitor, subjects, order, deadline);
                    let _ = reply.send(operations.run(kind, &id, &name, work).await);
                    Done::Nothing
                });
            }
        }
    }

    fn subjects(&self, ids: &[ContainerId], all: bool) -> Result<(Arc<Monitor>, Vec<Subject>), PodError> {
        let subject = |id: &ContainerId| {
            let container = self.containers.get(id);
            let container =
                container.ok_or_else(|| PodError::NotFound { what: "container", id: id.to_string() })?;
            match container.life {
                Life::Running { .. } => {
                    Ok(Subject { record: container.record.clone(), life: container.life.clone() })
                }
                _ => {
                    Err(PodError::State(format!("container {id} is not running: there is nothing to write")))
                }
            }
        };
        let subjects: Vec<Subject> = ids.iter().map(subject).collect::<Result<_, _>>()?;
        let running = self.containers.iter().filter(|(_, container)| container.life.is_live());
        if all && let Some((other, _)) = running.into_iter().find(|(id, _)| !ids.contains(id)) {
            return Err(PodError::State(format!(
                "container_ids: container {other} of the pod runs and is not among them"
            )));
        }
        let gone = || PodError::State("the pod's monitor is gone; the pod must be made anew".into());
        Ok((self.monitor.clone().ok_or_else(gone)?, subjects))
    }
}
