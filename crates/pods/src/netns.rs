//! Network namespaces: made by a short-lived thread, kept by a descriptor.

use std::io;
use std::os::fd::OwnedFd;

use bowline_linux::clone::{self, ns};
use rustix::fs::{Mode, OFlags};

use crate::monitor::Monitor;

/// What pods call their link.
pub const IF_NAME: &str = "eth0";

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Makes an empty network namespace. The thread that enters it is never used for anything else.
pub fn make() -> io::Result<OwnedFd> {
    let thread = std::thread::Builder::new().name("netns".into()).stack_size(64 << 10).spawn(|| {
        clone::unshare(ns::NET)?;
        Ok::<_, io::Error>(rustix::fs::open("/proc/thread-self/ns/net", OPEN, Mode::empty())?)
    })?;
    thread.join().map_err(|_| io::Error::other("the thread that makes a network namespace panicked"))?
}

/// The network namespace of a pod's monitor, its process being `pid`; nothing if the monitor is gone.
pub fn of_monitor(monitor: &Monitor, pid: i32) -> io::Result<Option<OwnedFd>> {
    let opened = rustix::fs::open(format!("/proc/{pid}/ns/net"), OPEN, Mode::empty());
    // Asked afterwards: while it is there, its number is nobody else's.
    if !monitor.is_there() {
        return Ok(None);
    }
    Ok(Some(opened?))
}

/// Shows a namespace at a path, for plugins that take one. The file is made.
pub fn pin(namespace: &OwnedFd, path: &std::path::Path) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    std::fs::File::create(path)?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    Ok(rustix::mount::mount_bind(source, path)?)
}

/// Takes a pin away; one that is not there is fine.
pub fn unpin(path: &std::path::Path) -> io::Result<()> {
    match rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
