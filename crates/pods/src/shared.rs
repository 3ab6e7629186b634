//! What all actors share.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bowline_cni::Cni;
use bowline_image::Images;
use bowline_model::SandboxId;
use bowline_model::spec::PodMetadata;
use bowline_nri::Nri;
use bowline_plan::seccomp::SeccompCache;
use bowline_store::Store;
use bowline_systemd::Systemd;
use tokio::sync::Notify;

use crate::actor::ActorHandle;
use crate::apparmor::Apparmor;
use crate::checkpoint::Checkpoints;
use crate::config::PodsConfig;
use crate::events::Events;
use crate::host::Host;
use crate::monitor::Program;
use crate::operations::Operations;
use crate::paths::Paths;
use crate::selinux::Selinux;
use crate::stats::{Files, Rates, Usage};
use crate::view::Views;

pub(crate) struct Shared {
    pub config: PodsConfig,
    pub store: Store,
    pub images: Images,
    pub cni: Arc<Cni>,
    pub host: Host,
    pub apparmor: Apparmor,
    pub selinux: Selinux,
    pub program: Program,
    /// Opens what the host's file systems hold.
    pub paths: Arc<Paths>,
    /// The base mount namespace.
    pub base: OwnedFd,
    pub null: OwnedFd,
    /// Pods can have user namespaces; if not, why.
    pub user_namespaces: Result<(), String>,
    pub views: Views,
    pub seccomp: SeccompCache,
    /// Tells daemons of one machine apart.
    pub instance: String,
    pub actors: Mutex<Actors>,
    pub usage: Usage,
    pub rates: Rates,
    pub files: Files,
    pub events: Events,
    pub operations: Operations,
    pub checkpoints: Checkpoints,
    /// Plugins.
    pub nri: Nri,
    /// What is ready for the next pod.
    pub spare: crate::spare::Spare,
    /// Wakes the reaper of links.
    pub dying_links: Notify,
    /// Network namespaces of pods that are down, kept until their links are gone too.
    pub dying_namespaces: Mutex<Vec<OwnedFd>>,
    /// systemd, for pods whose cgroup is a scope.
    pub systemd: Systemd,
    /// Written while a slice is forgotten, read while a scope is made.
    pub slices: tokio::sync::RwLock<()>,
    /// Some record could not be read: what it may refer to is kept.
    pub unreadable: std::sync::atomic::AtomicBool,
    last_created: AtomicI64,
}

/// Actors by name and by id.
#[derive(Default)]
pub(crate) struct Actors {
    pub by_name: HashMap<PodMetadata, ActorHandle>,
    pub by_id: HashMap<SandboxId, ActorHandle>,
    /// The daemon is going down: nothing new begins.
    pub closed: bool,
}

impl Shared {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        config: PodsConfig,
        store: Store,
        images: Images,
        cni: Arc<Cni>,
        host: Host,
        (apparmor, selinux): (Apparmor, Selinux),
        program: Program,
        base: OwnedFd,
        null: OwnedFd,
        user_namespaces: Result<(), String>,
        instance: String,
    ) -> Shared {
        Shared {
            nri: Nri::new(config.nri.clone()),
            config,
            store,
            images,
            cni,
            host,
            apparmor,
            selinux,
            program,
            paths: Arc::default(),
            base,
            null,
            user_namespaces,
            views: Views::default(),
            seccomp: SeccompCache::default(),
            instance,
            actors: Mutex::default(),
            usage: Usage::default(),
            rates: Rates::default(),
            files: Files::default(),
            events: Events::default(),
            operations: Operations::default(),
            checkpoints: Checkpoints::default(),
            spare: Default::default(),
            dying_links: Notify::new(),
            dying_namespaces: Mutex::default(),
            systemd: Systemd::default(),
            slices: tokio::sync::RwLock::default(),
            unreadable: std::sync::atomic::AtomicBool::new(false),
            last_created: AtomicI64::new(0),
        }
    }

    pub fn actors(&self) -> std::sync::MutexGuard<'_, Actors> {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A time of creation later than all before: the kubelet orders by it.
    pub fn created_now(&self) -> i64 {
        let now = now();
        let before = self
            .last_created
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(now.max(last + 1)));
        before.map_or(now, |last| now.max(last + 1))
    }

    /// A record from before counts for the order as well.
    pub fn seen_created(&self, at: i64) {
        self.last_created.fetch_max(at, Ordering::Relaxed);
    }

    /// The cgroup folder that monitors live in, below the root of each hierarchy.
    pub fn monitors_cgroup(&self) -> String {
        format!("{}/monitors", self.cgroup_root())
    }

    /// The same folder of cgroup v2, if this host has that hierarchy.
    pub fn monitors_folder(&self) -> std::io::Result<Option<OwnedFd>> {
        use rustix::fs::{Mode, OFlags};
        let root = self.host.layout.unified().and_then(|number| self.host.roots.get(usize::from(number)));
        let open = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let Some(root) = root else { return Ok(None) };
        let path = self.monitors_cgroup();
        match rustix::fs::openat(root, path.as_str(), open, Mode::empty()) {
            // Made at the daemon's start; whoever tidies up empty groups cannot know that it is needed.
            Err(rustix::io::Errno::NOENT) => {
                bowline_launch::make_cgroup(root.as_fd(), &std::ffi::CString::new(path.as_str())?)?;
                Ok(Some(rustix::fs::openat(root, path.as_str(), open, Mode::empty())?))
            }
            other => Ok(Some(other?)),
        }
    }

    /// Makes what the next pod needs, a while from now, unless somebody wants it later than that, or sooner.
    pub fn fill_spare_after(self: Arc<Self>, pause: std::time::Duration) {
        let wish = self.spare.wish();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            if self.spare.is_last(wish) {
                let _ = tokio::task::spawn_blocking(move || self.spare.fill(&self, true)).await;
            }
        });
    }

    /// The ids of all pods.
    pub fn known_pods(&self) -> HashSet<String> {
        self.views.pods().iter().map(|pod| pod.id.to_string()).collect()
    }

    /// The cgroup folder that holds everything of this daemon, below the root of each hierarchy.
    pub fn cgroup_root(&self) -> String {
        format!("bowline/{}", self.instance)
    }
}

/// The clock, nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// 32 random bytes from the kernel.
pub(crate) fn random_id() -> [u8; 32] {
    let mut bytes = [0u8; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(len) => filled += len,
            Err(rustix::io::Errno::INTR) => {}
            // There is no kernel without getrandom(2) above our floor.
            Err(_) => break,
        }
    }
    bytes
}

/// Runs blocking work on a thread of its own kind; a panic there is an error here.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, crate::PodError> + Send + 'static,
) -> Result<T, crate::PodError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(crate::PodError::failed(what, error)),
    }
}

/// The same where the caller is, for work that a client waits for: waking another thread, and being woken by it, takes up
/// to 0.3 ms where the processors rest, and two that are woken at once may share one processor while the other rests.
///
/// Only what waits with the caller in one task (`join!`) is held up; the runtime's other tasks go on elsewhere. For that it
/// takes another thread, and those are limited: on a disk that hangs, the runtime must not run out of them. So only a few
/// stay where they are at a time.
pub(crate) async fn in_place<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, crate::PodError> + Send + 'static,
) -> Result<T, crate::PodError> {
    use tokio::runtime::{Handle, RuntimeFlavor};
    static PLACES: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(32);
    let multi_thread = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    let Some(_place) = PLACES.try_acquire().ok().filter(|_| multi_thread) else {
        return blocking(what, work).await;
    };
    let work = std::panic::AssertUnwindSafe(work);
    let done = tokio::task::block_in_place(|| std::panic::catch_unwind(work));
    done.unwrap_or_else(|_| Err(crate::PodError::failed(what, "it failed badly; the daemon's log says more")))
}
