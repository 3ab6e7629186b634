//! Netlink sockets with the options that `rustix` does not offer.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The part of the kernel a netlink socket talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetlinkFamily {
    /// Links, addresses, routes.
    Route,
    /// nf_tables and connection tracking.
    Netfilter,
}

/// Opens a netlink socket in the calling thread's network namespace, where it stays for good, whoever uses it.
///
/// Errors come with the kernel's own words where it has any (`NETLINK_EXT_ACK`) and without an echo of the
/// request (`NETLINK_CAP_ACK`). Dumps obey the filter in their header (`NETLINK_GET_STRICT_CHK`, Linux 4.20).
pub fn open_netlink(family: NetlinkFamily) -> io::Result<OwnedFd> {
    let protocol = match family {
        NetlinkFamily::Route => libc::NETLINK_ROUTE,
        NetlinkFamily::Netfilter => libc::NETLINK_NETFILTER,
    };
    // SAFETY: no pointer is passed; the result is checked before it is used.
    let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, so nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
        set_option(&socket, option)?;
    }
    Ok(socket)
}

fn set_option(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `on` outlives the call, its true size is passed, and the kernel only reads it; the descriptor
    // is borrowed, hence open until we return.
    let ret = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const on).cast(), size)
    };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
