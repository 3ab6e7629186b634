//! Assembling a root file system, in the child, by descriptors.
//!
//! The root is mounted on an empty folder of the launcher's own mount namespace, and from then on only known by its
//! descriptor. Every path of the plan is resolved with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`: a symlink
//! of the image can lead anywhere inside the root and nowhere else. What is mounted arrives as a detached tree and is
//! moved onto the descriptor of its place, so between look-up and use there is no path that could be exchanged.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bowline_launch_plan::{Rootfs, Source, Step, TargetKind};
use bowline_linux::mount::{self, Change, attr, propagation};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree, unmount,
};

use crate::Prepared;
use crate::child::{Outcome, at, io_at};
use crate::report::{Failure, Stage};
use crate::volume;

/// Mounts the root and everything below it; the descriptor is the root's.
pub(crate) fn assemble(prepared: &Prepared<'_>) -> Result<OwnedFd, Failure> {
    let plan = prepared.request.plan;
    if prepared.launcher.shared_mounts {
        // Private, not slave: what the host mounts or unmounts later must not pin or disturb the container.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change(c"/", private).map_err(at(Stage::Propagation, 0))?;
    }
    let root = mount_root(prepared)?;
    let mut masks = Masks::default();
    for (index, step) in plan.steps.iter().enumerate() {
        if mounts_cgroup(step) {
            crate::child::join_late_cgroups(prepared)?;
        }
        run(prepared, root.as_fd(), index, &mut masks).map_err(at(Stage::Step, index))?;
    }
    if plan.create_cwd {
        find_or_make(root.as_fd(), &plan.cwd, Make::Dir).map_err(at(Stage::WorkingDirectory, 0))?;
    }
    crate::child::join_late_cgroups(prepared)?;
    Ok(root)
}

/// What a mount of cgroups shows depends on where the process is.
fn mounts_cgroup(step: &Step) -> bool {
    let Step::Mount { source: Source::New { fstype, .. }, .. } = step else { return false };
    fstype.to_bytes().starts_with(b"cgroup")
}

fn mount_root(prepared: &Prepared<'_>) -> Result<OwnedFd, Failure> {
    let failed = |detail| at(Stage::Root, detail);
    let place = prepared.launcher.mount_point;
    let from_empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if let Some(tree) = prepared.outside.root.get() {
        move_mount(tree, c"", rustix::fs::CWD, place, from_empty).map_err(failed(3))?;
    } else if let Some(options) = &prepared.overlay {
        mount::mount(c"overlay", place, c"overlay", 0, options).map_err(io_at(Stage::Root, 0))?;
    }
    if let Some(Rootfs::Tree { fd }) = prepared.request.plan.rootfs {
        let tree = &prepared.request.descriptors[usize::from(fd)];
        move_mount(tree, c"", rustix::fs::CWD, place, from_empty).map_err(failed(1))?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(place, flags, Mode::empty()).map_err(failed(2))
}

/// A mount as a tree that is attached nowhere.
pub(crate) fn detached(place: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(rustix::fs::CWD, place, flags, Mode::empty())?;
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(&root, c"", clone)
}

/// Makes the assembled root the root of the process, and the old one unreachable.
pub(crate) fn enter(root: BorrowedFd<'_>, prepared: &Prepared<'_>) -> Outcome {
    let plan = prepared.request.plan;
    let failed = |detail| at(Stage::Pivot, detail);
    if plan.readonly_root {
        let change = Change { set: attr::RDONLY, ..Change::default() };
        mount::change(root, &change).map_err(io_at(Stage::Pivot, 0))?;
    }
    rustix::process::fchdir(root).map_err(failed(1))?;
    // Both at ".": the old root ends up on top of the new one and is taken off (pivot_root(2), NOTES).
    rustix::process::pivot_root(c".", c".").map_err(failed(2))?;
    unmount(c".", UnmountFlags::DETACH).map_err(failed(3))?;
    rustix::process::chdir(c"/").map_err(failed(4))?;
    if plan.root_propagation != 0 {
        let flags = MountPropagationFlags::from_bits_retain(plan.root_propagation as u32);
        mount_change(c"/", flags).map_err(failed(5))?;
    }
    Ok(())
}

/// The empty folder that hides others, once it exists.
#[derive(Default)]
struct Masks {
    folder: Option<OwnedFd>,
}

fn run(prepared: &Prepared<'_>, root: BorrowedFd<'_>, index: usize, masks: &mut Masks) -> Result<(), Errno> {
    match &prepared.request.plan.steps[index] {
        Step::Mount { .. } => mount_step(prepared, root, index),
        Step::Mknod { path, mode, major, minor, uid, gid } => {
            let (parent, name) = parent_of(root, path)?;
            let device = rustix::fs::makedev(*major, *minor);
            let kind = FileType::from_raw_mode(*mode);
            match rustix::fs::mknodat(
                &parent,
                name.as_c_str(),
                kind,
                Mode::from_raw_mode(mode & 0o7777),
                device,
            ) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Ok(()),
                Err(errno) => return Err(errno),
            }
            if (*uid, *gid) == (0, 0) {
                return Ok(());
            }
            let made = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(&parent, name.as_c_str(), made, Mode::empty())?;
            let (uid, gid) = (rustix::fs::Uid::from_raw(*uid), rustix::fs::Gid::from_raw(*gid));
            rustix::fs::chownat(&made, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
        }
        Step::Symlink { target, path } => {
            let (parent, name) = parent_of(root, path)?;
            match rustix::fs::symlinkat(target.as_c_str(), &parent, name.as_c_str()) {
                Err(Errno::EXIST) => Ok(()),
                other => other,
            }
        }
        Step::Mkdir { path, mode } => {
            if open(root, path, OFlags::PATH | OFlags::CLOEXEC).is_ok() {
                return Ok(());
            }
            let made = find_or_make(root, path, Make::Dir)?;
            rustix::fs::chmodat(&made, c".", Mode::from_raw_mode(*mode), AtFlags::empty())
        }
        Step::Mask { path } => mask(prepared, root, path, masks),
        Step::Keep { path } => rebind(root, path, &Change::default()),
        Step::Attributes { path, attr_set, attr_clr, recursive } => {
            let place = open(root, path, OFlags::PATH | OFlags::CLOEXEC)?;
            let change =
                Change { set: *attr_set, clear: *attr_clr, recursive: *recursive, ..Change::default() };
            apply(place.as_fd(), &change)
        }
        Step::ReadOnly { path } => {
            rebind(root, path, &Change { set: attr::RDONLY, recursive: true, ..Change::default() })
        }
    }
}

fn mount_step(prepared: &Prepared<'_>, root: BorrowedFd<'_>, index: usize) -> Result<(), Errno> {
    let Step::Mount { source, target, kind, attr_set, attr_clr, attr_recursive, propagation, optional } =
        &prepared.request.plan.steps[index]
    else {
        return Ok(());
    };
    let made;
    let mut volume = None;
    let tree = match source {
        Source::Tree { fd } => prepared.request.descriptors[usize::from(*fd)].as_fd(),
        Source::Path { path, recursive } => {
            let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            if *recursive {
                flags |= OpenTreeFlags::AT_RECURSIVE;
            }
            made = open_tree(rustix::fs::CWD, path.as_c_str(), flags)?;
            made.as_fd()
        }
        Source::Layers { .. } => volume::tree(prepared, index, &mut volume)?,
        Source::New { fstype, name, options } => {
            match new_file_system(fstype, name, options, None, *attr_set) {
                Ok(tree) => {
                    if fstype.as_c_str() == c"mqueue" {
                        label_root(prepared, tree.as_fd())?;
                    }
                    made = tree;
                    made.as_fd()
                }
                // Not in this kernel.
                Err(Errno::NODEV) if *optional => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    };
    let is_new = matches!(source, Source::New { .. });
    let own = *propagation & !propagation::REC;
    let change = Change { set: *attr_set, clear: *attr_clr, recursive: *attr_recursive, ..Change::default() };
    // A new file system got its attributes when it was mounted.
    if !is_new && (change.set != 0 || change.clear != 0) {
        apply(tree, &change)?;
    }
    // Private unless said otherwise: a bind of a shared mount would join its peers.
    if !is_new {
        let kind = if own == 0 { propagation::PRIVATE } else { own };
        let recursive = own == 0 || *propagation & propagation::REC != 0;
        apply(tree, &Change { propagation: kind, recursive, ..Change::default() })?;
    } else if own != 0 {
        apply(tree, &Change { propagation: own, ..Change::default() })?;
    }
    let make = match kind {
        TargetKind::Dir => Make::Dir,
        TargetKind::File => Make::File,
        TargetKind::LikeSource => like(tree)?,
    };
    let place = find_or_make(root, target, make)?;
    attach(tree, place.as_fd())
}

fn apply(tree: BorrowedFd<'_>, change: &Change<'_>) -> Result<(), Errno> {
    mount::change(tree, change).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

pub(crate) fn attach(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", place, c"", both)
}

pub(crate) fn like(tree: BorrowedFd<'_>) -> Result<Make, Errno> {
    let stat = rustix::fs::statat(tree, c"", AtFlags::EMPTY_PATH)?;
    Ok(if FileType::from_raw_mode(stat.st_mode) == FileType::Directory { Make::Dir } else { Make::File })
}

pub(crate) fn new_file_system(
    fstype: &CStr,
    name: &CStr,
    options: &[(std::ffi::CString, Option<std::ffi::CString>)],
    label: Option<&CStr>,
    attributes: u64,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !name.is_empty() {
        fsconfig_set_string(context.as_fd(), c"source", name)?;
    }
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_c_str(), value.as_c_str())?,
            None => fsconfig_set_flag(context.as_fd(), key.as_c_str())?,
        }
    }
    if let Some(label) = label {
        fsconfig_set_string(context.as_fd(), c"context", label)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Labels the root of the pod's message queues, which all its containers share: the kernel made the file system with the IPC
/// namespace, so a mount's options come too late. A user namespace may not be allowed to; its queues stay as they are.
fn label_root(prepared: &Prepared<'_>, tree: BorrowedFd<'_>) -> Result<(), Errno> {
    let Some(label) = &prepared.request.plan.mount_label else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(tree, c".", flags, Mode::empty())?;
    match rustix::fs::fsetxattr(
        &folder,
        c"security.selinux",
        label.as_bytes(),
        rustix::fs::XattrFlags::empty(),
    ) {
        Err(Errno::NOTSUP) => Ok(()),
        Err(Errno::PERM | Errno::ACCESS) if prepared.launcher.user.is_some() => Ok(()),
        other => other,
    }
}

fn mask(prepared: &Prepared<'_>, root: BorrowedFd<'_>, path: &CStr, masks: &mut Masks) -> Result<(), Errno> {
    let place = match open(root, path, OFlags::PATH | OFlags::CLOEXEC) {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if like(place.as_fd())? == Make::File {
        return attach(null_device(root, clone)?.as_fd(), place.as_fd());
    }
    // One file system for all masked folders: each costs kernel memory and time to take down.
    if let Some(first) = &masks.folder {
        return attach(open_tree(first, c"", clone)?.as_fd(), place.as_fd());
    }
    let attributes = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
    let label = prepared.request.plan.mount_label.as_deref();
    let tree = new_file_system(c"tmpfs", c"tmpfs", &[], label, attributes)?;
    attach(tree.as_fd(), place.as_fd())?;
    masks.folder = Some(tree);
    Ok(())
}

/// The container's /dev/null, if it is what it should be: one that the image or a race put there is not bound.
fn null_device(root: BorrowedFd<'_>, clone: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    let null = open(root, c"/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
    let stat = rustix::fs::statat(&null, c"", AtFlags::EMPTY_PATH)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null { open_tree(&null, c"", clone) } else { Err(Errno::NXIO) }
}

/// Mounts a path onto itself, changed.
fn rebind(root: BorrowedFd<'_>, path: &CStr, change: &Change<'_>) -> Result<(), Errno> {
    let place = match open(root, path, OFlags::PATH | OFlags::CLOEXEC) {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(&place, c"", flags)?;
    apply(tree.as_fd(), change)?;
    attach(tree.as_fd(), place.as_fd())
}

/// What to make of a path that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    /// A folder.
    Dir,
    /// An empty file.
    File,
}

const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// How often a resolution is tried again that raced with a rename somewhere (`EAGAIN`, openat2(2)).
const RESOLVE_TRIES: u32 = 128;

/// Opens `path` inside `root`.
pub(crate) fn open(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), CONFINED) {
            Err(Errno::AGAIN) if tries < RESOLVE_TRIES => tries += 1,
            other => return other,
        }
    }
}

/// A name on the stack, with its NUL.
pub(crate) struct Name {
    bytes: [u8; 4096],
    len: usize,
}

impl Name {
    pub(crate) fn new(text: &[u8]) -> Result<Name, Errno> {
        let mut bytes = [0u8; 4096];
        if text.len() >= bytes.len() || text.contains(&0) {
            return Err(Errno::NAMETOOLONG);
        }
        bytes[..text.len()].copy_from_slice(text);
        Ok(Name { bytes, len: text.len() })
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        // `new` refuses texts with a NUL and leaves one behind the text.
        CStr::from_bytes_with_nul(&self.bytes[..=self.len]).unwrap_or(c".")
    }
}

/// The parent folder of `path`, made if missing, and the last name.
fn parent_of(root: BorrowedFd<'_>, path: &CStr) -> Result<(OwnedFd, Name), Errno> {
    let bytes = path.to_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let start = bytes[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let name = &bytes[start..end];
    if name.is_empty() || name == b"." || name == b".." {
        return Err(Errno::INVAL);
    }
    let parent = Name::new(if start == 0 { b"/" } else { &bytes[..start] })?;
    Ok((find_or_make(root, parent.as_c_str(), Make::Dir)?, Name::new(name)?))
}

/// Opens `path` inside `root`, and makes what is missing of it.
///
/// Where a prefix exists it is used as it is, through symlinks; below it plain folders are made, one by one, each
/// opened again from the root: a component that turns into a symlink meanwhile still cannot lead out.
pub(crate) fn find_or_make(root: BorrowedFd<'_>, path: &CStr, make: Make) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match open(root, path, flags) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let bytes = path.to_bytes();
    // Mostly just the last one is missing: where its parent is there, there is no need to look from the top.
    let (mut folder, mut at) = match parent_end(bytes) {
        Some(end) => match open(root, Name::new(&bytes[..end])?.as_c_str(), flags) {
            Ok(parent) => (parent, end),
            Err(Errno::NOENT) => (open(root, c"/", flags)?, 0),
            Err(errno) => return Err(errno),
        },
        None => (open(root, c"/", flags)?, 0),
    };
    while let Some((start, end)) = next_component(bytes, at) {
        at = end;
        let last = next_component(bytes, end).is_none();
        let prefix = Name::new(&bytes[..end])?;
        // That the whole path is missing was seen above.
        match if last { Err(Errno::NOENT) } else { open(root, prefix.as_c_str(), flags) } {
            Ok(found) => {
                folder = found;
                continue;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        let name = Name::new(&bytes[start..end])?;
        if last && make == Make::File {
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&folder, name.as_c_str(), create, Mode::from_raw_mode(0o644))?;
        } else {
            rustix::fs::mkdirat(&folder, name.as_c_str(), Mode::from_raw_mode(0o755))?;
        }
        folder = open(root, prefix.as_c_str(), flags)?;
    }
    Ok(folder)
}

/// Where the parent's path ends; `None` if that is the root.
fn parent_end(bytes: &[u8]) -> Option<usize> {
    let last = bytes.iter().rposition(|byte| *byte != b'/')?;
    let slash = bytes[..last].iter().rposition(|byte| *byte == b'/')?;
    let end = bytes[..slash].iter().rposition(|byte| *byte != b'/')?;
    Some(end + 1)
}

fn next_component(bytes: &[u8], from: usize) -> Option<(usize, usize)> {
    let start = from + bytes[from..].iter().position(|byte| *byte != b'/')?;
    let end = bytes[start..].iter().position(|byte| *byte == b'/').map_or(bytes.len(), |len| start + len);
    Some((start, end))
}
