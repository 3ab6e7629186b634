//! The pod's surroundings: namespaces, hostname, kernel parameters, /dev/shm.
//!
//! The base mount namespace that the daemon sends holds three things: the folder with images and writable layers,
//! an empty folder to assemble roots on, and one for /dev/shm. The monitor copies it, so that each pod has its own
//! and a copy (which every container makes again) is of a handful of mounts and not of the host's hundreds.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bowline_linux::clone::{self, Cloned, ns};
use bowline_linux::mount::{self, Change, attr};
use bowline_linux::process;
use bowline_monitor_proto::Setup;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::exits::Exits;
use crate::user::{self, UserSpace};

/// Where roots are assembled, in the base mount namespace.
pub const MOUNT_POINT: &CStr = c"/root";
/// Where the host's mounts are shown to hooks, in a copy of the base mount namespace.
pub const HOST: &CStr = c"/host";
/// Where the pod's /dev/shm is, in the base mount namespace.
pub const SHM: &CStr = c"/shm";
/// Where images and writable layers are, in the base mount namespace.
const STORE: &CStr = c"/store";
/// The same with the owners of a pod with a user namespace of its own.
const MAPPED_STORE: &CStr = c"/mapped";
/// Where a procfs is, for such a pod.
const PROC: &CStr = c"/proc";
/// Where a sysfs is, for such a pod.
const SYS: &CStr = c"/sys";

/// What setup leaves behind.
pub struct Surroundings {
    /// A procfs of the host's PID namespace, attached nowhere.
    pub procfs: OwnedFd,
    /// Slots for exits.
    pub exits: Exits,
    /// The takeover socket.
    pub listener: OwnedFd,
    /// /dev/null.
    pub null: OwnedFd,
    /// Roots of the cgroup hierarchies.
    pub hierarchies: Vec<OwnedFd>,
    /// The init of the shared PID namespace.
    pub init: Option<Cloned>,
    /// The user namespace of the pod, if it has one of its own.
    pub user: Option<UserSpace>,
}

/// Builds it all; the process is single-threaded until here, as joining a mount namespace demands.
pub fn build(setup: &Setup, descriptors: Vec<OwnedFd>) -> io::Result<Surroundings> {
    let mut rest = descriptors.into_iter();
    let mut next = || rest.next().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
    let (mounts, exits, listener, null) = (next()?, next()?, next()?, next()?);
    let network = if setup.network { Some(next()?) } else { None };
    let hierarchies: Vec<OwnedFd> = (0..setup.hierarchies).map(|_| next()).collect::<io::Result<_>>()?;

    join_cgroups(setup, &hierarchies)?;
    clone::join(mounts.as_fd(), ns::MOUNT)?;
    let mut own = ns::MOUNT;
    // A user namespace brings its own.
    if setup.own_ipc && setup.user.is_none() {
        own |= ns::IPC;
    }
    if setup.hostname.is_some() && setup.user.is_none() {
        own |= ns::UTS;
    }
    clone::unshare(own)?;
    if let Some(network) = network {
        clone::join(network.as_fd(), ns::NET)?;
    }
    let procfs = new_mount(c"proc", &[], MountAttrFlags::empty())?;
    let user = match &setup.user {
        Some(wish) => Some(user::make(wish, procfs.as_fd(), &setup.sysctls)?),
        None => None,
    };
    if let Some(name) = &setup.hostname {
        process::set_hostname(name.as_bytes())?;
    }
    if user.is_none() {
        for (path, value) in &setup.sysctls {
            write_sysctl(procfs.as_fd(), path, value.as_bytes())?;
        }
    }
    if setup.shm_size > 0 {
        mount_shm(
            setup.shm_size,
            user.as_ref(),
            setup.labels.as_ref().map(|labels| labels.mount.as_c_str()),
        )?;
    }
    match &user {
        None => rustix::process::chdir(setup.layers.as_c_str())?,
        Some(user) => {
            show_layers(&setup.layers, user)?;
            show_kernel(&procfs)?;
        }
    }
    let labels = setup.labels.as_ref().map(|labels| (labels, procfs.as_fd()));
    let init = if setup.shared_pids { Some(crate::init::start(user.as_ref(), labels)?) } else { None };
    Ok(Surroundings { procfs, exits: Exits::new(exits), listener, null, hierarchies, init, user })
}

fn join_cgroups(setup: &Setup, hierarchies: &[OwnedFd]) -> io::Result<()> {
    for group in &setup.cgroups {
        let root = hierarchies.get(usize::from(group.hierarchy)).ok_or(io::ErrorKind::InvalidInput)?;
        let path = if group.path.is_empty() { c"." } else { group.path.as_c_str() };
        let folder = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(root, path, folder, Mode::empty())?;
        // On v1 a lone thread that moves itself through `tasks` does not wait for RCU.
        let file = if setup.unified == Some(group.hierarchy) { c"cgroup.procs" } else { c"tasks" };
        let file = rustix::fs::openat(&folder, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, b"0")?;
    }
    Ok(())
}

fn new_mount(fstype: &CStr, options: &[(&CStr, &CStr)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A tmpfs of the host's, whatever user namespace the pod has: what its processes write has their ids anyhow, and the
/// root of the tmpfs is given to theirs.
fn mount_shm(size: u64, user: Option<&UserSpace>, label: Option<&CStr>) -> io::Result<()> {
    let text = |number: u64| CString::new(number.to_string());
    let (uid, gid) = user.map_or((0, 0), |user| (user.uids.outside, user.gids.outside));
    let (size, uid, gid) = (text(size)?, text(uid.into())?, text(gid.into())?);
    let mut options = vec![
        (c"source", c"shm"),
        (c"mode", c"1777"),
        (c"size", size.as_c_str()),
        (c"uid", uid.as_c_str()),
        (c"gid", gid.as_c_str()),
    ];
    options.extend(label.map(|label| (c"context", label)));
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let shm = new_mount(c"tmpfs", &options, attributes)?;
    attach(&shm, SHM)
}

/// The store as the pod's user namespace sees it: one idmapped copy of its mount serves every container.
fn show_layers(layers: &CStr, user: &UserSpace) -> io::Result<()> {
    let below = layers.to_bytes().strip_prefix(STORE.to_bytes()).ok_or(io::ErrorKind::InvalidInput)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, STORE, clone)?;
    let change = Change { set: attr::IDMAP, user_ns: Some(user.user.as_fd()), ..Change::default() };
    mount::change(tree.as_fd(), &change)?;
    attach(&tree, MAPPED_STORE)?;
    let place = CString::new([MAPPED_STORE.to_bytes(), below].concat())?;
    Ok(rustix::process::chdir(&place)?)
}

/// A whole procfs and a whole sysfs: the kernel mounts new ones in a user namespace only where it sees such already.
fn show_kernel(procfs: &OwnedFd) -> io::Result<()> {
    attach(procfs, PROC)?;
    attach(&new_mount(c"sysfs", &[], MountAttrFlags::empty())?, SYS)
}

fn attach(tree: &OwnedFd, place: &CStr) -> io::Result<()> {
    Ok(move_mount(tree, c"", rustix::fs::CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

pub(crate) fn write_sysctl(procfs: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> io::Result<()> {
    let sys = rustix::fs::openat(procfs, c"sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(&sys, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), flags)?;
    rustix::io::write(&file, value)?;
    Ok(())
}
