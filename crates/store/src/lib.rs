//! Durable records: one file per pod and container, each independent of the others.
//!
//! ```text
//!   <root>/lock                               held by the daemon that owns the root
//!   <root>/pods/<id>/pod.N.json               [`PodRecord`]
//!   <root>/pods/<id>/containers/<id>/container.N.json   [`ContainerRecord`]
//!   <root>/pods/<id>/containers/<id>/config.N.json      the OCI runtime spec
//!   <root>/pods/<id>/containers/<id>/{upper,work}     the writable layer, not ours to read
//!   <root>/trash/                             folders on their way out
//! ```
//!
//! A record is replaced by writing the next generation N beside it under a name of no meaning, renaming that, and
//! removing the one before: a reader takes the highest generation that it can read. (A rename over an existing file
//! would do as well, but ext4 then starts to write the file out at once, which was seen to take 4 ms.) Nobody waits
//! for the disk: `write()` has completed when a call returns, which survives the death of the daemon; a thread flushes
//! what was written within [`FLUSH_AFTER`], which bounds what a power cut can take. A record that cannot be read costs
//! its pod or container, never the start of the daemon. See docs/design/records.md.

mod flush;
mod record;

pub use flush::FLUSH_AFTER;
pub use record::{
    ContainerRecord, ExitRecord, ImageRecord, ImageVolumeRecord, LifeRecord, NetworkRecord, PodLife,
    PodRecord, PodResources, UserRecord, VERSION,
};

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bowline_model::{ContainerId, SandboxId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use flush::Flusher;

/// How long a lock is waited for: a daemon that was killed a moment ago may still be on its way out.
const LOCK_WAIT: Duration = Duration::from_millis(500);
/// The longest record that is read: 16 MiB, the longest message of CRI.
const MAX_RECORD: u64 = 16 << 20;

/// What went wrong with records.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon owns the root.
    #[error("another daemon uses {}; give this one a root of its own with --root", root.display())]
    InUse {
        /// The root.
        root: PathBuf,
    },
    /// A file could not be handled.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A record makes no sense.
    #[error("the record {} cannot be read: {why}", path.display())]
    Bad {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Pods with their containers.
    pub pods: Vec<(PodRecord, Vec<ContainerRecord>)>,
    /// What could not be read; its files are left alone.
    pub bad: Vec<StoreError>,
    /// Ids of pods whose record is bad: nothing that may be theirs is swept.
    pub unreadable: Vec<String>,
}

/// The records below one root.
pub struct Store {
    root: PathBuf,
    flusher: Flusher,
    /// The generation of each record that was written or read.
    generations: Mutex<HashMap<PathBuf, u64>>,
    _lock: File,
}

impl Store {
    /// Opens the root, makes it if it is missing, and locks it for this process.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        for folder in [root.to_owned(), root.join("pods"), root.join("trash")] {
            make_folder(&folder)?;
        }
        let path = root.join("lock");
        let io_error = |doing, source| StoreError::Io { doing, path: path.clone(), source };
        let lock = File::options().create(true).write(true).truncate(false).open(&path);
        let lock = lock.map_err(|source| io_error("open", source))?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(StoreError::InUse { root: root.to_owned() });
                }
                Err(errno) => return Err(io_error("lock", errno.into())),
            }
        }
        Ok(Store {
            root: root.to_owned(),
            flusher: Flusher::start(),
            generations: Mutex::default(),
            _lock: lock,
        })
    }

    /// The folder of a pod.
    pub fn pod_folder(&self, pod: &SandboxId) -> PathBuf {
        self.root.join("pods").join(pod.to_string())
    }

    /// The folder of a container.
    pub fn container_folder(&self, pod: &SandboxId, container: &ContainerId) -> PathBuf {
        self.pod_folder(pod).join("containers").join(container.to_string())
    }

    /// Writes a pod's record.
    pub fn write_pod(&self, record: &PodRecord) -> Result<(), StoreError> {
        let folder = self.pod_folder(&record.id);
        make_folder(&folder)?;
        make_folder(&folder.join("containers"))?;
        self.replace(&folder, "pod", record)
    }

    /// Writes a container's record.
    pub fn write_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        let folder = self.container_folder(&record.pod, &record.id);
        make_folder(&folder)?;
        self.replace(&folder, "container", record)
    }

    /// Writes a container's OCI runtime spec.
    pub fn write_config<T: Serialize>(
        &self,
        pod: &SandboxId,
        id: &ContainerId,
        config: &T,
    ) -> Result<(), StoreError> {
        let folder = self.container_folder(pod, id);
        make_folder(&folder)?;
        self.replace(&folder, "config", config)
    }

    /// Reads a container's OCI runtime spec.
    pub fn read_config<T: DeserializeOwned>(
        &self,
        pod: &SandboxId,
        id: &ContainerId,
    ) -> Result<T, StoreError> {
        self.read(&self.container_folder(pod, id), "config")
    }

    /// Takes a pod out of sight, with all that is in its folder; the space comes back a little later.
    pub fn remove_pod(&self, pod: &SandboxId) -> Result<(), StoreError> {
        self.discard(&self.pod_folder(pod), &pod.to_string())
    }

    /// Takes a container out of sight, writable layer and all.
    pub fn remove_container(&self, pod: &SandboxId, container: &ContainerId) -> Result<(), StoreError> {
        self.discard(&self.container_folder(pod, container), &container.to_string())
    }

    /// Everything that is recorded.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        self.flusher.empty(&self.root.join("trash"), None);
        let mut loaded = Loaded::default();
        for folder in folders(&self.root.join("pods"))? {
            self.load_pod(&folder, &mut loaded);
        }
        Ok(loaded)
    }

    fn load_pod(&self, folder: &Path, loaded: &mut Loaded) {
        let record = match self.read::<PodRecord>(folder, "pod") {
            Ok(record) => record,
            // Made and never recorded: nothing depends on it.
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if let Err(error) = self.discard(folder, &name) {
                    loaded.bad.push(error);
                }
                return;
            }
            Err(error) => {
                loaded.unreadable.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
                loaded.bad.push(error);
                return;
            }
        };
        let mut containers = Vec::new();
        for folder in folders(&folder.join("containers")).unwrap_or_default() {
            match self.read::<ContainerRecord>(&folder, "container") {
                Ok(container) => containers.push(container),
                Err(error) => loaded.bad.push(error),
            }
        }
        containers.sort_by_key(|container| container.created_at);
        loaded.pods.push((record, containers));
    }

    fn discard(&self, folder: &Path, name: &str) -> Result<(), StoreError> {
        self.lock().retain(|path, _| !path.starts_with(folder));
        let target = self.root.join("trash").join(name);
        match fs::rename(folder, &target) {
            Ok(()) => self.flusher.empty(&self.root.join("trash"), Some(target)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Left from an earlier removal under the same name, which a record never gets twice: empty it here.
            Err(_) => {
                let removed = fs::remove_dir_all(folder);
                removed.map_err(|source| StoreError::Io {
                    doing: "remove",
                    path: folder.to_owned(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    fn replace<T: Serialize>(&self, folder: &Path, name: &str, record: &T) -> Result<(), StoreError> {
        let bad = |why: serde_json::Error| StoreError::Bad { path: folder.join(name), why: why.to_string() };
        let bytes = serde_json::to_vec(record).map_err(bad)?;
        let key = folder.join(name);
        let before = self.lock().get(&key).copied().unwrap_or(0);
        let path = generation(folder, name, before + 1);
        let beside = folder.join(format!("{name}.new"));
        let written = File::create(&beside)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&beside, &path));
        written.map_err(|source| StoreError::Io { doing: "write", path: path.clone(), source })?;
        self.lock().insert(key, before + 1);
        if before > 0 {
            let _ = fs::remove_file(generation(folder, name, before));
        }
        self.flusher.flush(path);
        Ok(())
    }

    /// Reads the highest generation that can be read, and removes the others.
    fn read<T: DeserializeOwned>(&self, folder: &Path, name: &str) -> Result<T, StoreError> {
        let mut found: Vec<u64> = Vec::new();
        let io_error = |source| StoreError::Io { doing: "list", path: folder.to_owned(), source };
        for entry in fs::read_dir(folder).map_err(io_error)? {
            let file = entry.map_err(io_error)?.file_name();
            let number = file
                .to_str()
                .and_then(|file| file.strip_prefix(name)?.strip_prefix('.')?.strip_suffix(".json"));
            found.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        let missing = || StoreError::Io {
            doing: "read",
            path: folder.join(name),
            source: io::ErrorKind::NotFound.into(),
        };
        let mut verdict = missing();
        for (position, number) in found.iter().enumerate() {
            match read(&generation(folder, name, *number)) {
                Ok(record) => {
                    for old in &found[position + 1..] {
                        let _ = fs::remove_file(generation(folder, name, *old));
                    }
                    // Above a torn one, so that its file is replaced some day and never mistaken for newer.
                    self.lock().insert(folder.join(name), found[0]);
                    return Ok(record);
                }
                Err(error) if position == 0 => verdict = error,
                Err(_) => {}
            }
        }
        Err(verdict)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, u64>> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything written so far is on the disk.
    pub fn settle(&self) {
        self.flusher.settle();
    }
}

fn generation(folder: &Path, name: &str, number: u64) -> PathBuf {
    folder.join(format!("{name}.{number}.json"))
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| StoreError::Io { doing: "make", path: path.to_owned(), source })
}

fn folders(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let io_error = |source| StoreError::Io { doing: "list", path: path.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(io_error)? {
        let entry = entry.map_err(io_error)?;
        if entry.file_type().map_err(io_error)?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    let io_error = |source| StoreError::Io { doing: "read", path: path.to_owned(), source };
    let len = fs::metadata(path).map_err(io_error)?.len();
    if len > MAX_RECORD {
        return Err(StoreError::Bad { path: path.to_owned(), why: format!("{len} bytes are too many") });
    }
    let bytes = fs::read(path).map_err(io_error)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| StoreError::Bad { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests;
