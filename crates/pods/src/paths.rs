//! Paths of the host, opened by processes that can be killed.
//!
//! ```text
//!   blocking thread --- requests, in one go ---> worker (`bowline-paths`, a role of the monitor's program)
//!                   <-- answers, descriptors ---
//!                   --- SIGKILL, when patience ends
//! ```
//!
//! A path of a volume or a log may lie on a file system that hangs. A thread that touches it is lost to the daemon for
//! as long as that takes, maybe for ever; a process can be killed, unless the file system is one that does not even let
//! its callers die. Such a worker is left to itself and counted; with [`MAX_HUNG`] of them no path is opened any more
//! until one has died, since each holds a process.
//!
//! A worker does one caller's requests at a time. One is always kept, so that the usual start of a container spawns
//! nothing. Protocol: docs/design/path-workers.md.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bowline_linux::message;
use bowline_monitor_proto::paths::{Opened, PathRequest, Wish};
use bowline_monitor_proto::{MAX_MESSAGE, decode, encode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::PodError;
use crate::monitor::Program;

/// How long the host's file systems may take to hand out what a container needs of them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);
/// How long a killed worker may take to die before it counts as hung.
const DEATH: Duration = Duration::from_secs(1);
/// The most workers that do not die.
const MAX_HUNG: usize = 16;
/// The most workers at once.
const MAX_WORKERS: usize = 64;
/// How many idle workers are kept, and for how long all but one of them.
const MAX_IDLE: usize = 8;
const IDLE: Duration = Duration::from_secs(60);
/// How many requests are on their way at once: their answers must fit into a socket's buffer.
const WINDOW: usize = 16;

/// What a worker answered: the path without symlinks where it was asked for, and the descriptor.
pub(crate) type Answer = (Vec<u8>, Option<OwnedFd>);

/// The workers.
#[derive(Default)]
pub(crate) struct Paths(Mutex<State>);

#[derive(Default)]
struct State {
    idle: Vec<(Instant, Worker)>,
    busy: usize,
    hung: Vec<Child>,
}

struct Worker {
    child: Child,
    socket: OwnedFd,
}

/// Why no answer came.
enum Lost {
    /// The worker is gone.
    Ended(io::Error),
    /// Patience ended at the wish of this number.
    Patience(usize),
}

/// Paths that a worker is opening. Dropped before they are all there, that worker is ended.
pub(crate) struct Opening {
    paths: Arc<Paths>,
    wishes: Vec<Wish>,
    patience: Duration,
    deadline: Instant,
    /// One that has heard the first window of them, and whether it was kept from before; none, if it had gone by then.
    worker: Option<(Worker, bool)>,
}

impl Paths {
    /// Opens all that is wished for, or says which one failed: its number, and why. Blocking, at most about as long as
    /// `patience`.
    pub(crate) fn open(
        self: &Arc<Self>,
        program: &Program,
        wishes: Vec<Wish>,
        patience: Duration,
    ) -> Result<Vec<Answer>, (usize, PodError)> {
        self.begin(program, wishes, patience)?.finish(program)
    }

    /// The same for a caller that has something else to do meanwhile.
    pub(crate) fn begin(
        self: &Arc<Self>,
        program: &Program,
        wishes: Vec<Wish>,
        patience: Duration,
    ) -> Result<Opening, (usize, PodError)> {
        let deadline = Instant::now() + patience;
        let mut opening = Opening { paths: self.clone(), wishes, patience, deadline, worker: None };
        if let Some(window) = opening.wishes.chunks(WINDOW).next() {
            let (worker, kept) = self.take(program, false).map_err(|error| (0, error))?;
            match ask(&worker, window) {
                Ok(()) => opening.worker = Some((worker, kept)),
                Err(_) => self.discard(worker),
            }
        }
        Ok(opening)
    }

    /// Starts the worker that is always kept.
    pub(crate) fn warm(&self, program: &Program) {
        match self.take(program, true) {
            Ok((worker, _)) => self.give_back(worker),
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "no worker to open paths could be started yet")
            }
        }
    }

    /// Ends workers that nobody has needed for a while, all but one, and forgets hung ones that have died at last.
    pub(crate) fn tidy(&self) {
        let mut ended = Vec::new();
        {
            let mut state = self.state();
            prune(&mut state.hung);
            while state.idle.len() > 1 && state.idle[0].0.elapsed() >= IDLE {
                ended.push(state.idle.remove(0).1);
            }
        }
        for worker in ended {
            self.end(worker);
        }
    }

    fn take(&self, program: &Program, fresh: bool) -> Result<(Worker, bool), PodError> {
        {
            let mut state = self.state();
            prune(&mut state.hung);
            if state.hung.len() >= MAX_HUNG {
                return Err(PodError::Full(format!(
                    "{MAX_HUNG} processes hang in file systems of the host and cannot be killed; find them by `ps` as \
                     bowline-paths, and mend or unmount what they wait for"
                )));
            }
            if state.busy >= MAX_WORKERS {
                return Err(PodError::Full(format!(
                    "{MAX_WORKERS} paths of the host are being opened already"
                )));
            }
            state.busy += 1;
            if !fresh && let Some((_, worker)) = state.idle.pop() {
                return Ok((worker, true));
            }
        }
        match program.start_paths() {
            Ok((child, socket)) => Ok((Worker { child, socket }, false)),
            Err(error) => {
                self.state().busy -= 1;
                Err(PodError::failed("start a worker to open paths", error))
            }
        }
    }

    fn give_back(&self, worker: Worker) {
        let mut state = self.state();
        state.busy -= 1;
        state.idle.push((Instant::now(), worker));
        let surplus = (state.idle.len() > MAX_IDLE).then(|| state.idle.remove(0).1);
        drop(state);
        if let Some(worker) = surplus {
            self.end(worker);
        }
    }

    fn abandon(&self, worker: Worker) {
        self.state().busy -= 1;
        self.end(worker);
    }

    /// Kills a worker, and leaves it to whoever takes or tidies next to see it dead: nobody waits, as this may be a thread that
    /// serves calls.
    fn discard(&self, mut worker: Worker) {
        let _ = worker.child.kill();
        let mut state = self.state();
        state.busy -= 1;
        state.hung.push(worker.child);
    }

    /// Kills a worker; one that does not die in time is remembered as hung.
    fn end(&self, mut worker: Worker) {
        let _ = worker.child.kill();
        let deadline = Instant::now() + DEATH;
        let mut pause = Duration::from_micros(100);
        while let Ok(None) = worker.child.try_wait() {
            if Instant::now() >= deadline {
                tracing::error!(
                    pid = worker.child.id(),
                    "a worker hangs in a file system of the host and cannot be killed; it is left to itself"
                );
                self.state().hung.push(worker.child);
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opening {
    /// Waits for what was wished for, or says which one failed: its number, and why.
    pub(crate) fn finish(mut self, program: &Program) -> Result<Vec<Answer>, (usize, PodError)> {
        if self.wishes.is_empty() {
            return Ok(Vec::new());
        }
        loop {
            // One that was kept may have been killed meanwhile, by whomever; a new one has no such excuse.
            let asked = self.worker.is_some();
            let (mut worker, kept) = match self.worker.take() {
                Some(taken) => taken,
                None => self.paths.take(program, true).map_err(|error| (0, error))?,
            };
            match converse(&mut worker, &self.wishes, asked, self.deadline) {
                Ok(answers) => {
                    self.paths.give_back(worker);
                    return sort_out(answers);
                }
                Err(Lost::Patience(at)) => {
                    self.paths.abandon(worker);
                    let text = format!("it takes more than {:?}: its file system hangs", self.patience);
                    return Err((at, PodError::Deadline(text)));
                }
                Err(Lost::Ended(_)) if kept => self.paths.abandon(worker),
                Err(Lost::Ended(error)) => {
                    self.paths.abandon(worker);
                    return Err((0, PodError::failed("talk to the worker that opens paths", error)));
                }
            }
        }
    }

    /// Whether the first answer has come: the others are close behind.
    pub(crate) fn has_begun(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.worker.as_ref().is_none_or(|(worker, _)| {
            poll(&mut [PollFd::new(&worker.socket, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
        })
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some((worker, _)) = self.worker.take() {
            self.paths.discard(worker);
        }
    }
}

fn prune(hung: &mut Vec<Child>) {
    hung.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

fn ask(worker: &Worker, wishes: &[Wish]) -> io::Result<()> {
    wishes.iter().try_for_each(|wish| {
        message::send(worker.socket.as_fd(), &encode(&PathRequest { wish: wish.clone() }), &[])
    })
}

/// All answers, of a worker that has heard the first window already if it was `asked`.
fn converse(
    worker: &mut Worker,
    wishes: &[Wish],
    asked: bool,
    deadline: Instant,
) -> Result<Vec<(Opened, Option<OwnedFd>)>, Lost> {
    let mut answers = Vec::with_capacity(wishes.len());
    let mut buffer = vec![0u8; MAX_MESSAGE];
    for (number, window) in wishes.chunks(WINDOW).enumerate() {
        if number > 0 || !asked {
            ask(worker, window).map_err(Lost::Ended)?;
        }
        for _ in window {
            wait(worker, deadline, answers.len())?;
            let (len, mut descriptors) =
                message::receive(worker.socket.as_fd(), &mut buffer).map_err(Lost::Ended)?;
            let answer = decode::<Opened>(&buffer[..len])
                .map_err(|_| Lost::Ended(io::Error::other("it ended or said something strange")))?;
            answers.push((answer, descriptors.pop()));
        }
    }
    Ok(answers)
}

fn wait(worker: &Worker, deadline: Instant, at: usize) -> Result<(), Lost> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&worker.socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(Lost::Patience(at)),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Lost::Ended(errno.into())),
        }
    }
}

fn sort_out(answers: Vec<(Opened, Option<OwnedFd>)>) -> Result<Vec<Answer>, (usize, PodError)> {
    let sorted = answers.into_iter().enumerate().map(|(at, (answer, opened))| match answer.errno {
        0 => Ok((answer.real.0, opened)),
        errno if answer.real.0.is_empty() => {
            Err((at, PodError::failed("open it", io::Error::from_raw_os_error(errno))))
        }
        _ => Err((at, PodError::failed("open it", String::from_utf8_lossy(&answer.real.0).into_owned()))),
    });
    sorted.collect()
}
