//! `run`: a whole life in one call.

use anyhow::Result;

use crate::args::CreateArgs;
use crate::store::Store;
use crate::wait::{self, Signals};
use crate::{create, delete, start};

/// Creates, starts, waits, deletes; returns the program's exit code.
pub(crate) fn run(store: &Store, wish: &CreateArgs) -> Result<u8> {
    // From the beginning: a signal on the way must not leave a container behind.
    let signals = Signals::catch()?;
    let pidfd = create::make(store, wish)?;
    let ended = start::start(store, &wish.id).and_then(|()| wait::follow(&pidfd, &signals));
    let deleted = delete::delete(store, &wish.id, true);
    let code = ended?;
    deleted.map(|()| code)
}
