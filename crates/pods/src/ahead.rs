//! A container's root, mounted while its creation is still being recorded.
//!
//! Mounting an overlay takes most of a millisecond, since overlayfs tries out the file system below by making files. The
//! mount is made beside CreateContainer, belongs to no mount namespace, and is handed to the launch as a descriptor. It is
//! an advance, never a condition: where there is none (a daemon that was started since, a kernel before 6.8, which takes no
//! layers one by one, a pod with a user namespace, which mounts in it) the launcher mounts as it would have.
//!
//! Limits: [`MAX`] roots at once; each is a descriptor that its container's start or removal takes away.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bowline_model::ContainerId;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use tokio::task::JoinHandle;

/// Roots that wait for their container's start: a node full of pods that all come up at once.
const MAX: usize = 256;

/// Where the folders of an overlay are.
pub(crate) struct Overlay {
    /// Layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// The container's folder, with `upper` and `work` in it.
    pub folder: PathBuf,
}

type Root = JoinHandle<io::Result<OwnedFd>>;

/// The roots that are mounted, or being mounted, and not used yet.
#[derive(Default)]
pub(crate) struct Ahead(Mutex<HashMap<ContainerId, Root>>);

impl Ahead {
    /// Begins to mount a root, unless there are too many.
    pub(crate) fn begin(&self, id: &ContainerId, overlay: Overlay) {
        let mut roots = self.lock();
        if roots.len() < MAX {
            roots.insert(id.clone(), tokio::task::spawn_blocking(move || mount(&overlay)));
        }
    }

    /// The root, if there is one; it is the caller's.
    pub(crate) async fn take(&self, id: &ContainerId) -> Option<OwnedFd> {
        let root = self.lock().remove(id)?;
        match root.await.ok()? {
            Ok(root) => Some(root),
            Err(error) => {
                tracing::debug!(container = %id, %error, "the root was not mounted ahead");
                None
            }
        }
    }

    /// Unmounts the root of a container that goes without having been started.
    pub(crate) fn forget(&self, id: &ContainerId) {
        drop(self.lock().remove(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Root>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A mount that is `volatile` leaves a mark in the work folder, and no other mount takes a folder that has it. Without a
/// root from [`Ahead::take`] there may be one of a daemon before us.
pub(crate) fn clear(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder.join("work/work")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn mount(overlay: &Overlay) -> io::Result<OwnedFd> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"source", c"overlay")?;
    for layer in &overlay.lower {
        fsconfig_set_string(context.as_fd(), c"lowerdir+", text(layer)?.as_c_str())?;
    }
    for (key, name) in [(c"upperdir", "upper"), (c"workdir", "work")] {
        fsconfig_set_string(context.as_fd(), key, text(&overlay.folder.join(name))?.as_c_str())?;
    }
    fsconfig_set_flag(context.as_fd(), c"volatile")?;
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}
