//! Holding containers still: by the freezer of cgroup v2, which processes cannot see and signals do not end.
//!
//! Whoever freezes leaves a note in the state folder first: the cgroups, one a line. The note is locked, and criu
//! inherits the lock with the file it prints to. A daemon that finds a note waits for the lock, that is for the end of a
//! criu that outlived its daemon (it would freeze again what it found frozen), and lets the containers go.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::PodError;
use crate::error::doing;
use crate::shared::Shared;

/// How long processes may take to stop. One in an uninterruptible sleep (a dead NFS server) does not.
const PATIENCE: Duration = Duration::from_secs(10);

/// Containers that stand still; they go on when this is dropped.
pub(super) struct Frozen {
    shared: Arc<Shared>,
    cgroups: Vec<String>,
    note: PathBuf,
    file: File,
}

impl Frozen {
    /// Freezes these cgroups, all or none.
    pub(super) fn new(shared: &Arc<Shared>, name: &str, cgroups: Vec<String>) -> Result<Frozen, PodError> {
        let what = "freeze the container";
        let note = super::frozen_root(shared).join(name);
        let write = || -> io::Result<File> {
            super::make_private(&super::frozen_root(shared))?;
            let mut file = File::options().create(true).truncate(true).write(true).open(&note)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            file.write_all(cgroups.join("\n").as_bytes())?;
            file.write_all(b"\n\n")?;
            Ok(file)
        };
        let file = write().map_err(doing("note which containers are frozen"))?;
        // From here on whatever goes wrong lets all of them go.
        let frozen = Frozen { shared: shared.clone(), cgroups, note, file };
        for cgroup in &frozen.cgroups {
            set(shared, cgroup, true).map_err(doing(what))?;
        }
        let deadline = Instant::now() + PATIENCE;
        for cgroup in &frozen.cgroups {
            wait(shared, cgroup, deadline).map_err(doing(what))?;
        }
        Ok(frozen)
    }

    /// Where criu prints to.
    pub(super) fn output(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        thaw(&self.shared, &self.cgroups);
        let _ = std::fs::remove_file(&self.note);
    }
}

/// What a note of a dead daemon says is let go. Blocks until its criu has ended.
pub(super) fn let_go(shared: &Shared, note: &Path) {
    let read = || -> io::Result<Vec<String>> {
        let file = File::options().read(true).open(note)?;
        flock(&file, FlockOperation::LockExclusive)?;
        let text = io::read_to_string(&file)?;
        Ok(text.lines().take_while(|line| !line.is_empty()).map(str::to_owned).collect())
    };
    match read() {
        Ok(cgroups) => thaw(shared, &cgroups),
        Err(error) => {
            tracing::error!(note = %note.display(), %error, "a note about frozen containers cannot be read");
            return;
        }
    }
    let _ = std::fs::remove_file(note);
}

fn thaw(shared: &Shared, cgroups: &[String]) {
    for cgroup in cgroups {
        match set(shared, cgroup, false) {
            Ok(()) => {}
            // It has gone, and its processes with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(cgroup, %error, "a container stays frozen"),
        }
    }
}

fn unified(shared: &Shared) -> io::Result<&OwnedFd> {
    let number = shared.host.layout.unified().map(usize::from);
    let root = number.and_then(|number| shared.host.roots.get(number));
    root.ok_or_else(|| io::Error::other("this host has no cgroup v2"))
}

fn set(shared: &Shared, cgroup: &str, frozen: bool) -> io::Result<()> {
    let path = format!("{cgroup}/cgroup.freeze");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(unified(shared)?, path.as_str(), flags, Mode::empty())?;
    rustix::io::write(&file, if frozen { b"1" } else { b"0" })?;
    Ok(())
}

/// Waits until the kernel says that all processes stand still. It tells of changes by POLLPRI.
fn wait(shared: &Shared, cgroup: &str, deadline: Instant) -> io::Result<()> {
    let path = format!("{cgroup}/cgroup.events");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(unified(shared)?, path.as_str(), flags, Mode::empty())?;
    loop {
        let mut text = [0u8; 256];
        let len = rustix::io::pread(&file, &mut text, 0)?;
        if text[..len].split(|byte| *byte == b'\n').any(|line| line == b"frozen 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other(format!("some process does not stop within {PATIENCE:?}")));
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
