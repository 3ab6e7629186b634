//! The kernel's drivers of pod links, tried before the first pod needs them.
//!
//! They are modules on most distributions, loaded when the first link of their kind is made. Where busybox loads
//! modules, of two pods that come at the same time the second one fails: its `modprobe` finds the module there,
//! although it is still on its way.

use std::io;
use std::os::fd::AsFd as _;

use bowline_linux::netlink::NetlinkFamily;

use crate::netlink::{Batch, Socket, link};

/// Makes a bridge and a veth pair in a network namespace that ends with this call. The error names the kind that this
/// kernel cannot make.
pub fn try_link_drivers() -> io::Result<()> {
    // The thread enters the namespace, so it must not serve anybody afterwards.
    let thread = std::thread::Builder::new().name("link-drivers".to_owned()).spawn(try_here)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that tried them died")))
}

fn try_here() -> io::Result<()> {
    bowline_linux::clone::unshare(bowline_linux::clone::ns::NET)?;
    let netns = std::fs::File::open("/proc/thread-self/ns/net")?;
    let mut socket = Socket::open(NetlinkFamily::Route)?;
    let named = |kind: &'static str| move |error| io::Error::other(format!("no {kind} links: {error}"));

    let mut bridge = Batch::new();
    link::add_bridge(&mut bridge, "bridge0", [2, 0, 0, 0, 0, 1], None, 0, false);
    socket.run(&mut bridge).map_err(named("bridge"))?;
    let master = link::find(&mut socket, "bridge0")?.map_or(0, |link| link.index);

    let mut pair = Batch::new();
    let wanted = link::VethPair {
        name: "veth0",
        mac: [2, 0, 0, 0, 0, 2],
        mtu: None,
        group: 0,
        master,
        peer_name: "veth1",
        peer_mac: Some([2, 0, 0, 0, 0, 3]),
        peer_netns: netns.as_fd(),
    };
    link::add_veth(&mut pair, &wanted);
    socket.run(&mut pair).map_err(named("veth"))
}
