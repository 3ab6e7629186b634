//! Links: rtnetlink's `RTM_*LINK`. Names of constants as in linux/if_link.h and linux/rtnetlink.h.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::batch::{Batch, Body, CREATE, DUMP, EXCL, attributes};
use super::socket::{Refusal, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
/// Leaves the counters out of an answer.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;

/// `IFF_UP`
pub(crate) const UP: u32 = 0x1;
/// `IFF_PROMISC`
pub(crate) const PROMISC: u32 = 0x100;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// What we read of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u32,
    pub(crate) master: Option<u32>,
    pub(crate) group: u32,
    pub(crate) alias: String,
    pub(crate) kind: String,
}

/// A pair of which one end stays here and the other is made in a pod.
pub(crate) struct VethPair<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) mtu: Option<u32>,
    pub(crate) group: u32,
    pub(crate) master: u32,
    pub(crate) peer_name: &'a str,
    /// `None`: one of the kernel's making.
    pub(crate) peer_mac: Option<Mac>,
    pub(crate) peer_netns: BorrowedFd<'a>,
}

/// Which link a message is about.
#[derive(Clone, Copy)]
pub(crate) enum Which<'a> {
    Name(&'a str),
    Index(u32),
}

/// What to change on a link; `None` leaves it.
#[derive(Default)]
pub(crate) struct Change<'a> {
    /// Flags to set to `flags.0`, of those in `flags.1`.
    pub(crate) flags: Option<(u32, u32)>,
    pub(crate) group: Option<u32>,
    pub(crate) alias: Option<&'a str>,
    /// 0 takes the link off its master.
    pub(crate) master: Option<u32>,
    pub(crate) mtu: Option<u32>,
    /// The kernel sets it before the flags.
    pub(crate) mac: Option<Mac>,
    pub(crate) port: Option<BridgePort>,
}

/// Options of a bridge's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BridgePort {
    pub(crate) hairpin: bool,
    pub(crate) isolated: bool,
}

fn ifinfo(m: &mut Body<'_>, index: u32, flags: u32, mask: u32) {
    let mut header = [0u8; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&mask.to_ne_bytes());
    m.raw(&header);
}

/// Makes a bridge that is up. Its address is given, so it never follows the ports' addresses.
pub(crate) fn add_bridge(
    batch: &mut Batch,
    name: &str,
    mac: Mac,
    mtu: Option<u32>,
    group: u32,
    promisc: bool,
) -> usize {
    let flags = if promisc { UP | PROMISC } else { UP };
    batch.message(RTM_NEWLINK, CREATE | EXCL, |m| {
        ifinfo(m, 0, flags, flags);
        m.string(IFLA_IFNAME, name);
        m.attr(IFLA_ADDRESS, &mac);
        m.u32(IFLA_GROUP, group);
        if let Some(mtu) = mtu {
            m.u32(IFLA_MTU, mtu);
        }
        m.nest(IFLA_LINKINFO, |m| m.string(IFLA_INFO_KIND, "bridge"));
    })
}

/// Makes a veth pair: this end up and on its master, the other made in the pod's namespace, down.
pub(crate) fn add_veth(batch: &mut Batch, pair: &VethPair<'_>) -> usize {
    batch.message(RTM_NEWLINK, CREATE | EXCL, |m| {
        ifinfo(m, 0, UP, UP);
        m.string(IFLA_IFNAME, pair.name);
        m.attr(IFLA_ADDRESS, &pair.mac);
        m.u32(IFLA_GROUP, pair.group);
        m.u32(IFLA_MASTER, pair.master);
        if let Some(mtu) = pair.mtu {
            m.u32(IFLA_MTU, mtu);
        }
        m.nest(IFLA_LINKINFO, |m| {
            m.string(IFLA_INFO_KIND, "veth");
            m.nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    // Not up yet: the kernel ties the ends together last, and refuses IFF_UP (ENOTCONN) before.
                    ifinfo(m, 0, 0, 0);
                    m.string(IFLA_IFNAME, pair.peer_name);
                    if let Some(mac) = &pair.peer_mac {
                        m.attr(IFLA_ADDRESS, mac);
                    }
                    m.u32(IFLA_NET_NS_FD, pair.peer_netns.as_raw_fd() as u32);
                    if let Some(mtu) = pair.mtu {
                        m.u32(IFLA_MTU, mtu);
                    }
                });
            });
        });
    })
}

/// Changes a link that exists.
pub(crate) fn change(batch: &mut Batch, which: Which<'_>, change: &Change<'_>) -> usize {
    // RTM_NEWLINK without CREATE: RTM_SETLINK knows no port options.
    batch.message(RTM_NEWLINK, 0, |m| {
        let index = if let Which::Index(index) = which { index } else { 0 };
        let (flags, mask) = change.flags.unwrap_or((0, 0));
        ifinfo(m, index, flags, mask);
        if let Which::Name(name) = which {
            m.string(IFLA_IFNAME, name);
        }
        if let Some(group) = change.group {
            m.u32(IFLA_GROUP, group);
        }
        if let Some(alias) = change.alias {
            m.string(IFLA_IFALIAS, alias);
        }
        if let Some(master) = change.master {
            m.u32(IFLA_MASTER, master);
        }
        if let Some(mtu) = change.mtu {
            m.u32(IFLA_MTU, mtu);
        }
        if let Some(mac) = &change.mac {
            m.attr(IFLA_ADDRESS, mac);
        }
        if let Some(port) = change.port {
            m.nest(IFLA_LINKINFO, |m| {
                m.string(IFLA_INFO_SLAVE_KIND, "bridge");
                m.nest(IFLA_INFO_SLAVE_DATA, |m| {
                    m.attr(IFLA_BRPORT_MODE, &[u8::from(port.hairpin)]);
                    m.attr(IFLA_BRPORT_ISOLATED, &[u8::from(port.isolated)]);
                });
            });
        }
    })
}

/// Moves a link to another namespace, where it has this name and is down.
pub(crate) fn move_to(batch: &mut Batch, index: u32, netns: BorrowedFd<'_>, name: &str) -> usize {
    batch.message(RTM_NEWLINK, 0, |m| {
        ifinfo(m, index, 0, UP);
        m.string(IFLA_IFNAME, name);
        m.u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
    })
}

/// Deletes one link, and waits for it: some 20 ms of RCU.
pub(crate) fn delete(batch: &mut Batch, index: u32) -> usize {
    batch.message(RTM_DELLINK, 0, |m| ifinfo(m, index, 0, 0))
}

/// Deletes every link of a group in one wait.
pub(crate) fn delete_group(batch: &mut Batch, group: u32) -> usize {
    batch.message(RTM_DELLINK, 0, |m| {
        ifinfo(m, 0, 0, 0);
        m.u32(IFLA_GROUP, group);
    })
}

/// Asks for one link by its name.
pub(crate) fn get(batch: &mut Batch, name: &str) -> usize {
    batch.message(RTM_GETLINK, 0, |m| {
        ifinfo(m, 0, 0, 0);
        m.string(IFLA_IFNAME, name);
        m.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    })
}

/// The link of that name, if there is one.
pub(crate) fn find(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let mut batch = Batch::new();
    get(&mut batch, name);
    let mut found = None;
    let answers = socket.exchange(&mut batch, |_, payload| found = parse(payload))?;
    match answers.into_iter().flatten().next() {
        None => Ok(found),
        Some(Refusal { errno: Errno::NODEV, .. }) => Ok(None),
        Some(refusal) => Err(refusal.into_io()),
    }
}

/// All links.
pub(crate) fn all(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let mut batch = Batch::new();
    batch.message(RTM_GETLINK, DUMP, |m| {
        ifinfo(m, 0, 0, 0);
        m.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
    let mut links = Vec::new();
    let answers = socket.exchange(&mut batch, |_, payload| links.extend(parse(payload)))?;
    match answers.into_iter().flatten().next() {
        Some(refusal) => Err(refusal.into_io()),
        None => Ok(links),
    }
}

/// All links of one kind (`veth`, `bridge`): the kernel leaves out the others.
pub(crate) fn list(socket: &mut Socket, kind: &str) -> io::Result<Vec<Link>> {
    let mut batch = Batch::new();
    batch.message(RTM_GETLINK, DUMP, |m| {
        ifinfo(m, 0, 0, 0);
        m.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        m.nest(IFLA_LINKINFO, |m| m.string(IFLA_INFO_KIND, kind));
    });
    let mut links = Vec::new();
    let answers = socket.exchange(&mut batch, |_, payload| links.extend(parse(payload)))?;
    match answers.into_iter().flatten().next() {
        Some(refusal) => Err(refusal.into_io()),
        None => {
            links.retain(|l: &Link| l.kind == kind);
            Ok(links)
        }
    }
}

/// Reads the answer to `RTM_GETLINK`.
pub(crate) fn parse(payload: &[u8]) -> Option<Link> {
    let header = payload.get(..16)?;
    let mut link = Link {
        index: u32::from_ne_bytes(header[4..8].try_into().ok()?),
        flags: u32::from_ne_bytes(header[8..12].try_into().ok()?),
        ..Link::default()
    };
    for (kind, value) in attributes(&payload[16..]) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_MTU => link.mtu = number(value),
            IFLA_MASTER => link.master = Some(number(value)),
            IFLA_GROUP => link.group = number(value),
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_LINKINFO => {
                link.kind = attributes(value)
                    .find(|(kind, _)| *kind == IFLA_INFO_KIND)
                    .map_or_else(String::new, |(_, value)| text(value));
            }
            _ => {}
        }
    }
    Some(link)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn number(value: &[u8]) -> u32 {
    value.try_into().map_or(0, u32::from_ne_bytes)
}

/// `02:42:..` as CNI results write it.
pub(crate) fn mac_text(mac: &Mac) -> String {
    let parts: Vec<String> = mac.iter().map(|b| format!("{b:02x}")).collect();
    parts.join(":")
}

/// Reads `02:42:..`.
pub(crate) fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}
