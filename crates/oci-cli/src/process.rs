//! Processes by number and start time: a number alone may be somebody else's by now.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// `PF_FORKNOEXEC` (linux/sched.h): the process has not called `execve` since it was cloned.
const NOT_EXECUTED: u64 = 0x40;

/// What tells a process from all others of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// In clock ticks since boot.
    pub(crate) start_time: u64,
}

/// A process that has not ended.
pub(crate) struct Live {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// It is the program, no longer the copy of its launcher.
    pub(crate) executed: bool,
}

impl Identity {
    /// Of a process that cannot vanish: our own child, not waited for yet.
    pub(crate) fn of(pid: i32) -> Result<Identity> {
        let stat = stat(pid).with_context(|| format!("read the start time of process {pid}"))?;
        Ok(Identity { pid, start_time: stat.start_time })
    }

    /// The process, unless it has ended.
    pub(crate) fn find(self) -> Result<Option<Live>> {
        // Opened first, compared afterwards: what the descriptor names cannot change any more.
        let Some(pidfd) = open(self.pid)? else { return Ok(None) };
        let stat = match stat(self.pid) {
            Ok(stat) => stat,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("look at process {}", self.pid)),
        };
        let ours = stat.start_time == self.start_time && !ended(&pidfd, Some(0))?;
        Ok(ours.then_some(Live { pid: self.pid, pidfd, executed: stat.flags & NOT_EXECUTED == 0 }))
    }
}

/// A process by its number, if there is one.
pub(crate) fn open(pid: i32) -> Result<Option<OwnedFd>> {
    let Some(number) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("open process {pid}")),
    }
}

/// Waits for the end of a process, at most this many milliseconds (`None`: for ever); false if it goes on.
pub(crate) fn ended(pidfd: &OwnedFd, milliseconds: Option<i64>) -> Result<bool> {
    let timeout = milliseconds.map(|ms| Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 });
    let mut poll = [PollFd::new(pidfd, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut poll, timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("wait for a process"),
        }
    }
}

/// Sends a signal; false if the process has ended.
pub(crate) fn signal(pidfd: &OwnedFd, number: i32) -> io::Result<bool> {
    match bowline_linux::process::signal_by_pidfd(pidfd.as_fd(), number) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_gone(error: &io::Error) -> bool {
    let srch = Errno::SRCH.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(srch)
}

struct Stat {
    flags: u64,
    start_time: u64,
}

/// Fields 9 and 22 of /proc/PID/stat; the name before them may hold anything, so they are counted from its end.
fn stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    let text = String::from_utf8_lossy(&text);
    let fields: Vec<&str> =
        text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let number = |field: usize| fields.get(field - 3).and_then(|field| field.parse().ok());
    match (number(9), number(22)) {
        (Some(flags), Some(start_time)) => Ok(Stat { flags, start_time }),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat makes no sense")),
    }
}
