//! Ends: reaped children, kills, logs that are complete, containers that are forgotten.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use bowline_linux::process::{self, Reaped};
use bowline_monitor_proto::slot::Slot;
use bowline_monitor_proto::{Answer, Event, Exit, Id, Refusal};
use rustix::fs::{Mode, OFlags};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Control, Pod};
use crate::children::{Container, Life, Waiting};
use crate::log::{Command, Done};
use crate::peers::PeerId;
use crate::record::now;

impl Control {
    /// Takes every ended child. Orphans that came to us are only reaped.
    pub(super) fn reap(&mut self) {
        process::clear_signals(&self.signals);
        while let Ok(Some(reaped)) = process::reap_any() {
            self.hear_numbers(reaped.pid);
            // A program may have run and ended before its reports were read.
            self.hear_child(reaped.pid);
            let Some(pod) = &mut self.pod else { continue };
            if let Some(at) = pod.containers.iter().position(|container| container.pid == reaped.pid) {
                if matches!(pod.containers[at].life, Life::Launching { .. }) {
                    // The report of a terminal came first; the verdict is behind it.
                    self.hear_child(reaped.pid);
                }
                if !self.restorer_ended(reaped.pid) {
                    self.container_ended(reaped);
                }
            } else if let Some(at) = pod.execs.iter().position(|exec| exec.pid == reaped.pid) {
                if pod.execs[at].sync.is_some() {
                    self.hear_child(reaped.pid);
                }
                self.exec_ended(reaped);
            }
        }
    }

    /// Whoever ended may be a container's process whose number is in its launch's first report (`launch/src/user.rs`), which
    /// was sent before the process could do anything, and may not have been read yet.
    fn hear_numbers(&mut self, pid: i32) {
        let Some(pod) = self.pod.as_ref().filter(|pod| pod.surroundings.user.is_some()) else { return };
        if pod.containers.iter().any(|container| container.pid == pid) {
            return;
        }
        let launching = pod.containers.iter().filter(|c| matches!(c.life, Life::Launching { .. }));
        let launching: Vec<i32> = launching.map(|container| container.pid).collect();
        launching.into_iter().for_each(|pid| self.hear_child(pid));
    }

    fn container_ended(&mut self, reaped: Reaped) {
        let Some(pod) = &mut self.pod else { return };
        let Some(at) = pod.containers.iter().position(|container| container.pid == reaped.pid) else {
            return;
        };
        pod.kill_processes(at);
        pod.kill_hooks(at);
        let oom = pod.oom_kills(at) > 0;
        let exit = Exit { code: reaped.code, signal: reaped.signal, oom, finished_at: now() };
        let container = &mut pod.containers[at];
        container.life = Life::Draining { exit };
        container.stdin = None;
        container.terminal = None;
        let slot = Slot {
            container: container.id,
            pid: container.pid,
            started_at: container.started_at,
            exit: Some(exit),
        };
        // Into memory that the file owns: it cannot be full. First of all, so that no death of ours loses it.
        let _ = pod.surroundings.exits.write(container.slot, &slot);
        pod.log.send(Command::Drain { key: container.slot });
    }

    fn exec_ended(&mut self, reaped: Reaped) {
        let Some(pod) = &mut self.pod else { return };
        let Some(at) = pod.execs.iter().position(|exec| exec.pid == reaped.pid) else { return };
        let exec = pod.execs.swap_remove(at);
        self.peers.tell(Event::ExecExited { exec: exec.operation, code: reaped.code });
    }

    /// What the log thread has done.
    pub(super) fn hear_log(&mut self) {
        let Some(pod) = &mut self.pod else { return };
        for done in pod.log.take() {
            let Some(pod) = &mut self.pod else { return };
            let key = match done {
                Done::Drained(key) => key,
                Done::Reopened(key) => {
                    let at = pod.reopening.iter().position(|(waiting, _)| *waiting == key);
                    if let Some((_, waiting)) = at.map(|at| pod.reopening.remove(at)) {
                        self.peers.answer(waiting.peer, waiting.operation, Answer::Done, &[]);
                    }
                    continue;
                }
                Done::Attached(number) => {
                    self.attached(number, true);
                    continue;
                }
                Done::TooMany(number) => {
                    self.attached(number, false);
                    continue;
                }
                Done::Left(key, number) => {
                    pod.left(key, number);
                    continue;
                }
            };
            let Some(container) = pod.containers.iter_mut().find(|container| container.slot == key) else {
                continue;
            };
            if let Life::Draining { exit } = container.life {
                container.life = Life::Exited { exit };
                let (container, started_at) = (container.id, container.started_at);
                self.peers.tell(Event::ContainerExited { container, started_at, exit });
            }
        }
    }

    pub(super) fn kill(&mut self, id: &Id, signal: i32, everyone: bool) -> Answer {
        let Some(pod) = &mut self.pod else { return Answer::Refused { why: Refusal::Order } };
        let Some(at) = pod.containers.iter().position(|container| container.id == *id) else {
            return Answer::Refused { why: Refusal::Unknown };
        };
        let container = &pod.containers[at];
        if !container.is_live() {
            return Answer::Refused { why: Refusal::NotRunning };
        }
        if everyone {
            pod.kill_processes(at);
        }
        let container = &pod.containers[at];
        match process::signal_by_pidfd(container.pidfd.as_fd(), signal) {
            Ok(()) => Answer::Done,
            // It has just ended; its exit is on the way.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                Answer::Done
            }
            Err(_) => Answer::Refused { why: Refusal::Kernel },
        }
    }

    pub(super) fn kill_exec(&mut self, operation: u64) -> Answer {
        let Some(pod) = &mut self.pod else { return Answer::Refused { why: Refusal::Order } };
        // One that has ended already was told of.
        let Some(exec) = pod.execs.iter().find(|exec| exec.operation == operation) else {
            return Answer::Done;
        };
        let (pid, id) = (exec.pid, exec.container);
        // Its children first: orphans would become the container's first process's, which may not reap.
        for process in pod.session(&id, pid) {
            if process != pid {
                kill_pid(process);
            }
        }
        if let Some(exec) = pod.execs.iter().find(|exec| exec.operation == operation) {
            let _ = pidfd_send_signal(&exec.pidfd, Signal::KILL);
        }
        Answer::Done
    }

    pub(super) fn reopen_log(
        &mut self,
        peer: PeerId,
        operation: u64,
        id: &Id,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        let Some(pod) = &mut self.pod else { return Some(Answer::Refused { why: Refusal::Order }) };
        let Some(file) = descriptors.into_iter().next() else {
            return Some(Answer::Refused { why: Refusal::Malformed });
        };
        let Some(container) = pod.find(id) else { return Some(Answer::Refused { why: Refusal::Unknown }) };
        if !matches!(container.life, Life::Running) {
            return Some(Answer::Refused { why: Refusal::NotRunning });
        }
        let key = container.slot;
        // Answered by `hear_log`, once nothing goes to the old file any more.
        pod.reopening.push((key, Waiting { peer, operation }));
        pod.log.send(Command::Reopen { key, file });
        None
    }

    pub(super) fn forget(&mut self, id: &Id) -> Answer {
        let Some(pod) = &mut self.pod else { return Answer::Refused { why: Refusal::Order } };
        let Some(at) = pod.containers.iter().position(|container| container.id == *id) else {
            return Answer::Done;
        };
        if pod.waits_at_hold(at) {
            pod.drop_held(at);
            return Answer::Done;
        }
        if pod.containers[at].is_live() {
            return Answer::Refused { why: Refusal::Order };
        }
        let container = pod.containers.swap_remove(at);
        pod.log.send(Command::Remove { key: container.slot });
        let _ = pod.surroundings.exits.clear(container.slot);
        Answer::Done
    }

    pub(super) fn kill_everything(&mut self) {
        let Some(pod) = &mut self.pod else { return };
        while let Some(at) = (0..pod.containers.len()).find(|at| pod.waits_at_hold(*at)) {
            pod.drop_held(at);
        }
        for at in 0..pod.containers.len() {
            if pod.containers[at].is_live() {
                pod.kill_processes(at);
                let _ = pidfd_send_signal(&pod.containers[at].pidfd, Signal::KILL);
            }
        }
    }
}

fn kill_pid(pid: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
    // Between reading the number and opening the process the number may have passed on; the caller's list is of the
    // container's own cgroup, a moment old, and numbers are not handed out again that fast.
    if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
}

impl Pod {
    /// Kills every process of a container by its cgroup: double-forked ones and those in the pod's or the host's PID
    /// namespace too.
    pub(super) fn kill_processes(&self, at: usize) {
        let container = &self.containers[at];
        let Some((root, path)) = self.folder(container, self.unified) else { return };
        let _ = bowline_launch::kill_all(root.as_fd(), path);
    }

    fn folder<'a>(
        &'a self,
        container: &'a Container,
        hierarchy: Option<u8>,
    ) -> Option<(&'a OwnedFd, &'a CString)> {
        let root = self.surroundings.hierarchies.get(usize::from(hierarchy?))?;
        Some((root, container.cgroup(hierarchy)?))
    }

    /// How many processes of the container the kernel has killed for want of memory: `oom_kill` of memory.events on
    /// cgroup v2, of memory.oom_control on v1.
    fn oom_kills(&self, at: usize) -> u64 {
        let container = &self.containers[at];
        let Some((root, path)) = self.folder(container, self.memory) else { return 0 };
        let file = if self.memory == self.unified { "memory.events" } else { "memory.oom_control" };
        let Some(text) = read(root, path, file) else { return 0 };
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Processes of the container's cgroup that belong to the session of `leader`, or descend from it.
    fn session(&self, id: &Id, leader: i32) -> Vec<i32> {
        let container = self.containers.iter().find(|container| container.id == *id);
        let folder = container.and_then(|container| self.folder(container, self.unified));
        let Some(text) = folder.and_then(|(root, path)| read(root, path, "cgroup.procs")) else {
            return Vec::new();
        };
        let all: Vec<(i32, i32, i32)> = text
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .filter_map(|pid: i32| {
                self.parent_and_session(pid).map(|(parent, session)| (pid, parent, session))
            })
            .collect();
        let mut found = vec![leader];
        // Each round adds the children of those found; the list is finite and no process is added twice.
        loop {
            let more: Vec<i32> = all
                .iter()
                .filter(|(pid, parent, session)| {
                    !found.contains(pid) && (*session == leader || found.contains(parent))
                })
                .map(|(pid, _, _)| *pid)
                .collect();
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }

    /// Fields 4 and 6 of /proc/PID/stat; the name before them may hold anything, so they are counted from its end.
    pub(super) fn parent_and_session(&self, pid: i32) -> Option<(i32, i32)> {
        let path = CString::new(format!("{pid}/stat")).ok()?;
        let file = rustix::fs::openat(
            &self.surroundings.procfs,
            &path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let mut buffer = [0u8; 1024];
        let len = rustix::io::read(&file.ok()?, &mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let parent = fields.nth(1)?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        Some((parent, session))
    }
}

/// A small file of a cgroup.
fn read(root: &OwnedFd, path: &CString, file: &str) -> Option<String> {
    let path = CString::new([path.as_bytes(), b"/", file.as_bytes()].concat()).ok()?;
    let file = rustix::fs::openat(root, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        match rustix::io::read(&file, &mut chunk) {
            Ok(0) | Err(_) => break,
            // A list of a hundred thousand processes is as much as anyone wants.
            Ok(len) if bytes.len() < 1 << 20 => bytes.extend_from_slice(&chunk[..len]),
            Ok(_) => break,
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
