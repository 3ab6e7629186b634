//! The tiny init of a pod whose containers share their PID namespace: it reaps, and does nothing else.
//!
//! A copy of the monitor without exec, so it costs a few private pages. It keeps no descriptor, no capability and an
//! empty read-only root in a mount namespace of its own; a filter leaves it the few calls that it makes. Its death,
//! and so the monitor's (PDEATHSIG), ends every process of the namespace.

use std::io;
use std::os::fd::OwnedFd;

use bowline_linux::clone::{self, CloneOptions, Cloned, ns};
use bowline_linux::{exec, process};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsmount,
    fsopen, move_mount, unmount,
};

use crate::setup::MOUNT_POINT;

/// Starts the init in a new PID namespace.
pub fn start() -> io::Result<Cloned> {
    let options = CloneOptions { namespaces: ns::PID | ns::MOUNT, cgroup: None };
    // By it the child sees whether we died before it asked to die with us.
    let monitor =
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?;
    clone::clone_process(&options, || match confine(&monitor) {
        Ok(()) => process::reap_for_ever(),
        Err(_) => exec::exit_now(1),
    })
}

/// No allocation here: this is the child of a clone.
fn confine(monitor: &OwnedFd) -> Result<(), rustix::io::Errno> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut poll = [rustix::event::PollFd::new(monitor, rustix::event::PollFlags::IN)];
    if rustix::event::poll(&mut poll, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))? != 0 {
        return Err(rustix::io::Errno::SRCH);
    }
    process::set_name(c"bowline-init");
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let empty = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, empty)?;
    move_mount(&root, c"", rustix::fs::CWD, MOUNT_POINT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::chdir(MOUNT_POINT)?;
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;
    rustix::thread::set_no_new_privs(true)?;
    process::capabilities::set(0, 0, 0).map_err(|_| rustix::io::Errno::PERM)?;
    Ok(())
}
