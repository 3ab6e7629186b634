//! Images as volumes: their layers, or a part of them, as a detached tree.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bowline_launch_plan::{LaunchPlan, Source, Step};
use bowline_linux::mount;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use crate::{LaunchError, Prepared, add_context, lower_directories, mount_data, root};

/// An image volume, laid out before the clone.
pub(crate) struct Volume {
    /// The position of its step.
    pub(crate) step: usize,
    /// Options of its overlay. A single layer needs none, and overlayfs refuses it.
    overlay: Option<CString>,
}

/// The image volumes of a plan.
pub(crate) fn lay_out(plan: &LaunchPlan) -> Result<Vec<Volume>, LaunchError> {
    let mut volumes = Vec::new();
    for (step, wish) in plan.steps.iter().enumerate() {
        let Step::Mount { source: Source::Layers { lower, .. }, .. } = wish else { continue };
        let overlay = match lower.as_slice() {
            [] => return Err(LaunchError::BadPlan("an image volume has no layers")),
            [_] => None,
            several => {
                let mut text = lower_directories(several);
                add_context(&mut text, plan.mount_label.as_deref());
                Some(mount_data(text)?)
            }
        };
        volumes.push(Volume { step, overlay });
    }
    Ok(volumes)
}

/// The tree for the step of this number, made before or now.
pub(crate) fn tree<'a>(
    prepared: &'a Prepared<'_>,
    step: usize,
    made: &'a mut Option<OwnedFd>,
) -> Result<BorrowedFd<'a>, Errno> {
    let index = prepared.volumes.iter().position(|volume| volume.step == step).ok_or(Errno::INVAL)?;
    if let Some(tree) = prepared.outside.volumes.get(index).and_then(std::cell::OnceCell::get) {
        return Ok(tree.as_fd());
    }
    let wish = &prepared.request.plan.steps[step];
    let Step::Mount { source: Source::Layers { lower, sub_path }, .. } = wish else {
        return Err(Errno::INVAL);
    };
    let tree = make(prepared, &prepared.volumes[index], lower, sub_path)?;
    let made: &OwnedFd = made.insert(tree);
    Ok(made.as_fd())
}

/// Makes the tree of a volume.
///
/// The overlay is mounted over the folder on which roots are assembled, for a moment: whatever is mounted there already
/// is known by its descriptor alone, and comes to light again.
pub(crate) fn make(
    prepared: &Prepared<'_>,
    volume: &Volume,
    lower: &[CString],
    sub_path: &CStr,
) -> Result<OwnedFd, Errno> {
    let layer = lower.first().ok_or(Errno::INVAL)?;
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Some(overlay) = &volume.overlay else {
        let root = rustix::fs::openat(CWD, layer, folder, Mode::empty())?;
        return part(root, sub_path);
    };
    let place = prepared.launcher.mount_point;
    mount::mount(c"overlay", place, c"overlay", READ_ONLY, overlay)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let tree = rustix::fs::openat(CWD, place, folder, Mode::empty()).and_then(|root| part(root, sub_path));
    unmount(place, UnmountFlags::DETACH)?;
    tree
}

/// `MS_RDONLY`: without a folder of writes there is nothing else.
const READ_ONLY: u64 = 1;

/// A detached copy of what is at a path inside `root`.
fn part(root: OwnedFd, sub_path: &CStr) -> Result<OwnedFd, Errno> {
    let found = match sub_path.is_empty() {
        true => root,
        false => root::open(root.as_fd(), sub_path, OFlags::PATH | OFlags::CLOEXEC)?,
    };
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(&found, c"", clone)
}
