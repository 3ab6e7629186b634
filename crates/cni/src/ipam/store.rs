//! host-local's files: one per address, in a folder per network, under a lock that its other users take too.
//!
//! Content and names are exactly the official plugin's, so both can serve one network at the same time.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use crate::CniError;

const LOCK: &str = "lock";
const LAST_RESERVED: &str = "last_reserved_ip.";
const DRAFT: &str = "bowline.draft";
/// A reservation is an id and a link's name.
const CONTENT_MAX: u64 = 4096;
/// Between two tries for a lock that another process holds. `flock` itself knows no deadline.
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// Whose a reservation is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) sandbox_id: &'a str,
    pub(crate) if_name: &'a str,
}

impl Owner<'_> {
    fn content(&self) -> String {
        format!("{}\r\n{}", self.sandbox_id, self.if_name)
    }
}

/// An address that somebody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub(crate) address: IpAddr,
    pub(crate) sandbox_id: String,
}

/// Queues for the folders' locks among our own threads. Without it those of a burst would meet at `flock`, where the
/// loser sleeps. One entry per folder, so as many as there are networks.
#[derive(Default)]
pub(crate) struct Queues(Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>>);

impl Queues {
    /// Does `work` with the folder locked, waiting no longer than `patience` for other processes.
    pub(crate) fn with<T>(
        &self,
        dir: &Path,
        patience: Duration,
        work: impl FnOnce(&Store) -> Result<T, CniError>,
    ) -> Result<T, CniError> {
        // The locks guard files, not memory: whoever panicked left them as a crash would.
        let queue = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(dir.to_owned()).or_default())
        };
        let _turn = queue.lock().unwrap_or_else(PoisonError::into_inner);
        work(&Store::open(dir, patience)?)
    }
}

/// The folder of one network, locked as long as this lives.
pub(crate) struct Store {
    dir: PathBuf,
    _lock: File,
}

impl Store {
    /// Makes the folder if need be and takes its lock, waiting no longer than `patience`.
    fn open(dir: &Path, patience: Duration) -> Result<Store, CniError> {
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(dir.join(LOCK))
        };
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(dir)
                    .map_err(CniError::file("make the folder of reservations", dir))?;
                open()
            }
            other => other,
        }
        .map_err(CniError::file("open the lock of", dir))?;
        let begin = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Store { dir: dir.to_owned(), _lock: file }),
                Err(Errno::WOULDBLOCK) if begin.elapsed() < patience => std::thread::sleep(LOCK_RETRY),
                Err(Errno::WOULDBLOCK) => {
                    let stuck = io::Error::new(io::ErrorKind::TimedOut, "another process holds it");
                    return Err(CniError::file("take the lock of", dir)(stuck));
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(CniError::file("take the lock of", dir)(errno.into())),
            }
        }
    }

    /// Reserves the address; false if somebody has it.
    pub(crate) fn reserve(&self, owner: &Owner<'_>, ip: IpAddr, set: usize) -> Result<bool, CniError> {
        let path = self.dir.join(ip.to_string());
        if path.try_exists().map_err(CniError::file("look for", &path))? {
            return Ok(false);
        }
        // The content first, then the name: a reservation cut short by a crash would be nobody's for ever.
        // Only the holder of the lock has this name, so one from an earlier crash may be written over.
        let draft = self.dir.join(DRAFT);
        write(&draft, &owner.content()).map_err(CniError::file("write", &draft))?;
        match renameat_with(CWD, &draft, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(errno) => return Err(CniError::file("reserve", path)(errno.into())),
        }
        let last = self.dir.join(format!("{LAST_RESERVED}{set}"));
        write_over(&last, &ip.to_string()).map_err(CniError::file("write", last))?;
        Ok(true)
    }

    /// The address of this range set that was given out last.
    pub(crate) fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        read(&self.dir.join(format!("{LAST_RESERVED}{set}"))).ok()?.trim().parse().ok()
    }

    /// Gives one address back, if it is this owner's.
    pub(crate) fn release(&self, owner: &Owner<'_>, ip: IpAddr) -> Result<(), CniError> {
        let path = self.dir.join(ip.to_string());
        match read(&path) {
            Ok(content) if content.trim() == owner.content() => {
                fs::remove_file(&path).map_err(CniError::file("release", path))
            }
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(CniError::file("read the reservation", path)(e)),
        }
    }

    /// Gives back whatever this owner has: for an ADD of which no result is known.
    pub(crate) fn release_all_of(&self, owner: &Owner<'_>) -> Result<(), CniError> {
        let content = owner.content();
        // It may have been cut short while it wrote; the lock is ours, so nobody else is writing.
        let _ = fs::remove_file(self.dir.join(DRAFT));
        for ip in self.taken()? {
            let path = self.dir.join(ip.to_string());
            if read(&path).is_ok_and(|text| text.trim() == content) {
                fs::remove_file(&path).map_err(CniError::file("release", path))?;
            }
        }
        Ok(())
    }

    /// All addresses that somebody has.
    pub(crate) fn taken(&self) -> Result<HashSet<IpAddr>, CniError> {
        addresses(&self.dir)
    }
}

/// The reservations in a folder, read without the lock: for reports.
pub(crate) fn reservations(dir: &Path) -> Result<Vec<Reservation>, CniError> {
    let mut out = Vec::new();
    for address in addresses(dir)? {
        if let Ok(text) = read(&dir.join(address.to_string())) {
            let sandbox_id = text.split_whitespace().next().unwrap_or_default().to_owned();
            out.push(Reservation { address, sandbox_id });
        }
    }
    Ok(out)
}

fn addresses(dir: &Path) -> Result<HashSet<IpAddr>, CniError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(e) => return Err(CniError::file("list the reservations in", dir)(e)),
    };
    Ok(entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}

/// Writes without emptying the file first: at the close of a file that was cut to nothing ext4 starts writing back
/// (`auto_da_alloc`), which takes milliseconds. Cut short by a crash it names no address, and the round starts over.
fn write_over(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(CONTENT_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_as_the_official_plugin_writes_them() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("net");
        let store = Store::open(&dir, Duration::ZERO).unwrap();
        let owner = Owner { sandbox_id: "abc", if_name: "eth0" };
        let ip: IpAddr = "10.0.0.2".parse().unwrap();
        assert!(store.reserve(&owner, ip, 0).unwrap());
        assert!(!store.reserve(&owner, ip, 0).unwrap(), "taken");
        assert_eq!(fs::read(dir.join("10.0.0.2")).unwrap(), b"abc\r\neth0");
        assert_eq!(fs::read(dir.join("last_reserved_ip.0")).unwrap(), b"10.0.0.2");
        assert_eq!(store.last_reserved(0), Some(ip));
        assert_eq!(reservations(&dir).unwrap(), [Reservation { address: ip, sandbox_id: "abc".into() }]);

        let other = Owner { sandbox_id: "abd", if_name: "eth0" };
        store.release(&other, ip).unwrap();
        assert!(dir.join("10.0.0.2").exists(), "another's reservation stays");
        fs::write(dir.join(DRAFT), "abc").unwrap();
        store.release_all_of(&owner).unwrap();
        assert!(!dir.join(DRAFT).exists(), "what was being written when its owner died");
        store.release(&owner, ip).unwrap();
        assert!(!dir.join("10.0.0.2").exists());
    }

    #[test]
    fn a_lock_that_is_held_ends_in_an_error() {
        let tmp = tempfile::tempdir().unwrap();
        let held = Store::open(tmp.path(), Duration::ZERO).unwrap();
        assert!(matches!(Store::open(tmp.path(), Duration::from_millis(5)), Err(CniError::File { .. })));
        drop(held);
        Store::open(tmp.path(), Duration::ZERO).unwrap();
    }
}
