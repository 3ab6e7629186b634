//! The files of the store: making, committing, removing. What they mean is in `docs/design/image-store.md`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher, LayerName};
use crate::error::OpenError;
use crate::manifest::Descriptor;

pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
const MAX_INDEX: u64 = 64 << 20;
/// Bytes that a layer's folder and meta cost beyond what the worker counted.
const META_COST: (u64, u64) = (4096, 1);

/// The store's folder, locked.
pub(crate) struct Store {
    root: PathBuf,
    root_fd: OwnedFd,
    serial: AtomicU64,
    _lock: File,
}

/// What `<24 hex>.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerMeta {
    /// Diff id or chain id, whole.
    pub(crate) key: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) standalone: bool,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl LayerMeta {
    /// (bytes, inodes) for the running counters.
    pub(crate) fn cost(&self) -> (u64, u64) {
        (self.bytes + META_COST.0, self.inodes + META_COST.1)
    }
}

/// What `open` finds.
pub(crate) struct Inventory {
    pub(crate) names: BTreeMap<String, Descriptor>,
    pub(crate) layers: BTreeMap<LayerName, LayerMeta>,
    pub(crate) blobs: BTreeMap<Digest, u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    manifests: Vec<Descriptor>,
}

impl Store {
    /// Opens or makes the store and empties `tmp/`.
    pub(crate) fn open(root: &Path) -> Result<Store, OpenError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { action, path, source }
        };
        for folder in ["", "blobs/sha256", "layers", "tmp"] {
            let path = root.join(folder);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed("make", &path))?;
        }
        let lock_path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| OpenError::InUse(root.to_owned()))?;
        let root_fd = File::open(root).map_err(failed("open", root))?.into();
        let store = Store { root: root.to_owned(), root_fd, serial: AtomicU64::new(1), _lock: lock };
        let tmp = root.join("tmp");
        for entry in fs::read_dir(&tmp).map_err(failed("read", &tmp))?.flatten() {
            remove_any(&entry.path()).map_err(failed("empty", &tmp))?;
        }
        let layout = root.join("oci-layout");
        if !layout.exists() {
            store
                .replace(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#, true)
                .map_err(failed("write", &layout))?;
        }
        Ok(store)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layer_path(&self, name: &LayerName) -> PathBuf {
        self.root.join("layers").join(name.as_str())
    }

    fn meta_path(&self, name: &LayerName) -> PathBuf {
        self.root.join("layers").join(format!("{name}.json"))
    }

    /// Reads what is there; removes trees without a meta and what else has no business in the folders.
    pub(crate) fn inventory(&self) -> Result<Inventory, OpenError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { action: "read", path, source }
        };
        let layers_dir = self.root.join("layers");
        let mut layers = BTreeMap::new();
        let mut stray = Vec::new();
        for entry in fs::read_dir(&layers_dir).map_err(failed(&layers_dir))? {
            let entry = entry.map_err(failed(&layers_dir))?;
            let file_name = entry.file_name();
            let text = file_name.to_string_lossy();
            let meta =
                LayerName::parse(&text).and_then(|name| self.read_meta(&name).map(|meta| (name, meta)));
            let of_a_tree = text.strip_suffix(".json").and_then(LayerName::parse);
            match (meta, of_a_tree) {
                (Some((name, meta)), _) => drop(layers.insert(name, meta)),
                (None, Some(name)) if self.layer_path(&name).is_dir() => {}
                _ => stray.push(entry.path()),
            }
        }
        let blobs_dir = self.root.join("blobs/sha256");
        let mut blobs = BTreeMap::new();
        for entry in fs::read_dir(&blobs_dir).map_err(failed(&blobs_dir))? {
            let entry = entry.map_err(failed(&blobs_dir))?;
            match (Digest::parse_hex(&entry.file_name().to_string_lossy()), entry.metadata()) {
                (Some(digest), Ok(stat)) if stat.is_file() => drop(blobs.insert(digest, stat.len())),
                _ => stray.push(entry.path()),
            }
        }
        for path in stray {
            tracing::warn!(path = %path.display(), "the image store holds something unfinished or foreign; removing it");
            self.discard(&path).map_err(failed(&path))?;
        }
        self.drop_what_may_be_torn(&mut layers, &mut blobs);
        Ok(Inventory { names: self.read_index(), layers, blobs })
    }

    fn read_meta(&self, name: &LayerName) -> Option<LayerMeta> {
        let bytes = fs::read(self.meta_path(name)).ok()?;
        let meta: LayerMeta = serde_json::from_slice(&bytes).ok()?;
        (LayerName::of(meta.key) == *name).then_some(meta)
    }

    /// The names. An unreadable index is set aside for the one of the last flush: at worst it costs the names, never the start of
    /// the daemon.
    fn read_index(&self) -> BTreeMap<String, Descriptor> {
        let path = self.root.join("index.json");
        match self.read_names(&path) {
            Ok(names) => return names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the image index cannot be read; it is set aside");
                let _ = fs::rename(&path, self.root.join("index.json.bad"));
            }
        }
        self.read_names(&self.root.join("index.json.synced")).unwrap_or_default()
    }

    fn read_names(&self, path: &Path) -> io::Result<BTreeMap<String, Descriptor>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_INDEX).read_to_end(&mut bytes)?;
        let index: Index = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
        let named = |mut descriptor: Descriptor| {
            let name = descriptor.annotations.take()?.remove(REF_NAME)?;
            Some((name, descriptor))
        };
        Ok(index.manifests.into_iter().filter_map(named).collect())
    }

    /// Makes `names` the names. They survive the daemon at once, a power cut after the next [`Self::make_durable`].
    pub(crate) fn write_index<'a>(
        &self,
        names: impl Iterator<Item = (&'a String, &'a Descriptor)>,
    ) -> io::Result<()> {
        let manifests = names
            .map(|(name, descriptor)| {
                let annotations = Some(BTreeMap::from([(REF_NAME.to_owned(), name.clone())]));
                Descriptor { annotations, ..descriptor.clone() }
            })
            .collect();
        let index = Index { schema_version: 2, media_type: crate::manifest::OCI_INDEX.to_owned(), manifests };
        self.replace(&self.root.join("index.json"), &serde_json::to_vec(&index)?, false)
    }

    /// Writes a small blob (manifest, config).
    pub(crate) fn write_blob(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        self.replace(&self.blob_path(digest), bytes, false)
    }

    /// Moves a finished tree into place. Nobody else commits the same name at the same time (the caller holds the commit lock).
    pub(crate) fn commit_layer(&self, tree: &Path, name: &LayerName, meta: &LayerMeta) -> io::Result<()> {
        let place = self.layer_path(name);
        match fs::rename(tree, &place) {
            Err(error) if matches!(error.raw_os_error(), Some(39 | 17)) => {
                // A tree that lost its meta, under a running daemon: somebody's hand.
                self.discard(&place)?;
                fs::rename(tree, &place)?;
            }
            other => other?,
        }
        self.replace(&self.meta_path(name), &serde_json::to_vec(meta)?, false)
    }

    pub(crate) fn commit_blob(&self, file: &Path, digest: Digest) -> io::Result<()> {
        fs::rename(file, self.blob_path(digest))
    }

    /// Takes a layer out of sight; [`Trash::empty`] deletes it.
    pub(crate) fn trash_layer(&self, name: &LayerName, trash: &mut Trash) {
        let _ = fs::remove_file(self.meta_path(name));
        self.trash(&self.layer_path(name), trash);
    }

    pub(crate) fn trash_blob(&self, digest: Digest, trash: &mut Trash) {
        self.trash(&self.blob_path(digest), trash);
    }

    fn trash(&self, path: &Path, trash: &mut Trash) {
        let to = self.temp_path("gone");
        match fs::rename(path, &to) {
            Ok(()) => trash.0.push(to),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "could not move garbage away"),
        }
    }

    fn discard(&self, path: &Path) -> io::Result<()> {
        let to = self.temp_path("gone");
        fs::rename(path, &to)?;
        remove_any(&to)
    }

    fn temp_path(&self, suffix: &str) -> PathBuf {
        self.root.join("tmp").join(format!("{}.{suffix}", self.serial.fetch_add(1, SeqCst)))
    }

    /// A place for one layer in the making.
    pub(crate) fn workplace(&self) -> io::Result<Workplace> {
        let place = Workplace { tree: self.temp_path("tree"), blob: self.temp_path("blob") };
        fs::DirBuilder::new().mode(0o755).create(&place.tree)?;
        // The mode of a layer's root shows in containers: not at the umask's mercy.
        let tree = place.open_tree()?;
        rustix::fs::fchmod(&tree, Mode::from_raw_mode(0o755))?;
        Ok(place)
    }

    pub(crate) fn open_layer(&self, name: &LayerName) -> io::Result<OwnedFd> {
        open_folder(&self.layer_path(name))
    }

    pub(crate) fn open_layers(&self) -> io::Result<OwnedFd> {
        open_folder(&self.root.join("layers"))
    }

    /// What stands now, to be recorded as durable after a sync that starts later than this.
    pub(crate) fn stamps<'a>(
        &self,
        layers: impl Iterator<Item = &'a LayerName>,
        blobs: impl Iterator<Item = &'a Digest>,
    ) -> Durable {
        Durable {
            boot: boot_id(),
            layers: layers.filter_map(|name| Some((name.clone(), stamp(&self.meta_path(name))?))).collect(),
            blobs: blobs.filter_map(|digest| Some((*digest, stamp(&self.blob_path(*digest))?))).collect(),
        }
    }

    /// Flushes the file system, then records what is durable since. Blocking, and it may take seconds: never on a pull's path.
    pub(crate) fn make_durable(&self, durable: &Durable) -> io::Result<()> {
        rustix::fs::syncfs(&self.root_fd)?;
        if let Ok(index) = fs::read(self.root.join("index.json")) {
            self.replace(&self.root.join("index.json.synced"), &index, true)?;
        }
        self.replace(&self.root.join("durable.json"), &serde_json::to_vec(durable)?, true)?;
        Ok(rustix::fs::fsync(&self.root_fd)?)
    }

    /// Records, once per boot, that what `open` accepted is good. Otherwise says whether something still waits for a flush: the
    /// daemon ended before it came to that.
    pub(crate) fn adopt_boot<'a>(
        &self,
        layers: impl Iterator<Item = &'a LayerName>,
        blobs: impl Iterator<Item = &'a Digest>,
    ) -> io::Result<bool> {
        let bytes = fs::read(self.root.join("durable.json")).unwrap_or_default();
        let before: Durable = serde_json::from_slice(&bytes).unwrap_or_default();
        let now = self.stamps(layers, blobs);
        if before.boot == now.boot {
            return Ok(before != now);
        }
        self.make_durable(&now).map(|()| false)
    }

    /// After another boot: takes away what had not been flushed before the machine stopped.
    fn drop_what_may_be_torn(
        &self,
        layers: &mut BTreeMap<LayerName, LayerMeta>,
        blobs: &mut BTreeMap<Digest, u64>,
    ) {
        let bytes = fs::read(self.root.join("durable.json")).unwrap_or_default();
        let durable: Durable = serde_json::from_slice(&bytes).unwrap_or_default();
        if durable.boot == boot_id() {
            return;
        }
        layers.retain(|name, _| {
            let good = durable.layers.get(name).is_some_and(|at| stamp(&self.meta_path(name)) == Some(*at));
            if !good {
                tracing::warn!(layer = %name, "a layer was not flushed before the machine stopped; dropping it");
                let _ = fs::remove_file(self.meta_path(name));
                let _ = self.discard(&self.layer_path(name));
            }
            good
        });
        blobs.retain(|digest, _| {
            let path = self.blob_path(*digest);
            let good = durable.blobs.get(digest).is_some_and(|at| stamp(&path) == Some(*at))
                || digest_of(&path).is_ok_and(|actual| actual == *digest);
            if !good {
                let _ = fs::remove_file(&path);
            }
            good
        });
    }

    /// Writes a file so that either the old or the new content is there; with `durable`, the new one also after a power cut.
    fn replace(&self, path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
        let tmp = self.temp_path("file");
        let written = (|| {
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&tmp)?;
            file.write_all(bytes)?;
            if durable {
                file.sync_data()?;
            }
            fs::rename(&tmp, path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&tmp);
        }
        written
    }
}

/// `durable.json`: what had reached the disk at the last flush, each with the time stamp of its file (a layer's meta), so that a
/// layer removed and pulled again is not taken for its predecessor.
#[derive(Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Durable {
    boot: String,
    layers: BTreeMap<LayerName, i128>,
    blobs: BTreeMap<Digest, i128>,
}

/// What the page cache holds lasts as long as this does.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn stamp(path: &Path) -> Option<i128> {
    use std::os::unix::fs::MetadataExt as _;
    let stat = fs::symlink_metadata(path).ok()?;
    Some(i128::from(stat.mtime()) * 1_000_000_000 + i128::from(stat.mtime_nsec()))
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let (mut file, mut hasher) = (File::open(path)?, Hasher::new());
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            amount => hasher.update(&buffer[..amount]),
        }
    }
}

/// What has been moved into `tmp/` to die there. A crash before [`Trash::empty`] leaves it to the next `open`.
#[derive(Default)]
pub(crate) struct Trash(Vec<PathBuf>);

impl Trash {
    pub(crate) fn empty(self) {
        for path in self.0 {
            if let Err(error) = remove_any(&path) {
                tracing::warn!(path = %path.display(), %error, "could not delete garbage; the next start will");
            }
        }
    }
}

/// Where one layer is made. Dropped uncommitted, it takes its files along; so it is shared by all who may still write there.
pub(crate) struct Workplace {
    pub(crate) tree: PathBuf,
    pub(crate) blob: PathBuf,
}

impl Workplace {
    pub(crate) fn open_tree(&self) -> io::Result<OwnedFd> {
        open_folder(&self.tree)
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        for path in [&self.tree, &self.blob] {
            if let Err(error) = remove_any(path) {
                tracing::warn!(path = %path.display(), %error, "could not remove an unfinished layer; the next start will");
            }
        }
    }
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(stat) if stat.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
