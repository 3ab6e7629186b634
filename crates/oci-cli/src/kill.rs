//! `kill`: signals.

use anyhow::{Context as _, Result, bail};
use bowline_model::signal::Signal;

use crate::hierarchies::Hierarchies;
use crate::process;
use crate::store::Store;

/// Signals a container's process, or all of its processes.
pub(crate) fn kill(store: &Store, id: &str, signal: &str, all: bool) -> Result<()> {
    let signal = Signal::parse(signal).with_context(|| format!("there is no signal {signal:?}"))?;
    let (_, record) = store.read(id)?;
    if all {
        let hierarchies = Hierarchies::discover()?.ordered_as(&record.groups.layout)?;
        record.groups.signal(&hierarchies, signal)?;
        return Ok(());
    }
    let (status, live) = record.look()?;
    let sent = match live {
        Some(live) => process::signal(&live.pidfd, signal.number()).context("signal the process")?,
        None => false,
    };
    if !sent {
        bail!("container {id} is {}; it cannot be signalled", status.word());
    }
    Ok(())
}
