//! The exits file, from the monitor's side.

use std::io;
use std::os::fd::OwnedFd;

use bowline_monitor_proto::slot::{self, SLOT_LEN, Slot};

/// Slots that were allocated before their containers started.
pub struct Exits(OwnedFd);

impl Exits {
    /// Takes the file over.
    pub fn new(file: OwnedFd) -> Exits {
        Exits(file)
    }

    /// Writes a slot. The memory is the file's already, so a full disk or tmpfs cannot refuse it.
    pub fn write(&self, index: u16, slot: &Slot) -> io::Result<()> {
        self.put(index, &slot.to_bytes())
    }

    /// Empties a slot.
    pub fn clear(&self, index: u16) -> io::Result<()> {
        self.put(index, &[0; SLOT_LEN])
    }

    fn put(&self, index: u16, bytes: &[u8; SLOT_LEN]) -> io::Result<()> {
        let len = rustix::io::pwrite(&self.0, bytes, slot::offset(index))?;
        if len == SLOT_LEN { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}
