//! Network namespaces.

use std::io;

use rustix::thread::UnshareFlags;

/// Moves the calling thread into a new, empty network namespace.
///
/// Only this thread moves: call it on a thread made for the purpose, never on one that others use later.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: only CLONE_NEWNET is unshared. The descriptor table, memory and file system state stay shared with
    // the other threads, so no descriptor that another thread relies on changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}
