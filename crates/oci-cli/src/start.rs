//! `start`: ends the hold and hears how `execve` went.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use bowline_launch::Report;
use bowline_model::signal::Signal;
use rustix::fs::{Mode, OFlags};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::store::{Status, Store};
use crate::{hooks, launching, process};

/// Runs the program of a created container.
pub(crate) fn start(store: &Store, id: &str) -> Result<()> {
    let (folder, record, _locked) = store.lock(id)?;
    let (status, live) = record.look()?;
    let live = match live {
        Some(live) if status == Status::Created => live,
        _ => bail!("container {id} is {}; only a created one can be started", status.word()),
    };
    let plan = folder.plan()?;
    // The launcher's end of the sync socket: the waiting child still has its copy.
    let sync = pidfd_getfd(&live.pidfd, record.sync, PidfdGetfdFlags::empty());
    let sync = sync.context("take the sync socket from the process")?;
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let gate = rustix::fs::open(folder.fifo(), flags, Mode::empty()).context("open the FIFO")?;
    rustix::io::write(&gate, b"1").context("write to the FIFO")?;
    loop {
        match bowline_launch::receive(sync.as_fd()).context("hear from the process")? {
            Report::Running => break,
            Report::Failed(failure) => return Err(launching::failed(&plan, failure)),
            Report::Console(_) | Report::Held | Report::Waiting | Report::Became(..) => {}
        }
    }
    let state = record.state_json(Status::Running)?;
    let ran = hooks::run("poststart", &record.hooks.poststart, &record.bundle, &state);
    if ran.is_err() {
        process::signal(&live.pidfd, Signal::KILL.number())?;
    }
    ran
}
