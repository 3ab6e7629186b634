//! Removal of containers.

use super::*;

impl Actor {
    pub(super) fn remove(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(id) else {
            let _ = reply.send(Ok(()));
            return;
        };
        container.removing.push(reply);
        container.remover = Span::current();
        if container.life.is_live() {
            self.end(id, now());
        }
    }

    /// Begins the removals whose containers have ended by now.
    pub(super) fn go_on_removing(&mut self) {
        let ready: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, container)| {
                !container.removing.is_empty() && !container.removal && !container.life.is_live()
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in ready {
            self.begin_removal(&id);
        }
    }

    fn begin_removal(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.removal = true;
        let ran = !matches!(container.life, Life::Created);
        let hold = container.hold.take();
        let told = self.take_removal(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        let (shared, monitor) = (self.shared.clone(), self.monitor.clone());
        let (record, id) = (container.record.clone(), id.clone());
        let images = self.shared.images.clone();
        let volumes = record.image_volumes.iter().map(|volume| &volume.id);
        let used: Vec<String> = std::iter::once(&record.image.id).chain(volumes).cloned().collect();
        let all_read = !self.shared.unreadable.load(std::sync::atomic::Ordering::Relaxed);
        let remover = std::mem::replace(&mut container.remover, Span::none());
        let begin = || self.shared.operations.begin("RemoveContainer", &id, &record.spec.name);
        let stay = remover.in_scope(begin);
        self.spawn_for(remover, async move {
            let _stay = stay;
            if let Some((told, stop)) = told {
                told.tell_removal(stop).await;
            }
            // Its end is clear only when its beginning is.
            if let Some(hold) = hold {
                hold.held().await;
            }
            // One that never ran may be held by it, also for a daemon before us.
            if let Some(monitor) = monitor {
                let _ = monitor.call(Request::Forget { container: *id.as_bytes() }, &[]).await;
            }
            let result = blocking("remove a container", move || {
                stop_pod::remove_cgroups(&shared, &record.cgroup)?;
                if ran {
                    stop_pod::remove_hooks_group(&shared, &record.cgroup)?;
                    crate::hooks::poststop(&shared, &record)?;
                }
                shared
                    .store
                    .remove_container(&record.pod, &record.id)
                    .map_err(doing("remove the container's files"))?;
                crate::volumes::release(&shared, &record.id, &record.spec);
                shared.usage.forget(&record.id);
                shared.rates.forget(&record.cgroup);
                shared.files.forget(&record.cgroup);
                Ok(())
            });
            let result = result.await;
            // The last use of an image that was removed meanwhile: its layers can go.
            if result.is_ok() && used.iter().any(|image| images.resolve(image).is_none()) && all_read {
                images.collect().await;
            }
            Done::Removed { id, result }
        });
    }

    pub(super) fn removed(&mut self, id: &ContainerId, result: Result<(), PodError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.removal = false;
        let waiting = std::mem::take(&mut container.removing);
        if result.is_ok() {
            self.slots.remove(&container.record.slot);
            self.containers.remove(id);
            self.shared.views.remove_container(id);
            self.shared.nri.gone(&id.to_string());
            self.tell_of(id, PodEventKind::Deleted);
        }
        if let Err(error) = &result {
            tracing::warn!(container = %id, error = %crate::chain(error), "a container could not be removed yet");
            // The pod's removal waits for it. Everybody is told; the next call tries again.
            for reply in self.remove_waiting.drain(..) {
                let _ = reply.send(Err(error.clone()));
            }
        }
        for reply in waiting {
            let _ = reply.send(result.clone());
        }
    }
}
