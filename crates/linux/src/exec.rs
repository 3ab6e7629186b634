//! `execve` with everything made ready beforehand, and ending without cleaning up.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char};
use std::io;

/// Strings and the NULL-terminated array of pointers to them that `execve` wants.
pub struct StringArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// Builds the array; this allocates, so do it before a clone.
    pub fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<*const c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { strings, pointers }
    }

    /// The strings.
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Replaces the program. Returns only when that fails.
pub fn execve(path: &CStr, argv: &StringArray, envp: &StringArray) -> io::Error {
    // SAFETY: all strings are NUL-terminated and owned by the arrays, whose pointer lists end with NULL (`new`);
    // `CString` does not move its bytes when the vector that holds it moves.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces the program by the file behind `program`, an open descriptor (a sealed memfd, say).
pub fn fexecve(program: std::os::fd::BorrowedFd<'_>, argv: &StringArray, envp: &StringArray) -> io::Error {
    use std::os::fd::AsRawFd;
    // SAFETY: as for `execve`; the path is an empty NUL-terminated string, as AT_EMPTY_PATH wants.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.pointers.as_ptr(),
            envp.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Ends the process at once: no destructors, no `atexit`.
pub fn exit_now(code: i32) -> Infallible {
    // SAFETY: `_exit` takes a number and does not return.
    unsafe { libc::_exit(code) }
}
