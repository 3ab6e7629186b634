//! Launches with hooks on the way: what they get, and what becomes of them when a launch fails.
//!
//! The gate's other end is the daemon's alone, so the child learns of a daemon's death by itself; what hooks have started beside
//! is killed here, by cgroup.

use std::os::fd::{AsFd, OwnedFd};

use bowline_launch::{Hooks, Surroundings};
use bowline_launch_plan::wire::decode;
use bowline_launch_plan::{HookPrograms, MAX_HOOKS_LEN};
use bowline_monitor_proto::{Answer, Event, Hooked, Refusal};

use super::start::{On, read_plan, read_sealed, refused, start_container};
use super::{Control, Pod};
use crate::children::{Life, MAX_CONTAINERS, Waiting};
use crate::peers::PeerId;
use crate::setup::HOST;

impl Control {
    pub(super) fn launch_hooked(
        &mut self,
        peer: PeerId,
        operation: u64,
        wish: &Hooked,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        let Some(pod) = &mut self.pod else { return refused(Refusal::Order) };
        // Not joined as a launch is: the gate belongs to one daemon.
        if pod.find(&wish.launch.container).is_some() {
            return refused(Refusal::Order);
        }
        if pod.containers.len() >= MAX_CONTAINERS {
            return refused(Refusal::Full);
        }
        let mut rest = descriptors.into_iter();
        let plan = rest.next().and_then(|file| read_plan(&file));
        let log = if wish.launch.log { rest.next() } else { None };
        let programs = rest.next().and_then(|file| read_sealed(&file, MAX_HOOKS_LEN));
        let programs = programs.and_then(|bytes| decode::<HookPrograms>(&bytes).ok());
        let given = [rest.next(), rest.next(), rest.next(), rest.next()];
        let (Some(plan), Some(programs), [Some(gate), Some(create), Some(start), Some(output)]) =
            (plan, programs, given)
        else {
            return refused(Refusal::Malformed);
        };
        let around = match &wish.surroundings {
            None => None,
            Some(around) => match (rest.next(), rest.next()) {
                (Some(host), Some(bundle)) => Some((around, host, bundle)),
                _ => return refused(Refusal::Malformed),
            },
        };
        let hooks = Hooks {
            programs: &programs,
            surroundings: around.as_ref().map(|(around, host, bundle)| Surroundings {
                host: host.as_fd(),
                place: HOST,
                cover: &around.cover,
                bundle: bundle.as_fd(),
                below: &around.below,
            }),
            bundle: &wish.bundle,
            gate: gate.as_fd(),
            create_state: create.as_fd(),
            start_state: start.as_fd(),
            output: output.as_fd(),
        };
        let trees: Vec<OwnedFd> = rest.collect();
        let waiting = Waiting { peer, operation };
        match start_container(pod, &wish.launch, &plan, &trees, log, Some(waiting), On::Hooks(hooks)) {
            Ok(pid) => {
                if let Some(container) = pod.find(&wish.launch.container) {
                    container.hooks = Some(wish.group.clone());
                }
                self.watch_child(pid);
                None
            }
            Err(answer) => Some(answer),
        }
    }

    pub(super) fn container_waits(&mut self, at: usize) {
        let Some(pod) = &self.pod else { return };
        let container = &pod.containers[at];
        if let Life::Launching { waiting, .. } = &container.life
            && let Some(Waiting { peer, operation }) = waiting.first().copied()
        {
            self.peers.tell_one(peer, Event::Waiting { operation, pid: container.pid });
        }
    }
}

impl Pod {
    /// Kills what hooks have left of a container whose program does not run.
    pub(super) fn kill_hooks(&mut self, at: usize) {
        let Some(group) = self.containers[at].hooks.take() else { return };
        self.kill_processes(at);
        let root = self.unified.and_then(|index| self.surroundings.hierarchies.get(usize::from(index)));
        if let Some(root) = root.filter(|_| !group.is_empty()) {
            let _ = bowline_launch::kill_all(root.as_fd(), &group);
        }
    }
}
