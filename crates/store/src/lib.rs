//! Durable records: one file per pod and container, each independent of the others.
//!
//! ```text
//!   <root>/lock                               held by the daemon that owns the root
//!   <root>/pods/<id>/pod.json                 [`PodRecord`]
//!   <root>/pods/<id>/containers/<id>/container.json   [`ContainerRecord`]
//!   <root>/pods/<id>/containers/<id>/config.json      the OCI runtime spec, written once
//!   <root>/pods/<id>/containers/<id>/{upper,work}     the writable layer, not ours to read
//!   <root>/trash/                             folders on their way out
//! ```
//!
//! A record is replaced by writing beside it and renaming, so a reader sees the old one or the new one. Nobody waits
//! for the disk: `write()` has completed when a call returns, which survives the death of the daemon; a thread flushes
//! what was written within [`FLUSH_AFTER`], which bounds what a power cut can take. A record that cannot be read costs
//! its pod or container, never the start of the daemon. See docs/design/records.md.

mod flush;
mod record;

pub use flush::FLUSH_AFTER;
pub use record::{ContainerRecord, ExitRecord, ImageRecord, LifeRecord, NetworkRecord, PodLife, PodRecord, UserRecord, VERSION};

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use bowline_model::{ContainerId, SandboxId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use flush::Flusher;

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
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::InUse { root: root.to_owned() }),
            Err(errno) => return Err(io_error("lock", errno.into())),
        }
        Ok(Store { root: root.to_owned(), flusher: Flusher::start(), _lock: lock })
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
        self.replace(&folder.join("pod.json"), record)
    }

    /// Writes a container's record.
    pub fn write_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        let folder = self.container_folder(&record.pod, &record.id);
        make_folder(&folder)?;
        self.replace(&folder.join("container.json"), record)
    }

    /// Writes a container's OCI runtime spec.
    pub fn write_config<T: Serialize>(&self, pod: &SandboxId, id: &ContainerId, config: &T) -> Result<(), StoreError> {
        let folder = self.container_folder(pod, id);
        make_folder(&folder)?;
        self.replace(&folder.join("config.json"), config)
    }

    /// Reads a container's OCI runtime spec.
    pub fn read_config<T: DeserializeOwned>(&self, pod: &SandboxId, id: &ContainerId) -> Result<T, StoreError> {
        read(&self.container_folder(pod, id).join("config.json"))
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
        let record = match read::<PodRecord>(&folder.join("pod.json")) {
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
            match read::<ContainerRecord>(&folder.join("container.json")) {
                Ok(container) => containers.push(container),
                Err(error) => loaded.bad.push(error),
            }
        }
        containers.sort_by_key(|container| container.created_at);
        loaded.pods.push((record, containers));
    }

    fn discard(&self, folder: &Path, name: &str) -> Result<(), StoreError> {
        let target = self.root.join("trash").join(name);
        match fs::rename(folder, &target) {
            Ok(()) => self.flusher.empty(&self.root.join("trash"), Some(target)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Left from an earlier removal under the same name, which a record never gets twice: empty it here.
            Err(_) => {
                let removed = fs::remove_dir_all(folder);
                removed.map_err(|source| StoreError::Io { doing: "remove", path: folder.to_owned(), source })?;
            }
        }
        Ok(())
    }

    fn replace<T: Serialize>(&self, path: &Path, record: &T) -> Result<(), StoreError> {
        let bad = |why: serde_json::Error| StoreError::Bad { path: path.to_owned(), why: why.to_string() };
        let bytes = serde_json::to_vec(record).map_err(bad)?;
        let beside = path.with_extension("new");
        let written = File::create(&beside).and_then(|mut file| file.write_all(&bytes)).and_then(|()| fs::rename(&beside, path));
        written.map_err(|source| StoreError::Io { doing: "write", path: path.to_owned(), source })?;
        self.flusher.flush(path.to_owned());
        Ok(())
    }

    /// Waits until everything written so far is on the disk.
    pub fn settle(&self) {
        self.flusher.settle();
    }
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
    serde_json::from_slice(&bytes).map_err(|error| StoreError::Bad { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests;
