//! Mounts by descriptor: what `rustix` leaves out of the new mount API.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bits of `mount_setattr` and `fsmount` (`MOUNT_ATTR_*`, linux/mount.h).
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// No setuid programs.
    pub const NOSUID: u64 = 0x2;
    /// No devices.
    pub const NODEV: u64 = 0x4;
    /// No programs.
    pub const NOEXEC: u64 = 0x8;
    /// The bits that hold the atime mode: clear them to change it.
    pub const ATIME: u64 = 0x70;
    /// atime is never written.
    pub const NOATIME: u64 = 0x10;
    /// atime is always written.
    pub const STRICTATIME: u64 = 0x20;
    /// Folders keep their atime.
    pub const NODIRATIME: u64 = 0x80;
    /// Owners as a user namespace maps them.
    pub const IDMAP: u64 = 0x0010_0000;
    /// Symlinks are not followed.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// Propagation types (`MS_*`).
pub mod propagation {
    /// Applies to the mounts below as well.
    pub const REC: u64 = libc::MS_REC;
    /// Nothing passes.
    pub const PRIVATE: u64 = libc::MS_PRIVATE;
    /// Receives only.
    pub const SLAVE: u64 = libc::MS_SLAVE;
    /// Both ways.
    pub const SHARED: u64 = libc::MS_SHARED;
    /// Private, and cannot be bound.
    pub const UNBINDABLE: u64 = libc::MS_UNBINDABLE;
}

/// What to change on a mount.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// [`attr`] bits to set.
    pub set: u64,
    /// [`attr`] bits to clear.
    pub clear: u64,
    /// A [`propagation`] type without `REC`; 0: as it is.
    pub propagation: u64,
    /// User namespace for [`attr::IDMAP`].
    pub user_ns: Option<BorrowedFd<'a>>,
    /// The mounts below as well.
    pub recursive: bool,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_ns: u64,
}

/// Changes the mount behind `mount`, a descriptor of its root (`mount_setattr`, Linux 5.12).
pub fn change(mount: BorrowedFd<'_>, change: &Change<'_>) -> io::Result<()> {
    let attr = MountAttr {
        set: change.set,
        clear: change.clear,
        propagation: change.propagation,
        user_ns: change.user_ns.map_or(0, |ns| ns.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if change.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty NUL-terminated string, as AT_EMPTY_PATH wants; `attr` has the layout of the
    // kernel's `struct mount_attr` (32 bytes, the size passed) and outlives the call, which only reads it; all
    // descriptors are borrowed, hence open.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `mount(2)` of a new file system at `target`, with its options as one text.
///
/// Used for overlays: their options as one text may be a page long, while a string of `fsconfig` ends at 255 bytes.
pub fn mount(source: &CStr, target: &CStr, fstype: &CStr, flags: u64, data: &CStr) -> io::Result<()> {
    // SAFETY: all five are NUL-terminated strings or numbers that outlive the call; the kernel only reads them.
    let ret = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            fstype.as_ptr(),
            flags as libc::c_ulong,
            data.as_ptr().cast(),
        )
    };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
