//! Waiting for a child, and passing signals on to it meanwhile.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};

use crate::process;

/// Signals that are for the program rather than for us.
const PASSED_ON: [Signal; 8] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::CONT,
    Signal::WINCH,
];
/// Length of a `struct signalfd_siginfo`, which begins with the signal's number.
const REPORT: usize = 128;

/// Signals that arrive, from now on, as data.
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// From now on they do not end us. A child that is launched starts with none blocked.
    pub(crate) fn catch() -> Result<Signals> {
        let numbers = PASSED_ON.map(Signal::as_raw);
        bowline_linux::process::signal_descriptor(&numbers).map(Signals).context("catch signals")
    }

    fn pass_on(&self, pidfd: &OwnedFd) -> Result<()> {
        let mut report = [0u8; REPORT];
        while let Ok(REPORT) = rustix::io::read(&self.0, &mut report) {
            let number = i32::from_ne_bytes([report[0], report[1], report[2], report[3]]);
            process::signal(pidfd, number).context("pass on a signal")?;
        }
        Ok(())
    }
}

/// Waits for the end of a child; the exit code, or 128 and the number of the signal.
pub(crate) fn follow(pidfd: &OwnedFd, signals: &Signals) -> Result<u8> {
    loop {
        let mut both = [PollFd::new(pidfd, PollFlags::IN), PollFd::new(&signals.0, PollFlags::IN)];
        match poll(&mut both, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("wait for the process"),
        }
        if !both[0].revents().is_empty() {
            return reap(pidfd);
        }
        signals.pass_on(pidfd)?;
    }
}

/// Takes a child that has ended.
pub(crate) fn reap(pidfd: &OwnedFd) -> Result<u8> {
    let status =
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).context("wait for the process")?;
    let status = status.context("the process has not ended")?;
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or_default(),
    };
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
