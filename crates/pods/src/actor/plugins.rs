//! What plugins are asked and told by a pod: when, and by what order. docs/design/nri.md.

use bowline_nri::api::Event as NriEvent;

use super::*;
use crate::nri::Told;

impl Actor {
    /// An event of a container, with the turn that it has; none while there is nobody to tell.
    pub(super) fn told(&mut self, id: &ContainerId) -> Option<Told> {
        if !self.shared.nri.active() {
            return None;
        }
        let container = self.containers.get(id)?;
        let about = (container.record.clone(), container.life.clone());
        Some(Told::new(&self.shared, &self.record, Some(about), self.turns.take()))
    }

    /// An event of the pod.
    fn told_pod(&mut self) -> Option<Told> {
        let active = self.shared.nri.active();
        active.then(|| Told::new(&self.shared, &self.record, None, self.turns.take()))
    }

    /// Tells of something that has happened to a container. Nobody waits for it.
    pub(super) fn tell_plugins(&mut self, id: &ContainerId, event: NriEvent) {
        if let Some(told) = self.told(id) {
            self.spawn(async move {
                told.tell(event).await;
                Done::Nothing
            });
        }
    }

    /// Tells that a container has ended, and only then those who wait for that: what they do next may count on what
    /// plugins make of it.
    pub(super) fn tell_stop(&mut self, id: &ContainerId, waiting: Vec<Reply<()>>) {
        let first =
            self.containers.get_mut(id).is_some_and(|known| !std::mem::replace(&mut known.told_stop, true));
        let told = if first { self.told(id) } else { None };
        let answer = |waiting: Vec<Reply<()>>| {
            for reply in waiting {
                let _ = reply.send(Ok(()));
            }
        };
        let Some(told) = told else { return answer(waiting) };
        self.spawn(async move {
            told.tell(NriEvent::StopContainer).await;
            answer(waiting);
            Done::Nothing
        });
    }

    /// Somebody is to be told that a container goes, and before that (`true`) that it will not run any more.
    pub(super) fn take_removal(&mut self, id: &ContainerId) -> Option<(Told, bool)> {
        if self.containers.get(id)?.told_removal {
            return None;
        }
        let told = self.told(id)?;
        let container = self.containers.get_mut(id)?;
        container.told_removal = true;
        let stop =
            !std::mem::replace(&mut container.told_stop, true) && matches!(container.life, Life::Created);
        self.shared.nri.leaving(&id.to_string());
        Some((told, stop))
    }

    /// Somebody is to be told that the pod is down; once.
    pub(super) fn take_stop(&mut self) -> Option<Told> {
        if std::mem::replace(&mut self.told_stop, true) {
            return None;
        }
        self.told_pod()
    }

    /// Nobody is left to be told that the pod goes. Otherwise they are being told, and its removal goes on afterwards.
    pub(super) fn removal_is_told(&mut self) -> bool {
        if self.told_removal == Some(true) {
            return true;
        }
        if self.told_removal.is_none() {
            let Some(told) = self.told_pod() else { return true };
            self.told_removal = Some(false);
            self.shared.nri.leaving(&self.record.id.to_string());
            self.spawn(async move {
                told.tell(NriEvent::RemovePodSandbox).await;
                Done::RemovalTold
            });
        }
        false
    }

    pub(super) fn ask_pod_update(
        &mut self,
        overhead: Option<Box<Resources>>,
        sum: Option<Box<Resources>>,
        reply: Reply<()>,
    ) {
        let Some(told) = self.told_pod() else { return self.apply_pod_update(overhead, sum, reply) };
        let resources = &self.record.resources;
        let wanted = |new: &Option<Box<Resources>>, old: &Resources| {
            new.as_ref().map_or_else(|| old.clone(), |new| (**new).clone())
        };
        let (overhead_after, sum_after) =
            (wanted(&overhead, &resources.overhead), wanted(&sum, &resources.sum));
        self.spawn(async move {
            let result = told.ask_pod_limits(&overhead_after, &sum_after).await;
            Done::PodUpdateAsked { overhead, sum, result, reply }
        });
    }

    pub(super) fn pod_update_asked(
        &mut self,
        overhead: Option<Box<Resources>>,
        sum: Option<Box<Resources>>,
        result: Result<(), PodError>,
        reply: Reply<()>,
    ) {
        if let Err(error) = result {
            let _ = reply.send(Err(error));
            return;
        }
        self.apply_pod_update(overhead, sum, reply);
        if let Some(told) = self.told_pod() {
            self.spawn(async move {
                told.tell(NriEvent::PostUpdatePodSandbox).await;
                Done::Nothing
            });
        }
    }
}
