//! The store as its users see it: an immutable snapshot to read, and few ways to change it.

mod claim;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

pub(crate) use self::claim::{Claim, Ticket};
use self::snapshot::{Match, Snapshot, snapshot};
use crate::config::ImagesConfig;
use crate::digest::{Digest, ImageId, LayerName};
use crate::error::{OpenError, PullError, RemoveError};
use crate::flight::{Flights, PullProgress};
use crate::image::{ConfigFile, FsUsage, Image, ImageConfig};
use crate::layer::LayerLocks;
use crate::manifest::{self, Descriptor, Document};
use crate::reference::Reference;
use crate::registry::{Auth, Trust};
use crate::store::{LayerMeta, Store};

/// Names of a store; more are refused, so that the index stays readable at a glance.
const MAX_NAMES: usize = 20_000;

/// The image store. Cheap to clone.
#[derive(Clone)]
pub struct Images(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: ImagesConfig,
    pub(crate) store: Arc<Store>,
    pub(crate) trust: Trust,
    pub(crate) flights: Flights,
    pub(crate) layer_locks: LayerLocks,
    snapshot: ArcSwap<Snapshot>,
    /// Held, on blocking threads only, by whoever moves files into or out of their final places. Never taken while `state` is held.
    commit: Mutex<()>,
    state: Mutex<State>,
    recovered: AtomicBool,
    flush_waits: AtomicBool,
    flush_turn: tokio::sync::Mutex<()>,
    claims: AtomicU64,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) names: BTreeMap<String, Arc<Stored>>,
    pub(crate) layers: BTreeMap<LayerName, LayerMeta>,
    pub(crate) blobs: BTreeMap<Digest, u64>,
    pub(crate) holds: HashMap<String, Vec<LayerName>>,
    /// What running pulls rely on before it has a name.
    pub(crate) claims: HashMap<u64, Claimed>,
    /// Layers found by `open`: containers that have not been replayed yet may use them.
    pub(crate) old: BTreeSet<LayerName>,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

#[derive(Default)]
pub(crate) struct Claimed {
    pub(crate) layers: BTreeSet<LayerName>,
    pub(crate) blobs: BTreeSet<Digest>,
}

/// A manifest in the store, with what it refers to.
pub(crate) struct Stored {
    pub(crate) descriptor: Descriptor,
    pub(crate) id: ImageId,
    pub(crate) blobs: Vec<Descriptor>,
    pub(crate) layers: Vec<LayerName>,
    config: ImageConfig,
    config_json: Arc<[u8]>,
    annotations: BTreeMap<String, String>,
}

impl Stored {
    /// Puts a manifest and its config together; the layers are known by name already.
    pub(crate) fn new(
        descriptor: Descriptor,
        manifest: &manifest::Manifest,
        config_json: Arc<[u8]>,
        config: ConfigFile,
        layers: Vec<LayerName>,
    ) -> Stored {
        let blobs = std::iter::once(&manifest.config).chain(&manifest.layers).cloned().collect();
        let (config, annotations) = (config.into_process(), manifest.annotations.clone());
        Stored {
            descriptor,
            id: ImageId(manifest.config.digest),
            blobs,
            layers,
            config,
            config_json,
            annotations,
        }
    }

    fn size(&self) -> u64 {
        self.blobs.iter().fold(self.descriptor.size, |sum, blob| sum.saturating_add(blob.size)).max(1)
    }
}

impl Images {
    /// Opens the store, finishing or sweeping what an earlier process left undone.
    pub async fn open(config: ImagesConfig) -> Result<Images, OpenError> {
        let path = config.root.clone();
        let opened = tokio::task::spawn_blocking(move || Images::open_blocking(config)).await;
        let (images, unflushed) = opened.unwrap_or_else(|error| {
            Err(OpenError::Io { action: "open", path, source: io::Error::other(error) })
        })?;
        if unflushed {
            tokio::spawn(images.0.clone().flush());
        }
        Ok(images)
    }

    fn open_blocking(config: ImagesConfig) -> Result<(Images, bool), OpenError> {
        let store = Arc::new(Store::open(&config.root)?);
        let found = store.inventory()?;
        let mut state = State { layers: found.layers, blobs: found.blobs, ..State::default() };
        state.old = state.layers.keys().cloned().collect();
        let before = found.names.len();
        let mut read: HashMap<Digest, Arc<Stored>> = HashMap::new();
        for (name, descriptor) in found.names {
            let known = read.get(&descriptor.digest).cloned();
            match known.map_or_else(|| load(&store, &state, &descriptor).map(Arc::new), Ok) {
                Ok(stored) => {
                    read.insert(descriptor.digest, stored.clone());
                    state.names.insert(name, stored);
                }
                Err(reason) => tracing::warn!(name, reason, "an image is damaged; its name is dropped"),
            }
        }
        let costs = state.layers.values().map(LayerMeta::cost);
        let (bytes, inodes) = costs.fold((0, 0), |(b, i), (bytes, inodes)| (b + bytes, i + inodes));
        state.bytes = bytes + state.blobs.values().sum::<u64>();
        state.inodes = inodes + state.blobs.len() as u64;
        if state.names.len() != before {
            let names = state.names.iter().map(|(name, stored)| (name, &stored.descriptor));
            let path = store.root().join("index.json");
            store.write_index(names).map_err(|source| OpenError::Io { action: "write", path, source })?;
        }
        // From here on this boot's page cache is the truth. Blocking once per boot is fine: next to nothing is dirty then.
        let unflushed = store.adopt_boot(state.layers.keys(), state.blobs.keys()).map_err(|source| {
            OpenError::Io { action: "write durable.json in", path: store.root().to_owned(), source }
        })?;
        let snapshot = ArcSwap::from_pointee(snapshot(&state.names, &config.pinned));
        let images = Images(Arc::new(Inner {
            config,
            store,
            trust: Trust::default(),
            flights: Flights::default(),
            layer_locks: LayerLocks::default(),
            snapshot,
            commit: Mutex::new(()),
            state: Mutex::new(state),
            recovered: AtomicBool::new(false),
            flush_waits: AtomicBool::new(false),
            flush_turn: tokio::sync::Mutex::new(()),
            claims: AtomicU64::new(0),
        }));
        Ok((images, unflushed))
    }

    /// Brings an image into the store and gives its id.
    ///
    /// Calls for the same reference with the same credentials share one pull. It goes on while at least one of them waits: drop the
    /// last future and the pull ends, leaving nothing.
    pub async fn pull(&self, name: &str, auth: Option<Auth>) -> Result<ImageId, PullError> {
        let reference = Reference::parse(name).map_err(|reason| PullError::BadReference {
            reference: name.to_owned(),
            reason: reason.to_owned(),
        })?;
        crate::flight::join(&self.0, reference, auth).await
    }

    /// The pulls that run now, oldest first.
    pub fn pull_progress(&self) -> Vec<PullProgress> {
        self.0.flights.progress()
    }

    /// Finds an image by tag, bare name, `name@digest`, id, or an unambiguous beginning of its id. Never waits.
    pub fn resolve(&self, any: &str) -> Option<Arc<Image>> {
        let snapshot = self.0.snapshot.load();
        match snapshot.find(any) {
            Match::One(id) => snapshot.images.get(&id).cloned(),
            Match::None | Match::Many => None,
        }
    }

    /// All images, or the one that `filter` names, ordered by id. An empty filter means all.
    pub fn list(&self, filter: Option<&str>) -> Vec<Arc<Image>> {
        match filter {
            None | Some("") => self.0.snapshot.load().images.values().cloned().collect(),
            Some(any) => self.resolve(any).into_iter().collect(),
        }
    }

    /// Removes an image with all its tags and digests. When this returns it is in no list; layers that containers hold stay until
    /// they are released. An unknown image is fine.
    pub async fn remove(&self, any: &str) -> Result<(), RemoveError> {
        let (inner, any) = (self.0.clone(), any.to_owned());
        let removed = tokio::task::spawn_blocking(move || {
            let id = match inner.snapshot.load().find(&any) {
                Match::One(id) => id,
                Match::None => return Ok(()),
                Match::Many => return Err(RemoveError::Ambiguous(any)),
            };
            inner.rename(|names| names.retain(|_, stored| stored.id != id)).map_err(RemoveError::Index)
        });
        removed.await.unwrap_or_else(|error| Err(RemoveError::Index(io::Error::other(error))))?;
        self.0.sweep().await;
        Ok(())
    }

    /// Bytes and inodes in use, from running counters.
    pub fn fs_info(&self) -> FsUsage {
        let state = self.0.state();
        FsUsage {
            mountpoint: self.0.store.root().to_owned(),
            used_bytes: state.bytes,
            // The store's own folders and index.
            inodes_used: state.inodes + 6,
            timestamp_ns: i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX),
        }
    }

    /// Where a layer's folder is. `lowerdir` names are relative to [`Self::layers_dir`].
    pub fn layers_dir(&self) -> PathBuf {
        self.0.store.root().join("layers")
    }

    /// Reads a file as a container of these layers (bottom first) would see it, without a mount: symlinks lead on inside the
    /// layers, whiteouts count. `None` if it is not there or no regular file; an error if it is larger than `limit`.
    pub fn read_file_in_layers(
        &self,
        layers: &[LayerName],
        path: &str,
        limit: u64,
    ) -> io::Result<Option<Vec<u8>>> {
        use crate::unpack::{Found, Stack};
        use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
        let folders: io::Result<Vec<_>> =
            layers.iter().rev().map(|name| self.0.store.open_layer(name)).collect();
        let Some(Found::Other { parent, name, stat }) = Stack::new(folders?).find(path.as_bytes(), true)?
        else {
            return Ok(None);
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(&parent, name.as_slice(), flags, Mode::empty(), inside)?;
        let mut bytes = Vec::new();
        std::fs::File::from(file).take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} exceeds {limit} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Whether there is anything at `path` in these layers (bottom first), as a container of them would see it.
    pub fn holds_path(&self, layers: &[LayerName], path: &str) -> io::Result<bool> {
        use crate::unpack::Stack;
        let folders: io::Result<Vec<_>> =
            layers.iter().rev().map(|name| self.0.store.open_layer(name)).collect();
        Ok(Stack::new(folders?).find(path.as_bytes(), true)?.is_some())
    }

    /// Deletes layers and blobs that no name, container or running pull refers to. The daemon calls it once all containers' holds
    /// are replayed, which unlocks layers of an earlier life, and after releases.
    pub async fn collect(&self) {
        self.0.recovered.store(true, SeqCst);
        self.0.sweep().await;
    }
}

impl Inner {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic between two field updates leaves counters off, not the store broken.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For blocking threads: files may be moved into and out of their places.
    pub(crate) fn commit_turn(&self) -> MutexGuard<'_, ()> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn recovered(&self) -> bool {
        self.recovered.load(SeqCst)
    }

    pub(crate) fn image(&self, any: &str) -> Option<Arc<Image>> {
        let snapshot = self.snapshot.load();
        match snapshot.find(any) {
            Match::One(id) => snapshot.images.get(&id).cloned(),
            Match::None | Match::Many => None,
        }
    }

    /// Changes the names: disk first, then what readers see. Blocking.
    pub(crate) fn rename(&self, change: impl FnOnce(&mut BTreeMap<String, Arc<Stored>>)) -> io::Result<()> {
        let _turn = self.commit_turn();
        let mut names = self.state().names.clone();
        change(&mut names);
        if names.len() > MAX_NAMES {
            return Err(io::Error::other(format!("the store has {MAX_NAMES} names, which is its limit")));
        }
        self.store.write_index(names.iter().map(|(name, stored)| (name, &stored.descriptor)))?;
        self.snapshot.store(Arc::new(snapshot(&names, &self.config.pinned)));
        self.state().names = names;
        Ok(())
    }

    /// Brings what has been committed to disk, and records that it is there. Pulls do not wait for it: until then a stop of the
    /// machine (not of the daemon) costs the image, which is pulled again.
    pub(crate) async fn flush(self: Arc<Self>) {
        // Whoever waits for the turn already will see our changes too.
        if self.flush_waits.swap(true, SeqCst) {
            return;
        }
        let turn = self.flush_turn.lock().await;
        self.flush_waits.store(false, SeqCst);
        let inner = self.clone();
        let flushed = tokio::task::spawn_blocking(move || {
            let (layers, blobs): (Vec<_>, Vec<_>) = {
                let state = inner.state();
                (state.layers.keys().cloned().collect(), state.blobs.keys().copied().collect())
            };
            let durable = inner.store.stamps(layers.iter(), blobs.iter());
            inner.store.make_durable(&durable)
        });
        match flushed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the image store could not be flushed"),
            Err(error) => tracing::warn!(%error, "the flush of the image store died"),
        }
        drop(turn);
    }

    /// A claim to hang layers and blobs on while they have no name yet.
    pub(crate) fn claim(self: &Arc<Self>) -> Claim {
        let id = self.claims.fetch_add(1, SeqCst);
        self.state().claims.insert(id, Claimed::default());
        Claim::new(self.clone(), id)
    }
}

impl State {
    fn find_layer(&self, diff_id: Digest, chain_id: Digest, bottom: bool) -> Option<LayerName> {
        let usable = |key: Digest, fits: &dyn Fn(&LayerMeta) -> bool| {
            let name = LayerName::of(key);
            self.layers.get(&name).filter(|meta| meta.key == key && fits(meta)).map(|_| name)
        };
        usable(diff_id, &|meta| meta.standalone || bottom)
            .or_else(|| usable(chain_id, &|meta| meta.diff_id == diff_id))
    }
}

/// Reads one image back from the store, hashing what is small.
fn load(store: &Store, state: &State, descriptor: &Descriptor) -> Result<Stored, String> {
    let read = |digest: Digest, what: &str| {
        let bytes = std::fs::read(store.blob_path(digest))
            .map_err(|error| format!("its {what} is unreadable: {error}"))?;
        if Digest::of(&bytes) == digest {
            Ok(bytes)
        } else {
            Err(format!("its {what} does not match its digest"))
        }
    };
    let bytes = read(descriptor.digest, "manifest")?;
    let parsed =
        manifest::parse("", &bytes, Some(&descriptor.media_type)).map_err(|error| error.to_string())?;
    let Document::Manifest(manifest) = parsed else {
        return Err("it is an index, not a manifest".to_owned());
    };
    let json = read(manifest.config.digest, "config")?;
    let config: ConfigFile = serde_json::from_slice(&json).map_err(|error| format!("its config: {error}"))?;
    let mut parents = None;
    let mut layers = Vec::new();
    for &diff_id in config.diff_ids() {
        let chain_id = diff_id.chain(parents);
        let found = state.find_layer(diff_id, chain_id, parents.is_none());
        layers.push(found.ok_or_else(|| format!("its layer {diff_id} is missing"))?);
        parents = Some(chain_id);
    }
    Ok(Stored::new(descriptor.clone(), &manifest, json.into(), config, layers))
}
