//! Durable records: one file per pod and container, each independent of the others.
//!
//! ```text
//!   <root>/lock                               held by the daemon that owns the root
//!   <root>/pods/<id>/pod.N.json               [`PodRecord`]
//!   <root>/pods/<id>/containers/<id>/container.N.json   [`ContainerRecord`]
//!   <root>/pods/<id>/containers/<id>/config.N.json      the OCI runtime spec
//!   <root>/pods/<id>/containers/<id>/{upper,work}     the writable layer, not ours to read
//!   <root>/spare/                             folders made in advance
//!   <root>/trash/                             folders on their way out
//! ```
//!
//! A record's file holds a line for each time that it was written; the last whole one counts. Once it is long, the next
//! generation N is written beside it under a name of no meaning, that is renamed, and the one before removed: a reader
//! takes the highest generation that it can read. (A rename over an existing file would do as well, but ext4 then starts
//! to write the file out at once, which was seen to take 4 ms.) Nobody waits for the disk: `write()` has completed when a call returns, which survives the death of the daemon; a thread flushes
//! what was written within [`FLUSH_AFTER`], which bounds what a power cut can take. A record that cannot be read costs
//! its pod or container, never the start of the daemon. See docs/design/records.md.

mod flush;
mod record;
mod spare;

pub use flush::FLUSH_AFTER;
pub use record::{
    ContainerRecord, ExitRecord, ImageRecord, ImageVolumeRecord, LifeRecord, NetworkRecord, PodLife,
    PodRecord, PodResources, SelinuxRecord, UserRecord, VERSION,
};

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bowline_model::{ContainerId, SandboxId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use flush::Flusher;
use spare::{Kind, Spares};

/// How long a lock is waited for: a daemon that was killed a moment ago may still be on its way out.
const LOCK_WAIT: Duration = Duration::from_millis(500);
/// The longest record that is read: 16 MiB, the longest message of CRI.
const MAX_RECORD: u64 = 16 << 20;
/// Lines are appended to a record's file up to this length.
const MAX_APPENDED: u64 = 64 << 10;

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
    spares: Arc<Spares>,
    flusher: Flusher,
    /// Where each record that was written or read ends.
    tails: Mutex<HashMap<PathBuf, Tail>>,
    _lock: File,
}

/// The end of a record's file.
#[derive(Debug, Clone, Copy)]
struct Tail {
    generation: u64,
    /// The length of the file; `None`: it does not end in a whole line, so the next one begins another generation.
    length: Option<u64>,
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
        let folder = root.join("spare");
        let failed = |source| StoreError::Io { doing: "make", path: folder.clone(), source };
        let spares = Arc::new(Spares::open(folder.clone()).map_err(failed)?);
        Ok(Store {
            root: root.to_owned(),
            flusher: Flusher::start(spares.clone()),
            spares,
            tails: Mutex::default(),
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
        if !self.knows(&folder, &["pod"]) {
            self.place(Kind::Pod, &folder)?;
        }
        self.write(&folder, "pod", record)
    }

    /// Writes a container's record.
    pub fn write_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        let folder = self.container_folder(&record.pod, &record.id);
        if !self.knows(&folder, &["container", "config"]) {
            self.place(Kind::Container, &folder)?;
        }
        self.write(&folder, "container", record)
    }

    /// Writes a container's OCI runtime spec. The first time its folder is made, with empty folders `upper` and `work`
    /// of mode 0700 in it.
    pub fn write_config<T: Serialize>(
        &self,
        pod: &SandboxId,
        id: &ContainerId,
        config: &T,
    ) -> Result<(), StoreError> {
        let folder = self.container_folder(pod, id);
        if !self.knows(&folder, &["config"]) {
            self.place(Kind::Container, &folder)?;
        }
        self.write(&folder, "config", config)
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

    fn write<T: Serialize>(&self, folder: &Path, name: &str, record: &T) -> Result<(), StoreError> {
        let bad = |why: serde_json::Error| StoreError::Bad { path: folder.join(name), why: why.to_string() };
        let mut line = serde_json::to_vec(record).map_err(bad)?;
        line.push(b'\n');
        let added = line.len() as u64;
        let key = folder.join(name);
        let before = self.lock().get(&key).copied();
        let (generation, length) = match before {
            Some(Tail { generation, length: Some(length) }) if length + added <= MAX_APPENDED => {
                (generation, Some(length))
            }
            before => (before.map_or(0, |tail| tail.generation) + 1, None),
        };
        let path = generation_path(folder, name, generation);
        let written = match length {
            Some(length) => append(&path, &line, length),
            None => begin(&folder.join(format!("{name}.new")), &path, &line),
        };
        match (&written, length) {
            (Ok(()), _) => {
                let length = Some(length.unwrap_or(0) + added);
                self.lock().insert(key, Tail { generation, length });
            }
            // It may end in a torn line now.
            (Err(_), Some(_)) => {
                self.lock().entry(key).and_modify(|tail| tail.length = None);
            }
            (Err(_), None) => {}
        }
        written.map_err(|source| StoreError::Io { doing: "write", path: path.clone(), source })?;
        if let Some(before) = before.filter(|before| before.generation < generation) {
            let _ = fs::remove_file(generation_path(folder, name, before.generation));
        }
        self.flusher.flush(path);
        Ok(())
    }

    /// Whether one of these records in a folder was written or read.
    fn knows(&self, folder: &Path, names: &[&str]) -> bool {
        let tails = self.lock();
        names.iter().any(|name| tails.contains_key(&folder.join(name)))
    }

    fn place(&self, kind: Kind, folder: &Path) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io { doing: "make", path: folder.to_owned(), source };
        self.spares.place(kind, folder).map_err(failed)?;
        self.flusher.refill();
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
            match read(&generation_path(folder, name, *number)) {
                Ok((record, length)) => {
                    for old in &found[position + 1..] {
                        let _ = fs::remove_file(generation_path(folder, name, *old));
                    }
                    // Above a torn one, so that its file is replaced some day and never mistaken for newer.
                    let length = length.filter(|_| position == 0);
                    self.lock().insert(folder.join(name), Tail { generation: found[0], length });
                    return Ok(record);
                }
                Err(error) if position == 0 => verdict = error,
                Err(_) => {}
            }
        }
        Err(verdict)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Tail>> {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything written so far is on the disk, and what is kept in advance is made.
    pub fn settle(&self) {
        self.flusher.settle();
    }
}

fn generation_path(folder: &Path, name: &str, number: u64) -> PathBuf {
    folder.join(format!("{name}.{number}.json"))
}

/// Makes a file with its first line, under a name of no meaning until it is whole.
fn begin(draft: &Path, path: &Path, line: &[u8]) -> io::Result<()> {
    File::create(draft)?.write_all(line)?;
    fs::rename(draft, path)
}

/// Appends a line to a file of this length, or leaves it as it was, as far as that can be done.
fn append(path: &Path, line: &[u8], length: u64) -> io::Result<()> {
    let mut file = File::options().append(true).open(path)?;
    let written = file.write_all(line);
    if written.is_err() {
        let _ = file.set_len(length);
    }
    written
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

/// The last whole line of a file, and the file's length if it ends with that line.
fn read<T: DeserializeOwned>(path: &Path) -> Result<(T, Option<u64>), StoreError> {
    let io_error = |source| StoreError::Io { doing: "read", path: path.to_owned(), source };
    let len = fs::metadata(path).map_err(io_error)?.len();
    if len > MAX_RECORD {
        return Err(StoreError::Bad { path: path.to_owned(), why: format!("{len} bytes are too many") });
    }
    let bytes = fs::read(path).map_err(io_error)?;
    let whole = bytes.strip_suffix(b"\n");
    let mut verdict = None;
    for (position, line) in whole.unwrap_or(&bytes).rsplit(|byte| *byte == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            Ok(record) => return Ok((record, whole.filter(|_| position == 0).map(|_| bytes.len() as u64))),
            // What was written last says best what is wrong.
            Err(error) => drop(verdict.get_or_insert(error)),
        }
    }
    let why = verdict.map_or_else(|| "it is empty".to_owned(), |error| error.to_string());
    Err(StoreError::Bad { path: path.to_owned(), why })
}

#[cfg(test)]
mod tests;
