//! Launching containers and execs, up to the moment their programs run.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use bowline_launch::{Launched, Launcher, Report, Request as LaunchRequest};
use bowline_launch_plan::{LaunchPlan, MAX_LEN};
use bowline_monitor_proto::slot::Slot;
use bowline_monitor_proto::{Answer, Event, Exec as ExecWish, Exit, FAILED_START, Id, Launch, Pids, Refusal};
use rustix::event::epoll::{self, EventFlags};

use super::{Control, Pod, Token, failed_early, pipe};
use crate::children::{Container, Exec, Life, MAX_CONTAINERS, MAX_EXECS, Waiting};
use crate::log::Command;
use crate::peers::PeerId;
use crate::record::now;
use crate::setup::MOUNT_POINT;

pub(super) fn refused(why: Refusal) -> Option<Answer> {
    Some(Answer::Refused { why })
}

/// Reads a plan out of its memfd.
pub(super) fn read_plan(file: &OwnedFd) -> Option<LaunchPlan> {
    LaunchPlan::decode(&read_sealed(file, MAX_LEN)?).ok()
}

/// Reads a memfd of at most `most` bytes.
pub(super) fn read_sealed(file: &OwnedFd, most: usize) -> Option<Vec<u8>> {
    let len = usize::try_from(rustix::fs::fstat(file).ok()?.st_size).ok()?;
    if len > most {
        return None;
    }
    let mut bytes = vec![0u8; len];
    let mut read = 0;
    while read < len {
        match rustix::io::pread(file, &mut bytes[read..], read as u64).ok()? {
            0 => return None,
            some => read += some,
        }
    }
    Some(bytes)
}

/// What comes along with a launch: plan, log, and what the plan counts on.
pub(super) fn parts(
    wish: &Launch,
    descriptors: Vec<OwnedFd>,
) -> Option<(LaunchPlan, Option<OwnedFd>, Vec<OwnedFd>)> {
    let mut descriptors = descriptors.into_iter();
    let plan = descriptors.next().and_then(|file| read_plan(&file))?;
    let log = if wish.log { descriptors.next() } else { None };
    Some((plan, log, descriptors.collect()))
}

impl Pod {
    fn launcher(&self) -> Launcher<'_> {
        Launcher {
            procfs: self.surroundings.procfs.as_fd(),
            hierarchies: &self.surroundings.hierarchies,
            unified: self.unified,
            mount_point: MOUNT_POINT,
            shared_mounts: false,
            tie_to_launcher: true,
            user: self.surroundings.user.as_ref().map(|user| bowline_launch::UserSpace {
                namespace: user.user.as_fd(),
                first_uid: user.uids.outside,
            }),
        }
    }

    pub(super) fn find(&mut self, id: &Id) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.id == *id)
    }

    /// The descriptor by which a container's child enters its PID namespace.
    pub(super) fn pids(&self, pids: &Pids) -> Result<Option<std::os::fd::BorrowedFd<'_>>, Refusal> {
        match pids {
            Pids::Plan => Ok(None),
            Pids::Pod => {
                let init = self.surroundings.init.as_ref().ok_or(Refusal::Unknown)?;
                Ok(Some(init.pidfd.as_fd()))
            }
            Pids::Of { container } => {
                let target =
                    self.containers.iter().find(|known| known.id == *container).ok_or(Refusal::Unknown)?;
                if target.is_live() { Ok(Some(target.pidfd.as_fd())) } else { Err(Refusal::NotRunning) }
            }
        }
    }
}

/// Our ends of a container's streams.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Control {
    pub(super) fn launch(
        &mut self,
        peer: PeerId,
        operation: u64,
        wish: &Launch,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        let waiting = Waiting { peer, operation };
        // Asked again, or made in advance: the first request's result is this one's too.
        if let Some(joined) = self.join(&wish.container, waiting) {
            return joined;
        }
        let Some(pod) = &mut self.pod else { return refused(Refusal::Order) };
        if pod.containers.len() >= MAX_CONTAINERS {
            return refused(Refusal::Full);
        }
        let Some((plan, log, trees)) = parts(wish, descriptors) else { return refused(Refusal::Malformed) };
        match start_container(pod, wish, &plan, &trees, log, Some(waiting), On::Exec) {
            Ok(pid) => {
                self.watch_child(pid);
                None
            }
            Err(answer) => Some(answer),
        }
    }

    pub(super) fn exec(
        &mut self,
        peer: PeerId,
        operation: u64,
        wish: &ExecWish,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        let Some(pod) = &mut self.pod else { return refused(Refusal::Order) };
        if pod.execs.len() >= MAX_EXECS {
            return refused(Refusal::Full);
        }
        match start_exec(pod, peer, operation, wish, descriptors) {
            Ok(pid) => {
                self.watch_child(pid);
                None
            }
            Err(answer) => Some(answer),
        }
    }

    pub(super) fn watch_child(&self, pid: i32) {
        let Some(pod) = &self.pod else { return };
        let token = Token::Child(pid as u32).data();
        let container = pod.containers.iter().find(|container| container.pid == pid);
        let sync = match container.map(|container| &container.life) {
            Some(Life::Launching { sync, .. }) => Some(sync),
            _ => pod.execs.iter().find(|exec| exec.pid == pid).and_then(|exec| exec.sync.as_ref()),
        };
        if let Some(sync) = sync {
            let _ = epoll::add(&self.epoll, sync, token, EventFlags::IN);
        }
    }

    /// Takes the reports of a child that is on its way to exec.
    pub(super) fn hear_child(&mut self, pid: i32) {
        let Some(pod) = &mut self.pod else { return };
        if let Some(at) = pod.containers.iter().position(|container| container.pid == pid) {
            self.hear_container(at);
        } else if let Some(at) = pod.execs.iter().position(|exec| exec.pid == pid) {
            self.hear_exec(at);
        }
    }

    fn hear_container(&mut self, at: usize) {
        let Some(pod) = &mut self.pod else { return };
        let Life::Launching { sync, .. } = &pod.containers[at].life else { return };
        match bowline_launch::receive(sync.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Report::Console(master)) => {
                let container = &mut pod.containers[at];
                container.terminal = master.try_clone().ok();
                let file = container.log.take();
                pod.log.send(Command::Add { key: container.slot, stdout: master, stderr: None, file });
            }
            Ok(Report::Became(pid, pidfd)) => {
                let container = &mut pod.containers[at];
                (container.pid, container.pidfd) = (pid, pidfd);
                if let Life::Launching { sync, .. } = &container.life {
                    let _ = epoll::modify(&self.epoll, sync, Token::Child(pid as u32).data(), EventFlags::IN);
                }
            }
            Ok(Report::Held) => self.container_held(at),
            Ok(Report::Waiting) => self.container_waits(at),
            Ok(Report::Running) => self.container_runs(at),
            Ok(Report::Failed(failure)) => {
                let answer = Answer::Failed {
                    stage: failure.stage as u8,
                    detail: failure.detail,
                    errno: failure.errno,
                    text: String::new(),
                };
                self.container_failed(at, answer);
            }
            Err(error) => self.container_failed(at, failed_early("hearing from the child", &error)),
        }
    }

    fn container_runs(&mut self, at: usize) {
        // The end of its reports means that the program runs, unless that was not to be yet.
        if self.lost_at_hold(at, &super::held::ended_at_hold()) {
            return;
        }
        let Some(pod) = &mut self.pod else { return };
        let container = &mut pod.containers[at];
        if let Some([stdin, stdout, stderr]) = container.restored_with {
            let answer = Answer::Restoring { pid: container.pid, stdin, stdout, stderr };
            // One alone asks for it.
            if let Life::Launching { waiting, .. } = &container.life
                && let Some(Waiting { peer, operation }) = waiting.first().copied()
            {
                container.life = Life::Restoring { peer };
                self.peers.answer(peer, operation, answer, &[]);
            }
            return;
        }
        container.started_at = now();
        container.hooks = None;
        let slot = Slot {
            container: container.id,
            pid: container.pid,
            started_at: container.started_at,
            exit: None,
        };
        // A slot that cannot be written is written again at the exit; the daemon hears of the start either way.
        let _ = pod.surroundings.exits.write(container.slot, &slot);
        let before = std::mem::replace(&mut container.life, Life::Running);
        let answer = Answer::Launched { pid: container.pid, started_at: container.started_at };
        if let Life::Launching { waiting, .. } = before {
            for waiting in waiting {
                self.peers.answer(waiting.peer, waiting.operation, answer.clone(), &[]);
            }
        }
    }

    /// The child never became the program: it ends by itself, and is forgotten. A daemon that asked is answered; if the
    /// one that asked is gone, whoever took over hears of an end instead.
    fn container_failed(&mut self, at: usize, answer: Answer) {
        if self.lost_at_hold(at, &answer) {
            return;
        }
        let Some(pod) = &mut self.pod else { return };
        pod.kill_hooks(at);
        let container = pod.containers.swap_remove(at);
        pod.log.send(Command::Remove { key: container.slot });
        let mut heard = false;
        if let Life::Launching { waiting, .. } = container.life {
            for waiting in waiting {
                heard |= self.peers.answer(waiting.peer, waiting.operation, answer.clone(), &[]);
            }
        }
        if !heard {
            let exit = Exit { code: FAILED_START, signal: 0, oom: false, finished_at: now() };
            self.peers.tell(Event::ContainerExited { container: container.id, started_at: 0, exit });
        }
    }

    fn hear_exec(&mut self, at: usize) {
        let Some(pod) = &mut self.pod else { return };
        let exec = &mut pod.execs[at];
        let Some(sync) = &exec.sync else { return };
        let answer = match bowline_launch::receive(sync.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(Report::Console(master)) => {
                exec.terminal = Some(master);
                return;
            }
            // Only containers are born twice.
            Ok(Report::Held | Report::Waiting | Report::Became(..)) => return,
            Ok(Report::Running) => Answer::Launched { pid: exec.pid, started_at: now() },
            Ok(Report::Failed(failure)) => Answer::Failed {
                stage: failure.stage as u8,
                detail: failure.detail,
                errno: failure.errno,
                text: String::new(),
            },
            Err(error) => failed_early("hearing from the child", &error),
        };
        exec.sync = None;
        let terminal = exec.terminal.take();
        let (peer, operation) = (exec.peer, exec.operation);
        if matches!(answer, Answer::Failed { .. }) {
            pod.execs.swap_remove(at);
        }
        match &terminal {
            Some(terminal) => self.peers.answer(peer, operation, answer, &[terminal.as_fd()]),
            None => self.peers.answer(peer, operation, answer, &[]),
        };
    }
}

/// How a container goes on once its root is assembled.
pub(super) enum On<'a> {
    /// With its program.
    Exec,
    /// With criu.
    Restore(bowline_launch::Restorer<'a>),
    /// With hooks, and then its program.
    Hooks(bowline_launch::Hooks<'a>),
}

pub(super) fn start_container(
    pod: &mut Pod,
    wish: &Launch,
    plan: &LaunchPlan,
    trees: &[OwnedFd],
    log: Option<OwnedFd>,
    waiting: Option<Waiting>,
    on: On<'_>,
) -> Result<i32, Answer> {
    let kernel = |error: io::Error| failed_early("launching the container", &error);
    let null = pod.surroundings.null.as_fd();
    let (out_read, out_write) = pipe().map_err(kernel)?;
    let (err_read, err_write) = pipe().map_err(kernel)?;
    let (in_read, in_write) = if wish.stdin && !plan.terminal {
        let (read, write) = pipe().map_err(kernel)?;
        (Some(read), Some(write))
    } else {
        (None, None)
    };
    let streams = [in_read.as_ref().map_or(null, AsFd::as_fd), out_write.as_fd(), err_write.as_fd()];
    let pid_namespace = pod.pids(&wish.pids).map_err(|why| Answer::Refused { why })?;
    let (restorer, hooks) = match on {
        On::Exec => (None, None),
        On::Restore(restorer) => (Some(restorer), None),
        On::Hooks(hooks) => (None, Some(hooks)),
    };
    let restored_with = restorer.is_some().then(|| streams.map(|stream| stream.as_raw_fd()));
    let request = LaunchRequest { plan, descriptors: trees, streams, pid_namespace, restorer, hooks };
    let launched = launch(pod, &request)?;
    let ends = Ends { stdin: in_write, stdout: out_read, stderr: err_read };
    let pid = launched.process.pid;
    keep(pod, wish, plan, launched, ends, log, waiting);
    if let Some(container) = pod.containers.last_mut() {
        container.restored_with = restored_with;
    }
    Ok(pid)
}

pub(super) fn launch(pod: &Pod, request: &LaunchRequest<'_>) -> Result<Launched, Answer> {
    let launched = bowline_launch::launch(&pod.launcher(), request).map_err(|error| Answer::Failed {
        stage: u8::MAX,
        detail: 0,
        errno: error.errno(),
        text: error.to_string(),
    })?;
    let _ = rustix::io::ioctl_fionbio(&launched.sync, true);
    Ok(launched)
}

fn keep(
    pod: &mut Pod,
    wish: &Launch,
    plan: &LaunchPlan,
    launched: Launched,
    ends: Ends,
    log: Option<OwnedFd>,
    waiting: Option<Waiting>,
) {
    let mut container = Container {
        id: wish.container,
        slot: wish.slot,
        pid: launched.process.pid,
        pidfd: launched.process.pidfd,
        life: Life::Launching { sync: launched.sync, waiting: waiting.into_iter().collect(), gate: None },
        started_at: 0,
        cgroups: plan.cgroups.iter().map(|step| (step.hierarchy, step.path.clone())).collect(),
        log: None,
        stdin: ends.stdin,
        input_of: None,
        terminal: None,
        restored_with: None,
        hooks: None,
        unseen: None,
    };
    if plan.terminal {
        container.log = log;
    } else {
        pod.log.send(Command::Add {
            key: wish.slot,
            stdout: ends.stdout,
            stderr: Some(ends.stderr),
            file: log,
        });
    }
    pod.containers.push(container);
}

fn start_exec(
    pod: &mut Pod,
    peer: PeerId,
    operation: u64,
    wish: &ExecWish,
    descriptors: Vec<OwnedFd>,
) -> Result<i32, Answer> {
    let refuse = |why| Answer::Refused { why };
    let container = pod.containers.iter().find(|container| container.id == wish.container);
    let container = container.ok_or(refuse(Refusal::Unknown))?;
    if !matches!(container.life, Life::Running) {
        return Err(refuse(Refusal::NotRunning));
    }
    let mut descriptors = descriptors.into_iter();
    let plan = descriptors.next().and_then(|file| read_plan(&file));
    let plan = plan.ok_or(refuse(Refusal::Malformed))?;
    let mut stream = |there: bool| if there { descriptors.next() } else { None };
    let streams = [stream(wish.stdin), stream(wish.stdout), stream(wish.stderr)];
    // The plan's first descriptor is the door into the container: its first process.
    let door = container.pidfd.try_clone();
    let mut trees = vec![door.map_err(|error| failed_early("running the command", &error))?];
    trees.extend(descriptors);
    let null = pod.surroundings.null.as_fd();
    let streams = streams.each_ref().map(|stream| stream.as_ref().map_or(null, AsFd::as_fd));
    let pid_namespace = Some(container.pidfd.as_fd());
    let request = LaunchRequest {
        plan: &plan,
        descriptors: &trees,
        streams,
        pid_namespace,
        restorer: None,
        hooks: None,
    };
    let launched = launch(pod, &request)?;
    let pid = launched.process.pid;
    pod.execs.push(Exec {
        operation,
        peer,
        container: wish.container,
        pid,
        pidfd: launched.process.pidfd,
        sync: Some(launched.sync),
        terminal: None,
    });
    Ok(pid)
}
