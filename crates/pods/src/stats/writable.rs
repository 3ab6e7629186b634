//! The writable layers, measured by scans in the background.
//!
//! A reader gets the last result with its own time, and starts the next scan if one is due; it never waits for one. At
//! most [`AT_ONCE`] scans run, and one that took long is not repeated soon, so that scans never take more than a
//! twentieth of a disk's time.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bowline_model::ContainerId;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use tokio::sync::Semaphore;

use crate::create::upper;
use crate::shared::{Shared, now};
use crate::view::ContainerView;

/// How old a measurement may be before a reader has it renewed.
const SCAN_AGE: Duration = Duration::from_secs(10);
/// A scan is not repeated before so many times its own length.
const REST: u32 = 20;
/// Scans at a time.
const AT_ONCE: usize = 2;
/// How deep a scan goes; a folder takes a descriptor while what is below it is looked at.
const MAX_DEPTH: usize = 128;
/// How many files with several names are remembered, so that they count once.
const MAX_LINKED: usize = 65_536;

/// The writable layer of a container.
#[derive(Debug, Clone, Default)]
pub struct WritableStats {
    /// When it was measured, nanoseconds since the epoch. Before the first measurement: when it was made, empty.
    pub timestamp: i64,
    /// Bytes of blocks.
    pub used_bytes: u64,
    /// Files and folders.
    pub inodes_used: u64,
    /// A folder of the file system that holds it.
    pub mountpoint: String,
}

/// The last measurement of each writable layer.
pub(crate) struct Usage {
    measured: Mutex<HashMap<ContainerId, Measured>>,
    turns: Arc<Semaphore>,
}

impl Default for Usage {
    fn default() -> Usage {
        Usage { measured: Mutex::default(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

#[derive(Clone, Default)]
struct Measured {
    at: i64,
    bytes: u64,
    inodes: u64,
    running: bool,
    /// Not again before; nanoseconds since the epoch.
    rest_until: i64,
}

impl Usage {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Measured>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn forget(&self, id: &ContainerId) {
        self.lock().remove(id);
    }
}

/// What is known of a container's layer.
pub(super) fn last(shared: &Shared, view: &ContainerView) -> WritableStats {
    let measured = shared.usage.lock().get(&view.id).cloned().unwrap_or_default();
    WritableStats {
        timestamp: if measured.at == 0 { view.created_at } else { measured.at },
        used_bytes: measured.bytes,
        inodes_used: measured.inodes.max(1),
        mountpoint: shared.config.root.to_string_lossy().into_owned(),
    }
}

/// Starts a scan if one is due. Called on a thread of the runtime's.
pub(super) fn scan_if_due(shared: &Arc<Shared>, view: &ContainerView) {
    let id = view.id.clone();
    {
        let mut all = shared.usage.lock();
        let measured = all.entry(id.clone()).or_default();
        let time = now();
        // A clock that was set back must not put scans off for ever.
        let resting = measured.rest_until > time && measured.at <= time;
        if measured.running || resting {
            return;
        }
        measured.running = true;
    }
    let (folder, owner) = (upper(shared, &view.pod, &view.id), shared.clone());
    tokio::spawn(async move {
        let Ok(_turn) = owner.usage.turns.clone().acquire_owned().await else { return };
        let began = Instant::now();
        let scanned = tokio::task::spawn_blocking(move || measure(&folder)).await.unwrap_or_default();
        let rest = SCAN_AGE.max(began.elapsed() * REST);
        if let Some(measured) = owner.usage.lock().get_mut(&id) {
            let at = now();
            let rest_until = at.saturating_add(rest.as_nanos() as i64);
            *measured =
                Measured { at, bytes: scanned.bytes, inodes: scanned.inodes, running: false, rest_until };
        }
    });
}

#[derive(Default)]
struct Scan {
    bytes: u64,
    inodes: u64,
    linked: HashSet<u64>,
}

/// Bytes and inodes of a folder and what is below it. It belongs to a container and may change under us: what vanishes
/// is not counted, and no link in it is followed, so that nothing outside ever is.
fn measure(folder: &Path) -> Scan {
    let mut scan = Scan::default();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(opened) = rustix::fs::open(folder, flags, Mode::empty()) {
        scan.inodes = 1;
        scan.below(opened, 0);
    }
    scan
}

impl Scan {
    fn below(&mut self, folder: OwnedFd, depth: usize) {
        let Ok(entries) = Dir::read_from(&folder) else { return };
        for entry in entries {
            let Ok(entry) = entry else { return };
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(meta) = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let is_folder = FileType::from_raw_mode(meta.st_mode) == FileType::Directory;
            if !is_folder && meta.st_nlink > 1 {
                let known = self.linked.contains(&meta.st_ino);
                if known || (self.linked.len() < MAX_LINKED && !self.linked.insert(meta.st_ino)) {
                    continue;
                }
            }
            self.bytes += meta.st_blocks as u64 * 512;
            self.inodes += 1;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if is_folder
                && depth < MAX_DEPTH
                && let Ok(opened) = rustix::fs::openat(&folder, name, flags, Mode::empty())
            {
                self.below(opened, depth + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_file_count_once_and_links_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir(path.join("sub")).unwrap();
        std::fs::write(path.join("sub/file"), vec![1u8; 100_000]).unwrap();
        std::fs::hard_link(path.join("sub/file"), path.join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", path.join("away")).unwrap();
        let scan = measure(path);
        assert_eq!(scan.inodes, 4, "the folder, sub, file, away");
        assert!((100_000..400_000).contains(&scan.bytes), "{}", scan.bytes);
        assert_eq!(measure(&path.join("missing")).inodes, 0);
    }
}
