//! Loading a seccomp filter.

use std::io;

/// Loads `filter`, instructions of 8 bytes (`struct sock_filter`, host byte order), for the calling thread.
///
/// Needs no_new_privs or CAP_SYS_ADMIN. `flags` are `SECCOMP_FILTER_FLAG_*`.
pub fn load(filter: &[u8], flags: u32) -> io::Result<()> {
    let len = filter.len() / 8;
    if !filter.len().is_multiple_of(8) || len == 0 || len > 4096 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let program = libc::sock_fprog { len: len as u16, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: `program` points at `len` instructions of 8 bytes inside `filter`, which outlives the call. The kernel
    // copies them byte by byte and never writes, so alignment and constness do not matter.
    let ret =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
