//! The pod's surroundings: namespaces, hostname, kernel parameters, /dev/shm.
//!
//! The base mount namespace that the daemon sends holds three things: the folder with images and writable layers,
//! an empty folder to assemble roots on, and one for /dev/shm. The monitor copies it, so that each pod has its own
//! and a copy (which every container makes again) is of a handful of mounts and not of the host's hundreds.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bowline_linux::clone::{self, Cloned, ns};
use bowline_linux::process;
use bowline_monitor_proto::Setup;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount,
};

use crate::exits::Exits;

/// Where roots are assembled, in the base mount namespace.
pub const MOUNT_POINT: &CStr = c"/root";
/// Where the pod's /dev/shm is, in the base mount namespace.
pub const SHM: &CStr = c"/shm";

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
    if setup.own_ipc {
        own |= ns::IPC;
    }
    if setup.hostname.is_some() {
        own |= ns::UTS;
    }
    clone::unshare(own)?;
    if let Some(network) = network {
        clone::join(network.as_fd(), ns::NET)?;
    }
    if let Some(name) = &setup.hostname {
        process::set_hostname(name.as_bytes())?;
    }
    let procfs = new_mount(c"proc", &[], MountAttrFlags::empty())?;
    for (path, value) in &setup.sysctls {
        write_sysctl(procfs.as_fd(), path, value.as_bytes())?;
    }
    if setup.shm_size > 0 {
        mount_shm(setup.shm_size)?;
    }
    rustix::process::chdir(setup.layers.as_c_str())?;
    let init = if setup.shared_pids { Some(crate::init::start()?) } else { None };
    Ok(Surroundings { procfs, exits: Exits::new(exits), listener, null, hierarchies, init })
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

fn mount_shm(size: u64) -> io::Result<()> {
    let size = std::ffi::CString::new(size.to_string())?;
    let options = [(c"source", c"shm"), (c"mode", c"1777"), (c"size", size.as_c_str())];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let shm = new_mount(c"tmpfs", &options, attributes)?;
    move_mount(&shm, c"", rustix::fs::CWD, SHM, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn write_sysctl(procfs: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> io::Result<()> {
    let sys = rustix::fs::openat(procfs, c"sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(&sys, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), flags)?;
    rustix::io::write(&file, value)?;
    Ok(())
}
