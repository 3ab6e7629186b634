//! The exits file: one slot of fixed size per container, allocated before it is needed.
//!
//! The monitor writes a slot with one `pwrite` into memory that the file already owns (tmpfs, `fallocate`), so that
//! recording an exit needs no space, no rename and no daemon. The checksum tells a torn or unused slot from a real
//! one. Layout, little-endian:
//!
//! ```text
//!   0  magic "BWEX"     4  state (1 running, 2 exited)   8  id (32)      40  pid
//!  44  exit code       48  signal                       52  oom (0/1)    56  started_at   64  finished_at
//!  72  zeroes         120  FNV-1a of bytes 0..120
//! ```

use crate::{Exit, Id};

/// Bytes of one slot.
pub const SLOT_LEN: usize = 128;
/// Slots that are allocated when the pod starts: one page.
pub const FIRST_SLOTS: u16 = 32;
/// The most slots of a pod. Removed containers free theirs.
pub const MAX_SLOTS: u16 = 1024;

const MAGIC: &[u8; 4] = b"BWEX";

/// What a slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Whose it is.
    pub container: Id,
    /// Its process.
    pub pid: i32,
    /// When it started, nanoseconds since the epoch.
    pub started_at: i64,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
}

/// Where slot `index` lies in the file.
pub fn offset(index: u16) -> u64 {
    u64::from(index) * SLOT_LEN as u64
}

impl Slot {
    /// The bytes of the slot.
    pub fn to_bytes(&self) -> [u8; SLOT_LEN] {
        let mut bytes = [0u8; SLOT_LEN];
        bytes[0..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&(if self.exit.is_some() { 2u32 } else { 1 }).to_le_bytes());
        bytes[8..40].copy_from_slice(&self.container);
        bytes[40..44].copy_from_slice(&self.pid.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.started_at.to_le_bytes());
        if let Some(exit) = self.exit {
            bytes[44..48].copy_from_slice(&exit.code.to_le_bytes());
            bytes[48..52].copy_from_slice(&exit.signal.to_le_bytes());
            bytes[52..56].copy_from_slice(&u32::from(exit.oom).to_le_bytes());
            bytes[64..72].copy_from_slice(&exit.finished_at.to_le_bytes());
        }
        let sum = checksum(&bytes[..120]);
        bytes[120..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a slot; `None` for one that is unused or torn.
    pub fn from_bytes(bytes: &[u8; SLOT_LEN]) -> Option<Slot> {
        let word = |at: usize| bytes[at..at + 4].try_into().map(i32::from_le_bytes).ok();
        let long = |at: usize| bytes[at..at + 8].try_into().map(i64::from_le_bytes).ok();
        let sum = u64::from_le_bytes(bytes[120..].try_into().ok()?);
        if &bytes[0..4] != MAGIC || sum != checksum(&bytes[..120]) {
            return None;
        }
        let exit = (word(4)? == 2).then_some(Exit {
            code: word(44)?,
            signal: word(48)?,
            oom: word(52)? != 0,
            finished_at: long(64)?,
        });
        Some(Slot { container: bytes[8..40].try_into().ok()?, pid: word(40)?, started_at: long(56)?, exit })
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(exit: Option<Exit>) -> Slot {
        Slot { container: [7; 32], pid: 42, started_at: 1_700_000_000_000_000_000, exit }
    }

    #[test]
    fn a_slot_survives_the_way_there_and_back() {
        let exit = Exit { code: 137, signal: 9, oom: true, finished_at: 5 };
        for slot in [slot(None), slot(Some(exit))] {
            assert_eq!(Slot::from_bytes(&slot.to_bytes()), Some(slot));
        }
    }

    #[test]
    fn unused_and_torn_slots_are_none() {
        assert_eq!(Slot::from_bytes(&[0; SLOT_LEN]), None);
        let whole = slot(None).to_bytes();
        for at in 0..SLOT_LEN {
            let mut torn = whole;
            torn[at] ^= 1;
            assert_eq!(Slot::from_bytes(&torn), None, "byte {at}");
        }
    }
}
