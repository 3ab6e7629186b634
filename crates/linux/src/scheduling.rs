//! How the kernel's schedulers and its NUMA allocator treat the calling thread, and what it starts. Nothing here allocates.

use std::io;

/// A scheduling policy, as sched_setattr(2) takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedAttr {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// Nanoseconds, as the next two; for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// See `runtime`.
    pub deadline: u64,
    /// See `runtime`.
    pub period: u64,
}

/// `struct sched_attr` of linux/sched/types.h in its first version (Linux 3.14), which every later kernel takes.
#[repr(C)]
struct Raw {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const _: () = assert!(size_of::<Raw>() == 48, "SCHED_ATTR_SIZE_VER0");

fn done(ret: libc::c_long) -> io::Result<()> {
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets scheduling policy and its parameters.
pub fn set_scheduler(attributes: &SchedAttr) -> io::Result<()> {
    let SchedAttr { policy, flags, nice, priority, runtime, deadline, period } = *attributes;
    let size = size_of::<Raw>() as u32;
    let raw = Raw { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the structure is as long as its `size` says and outlives the call, which only reads it.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const raw, 0) })
}

/// Sets class (`IOPRIO_CLASS_*`, the upper three bits) and priority of input and output, as ioprio_set(2) has them.
pub fn set_io_priority(value: u16) -> io::Result<()> {
    /// `IOPRIO_WHO_PROCESS` of linux/ioprio.h.
    const PROCESS: libc::c_int = 1;
    // SAFETY: plain numbers.
    done(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, libc::c_int::from(value)) })
}

/// Sets mode (`MPOL_*` with its flags) and nodes of memory to be allocated; bit n of the mask is node n.
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    // The kernel takes one bit less than it is told of (see get_nodes in mm/mempolicy.c).
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the mask has as many bits as the call is told of and is only read; without one there are none.
    done(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode as libc::c_int, mask, bits) })
}

/// Sets the execution domain, `PER_*` of personality(2).
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: a plain number.
    let ret = unsafe { libc::personality(domain.into()) };
    if ret == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
