//! Launches in advance: a container is made as far as its hold point, and waits there for its start.
//!
//! Nobody has been promised that it runs. So an end at the hold is no exit: the container is unknown again, as before it was
//! made, and its start begins from the beginning.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bowline_launch_plan::{LaunchPlan, Rootfs};
use bowline_monitor_proto::{Answer, Id, Launch, Refusal};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::start::{On, parts, refused, start_container};
use super::{Control, Pod, failed_early, pipe};
use crate::children::{Gate, Life, MAX_CONTAINERS, Waiting};
use crate::log::Command;
use crate::peers::PeerId;

impl Control {
    pub(super) fn hold(
        &mut self,
        peer: PeerId,
        operation: u64,
        wish: &Launch,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        let Some(pod) = &mut self.pod else { return refused(Refusal::Order) };
        // Born twice, a child with users of its own could not be told from its forerunner when it has to go.
        if pod.surroundings.user.is_some() || pod.find(&wish.container).is_some() {
            return refused(Refusal::Order);
        }
        if pod.containers.len() >= MAX_CONTAINERS {
            return refused(Refusal::Full);
        }
        let Some((mut plan, log, mut trees)) = parts(wish, descriptors) else {
            return refused(Refusal::Malformed);
        };
        let (gate, end) = match pipe() {
            Ok(ends) => ends,
            Err(error) => return Some(failed_early("launching the container", &error)),
        };
        let Ok(place) = u16::try_from(trees.len()) else { return refused(Refusal::Malformed) };
        trees.push(gate);
        plan.hold = Some(place);
        match start_container(pod, wish, &plan, &trees, log, None, On::Exec) {
            Ok(pid) => {
                let asker = Some(Waiting { peer, operation });
                if let Some(container) = pod.find(&wish.container)
                    && let Life::Launching { gate, .. } = &mut container.life
                {
                    *gate = Some(Gate { end, asker, marked: mark(&plan) });
                }
                self.watch_child(pid);
                None
            }
            Err(answer) => Some(answer),
        }
    }

    pub(super) fn release(&mut self, id: &Id, waiting: Waiting) -> Option<Answer> {
        match self.join(id, waiting) {
            Some(answer) => answer,
            None => refused(Refusal::Unknown),
        }
    }

    /// Lets somebody wait for the launch of a container, and lets that go on if it is held. `None`: there is none.
    pub(super) fn join(&mut self, id: &Id, waiting: Waiting) -> Option<Option<Answer>> {
        let pod = self.pod.as_mut()?;
        let at = pod.containers.iter().position(|container| container.id == *id)?;
        // The news of its end may be behind this request.
        if pod.containers[at].is_held() && has_ended(pod.containers[at].pidfd.as_fd()) {
            self.lost_at_hold(at, &ended_at_hold());
            return None;
        }
        let container = &mut pod.containers[at];
        let Life::Launching { waiting: others, gate, .. } = &mut container.life else {
            return Some(Some(Answer::Launched { pid: container.pid, started_at: container.started_at }));
        };
        others.push(waiting);
        if let Some(gate) = gate.take() {
            // Whoever asked for the hold gets the launch's answer.
            others.extend(gate.asker);
            // One that dies meanwhile is heard of by the end of its reports.
            let _ = rustix::io::write(&gate.end, &[1]);
        }
        Some(None)
    }

    /// A container is at its hold point.
    pub(super) fn container_held(&mut self, at: usize) {
        let Some(pod) = &mut self.pod else { return };
        if let Life::Launching { gate: Some(gate), .. } = &mut pod.containers[at].life
            && let Some(Waiting { peer, operation }) = gate.asker.take()
        {
            self.peers.answer(peer, operation, Answer::Done, &[]);
        }
    }

    /// Whether the end of this container's reports is that of one that was not let go yet: then it is unknown again.
    pub(super) fn lost_at_hold(&mut self, at: usize, answer: &Answer) -> bool {
        let Some(pod) = &mut self.pod else { return false };
        if !pod.containers[at].is_held() {
            return false;
        }
        if let Some(Waiting { peer, operation }) = pod.drop_held(at) {
            self.peers.answer(peer, operation, answer.clone(), &[]);
        }
        true
    }
}

impl Pod {
    /// Whether it has got to its hold point and waits there.
    pub(super) fn waits_at_hold(&self, at: usize) -> bool {
        matches!(&self.containers[at].life, Life::Launching { gate: Some(gate), .. } if gate.asker.is_none())
    }

    /// Ends a container that is held, and forgets it. Returns who asked for it and was not answered yet.
    ///
    /// It is one process, so its cgroup is not killed: into one that was, Linux since 6.14 clones no process that lives (the
    /// child is compared with its parent's `kill_seq`; seen on 6.18), and this one is used again. The wait for its end is
    /// short: it sleeps, or is on its way out.
    pub(super) fn drop_held(&mut self, at: usize) -> Option<Waiting> {
        let container = self.containers.swap_remove(at);
        let _ = pidfd_send_signal(&container.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(container.pidfd.as_fd()), WaitIdOptions::EXITED);
        self.log.send(Command::Remove { key: container.slot });
        let Life::Launching { gate: Some(gate), .. } = container.life else { return None };
        if let Some(marked) = &gate.marked {
            unmark(marked);
        }
        gate.asker
    }
}

/// Whether a process has ended; it may not be reaped yet.
fn has_ended(process: BorrowedFd<'_>) -> bool {
    let mut look = [PollFd::new(&process, PollFlags::IN)];
    rustix::event::poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ended| ended > 0)
}

/// What is said of one that ended before it was let go.
pub(super) fn ended_at_hold() -> Answer {
    failed_early("holding the container", &std::io::ErrorKind::BrokenPipe.into())
}

/// The folder in which an overlay that is mounted `volatile` says so, against a second mount after a crash of the machine.
/// Ours has seen no crash, and nothing was written through it.
fn mark(plan: &LaunchPlan) -> Option<CString> {
    let Some(Rootfs::Overlay { work, .. }) = &plan.rootfs else { return None };
    CString::new([work.as_bytes(), b"/work", b"/incompat/volatile"].concat()).ok()
}

/// Takes the mark away (Linux: fs/overlayfs/super.c, `volatile_path`). If that fails, so does the next launch, which tells.
fn unmark(folder: &CStr) {
    if let Ok(file) = CString::new([folder.to_bytes(), b"/dirty"].concat()) {
        let _ = rustix::fs::unlinkat(CWD, &file, AtFlags::empty());
    }
    let _ = rustix::fs::unlinkat(CWD, folder, AtFlags::REMOVEDIR);
}
