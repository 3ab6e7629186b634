//! Work inside a pod's network namespace.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::{Builder, JoinHandle};

use bowline_linux::netlink::NetlinkFamily;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netlink::Socket;

/// Enough for a few system calls.
const STACK: usize = 128 * 1024;

/// Set before the pod's link exists, so that it comes up with them. Router advertisements are refused because a
/// neighbour pod could send them (CVE-2020-10749); duplicates are not looked for because the allocator knows
/// better, and the look takes a second.
const SETTINGS: [(&str, &str); 2] =
    [("/proc/sys/net/ipv6/conf/default/accept_ra", "0"), ("/proc/sys/net/ipv6/conf/default/accept_dad", "0")];

/// For pods with an IPv6 address on nodes that switch IPv6 off by default, as the official plugins do.
const SETTINGS_V6: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0"),
    ("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0"),
    ("/proc/sys/net/ipv6/conf/default/keep_addr_on_down", "1"),
];

/// A netlink socket in a pod's namespace, on its way or here.
///
/// A thread made for the purpose enters the namespace, because a thread that has been elsewhere must not serve
/// others; the socket stays in the namespace and is used from anywhere.
pub(crate) enum PodSocket {
    Coming(JoinHandle<io::Result<Socket>>),
    Here(Socket),
    Lost,
}

impl PodSocket {
    /// Starts the thread; what it does overlaps with what the caller does next.
    pub(crate) fn open(netns: BorrowedFd<'_>, ipv6: bool) -> io::Result<PodSocket> {
        let netns = netns.try_clone_to_owned()?;
        let thread = Builder::new().name("pod-netns".to_owned()).stack_size(STACK).spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            for (path, value) in SETTINGS {
                set(path, value)?;
            }
            // Mostly they are so already, and a write to `lo/disable_ipv6` spins as long as anybody holds the RTNL.
            for (path, value) in SETTINGS_V6.iter().filter(|_| ipv6) {
                ensure(path, value)?;
            }
            Socket::open(NetlinkFamily::Route)
        })?;
        Ok(PodSocket::Coming(thread))
    }

    /// The socket by itself; waits for the thread.
    pub(crate) fn into_inner(mut self) -> io::Result<Socket> {
        self.get()?;
        match self {
            PodSocket::Here(socket) => Ok(socket),
            _ => Err(io::Error::other("the namespace could not be entered")),
        }
    }

    /// The same for a namespace that is left as it is.
    pub(crate) fn enter(netns: BorrowedFd<'_>) -> io::Result<PodSocket> {
        let netns = netns.try_clone_to_owned()?;
        let thread = Builder::new().name("pod-netns".to_owned()).stack_size(STACK).spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Socket::open(NetlinkFamily::Route)
        })?;
        Ok(PodSocket::Coming(thread))
    }

    /// The socket; waits for the thread the first time.
    pub(crate) fn get(&mut self) -> io::Result<&mut Socket> {
        if matches!(self, PodSocket::Coming(_))
            && let PodSocket::Coming(thread) = std::mem::replace(self, PodSocket::Lost)
        {
            let opened = thread.join().map_err(|_| io::Error::other("the thread in the namespace died"))?;
            *self = PodSocket::Here(opened?);
        }
        match self {
            PodSocket::Here(socket) => Ok(socket),
            _ => Err(io::Error::other("the namespace could not be entered")),
        }
    }
}

/// Writes a setting below /proc/sys/net of the calling thread's namespace. A kernel without the setting (IPv6
/// switched off at boot) has nothing to set.
pub(crate) fn set(path: &str, value: &str) -> io::Result<()> {
    match fs::write(path, value) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Writes a setting unless it has the value already: reading takes no lock, writing `ip_forward` takes the RTNL.
pub(crate) fn ensure(path: &str, value: &str) -> io::Result<()> {
    match fs::read_to_string(path) {
        Ok(now) if now.trim() == value => Ok(()),
        Ok(_) => set(path, value),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}
