//! What this process's allocator keeps. glibc's; with another libc nothing happens.

use std::ffi::c_int;

/// Lets threads share so many pools of memory, where glibc makes eight for each processor and keeps what lies free in each.
/// For the begin of a process: pools that are there stay.
pub fn share_pools(pools: u8) {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number inside glibc, under its own lock (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, c_int::from(pools));
    }
    #[cfg(not(target_env = "gnu"))]
    let _: c_int = pools.into();
}

/// Gives the kernel every whole page that lies free, which glibc does by itself only at the end of a pool. Takes the
/// locks of the pools one after the other, for a millisecond or so per ten MiB.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc's own memory that nobody uses, under its own locks (malloc_trim(3): MT-Safe, all pools since 2.8).
    unsafe {
        libc::malloc_trim(0);
    }
}
