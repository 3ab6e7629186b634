//! Programs of the host's that work on containers from here: criu, which writes a container's state to files and brings it
//! back. What is restored must be the monitor's child from its first moment, so criu is one too, and makes it its sibling.

use std::os::fd::{AsFd, OwnedFd};

use bowline_launch::{MAX_PARTS, Request as LaunchRequest, Restorer};
use bowline_monitor_proto::slot::Slot;
use bowline_monitor_proto::{Answer, Event, Exit, FAILED_START, Id, Refusal, Restore};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::start::{On, launch, read_plan, refused, start_container};
use super::{Control, failed_early};
use crate::children::{Exec, Life, MAX_CONTAINERS, MAX_EXECS, Waiting};
use crate::log::Command;
use crate::peers::PeerId;
use crate::record::now;

/// Stands for no container: what runs beside them.
const NOBODY: Id = [0; 32];

impl Control {
    pub(super) fn run_program(
        &mut self,
        peer: PeerId,
        operation: u64,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        let Some(pod) = &mut self.pod else { return refused(Refusal::Order) };
        if pod.execs.len() >= MAX_EXECS {
            return refused(Refusal::Full);
        }
        let mut descriptors = descriptors.into_iter();
        let plan = descriptors.next().and_then(|file| read_plan(&file)).filter(|plan| plan.rootfs.is_none());
        let streams = [descriptors.next(), descriptors.next(), descriptors.next()];
        let (Some(plan), [Some(stdin), Some(stdout), Some(stderr)]) = (plan, streams) else {
            return refused(Refusal::Malformed);
        };
        let rest: Vec<OwnedFd> = descriptors.collect();
        let request = LaunchRequest {
            plan: &plan,
            descriptors: &rest,
            streams: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            pid_namespace: None,
            restorer: None,
            hooks: None,
        };
        let launched = match launch(pod, &request) {
            Ok(launched) => launched,
            Err(answer) => return Some(answer),
        };
        let pid = launched.process.pid;
        pod.execs.push(Exec {
            operation,
            peer,
            container: NOBODY,
            pid,
            pidfd: launched.process.pidfd,
            sync: Some(launched.sync),
            terminal: None,
        });
        self.watch_child(pid);
        None
    }

    pub(super) fn restore(
        &mut self,
        peer: PeerId,
        operation: u64,
        wish: &Restore,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        let Some(pod) = &mut self.pod else { return refused(Refusal::Order) };
        // Not joined as a launch is: the socket to criu belongs to one daemon.
        if pod.find(&wish.launch.container).is_some() {
            return refused(Refusal::Order);
        }
        if pod.containers.len() >= MAX_CONTAINERS || wish.parts.len() > MAX_PARTS {
            return refused(Refusal::Full);
        }
        let mut descriptors = descriptors.into_iter();
        let plan = descriptors.next().and_then(|file| read_plan(&file));
        let log = if wish.launch.log { descriptors.next() } else { None };
        let given = [descriptors.next(), descriptors.next(), descriptors.next()];
        let (Some(plan), [Some(mounts), Some(service), Some(output)]) = (plan, given) else {
            return refused(Refusal::Malformed);
        };
        let trees: Vec<OwnedFd> = descriptors.collect();
        let restorer = Restorer {
            argv: &wish.criu,
            mounts: mounts.as_fd(),
            place: &wish.place,
            parts: &wish.parts,
            service: service.as_fd(),
            output: output.as_fd(),
        };
        let waiting = Waiting { peer, operation };
        match start_container(pod, &wish.launch, &plan, &trees, log, Some(waiting), On::Restore(restorer)) {
            Ok(pid) => {
                self.watch_child(pid);
                None
            }
            Err(answer) => Some(answer),
        }
    }

    /// The container's first process is there. It is still criu's prisoner, so it cannot end before this is known.
    pub(super) fn restored(&mut self, id: &Id, pid: i32) -> Answer {
        let Some(pod) = &mut self.pod else { return Answer::Refused { why: Refusal::Order } };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        if pod.parent_and_session(pid).is_none_or(|(parent, _)| parent != own) {
            return Answer::Refused { why: Refusal::Unknown };
        }
        let Some(container) = pod.find(id) else { return Answer::Refused { why: Refusal::Unknown } };
        let peer = match container.life {
            Life::Restoring { peer } => peer,
            // Said again: now it was looked at.
            Life::Running if container.pid == pid && container.unseen.take().is_some() => {
                return Answer::Launched { pid, started_at: container.started_at };
            }
            _ => return Answer::Refused { why: Refusal::Order },
        };
        let process = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH);
        let pidfd = match process.and_then(|process| pidfd_open(process, PidfdFlags::empty())) {
            Ok(pidfd) => pidfd,
            Err(errno) => return failed_early("opening what criu has restored", &errno.into()),
        };
        container.pid = pid;
        container.pidfd = pidfd;
        container.life = Life::Running;
        container.unseen = Some(peer);
        container.started_at = now();
        let slot = Slot { container: *id, pid, started_at: container.started_at, exit: None };
        let (number, started_at) = (container.slot, container.started_at);
        // As with every start: written again at the exit.
        let _ = pod.surroundings.exits.write(number, &slot);
        Answer::Launched { pid, started_at }
    }

    /// A daemon is gone: what it has not looked at must not run.
    pub(super) fn end_unseen(&mut self, peer: PeerId) {
        let Some(pod) = &mut self.pod else { return };
        for at in 0..pod.containers.len() {
            if pod.containers[at].unseen == Some(peer) {
                pod.containers[at].unseen = None;
                pod.kill_processes(at);
            }
        }
    }

    /// Whether the child that ended was criu, on the way to a container that is not there yet: what there is of it goes.
    pub(super) fn restorer_ended(&mut self, pid: i32) -> bool {
        let Some(pod) = &mut self.pod else { return false };
        let found = pod.containers.iter().enumerate().find_map(|(at, container)| match container.life {
            Life::Restoring { peer } if container.pid == pid => Some((at, peer)),
            _ => None,
        });
        let Some((at, peer)) = found else { return false };
        pod.kill_processes(at);
        let container = pod.containers.swap_remove(at);
        pod.log.send(Command::Remove { key: container.slot });
        // The daemon that asked has lost criu's socket. One that took over from it has nothing else to hear it from.
        if self.peers.socket(peer).is_none() {
            let exit = Exit { code: FAILED_START, signal: 0, oom: false, finished_at: now() };
            self.peers.tell(Event::ContainerExited { container: container.id, started_at: 0, exit });
        }
        true
    }
}
