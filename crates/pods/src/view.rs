//! What readers see: every pod and container as it was after its last change, in memory.
//!
//! Lists and statuses are answered from here. The lock is held to clone an `Arc` or a list of them, never over I/O,
//! so a reader waits for nobody's disk, mount or container.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bowline_model::container::Life;
use bowline_model::spec::{ContainerSpec, PodSpec};
use bowline_model::{ContainerId, SandboxId, Signal};
use bowline_store::{ImageRecord, ImageVolumeRecord, PodResources, SelinuxRecord, UserRecord};

use crate::PodError;

/// A pod sandbox.
#[derive(Debug, Clone)]
pub struct PodView {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: Arc<PodSpec>,
    /// It can take containers.
    pub ready: bool,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Addresses, the primary one first; none with the host's network.
    pub ips: Vec<String>,
    /// The CNI result.
    pub cni_result: Arc<str>,
    /// Its monitor's process; 0: none.
    pub monitor: i32,
    /// Its cgroup below the root of each hierarchy.
    pub cgroup: Arc<str>,
    /// What it is to have altogether.
    pub resources: PodResources,
    /// Its SELinux labels; `None`: no SELinux.
    pub selinux: Option<Arc<SelinuxRecord>>,
}

/// A container.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: SandboxId,
    /// What was asked for; the resources are those in force.
    pub spec: Arc<ContainerSpec>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where it is.
    pub life: Life,
    /// Its image.
    pub image: Arc<ImageRecord>,
    /// Who it runs as.
    pub user: Arc<UserRecord>,
    /// Its cgroup below the root of each hierarchy.
    pub cgroup: Arc<str>,
    /// What stops it.
    pub stop_signal: Signal,
    /// Absolute path of its log; empty: none.
    pub log_path: Arc<str>,
    /// What could not be given as asked, and why.
    pub notes: Arc<[String]>,
    /// Images that are its volumes.
    pub image_volumes: Arc<[ImageVolumeRecord]>,
}

#[derive(Default)]
struct Maps {
    pods: BTreeMap<SandboxId, Arc<PodView>>,
    containers: BTreeMap<ContainerId, Arc<ContainerView>>,
}

/// All views.
#[derive(Default)]
pub struct Views(RwLock<Maps>);

impl Views {
    /// All pods, in the order of their ids.
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        self.read(|maps| maps.pods.values().cloned().collect())
    }

    /// All containers, in the order of their ids.
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        self.read(|maps| maps.containers.values().cloned().collect())
    }

    /// The containers of one pod, oldest first.
    pub fn containers_of(&self, pod: &SandboxId) -> Vec<Arc<ContainerView>> {
        let mut found = self.read(|maps| {
            maps.containers.values().filter(|view| view.pod == *pod).cloned().collect::<Vec<_>>()
        });
        found.sort_by_key(|view| view.created_at);
        found
    }

    /// The pod of this id, or of the one id that starts like this.
    pub fn pod(&self, id: &str) -> Result<Arc<PodView>, PodError> {
        let what = "pod sandbox";
        match SandboxId::parse(id) {
            Ok(exact) => self.read(|maps| maps.pods.get(&exact).cloned()).ok_or_else(|| not_found(what, id)),
            Err(_) => one(what, id, self.read(|maps| by_prefix(&maps.pods, id))),
        }
    }

    /// The container of this id, or of the one id that starts like this.
    pub fn container(&self, id: &str) -> Result<Arc<ContainerView>, PodError> {
        let what = "container";
        match ContainerId::parse(id) {
            Ok(exact) => {
                self.read(|maps| maps.containers.get(&exact).cloned()).ok_or_else(|| not_found(what, id))
            }
            Err(_) => one(what, id, self.read(|maps| by_prefix(&maps.containers, id))),
        }
    }

    pub(crate) fn put_pod(&self, view: PodView) {
        self.write(|maps| maps.pods.insert(view.id.clone(), Arc::new(view)));
    }

    /// Gives what was last seen.
    pub(crate) fn remove_pod(&self, id: &SandboxId) -> Option<Arc<PodView>> {
        self.write(|maps| maps.pods.remove(id))
    }

    pub(crate) fn put_container(&self, view: ContainerView) {
        self.write(|maps| maps.containers.insert(view.id.clone(), Arc::new(view)));
    }

    pub(crate) fn remove_container(&self, id: &ContainerId) {
        self.write(|maps| maps.containers.remove(id));
    }

    fn read<T>(&self, look: impl FnOnce(&Maps) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Maps) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn not_found(what: &'static str, id: &str) -> PodError {
    PodError::NotFound { what, id: id.chars().take(80).collect() }
}

/// Two at most: more tell nothing new.
fn by_prefix<K: ToString, V>(map: &BTreeMap<K, Arc<V>>, prefix: &str) -> Vec<Arc<V>> {
    if prefix.is_empty() || prefix.len() > 64 {
        return Vec::new();
    }
    map.iter()
        .filter(|(id, _)| id.to_string().starts_with(prefix))
        .map(|(_, view)| view.clone())
        .take(2)
        .collect()
}

fn one<V>(what: &'static str, id: &str, mut found: Vec<Arc<V>>) -> Result<Arc<V>, PodError> {
    match (found.pop(), found.is_empty()) {
        (Some(view), true) => Ok(view),
        (Some(_), false) => Err(PodError::Invalid(format!(
            "more than one {what} has an id that starts with `{id}`: give more of it"
        ))),
        (None, _) => Err(not_found(what, id)),
    }
}
