//! The base mount namespace: what every pod's mounts start from.
//!
//! ```text
//!   /          a small tmpfs, read-only for the pods' purposes
//!   /store     the daemon's root folder: layers and writable layers, on one file system
//!   /root      empty: roots are assembled here, each in its own copy of the namespace
//!   /shm       the pod's /dev/shm
//!   /host      empty: a container with hooks shows them the host there
//!   /mapped, /proc, /sys   empty; pods with a user namespace put theirs there
//! ```
//!
//! Made once by a thread of its own, kept by a descriptor. Copying a mount namespace costs time for every mount in
//! it; the host's may have hundreds. Nothing of the host is reachable from here but the store.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use bowline_linux::clone::{self, ns};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};

/// Where the daemon's root folder is in the base mount namespace.
pub const STORE: &str = "/store";

/// The lowest layer of every container, below the daemon's root folder: the places that are mounted on in each of them.
///
/// An image that lacks one would have it made in the container's writable layer, through the overlay, at 0.1 ms each. It is
/// on disk and not in the namespace, so that monitors of an earlier daemon find it too.
pub const MOUNT_POINTS: &str = "mountpoints";

/// Makes the lowest layer; what is there stays.
pub fn make_mount_points(root: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let layer = root.join(MOUNT_POINTS);
    for folder in ["", "dev", "proc", "sys", "etc"] {
        let folder = layer.join(folder);
        std::fs::create_dir_all(&folder)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(layer.join(file))?;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Makes the namespace. `root` is the daemon's root folder.
pub fn make(root: &Path) -> io::Result<OwnedFd> {
    let root = root.to_owned();
    let thread = std::thread::Builder::new().name("base-mounts".into()).spawn(move || build(&root))?;
    thread.join().map_err(|_| io::Error::other("the thread that makes the base mounts panicked"))?
}

fn build(root: &Path) -> io::Result<OwnedFd> {
    let store = CString::new(root.as_os_str().as_encoded_bytes())?;
    clone::unshare(ns::MOUNT)?;
    let this = rustix::fs::open("/proc/thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, &store, clone)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "bowline")?;
    fsconfig_set_string(context.as_fd(), "mode", "0755")?;
    fsconfig_set_string(context.as_fd(), "size", "64k")?;
    fsconfig_create(&context)?;
    let base = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    for folder in ["store", "root", "shm", "mapped", "proc", "sys", "host"] {
        rustix::fs::mkdirat(&base, folder, Mode::from_raw_mode(0o755))?;
    }
    // The root folder is as good a place as any: it exists, and this namespace is nobody else's.
    move_mount(&base, "", CWD, &store, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::chdir(&store)?;
    move_mount(&tree, "", CWD, "store", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(this)
}
