//! Network devices of the host that a container asks for (OCI runtime spec 1.3, `linux.netDevices`).
//!
//! A link is moved with its permanent global addresses, and brought up. Nothing brings it back: when the pod's namespace goes, the
//! kernel returns a physical device to the host, and removes a virtual one.

use std::io;
use std::os::fd::BorrowedFd;

use bowline_linux::netlink::NetlinkFamily;

use crate::CniError;
use crate::netlink::address;
use crate::netlink::link::{self, Change, Link, Which};
use crate::netlink::{Batch, Socket};
use crate::netns::PodSocket;

/// The longest name of a link: `IFNAMSIZ` without the NUL.
const MAX_NAME: usize = 15;

/// Whether a link can have this name. `%d` stands for a number that the kernel finds.
fn is_link_name(name: &str, template: bool) -> bool {
    let plain = if template { name.replacen("%d", "0", 1) } else { name.to_owned() };
    let fits = !plain.is_empty() && name.len() <= MAX_NAME && plain != "." && plain != "..";
    fits && !plain.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control())
}

/// What is wrong with the names of devices, each the host's and the one that it is to get; with the field.
pub fn check_names(devices: &[(String, String)]) -> Result<(), String> {
    for (host, name) in devices {
        if !is_link_name(host, false) {
            return Err(format!("linux.netDevices: {host:?} is no name of a link"));
        }
        if !is_link_name(name, true) {
            return Err(format!("linux.netDevices.{host}.name: {name:?} is no name of a link"));
        }
    }
    Ok(())
}

/// Moves the host's link `host` into a network namespace, as `name`. Blocks; call it in the host's namespace.
///
/// A link that the host does not have and the namespace has under that name was moved before: a container that is
/// started again in its pod finds it there.
pub fn move_device(netns: BorrowedFd<'_>, host: &str, name: &str) -> Result<(), CniError> {
    let what = || format!("move the network device `{host}` into the network namespace");
    let failed = |error: io::Error| CniError::kernel(what())(error);
    let mut here = Socket::open(NetlinkFamily::Route).map_err(failed)?;
    let mut pod = PodSocket::enter(netns).map_err(failed)?;
    let there = pod.get().map_err(failed)?;
    let Some(device) = link::find(&mut here, host).map_err(failed)? else {
        return match link::find(there, name).map_err(failed)? {
            Some(_) => Ok(()),
            None => Err(failed(io::Error::new(io::ErrorKind::NotFound, "the host has no such link"))),
        };
    };
    if link::find(there, name).map_err(failed)?.is_some() {
        return Err(failed(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("there is a link `{name}` already"),
        )));
    }
    let addresses = address::permanent(&mut here, device.index).map_err(failed)?;
    let before = link::all(there).map_err(failed)?;
    let mut batch = Batch::new();
    link::move_to(&mut batch, device.index, netns, name);
    here.run(&mut batch).map_err(failed)?;

    let after = link::all(there).map_err(failed)?;
    let moved = arrived(&before, after, &device).ok_or_else(|| {
        failed(io::Error::new(io::ErrorKind::NotFound, "the kernel moved it, and it is not there"))
    })?;
    let mut batch = Batch::new();
    for address in &addresses {
        address::add(&mut batch, moved.index, address, false);
    }
    link::change(
        &mut batch,
        Which::Index(moved.index),
        &Change { flags: Some((link::UP, link::UP)), ..Change::default() },
    );
    there.run(&mut batch).map_err(failed)
}

/// The link that was not there before. Its number may be another than on the host.
fn arrived(before: &[Link], after: Vec<Link>, device: &Link) -> Option<Link> {
    let new = after.into_iter().filter(|link| !before.iter().any(|known| known.index == link.index));
    new.into_iter().find(|link| link.mac == device.mac && link.kind == device.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_kernel() {
        for good in ["eth0", "a", "enp0s31f6.1234", "fifteen-letters"] {
            assert!(is_link_name(good, false), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen--letters", "net%d", "x%s", "a\n"] {
            assert!(!is_link_name(bad, false), "{bad}");
        }
        assert!(is_link_name("net%d", true) && !is_link_name("%d%d", true));
    }
}
