//! `delete`: the end of a container.

use anyhow::{Result, bail};
use bowline_model::signal::Signal;

use crate::hierarchies::Hierarchies;
use crate::store::{Status, Store};
use crate::{hooks, process};

/// How long a killed process may take to end, in milliseconds.
const KILL_LIMIT: i64 = 10_000;

/// Removes a container and what was made for it.
pub(crate) fn delete(store: &Store, id: &str, force: bool) -> Result<()> {
    if force {
        let Some(folder) = store.find(id)? else { return Ok(()) };
        let locked = folder.lock()?;
        if folder.record()?.is_none() {
            return folder.remove();
        }
        drop(locked);
    }
    let (folder, record, _locked) = store.lock(id)?;
    let (status, live) = record.look()?;
    let hierarchies = Hierarchies::discover()?.ordered_as(&record.groups.layout)?;
    if let Some(live) = live {
        if !force {
            bail!("container {id} is {}; kill it first, or pass --force", status.word());
        }
        process::signal(&live.pidfd, Signal::KILL.number())?;
        if !process::ended(&live.pidfd, Some(KILL_LIMIT))? {
            bail!("container {id} was killed and goes on: process {} is stuck in the kernel", live.pid);
        }
    }
    // Without a PID namespace of its own, others may have outlived it.
    record.groups.signal(&hierarchies, Signal::KILL)?;
    record.groups.remove(&hierarchies)?;
    record.leave_class()?;
    let state = record.state_json(Status::Stopped)?;
    hooks::run_all("poststop", &record.hooks.poststop, &record.bundle, &state);
    folder.remove()
}
