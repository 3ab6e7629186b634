//! What this process's allocator keeps. glibc's; with another libc nothing happens.

/// Gives the kernel every whole page that lies free, which glibc does by itself only at the end of a pool. Takes the
/// locks of the pools one after the other, for a millisecond or so per ten MiB.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc's own memory that nobody uses, under its own locks (malloc_trim(3): MT-Safe, all pools since 2.8).
    unsafe {
        libc::malloc_trim(0);
    }
}
