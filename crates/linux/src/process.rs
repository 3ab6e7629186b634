//! Small facts about and changes of the calling process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes `fd` appear as descriptor `number`, which survives exec.
///
/// Only for a process that is about to exec: whoever owned `number` before loses it.
pub fn place(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // SAFETY: plain numbers; clears FD_CLOEXEC of an open descriptor.
        let ret = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
        return if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    }
    // SAFETY: plain numbers. Standard streams (0 to 2) have no owner in Rust; the owner of another number finds it open still, as
    // something else, which it was told of.
    let ret = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    if ret == number { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor from `first` on to be closed by exec (`close_range`, Linux 5.11).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: plain numbers; no descriptor is closed now, so no owner loses one.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling process a new session keyring without a name, instead of the one that it shares with its parent
/// (keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`).
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: plain numbers and a null pointer, which stands for "no name"; no memory is read.
    let ret =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>(), 0, 0, 0) };
    if ret >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives signals that are ignored (SIGPIPE, by Rust's runtime) their default action back and blocks none.
pub fn reset_signals() {
    // SAFETY: `set` is initialised by sigemptyset before it is read; SIG_DFL is a valid action for SIGPIPE.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Blocks `signals` for the calling thread and those it starts later, and opens a descriptor that reports them.
pub fn signal_descriptor(signals: &[i32]) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before use; signalfd returns a new descriptor or -1.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::os::fd::OwnedFd::from_raw_fd(fd))
    }
}

/// Number of the signal that tells of ended children.
pub const SIGCHLD: i32 = libc::SIGCHLD;

/// Takes what a signal descriptor has to report; the signals count, not their details.
pub fn clear_signals(descriptor: &std::os::fd::OwnedFd) {
    let mut buffer = [0u8; 128 * 16];
    while rustix::io::read(descriptor, &mut buffer).is_ok_and(|len| len == buffer.len()) {}
}

/// Signals the process behind a pidfd by number; 0 asks whether it is there.
pub fn signal_by_pidfd(process: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a NULL siginfo asks the kernel to fill one in; the descriptor is borrowed, hence open.
    let ret = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, none, 0) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes the descriptor that we were started with as standard input, and leaves /dev/null (standard output, which
/// the starter made that) in its place.
pub fn take_stdin() -> io::Result<std::os::fd::OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(rustix::stdio::stdout())?;
    Ok(taken)
}

/// Closes every descriptor above the standard streams that the starter of this process left open.
///
/// To be called first of all in `main`, while nothing in the process owns a descriptor above 2.
pub fn close_inherited() {
    // SAFETY: plain numbers; by the contract above no owner loses a descriptor, since there is none yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0) };
}

/// Waits for children, as process 1 of a PID namespace must, and never does anything else.
///
/// First it closes every descriptor, whoever owned it: no code that has one ever runs again. Then it loads a filter
/// that leaves the thread just the calls of this loop.
pub fn reap_for_ever() -> std::convert::Infallible {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: close_range takes plain numbers, and as this function never returns no owner finds its descriptor gone.
    // The set is initialised by sigemptyset before it is read; sigwaitinfo and waitpid get no memory to write but what
    // is passed as NULL, which both allow.
    unsafe {
        libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0);
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        // Without the filter the process is still without capabilities, descriptors and files.
        let _ = crate::seccomp::load(&reaper_filter(), 0);
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            libc::sigwaitinfo(set.as_ptr(), std::ptr::null_mut());
        }
    }
}

/// Allows wait4, rt_sigtimedwait, rt_sigreturn and exit_group; anything else kills.
fn reaper_filter() -> [u8; 8 * 8] {
    const LOAD_NUMBER: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let allowed = [libc::SYS_wait4, libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigreturn, libc::SYS_exit_group];
    let mut filter = [0u8; 64];
    let mut put = |at: usize, code: u16, yes: u8, no: u8, value: u32| {
        let bytes = &mut filter[at * 8..at * 8 + 8];
        bytes[0..2].copy_from_slice(&code.to_ne_bytes());
        bytes[2] = yes;
        bytes[3] = no;
        bytes[4..8].copy_from_slice(&value.to_ne_bytes());
    };
    put(0, LOAD_NUMBER, 0, 0, 0);
    for (index, number) in allowed.iter().enumerate() {
        // To the last instruction, which allows.
        put(1 + index, JUMP_EQUAL, (5 - index) as u8, 0, *number as u32);
    }
    put(5, RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);
    put(6, RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);
    put(7, RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    filter
}

/// What became of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Which one.
    pub pid: i32,
    /// Exit code, or 128 and the signal's number.
    pub code: i32,
    /// The signal that ended it; 0: none.
    pub signal: i32,
}

/// Takes one ended child, if there is one.
pub fn reap_any() -> io::Result<Option<Reaped>> {
    let mut status: libc::c_int = 0;
    // SAFETY: `status` outlives the call, which writes one int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match pid {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
            error => Err(error),
        },
        0 => Ok(None),
        pid if libc::WIFSIGNALED(status) => {
            let signal = libc::WTERMSIG(status);
            Ok(Some(Reaped { pid, code: 128 + signal, signal }))
        }
        pid => Ok(Some(Reaped { pid, code: libc::WEXITSTATUS(status), signal: 0 })),
    }
}

/// Makes the process unreadable for others, ptrace and /proc included (`PR_SET_DUMPABLE`).
pub fn set_not_dumpable() -> io::Result<()> {
    // SAFETY: plain numbers.
    let ret = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Orphans below the calling process become its children (`PR_SET_CHILD_SUBREAPER`).
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: plain numbers.
    let ret = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The path of the working directory, in `buffer`; it starts with `(unreachable)` if it lies outside the root.
pub fn current_dir(buffer: &mut [u8]) -> io::Result<&[u8]> {
    // SAFETY: pointer and length are of one buffer, which the kernel fills with at most that many bytes.
    let len = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    if len < 1 {
        return Err(io::Error::last_os_error());
    }
    // The length counts the trailing NUL.
    Ok(&buffer[..len as usize - 1])
}

/// Names the process, as `ps` shows it.
pub fn set_name(name: &std::ffi::CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a NUL-terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Sets hostname of the UTS namespace.
pub fn set_hostname(name: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are of one slice.
    let ret = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets NIS domain name of the UTS namespace.
pub fn set_domainname(name: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are of one slice.
    let ret = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Becomes user and group 0 of the user namespace that the process is in, without further groups. Whoever joins one
/// has all capabilities in it, but goes on as somebody whom it may not even have a number for, and whose files no file
/// system could name.
pub fn become_root() -> io::Result<()> {
    set_groups(&[])?;
    let (user, group) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    rustix::thread::set_thread_res_gid(group, group, group)?;
    Ok(rustix::thread::set_thread_res_uid(user, user, user)?)
}

/// Sets the supplemental groups of the calling thread.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and count are of one slice of gid_t (u32), which the kernel only reads.
    let ret = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets a resource limit by its number.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call, which only reads it; the old value is not asked for.
    let ret = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, std::ptr::null_mut::<u8>())
    };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets bounding, permitted, effective, inheritable and ambient sets; call it after the change of user, with
/// "keep capabilities" set before that.
pub mod capabilities {
    use super::io;

    /// Drops everything outside `keep` from the bounding set, up to capability `last`.
    pub fn limit_bounding(keep: u64, last: u32) -> io::Result<()> {
        for capability in (0..=last).filter(|bit| keep & (1 << bit) == 0) {
            // SAFETY: plain numbers.
            let ret = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
            if ret != 0 {
                let error = io::Error::last_os_error();
                // Numbers that this kernel does not know are as good as dropped, and those above them are unknown too.
                return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
            }
        }
        Ok(())
    }

    /// Keeps permitted capabilities over a change of user.
    pub fn keep_over_setuid(keep: bool) -> io::Result<()> {
        // SAFETY: plain numbers.
        let ret = unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) };
        if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sets the three sets of the thread.
    pub fn set(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
        #[repr(C)]
        struct Header {
            version: u32,
            pid: i32,
        }
        let header = Header { version: 0x2008_0522, pid: 0 };
        let words: [u32; 6] = [
            effective as u32,
            permitted as u32,
            inheritable as u32,
            (effective >> 32) as u32,
            (permitted >> 32) as u32,
            (inheritable >> 32) as u32,
        ];
        // SAFETY: version 3 takes two `struct __user_cap_data_struct` (effective, permitted, inheritable), which are
        // these six words; both outlive the call, which only reads them.
        let ret = unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) };
        if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// (effective, permitted, bounding up to `last`) of the calling thread.
    pub fn current(last: u32) -> io::Result<(u64, u64, u64)> {
        let header: [u32; 2] = [0x2008_0522, 0];
        let mut words = [0u32; 6];
        // SAFETY: as for `set`; the kernel writes the six words.
        let ret = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), words.as_mut_ptr()) };
        if ret != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut bounding = 0;
        for bit in 0..=last {
            // SAFETY: plain numbers.
            if unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(bit), 0, 0, 0) } == 1 {
                bounding |= 1 << bit;
            }
        }
        let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        Ok((join(words[0], words[3]), join(words[1], words[4]), bounding))
    }

    /// Raises each capability of `set` in the ambient set.
    pub fn raise_ambient(set: u64, last: u32) -> io::Result<()> {
        for capability in (0..=last).filter(|bit| set & (1 << bit) != 0) {
            // SAFETY: plain numbers.
            let ret = unsafe {
                libc::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_RAISE,
                    libc::c_ulong::from(capability),
                    0,
                    0,
                )
            };
            if ret != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}
