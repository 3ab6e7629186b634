//! The tiny init of a pod whose containers share their PID namespace: it reaps, and does nothing else.
//!
//! A copy of the monitor without exec, so it costs a few private pages. It keeps no descriptor, no capability and an
//! empty read-only root in a mount namespace of its own; a filter leaves it the few calls that it makes. Its death,
//! and so the monitor's (PDEATHSIG), ends every process of the namespace.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bowline_linux::clone::{self, CloneOptions, Cloned, ns};
use bowline_linux::{exec, message, process};
use bowline_monitor_proto::PodLabels;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::setup::MOUNT_POINT;
use crate::user::UserSpace;

/// SELinux labels of the pod, and a procfs by which to take them.
type Labels<'a> = Option<(&'a PodLabels, BorrowedFd<'a>)>;

/// Starts the init in a new PID namespace, which `user` owns if it is given.
pub fn start(user: Option<&UserSpace>, labels: Labels<'_>) -> io::Result<Cloned> {
    // By it the child sees whether we died before it asked to die with us.
    let monitor =
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?;
    let init = || match confine(&monitor, user.is_some(), labels) {
        Ok(()) => process::reap_for_ever(),
        Err(_) => exec::exit_now(1),
    };
    let namespaces = ns::PID | ns::MOUNT;
    match user {
        None => clone::clone_process(&CloneOptions { namespaces, ..CloneOptions::default() }, init),
        Some(user) => start_below(user, namespaces, init),
    }
}

/// By way of a helper that enters the user namespace; the init is our child all the same.
fn start_below(
    user: &UserSpace,
    namespaces: u64,
    init: impl FnOnce() -> std::convert::Infallible,
) -> io::Result<Cloned> {
    let (ours, theirs) = message::pair()?;
    let helper = clone::clone_process(&CloneOptions::default(), || {
        let options = CloneOptions { namespaces, sibling: true, ..CloneOptions::default() };
        let born =
            clone::join(user.user.as_fd(), ns::USER).and_then(|()| clone::clone_process(&options, init));
        let told = match born {
            Ok(born) => message::send(theirs.as_fd(), &born.pid.to_le_bytes(), &[born.pidfd.as_fd()]),
            Err(error) => {
                let errno = -error.raw_os_error().unwrap_or(1);
                message::send(theirs.as_fd(), &errno.to_le_bytes(), &[])
            }
        };
        exec::exit_now(i32::from(told.is_err()))
    })?;
    drop(theirs);
    let mut bytes = [0u8; 4];
    let received = message::receive(ours.as_fd(), &mut bytes);
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(helper.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    let (_, mut descriptors) = received?;
    match (i32::from_le_bytes(bytes), descriptors.pop()) {
        (pid, Some(pidfd)) => Ok(Cloned { pid, pidfd }),
        (errno @ ..0, None) => Err(io::Error::from_raw_os_error(-errno)),
        _ => Err(io::Error::other("the helper that starts the pod's init ended early")),
    }
}

/// No allocation here: this is the child of a clone.
fn confine(monitor: &OwnedFd, below: bool, labels: Labels<'_>) -> Result<(), rustix::io::Errno> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut poll = [rustix::event::PollFd::new(monitor, rustix::event::PollFlags::IN)];
    if rustix::event::poll(&mut poll, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))? != 0 {
        return Err(rustix::io::Errno::SRCH);
    }
    process::set_name(c"bowline-init");
    if below {
        process::become_root().map_err(|_| rustix::io::Errno::PERM)?;
        // A change of user clears it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some((labels, _)) = labels {
        fsconfig_set_string(context.as_fd(), c"context", labels.mount.as_c_str())?;
    }
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
    if let Some((labels, procfs)) = labels {
        take_label(procfs, labels);
    }
    process::capabilities::set(0, 0, 0).map_err(|_| rustix::io::Errno::PERM)?;
    Ok(())
}

/// Takes the pod's label without an exec. Few policies let anybody do that; with the monitor's label the init is no less
/// confined, but the pod's other processes may not be allowed to look at it.
fn take_label(procfs: BorrowedFd<'_>, labels: &PodLabels) {
    if labels.process.is_empty() {
        return;
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(procfs, c"thread-self/attr/current", flags, Mode::empty());
    let _ = file.and_then(|file| rustix::io::write(&file, labels.process.as_bytes()));
}
