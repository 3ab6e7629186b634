//! The pod as a whole: down, gone, or without its monitor.

use bowline_nri::api::Event as NriEvent;

use super::*;
use crate::{files, netns};

impl Actor {
    pub(super) fn stop_pod(&mut self, reply: Reply<()>) {
        if self.record.cleaned {
            let _ = reply.send(Ok(()));
            return;
        }
        self.stop_waiting.push(reply);
        self.ending = Span::current();
        self.begin_stopping();
    }

    pub(super) fn remove_pod(&mut self, reply: Reply<()>) {
        self.remove_waiting.push(reply);
        self.ending = Span::current();
        self.begin_stopping();
    }

    /// Takes note of what the pod is to have; what the call leaves out stays.
    pub(super) fn update_pod(
        &mut self,
        overhead: Option<Box<Resources>>,
        sum: Option<Box<Resources>>,
        reply: Reply<()>,
    ) {
        if self.shared.nri.active() {
            self.ask_pod_update(overhead, sum, reply);
        } else {
            self.apply_pod_update(overhead, sum, reply);
        }
    }

    pub(super) fn apply_pod_update(
        &mut self,
        overhead: Option<Box<Resources>>,
        sum: Option<Box<Resources>>,
        reply: Reply<()>,
    ) {
        let before = self.record.resources.clone();
        if let Some(overhead) = overhead {
            self.record.resources.overhead = *overhead;
        }
        if let Some(sum) = sum {
            self.record.resources.sum = *sum;
        }
        let written = self.shared.store.write_pod(&self.record).map_err(doing("record the pod's resources"));
        match &written {
            Ok(()) => self.show(),
            Err(_) => self.record.resources = before,
        }
        let _ = reply.send(written);
    }

    /// Where connections to the pod's ports are made from.
    pub(super) fn network(&self) -> Result<Network, PodError> {
        let not_ready = || PodError::State(format!("sandbox {} is not ready", self.record.id));
        if self.stopping || self.record.life != PodLife::Ready {
            return Err(not_ready());
        }
        let monitor = self.monitor.clone().ok_or_else(not_ready)?;
        let namespace = match self.spec.security.namespaces.network {
            NamespaceMode::Node => None,
            _ => {
                let opened = netns::of_monitor(&monitor, self.record.monitor);
                let opened = opened.map_err(doing("enter the pod's network"))?;
                Some(opened.ok_or_else(not_ready)?)
            }
        };
        Ok(Network { namespace, monitor })
    }

    /// Makes what the next pod needs, if this one is of those that need it: a node of pods with its own network has no use
    /// for links.
    pub(super) fn fill_spare_after(&self, pause: Duration) {
        if run_pod::takes_spare(&self.spec) {
            self.shared.clone().fill_spare_after(pause);
        }
    }

    fn begin_stopping(&mut self) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        // Who stops a pod often starts one right after, and can wait for this one more easily.
        self.fill_spare_after(Duration::ZERO);
        let live: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, container)| container.life.is_live())
            .map(|(id, _)| id.clone())
            .collect();
        for id in live {
            self.end(&id, now());
        }
        self.show();
    }

    /// Takes the pod down once nothing runs in it and nothing is being made; then removes it, if that is wanted.
    pub(super) fn go_on_stopping(&mut self) {
        let quiet =
            self.creating.is_empty() && self.containers.values().all(|container| !container.life.is_live());
        if !self.stopping || self.taking_down || !quiet {
            return;
        }
        if !self.record.cleaned {
            if self.stop_waiting.is_empty() && self.remove_waiting.is_empty() {
                // The clean-up failed and everybody was told; the next call tries again.
                return;
            }
            self.taking_down = true;
            let (shared, record, monitor) = (self.shared.clone(), self.record.clone(), self.monitor.take());
            self.heard = None;
            let ran = self.containers.values().filter(|container| !matches!(container.life, Life::Created));
            let cgroups: Vec<String> = ran.map(|container| container.record.cgroup.clone()).collect();
            let told = self.take_stop();
            let ending = std::mem::replace(&mut self.ending, Span::none());
            self.spawn_for(ending, async move {
                if let Some(told) = told {
                    told.tell(NriEvent::StopPodSandbox).await;
                }
                let down = stop_pod::take_down(&shared, &record, monitor, &cgroups);
                let name = &record.spec.metadata.name;
                let result = shared.operations.run("StopPodSandbox", &record.id, name, down).await;
                Done::TakenDown { result }
            });
            return;
        }
        if !self.remove_waiting.is_empty() {
            self.go_on_removing_pod();
        }
    }

    pub(super) fn taken_down(&mut self, result: Result<(), PodError>) {
        self.taking_down = false;
        let was_ready = self.record.life == PodLife::Ready;
        match &result {
            Ok(()) => {
                self.record.cleaned = true;
                self.record.life = PodLife::NotReady;
            }
            Err(error) => {
                tracing::warn!(pod = %self.record.id, error = %crate::chain(error), "a pod could not be taken down yet");
                self.record.life = PodLife::NotReady;
            }
        }
        // A pod on its way out needs no record of having been down.
        if self.remove_waiting.is_empty() || result.is_err() {
            self.record_pod();
        }
        self.show();
        if was_ready {
            self.tell(PodEventKind::Stopped);
        }
        for reply in self.stop_waiting.drain(..) {
            let _ = reply.send(result.clone());
        }
        if let Err(error) = result {
            for reply in self.remove_waiting.drain(..) {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }

    /// Containers first, each by its own removal; then the record.
    fn go_on_removing_pod(&mut self) {
        if self.containers.is_empty() {
            if !self.removal_is_told() {
                return;
            }
            let removed = self.shared.store.remove_pod(&self.record.id);
            match removed.map_err(doing("remove the pod's record")) {
                Ok(()) => {
                    let (views, id) = (&self.shared.views, &self.record.id);
                    let last = views.remove_pod(id);
                    self.shared.nri.gone(&id.to_string());
                    self.shared.selinux.release(id);
                    self.shared.events.pod(views, PodEventKind::Deleted, id, last);
                    self.shared.rates.forget(&self.record.cgroup);
                    self.shared.files.forget(&self.record.cgroup);
                    self.gone = true;
                }
                Err(error) => {
                    for reply in self.remove_waiting.drain(..) {
                        let _ = reply.send(Err(error.clone()));
                    }
                }
            }
            return;
        }
        let idle: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, container)| container.removing.is_empty() && !container.removal)
            .map(|(id, _)| id.clone())
            .collect();
        for id in idle {
            let (reply, _) = oneshot::channel();
            self.remove(&id, reply);
        }
        self.go_on_removing();
    }

    /// The monitor has died and taken its containers along, or cannot be reached. What it recorded before counts.
    pub(super) fn lose_monitor(&mut self) {
        self.heard = None;
        if self.monitor.take().is_none() {
            return;
        }
        tracing::error!(pod = %self.record.id, pid = self.record.monitor, "the pod's monitor is gone");
        let was_ready = self.record.life == PodLife::Ready;
        self.record.life = PodLife::NotReady;
        self.record_pod();
        self.show();
        let live: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, container)| matches!(container.life, Life::Running { .. } | Life::Stopping { .. }))
            .map(|(id, _)| id.clone())
            .collect();
        for id in live {
            let Some(container) = self.containers.get(&id) else { continue };
            let exit = exit_without_monitor(&self.shared, &container.record);
            kill_leftovers(&self.shared, &container.record.cgroup);
            self.happen(&id, Event::Ended { started_at: 0, exit });
        }
        if was_ready {
            self.tell(PodEventKind::Stopped);
        }
    }
}

/// How a container ended whose monitor is gone: as its slot says, else with the monitor.
pub(crate) fn exit_without_monitor(shared: &Shared, record: &ContainerRecord) -> Exit {
    let slot = files::read_slot(&shared.config.state, &record.pod, record.slot);
    let told = slot.filter(|slot| slot.container == *record.id.as_bytes()).and_then(|slot| slot.exit);
    match told {
        Some(exit) => {
            Exit { code: exit.code, oom: exit.oom, finished_at: exit.finished_at, ..Exit::default() }
        }
        None => Exit {
            code: 137,
            oom: false,
            finished_at: now(),
            reason: Some("MonitorLost"),
            message: "the pod's monitor ended, and its containers with it".into(),
        },
    }
}

/// Kills what a dead monitor may have left running.
pub(crate) fn kill_leftovers(shared: &Shared, cgroup: &str) {
    use std::os::fd::AsFd as _;
    let root = shared.host.layout.unified().and_then(|index| shared.host.roots.get(usize::from(index)));
    if let (Some(root), Ok(path)) = (root, std::ffi::CString::new(cgroup)) {
        let _ = bowline_launch::kill_all(root.as_fd(), &path);
    }
}
