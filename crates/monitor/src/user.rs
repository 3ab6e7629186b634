//! The pod's user namespace, with the network, IPC and UTS namespaces that it owns.
//!
//! ```text
//!   monitor                              child, in new namespaces
//!   write its uid_map and gid_map
//!   a byte -------------------------->   becomes root of the namespace, sets kernel parameters
//!   <-------------------------- verdict
//!   joins network, IPC and UTS,
//!   keeps the user namespace open
//!   kills it
//! ```
//!
//! The monitor writes the maps, since it has the privileges; it never joins the user namespace, since there is no way
//! back, and it must stay able to mount overlays and to write cgroups. Kernel parameters of the IPC namespace may only
//! be written by its owner's root, which the monitor is not.
//!
//! Design: docs/design/user-namespaces.md.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bowline_linux::clone::{self, CloneOptions, Cloned, ns};
use bowline_linux::{exec, message, process};
use bowline_monitor_proto::{IdRange, UserSetup};
use rustix::fs::{Mode, OFlags};

/// The namespaces of a pod whose root is nobody on the host.
pub struct UserSpace {
    /// The user namespace.
    pub user: OwnedFd,
    /// The network namespace that it owns, which the monitor is in.
    pub network: OwnedFd,
    /// uid 0 of the pod, on the host.
    pub uids: IdRange,
    /// gid 0 of the pod, on the host.
    pub gids: IdRange,
}

/// Makes the namespaces, and joins those that can be left again.
pub fn make(
    setup: &UserSetup,
    procfs: BorrowedFd<'_>,
    sysctls: &[(CString, CString)],
) -> io::Result<UserSpace> {
    let (ours, theirs) = message::pair()?;
    let namespaces = ns::USER | ns::NET | ns::IPC | ns::UTS;
    let options = CloneOptions { namespaces, ..CloneOptions::default() };
    let child = clone::clone_process(&options, || owner(theirs.as_fd(), procfs, sysctls))?;
    drop(theirs);
    let made = finish(setup, procfs, &child, ours.as_fd());
    let _ = rustix::process::pidfd_send_signal(&child.pidfd, rustix::process::Signal::KILL);
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    made
}

fn finish(
    setup: &UserSetup,
    procfs: BorrowedFd<'_>,
    child: &Cloned,
    socket: BorrowedFd<'_>,
) -> io::Result<UserSpace> {
    for (name, range) in [("uid_map", &setup.uids), ("gid_map", &setup.gids)] {
        let path = CString::new(format!("{}/{name}", child.pid))?;
        let file = rustix::fs::openat(procfs, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        let line = format!("{} {} {}\n", range.inside, range.outside, range.length);
        rustix::io::write(&file, line.as_bytes()).map_err(|errno| named(errno.into(), name))?;
    }
    message::send(socket, b"0", &[])?;
    let mut verdict = [0u8; 8];
    let (len, _) = message::receive(socket, &mut verdict)?;
    if len != verdict.len() {
        return Err(io::Error::other("the process that holds the pod's user namespace ended early"));
    }
    let word =
        |at: usize| i32::from_le_bytes([verdict[at], verdict[at + 1], verdict[at + 2], verdict[at + 3]]);
    match (word(0), word(4)) {
        (0, _) => {}
        (errno, at) => {
            let error = io::Error::from_raw_os_error(errno);
            return Err(named(error, &format!("set kernel parameter {at} in the user namespace")));
        }
    }
    let open = |name: &str| {
        let path = CString::new(format!("{}/ns/{name}", child.pid))?;
        let opened = rustix::fs::openat(procfs, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Ok::<_, io::Error>(opened?)
    };
    let (user, network) = (open("user")?, open("net")?);
    clone::join(child.pidfd.as_fd(), ns::NET | ns::IPC | ns::UTS)?;
    Ok(UserSpace { user, network, uids: setup.uids, gids: setup.gids })
}

fn named(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The child. No allocation here.
fn owner(
    socket: BorrowedFd<'_>,
    procfs: BorrowedFd<'_>,
    sysctls: &[(CString, CString)],
) -> std::convert::Infallible {
    // It holds both ends of the socket, which tells it nothing of the monitor's end.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let mut byte = [0u8; 1];
    if !matches!(rustix::io::read(socket, &mut byte), Ok(1)) {
        exec::exit_now(1);
    }
    let (mut errno, mut at) = (0i32, -1i32);
    if let Err(error) = process::become_root() {
        errno = error.raw_os_error().unwrap_or(1);
    }
    for (index, (path, value)) in sysctls.iter().enumerate() {
        if errno == 0
            && let Err(error) = crate::setup::write_sysctl(procfs, path, value.as_bytes())
        {
            (errno, at) = (error.raw_os_error().unwrap_or(1), index as i32);
        }
    }
    let mut verdict = [0u8; 8];
    verdict[..4].copy_from_slice(&errno.to_le_bytes());
    verdict[4..].copy_from_slice(&at.to_le_bytes());
    let _ = message::send(socket, &verdict, &[]);
    let _ = rustix::io::read(socket, &mut byte);
    exec::exit_now(0)
}
