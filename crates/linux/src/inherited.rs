//! What whoever started this process has left to it: words in the environment, open descriptors.

use std::ffi::OsString;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes variables out of the environment, so that programs that we start do not find them. In the order of `names`.
///
/// An error where there is another thread already, which might be reading the environment (a profiler's, for one), and
/// there is something to take.
pub fn take_variables<const N: usize>(names: [&str; N]) -> io::Result<[Option<OsString>; N]> {
    let found = names.map(std::env::var_os);
    if found.iter().all(Option::is_none) {
        return Ok(found);
    }
    alone()?;
    for name in names {
        // SAFETY: this is the only thread of the process, as was just seen, and it cannot start one in between: nobody
        // reads or writes the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    Ok(found)
}

/// Takes over the descriptors from `first` on, `count` of them, and marks each to be closed by exec. Once in a process's
/// life, before it opens anything.
///
/// An error if one is not open, if this is not the first time, or where there is another thread already.
pub fn take_descriptors(first: RawFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    alone()?;
    let last = RawFd::try_from(count).ok().and_then(|count| first.checked_add(count));
    let last = last.filter(|_| first > 2 && count <= MOST);
    let last =
        last.ok_or_else(|| io::Error::other(format!("{count} descriptors from {first} on make no sense")))?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::other("the descriptors were taken before"));
    }
    let mut taken = Vec::new();
    for number in first..last {
        // SAFETY: plain numbers; sets a flag of a descriptor, or fails if there is none of this number.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open. Nobody else owns it: it was there when the process began, what a process opens itself before
        // main are 0 to 2, and this function hands out each once, as there is one call of it that gets here.
        taken.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(taken)
}

/// More than any unit passes.
const MOST: usize = 64;

fn alone() -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(io::Error::other(format!("there are {threads} threads already"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_thread_might_be_reading() {
        // A test is a thread beside the main one.
        assert!(take_variables(["PATH"]).unwrap_err().to_string().contains("threads"));
        assert_eq!(take_variables(["BOWLINE_NOBODY_SETS_THIS"]).unwrap(), [None]);
        assert!(take_descriptors(3, 1).unwrap_err().to_string().contains("threads"));
    }
}
