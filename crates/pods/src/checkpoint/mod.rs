//! Containers as files: written by criu while they go on, and brought back.
//!
//! ```text
//!   checkpoint:  freeze --> criu (child of the monitor) writes images --> changed files --> thaw --> archive
//!   restore:     archive --> confined unpacker --> judged --> kept with the container ..
//!                .. StartContainer: root assembled as ever --> criu binds its mounts --> looked at --> let go
//! ```
//!
//! What a restored container has (mounts, limits, rights, names) comes from the request, as with any container; an archive
//! is compared with it and gives memory and changed files. docs/design/checkpoint.md has the formats, the argument about
//! crashes and the rules of trust.

mod archive;
mod dump;
mod facts;
mod foreign;
mod freeze;
mod origin;
mod pod;
mod probe;
mod program;
mod restore;
mod verify;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bowline_model::ContainerId;
use tokio::sync::OnceCell;

use crate::PodError;
use crate::shared::Shared;

pub(crate) use dump::{Order, Subject, checkpoint};
pub(crate) use origin::Origin;
pub use pod::{PodRestore, Restored};
pub(crate) use pod::{check_output, read_pod};
pub use probe::{Ability, Criu};
pub(crate) use restore::{Opened, TakenIn, bring_back, take_in};

/// Checkpoints, as configured.
#[derive(Debug, Clone, Default)]
pub struct CheckpointConfig {
    /// The program; else the first `criu` of PATH.
    pub criu: Option<PathBuf>,
    /// Archives may be restored.
    pub restore: bool,
}

/// What is known of criu, and what it is doing.
#[derive(Default)]
pub(crate) struct Checkpoints {
    probed: OnceCell<Result<Arc<Criu>, String>>,
    busy: Mutex<BTreeSet<ContainerId>>,
}

impl Checkpoints {
    /// criu, if this host has one that works. The first call asks it.
    pub(crate) async fn criu(&self, config: &CheckpointConfig) -> Result<Arc<Criu>, PodError> {
        let found = self.probed.get_or_init(|| probe::probe(config.criu.clone())).await;
        found.clone().map_err(|why| {
            PodError::Unsupported(format!("checkpoint and restore need criu, which this node has not: {why}"))
        })
    }

    /// What the first call found, once there was one.
    pub(crate) fn known(&self) -> Option<Result<Arc<Criu>, String>> {
        self.probed.get().cloned()
    }

    /// Takes containers for one checkpoint; another one of the same is refused meanwhile.
    fn take(shared: &Arc<Shared>, ids: impl Iterator<Item = ContainerId>) -> Result<Taken, PodError> {
        let mut busy = shared.checkpoints.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Taken { shared: shared.clone(), ids: Vec::new() };
        for id in ids {
            if !busy.insert(id.clone()) {
                drop(busy);
                return Err(PodError::State(format!("a checkpoint of container {id} is under way")));
            }
            taken.ids.push(id);
        }
        Ok(taken)
    }
}

/// Containers that are being written.
struct Taken {
    shared: Arc<Shared>,
    ids: Vec<ContainerId>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut busy = self.shared.checkpoints.busy.lock().unwrap_or_else(PoisonError::into_inner);
        for id in &self.ids {
            busy.remove(id);
        }
    }
}

/// Restoring is off unless the node's owner wants it.
pub(crate) fn may_restore(config: &CheckpointConfig, what: &str) -> Result<(), PodError> {
    if config.restore {
        return Ok(());
    }
    Err(PodError::Unsupported(format!(
        "{what}: restoring is switched off on this node; an archive is code that runs, so it takes `restore = true` below [checkpoint] in the daemon's configuration"
    )))
}

/// Folder of work in progress; what a dead daemon left there is removed by the next one.
fn work_root(shared: &Shared) -> PathBuf {
    shared.config.root.join("checkpoints")
}

/// Folder of notes about frozen containers.
fn frozen_root(shared: &Shared) -> PathBuf {
    shared.config.state.join("checkpoints")
}

/// A folder that goes when it is dropped.
struct Work(PathBuf);

impl Work {
    fn new(shared: &Shared, id: &dyn std::fmt::Display) -> std::io::Result<Work> {
        let root = work_root(shared);
        make_private(&root)?;
        let folder = root.join(format!("{id}-{}", crate::shared::now()));
        std::fs::create_dir(&folder)?;
        Ok(Work(folder))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "the files of a checkpoint could not be removed");
        }
    }
}

/// Memory of containers lies there: nobody else may look.
fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Goes on with what a dead daemon left: containers that it had frozen are let go once its criu has ended, its files are
/// removed.
pub(crate) fn recover(shared: &Arc<Shared>) {
    let list = |folder: PathBuf| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let (frozen, work) = (list(frozen_root(shared)), list(work_root(shared)));
    if frozen.is_empty() && work.is_empty() {
        return;
    }
    let shared = shared.clone();
    tokio::task::spawn_blocking(move || {
        for note in frozen {
            freeze::let_go(&shared, &note);
        }
        for folder in work {
            if let Err(error) = std::fs::remove_dir_all(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "what is left of a checkpoint could not be removed");
            }
        }
    });
}
