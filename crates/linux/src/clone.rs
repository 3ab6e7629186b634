//! `clone3`: a copy of the calling process, in new namespaces, in a cgroup, with a pidfd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::abort;

/// What the copy gets.
#[derive(Default)]
pub struct CloneOptions<'a> {
    /// `CLONE_NEW*` flags.
    pub namespaces: u64,
    /// cgroup v2 folder to be born in (Linux 5.7).
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Its parent is the caller's parent (`CLONE_PARENT`), and hears of its end as it will of the caller's.
    pub sibling: bool,
}

/// A process that was made.
#[derive(Debug)]
pub struct Cloned {
    /// Its number in our PID namespace.
    pub pid: i32,
    /// The process itself.
    pub pidfd: OwnedFd,
}

/// Layout of `struct clone_args` up to `cgroup` (Linux 5.7, 88 bytes).
#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

pub(crate) const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Copies the calling process; `child` runs in the copy and never returns.
///
/// The copy has one thread, whatever the caller has. Another thread may have held the allocator's lock at the
/// moment of the copy, so `child` must not allocate, lock, or print: it would wait for ever (it could not do
/// worse, memory is copied, not shared). Signal handlers are reset.
pub fn clone_process(
    options: &CloneOptions<'_>,
    child: impl FnOnce() -> std::convert::Infallible,
) -> io::Result<Cloned> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: options.namespaces | CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if options.sibling {
        // The signal at its end is the caller's own; naming one is an error (clone3 in kernel/fork.c).
        args.flags |= CLONE_PARENT;
        args.exit_signal = 0;
    }
    if let Some(cgroup) = options.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args of the size passed; `pidfd` outlives the call. Without CLONE_VM the child
    // gets a copy of all memory and goes on on its copy of this stack, so no reference is shared between the two.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match ret {
        -1 => Err(io::Error::last_os_error()),
        0 => run_child(child),
        pid => {
            // SAFETY: the call succeeded with CLONE_PIDFD, so `pidfd` is an open descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned { pid: pid as i32, pidfd })
        }
    }
}

fn run_child(child: impl FnOnce() -> std::convert::Infallible) -> ! {
    // A panic must not unwind into the copy of the parent's frames.
    let _guard = AbortOnDrop;
    match child() {}
}

struct AbortOnDrop;

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        abort()
    }
}

/// Joins the namespaces `flags` (`CLONE_NEW*`) of `of`, a namespace descriptor or a pidfd.
pub fn join(of: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is borrowed, hence open.
    let ret = unsafe { libc::setns(of.as_raw_fd(), flags as libc::c_int) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Leaves the namespaces `flags` (`CLONE_NEW*`) for new ones; `CLONE_FS` is implied by `CLONE_NEWNS`.
///
/// Only the calling thread moves: never call it on a thread of a pool.
pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: no pointers. CLONE_FILES is not among the flags that callers pass, so descriptors stay shared and
    // nothing that borrowed one is left dangling.
    let ret = unsafe { libc::unshare((flags & !(libc::CLONE_FILES as u64)) as libc::c_int) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Flags of namespaces, as `clone3`, `setns` and `unshare` take them.
pub mod ns {
    /// Mounts.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// cgroup root.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// Hostname.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// System V IPC and POSIX queues.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// Users.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    /// Processes.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// Network.
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
}
