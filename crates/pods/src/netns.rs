//! Network namespaces: made by a short-lived thread, kept by a descriptor.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError, TryLockError};

use bowline_linux::clone::{self, ns};
use rustix::fs::{Mode, OFlags};

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Makes an empty network namespace. The thread that enters it is never used for anything else.
pub fn make() -> io::Result<OwnedFd> {
    let thread = std::thread::Builder::new().name("netns".into()).stack_size(64 << 10).spawn(|| {
        clone::unshare(ns::NET)?;
        Ok::<_, io::Error>(rustix::fs::open("/proc/thread-self/ns/net", OPEN, Mode::empty())?)
    })?;
    thread.join().map_err(|_| io::Error::other("the thread that makes a network namespace panicked"))?
}

/// One empty namespace, made in advance: making it is most of a millisecond of the kernel's, which the next pod need not wait
/// for. It holds nothing, only this descriptor keeps it, and it goes with the daemon. Kernel parameters of the host that
/// new namespaces copy are those of the moment when it was made.
#[derive(Default)]
pub struct Spare {
    ready: Mutex<Option<OwnedFd>>,
    making: Mutex<()>,
}

impl Spare {
    /// The one that is ready.
    pub fn take(&self) -> Option<OwnedFd> {
        self.ready().take()
    }

    /// Makes one, unless there is one, or somebody makes it. Failures are for those who need one: the next pod tries
    /// itself, and says why not.
    pub fn fill(&self) {
        let _making = match self.making.try_lock() {
            Ok(making) => making,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if self.ready().is_none()
            && let Ok(made) = make()
        {
            *self.ready() = Some(made);
        }
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn number(namespace: &OwnedFd) -> u64 {
        rustix::fs::fstat(namespace).unwrap().st_ino
    }

    #[test]
    fn a_spare_is_given_once_and_is_nobodys() {
        let spare = Spare::default();
        assert!(spare.take().is_none());
        spare.fill();
        spare.fill();
        let first = spare.take().expect("root may make one");
        assert!(spare.take().is_none(), "there is one at a time");
        spare.fill();
        let second = spare.take().unwrap();
        let own = std::fs::File::open("/proc/self/ns/net").unwrap().into();
        assert_ne!(number(&first), number(&second));
        assert_ne!(number(&first), number(&own));
    }
}
