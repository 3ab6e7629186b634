//! Host ports: elements of maps.

use std::io;
use std::net::IpAddr;

use rustix::io::Errno;

use super::Nft;
use super::expr::Family;
use super::message::{DELSETELEM, GETSETELEM, NEWSET, NEWSETELEM, begin, comment, comment_of, end, nft};
use crate::CniError;
use crate::netlink::address::octets;
use crate::netlink::{Batch, Body, CREATE, DUMP, EXCL, Socket, attributes};
use crate::request::Protocol;

const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_ID: u16 = 10;
const NFT_SET_MAP: u32 = 0x8;

const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_DATA_VALUE: u16 = 1;

/// The numbers by which `nft` knows types; a concatenation has six bits for each.
const IPV4_ADDR: u32 = 7;
const IPV6_ADDR: u32 = 8;
const INET_PROTO: u32 = 12;
const INET_SERVICE: u32 = 13;

/// One of the four maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    V4At,
    V4,
    V6At,
    V6,
}

/// In the order in which the rules look: one address before all addresses.
pub(super) const MAPS: [Map; 4] = [Map::V4At, Map::V4, Map::V6At, Map::V6];

impl Map {
    pub(super) fn name(self) -> &'static str {
        match self {
            Map::V4At => "ports4_at",
            Map::V4 => "ports4",
            Map::V6At => "ports6_at",
            Map::V6 => "ports6",
        }
    }

    pub(super) fn family(self) -> Family {
        Family::of(matches!(self, Map::V4At | Map::V4))
    }

    pub(super) fn with_address(self) -> bool {
        matches!(self, Map::V4At | Map::V6At)
    }
}

/// A host port that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) protocol: Protocol,
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) pod_ip: IpAddr,
    pub(crate) pod_port: u16,
}

impl HostPort {
    fn map(&self) -> Map {
        match (self.pod_ip, self.host_ip) {
            (IpAddr::V4(_), None) => Map::V4,
            (IpAddr::V4(_), Some(_)) => Map::V4At,
            (IpAddr::V6(_), None) => Map::V6,
            (IpAddr::V6(_), Some(_)) => Map::V6At,
        }
    }

    fn key(&self) -> Vec<u8> {
        let mut key = self.host_ip.as_ref().map(octets).unwrap_or_default();
        key.extend([self.protocol.number(), 0, 0, 0]);
        key.extend(port(self.host_port));
        key
    }

    fn value(&self) -> Vec<u8> {
        let mut value = octets(&self.pod_ip);
        value.extend(port(self.pod_port));
        value
    }
}

/// Each part of a concatenation fills whole words.
fn port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// An element that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    /// The sandbox that it was made for.
    pub(crate) sandbox_id: String,
    /// The port, for people.
    pub(crate) description: String,
    map: Map,
    key: Vec<u8>,
}

/// All maps; those that exist stay as they are.
pub(super) fn maps(batch: &mut Batch, table: &str) {
    for (id, map) in MAPS.into_iter().enumerate() {
        let (address, len) = match map.family() {
            Family::V4 => (IPV4_ADDR, 4),
            Family::V6 => (IPV6_ADDR, 16),
        };
        let mut key_type = INET_PROTO << 6 | INET_SERVICE;
        let mut key_len = 8;
        if map.with_address() {
            key_type |= address << 12;
            key_len += len;
        }
        nft(batch, NEWSET, CREATE, |m| {
            m.string(NFTA_SET_TABLE, table);
            m.string(NFTA_SET_NAME, map.name());
            m.be32(NFTA_SET_FLAGS, NFT_SET_MAP);
            m.be32(NFTA_SET_KEY_TYPE, key_type);
            m.be32(NFTA_SET_KEY_LEN, key_len);
            m.be32(NFTA_SET_DATA_TYPE, address << 6 | INET_SERVICE);
            m.be32(NFTA_SET_DATA_LEN, len + 4);
            m.be32(NFTA_SET_ID, id as u32 + 1);
        });
    }
}

impl Nft {
    /// Leads the ports to the sandbox: all of them, or none and the name of the one that is taken.
    pub(crate) fn add_ports(&self, sandbox_id: &str, ports: &[HostPort]) -> Result<(), CniError> {
        self.ensure(&[])?;
        // A repeated ADD finds its own elements; they may lead to an address that the sandbox no longer has.
        self.remove_ports(sandbox_id, ports)?;
        let refused = self.with("publish host ports", |socket| {
            let mut batch = Batch::new();
            begin(&mut batch);
            let first = batch.len();
            for port in ports {
                elements(&mut batch, NEWSETELEM, CREATE | EXCL, &self.table, port.map(), |m| {
                    m.nest(NFTA_SET_ELEM_KEY, |m| m.attr(NFTA_DATA_VALUE, &port.key()));
                    m.nest(NFTA_SET_ELEM_DATA, |m| m.attr(NFTA_DATA_VALUE, &port.value()));
                    m.attr(NFTA_SET_ELEM_USERDATA, &comment(sandbox_id));
                });
            }
            end(&mut batch);
            let answers = socket.exchange(&mut batch, |_, _| {})?;
            for (i, refusal) in answers.into_iter().enumerate() {
                match refusal {
                    None => {}
                    Some(refusal) if refusal.errno == Errno::EXIST => return Ok(ports.get(i - first)),
                    Some(refusal) => return Err(refusal.into_io()),
                }
            }
            Ok(None)
        })?;
        let Some(port) = refused else { return Ok(()) };
        let holder = self
            .port_owner(port)?
            .map_or_else(|| "two mappings of this pod".to_owned(), |owner| format!("sandbox {owner}"));
        Err(CniError::PortTaken { host_port: port.host_port, protocol: port.protocol, holder })
    }

    /// Takes those of the ports away that are the sandbox's.
    pub(crate) fn remove_ports(&self, sandbox_id: &str, ports: &[HostPort]) -> Result<(), CniError> {
        self.unless_absent("withdraw host ports", |socket| {
            let mut ours = Vec::new();
            for port in ports {
                let owner = find(socket, &self.table, port.map(), &port.key())?;
                if owner.as_deref() == Some(sandbox_id) {
                    ours.push((port.map(), port.key()));
                }
            }
            delete(socket, &self.table, &ours)
        })
    }

    /// The sandbox that has this host port.
    pub(crate) fn port_owner(&self, port: &HostPort) -> Result<Option<String>, CniError> {
        self.with("look up a host port", |socket| find(socket, &self.table, port.map(), &port.key()))
    }

    /// All elements of our maps.
    pub(crate) fn elements(&self) -> Result<Vec<Element>, CniError> {
        self.unless_absent("list host ports", |socket| {
            let mut all = Vec::new();
            for map in MAPS {
                all.extend(list(socket, &self.table, map)?);
            }
            Ok(all)
        })
    }

    /// Takes these elements away.
    pub(crate) fn remove_elements(&self, elements: &[Element]) -> Result<(), CniError> {
        let keys: Vec<_> = elements.iter().map(|e| (e.map, e.key.clone())).collect();
        self.unless_absent("withdraw host ports", |socket| delete(socket, &self.table, &keys))
    }
}

fn elements(
    batch: &mut Batch,
    kind: u16,
    flags: u16,
    table: &str,
    map: Map,
    element: impl FnOnce(&mut Body<'_>),
) -> usize {
    nft(batch, kind, flags, |m| {
        m.string(NFTA_SET_ELEM_LIST_TABLE, table);
        m.string(NFTA_SET_ELEM_LIST_SET, map.name());
        m.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |m| m.nest(NFTA_LIST_ELEM, element));
    })
}

/// Who has this key.
fn find(socket: &mut Socket, table: &str, map: Map, key: &[u8]) -> io::Result<Option<String>> {
    let mut batch = Batch::new();
    elements(&mut batch, GETSETELEM, 0, table, map, |m| {
        m.nest(NFTA_SET_ELEM_KEY, |m| m.attr(NFTA_DATA_VALUE, key));
    });
    let mut found = None;
    let answers = socket.exchange(&mut batch, |_, payload| {
        found = parse(payload, map).into_iter().next().map(|element| element.sandbox_id);
    })?;
    match answers.into_iter().flatten().next() {
        Some(refusal) if refusal.errno != Errno::NOENT => Err(refusal.into_io()),
        _ => Ok(found),
    }
}

fn list(socket: &mut Socket, table: &str, map: Map) -> io::Result<Vec<Element>> {
    let mut batch = Batch::new();
    nft(&mut batch, GETSETELEM, DUMP, |m| {
        m.string(NFTA_SET_ELEM_LIST_TABLE, table);
        m.string(NFTA_SET_ELEM_LIST_SET, map.name());
    });
    let mut found = Vec::new();
    let answers = socket.exchange(&mut batch, |_, payload| found.extend(parse(payload, map)))?;
    match answers.into_iter().flatten().next() {
        Some(refusal) if refusal.errno != Errno::NOENT => Err(refusal.into_io()),
        _ => Ok(found),
    }
}

fn delete(socket: &mut Socket, table: &str, keys: &[(Map, Vec<u8>)]) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    begin(&mut batch);
    for (map, key) in keys {
        elements(&mut batch, DELSETELEM, 0, table, *map, |m| {
            m.nest(NFTA_SET_ELEM_KEY, |m| m.attr(NFTA_DATA_VALUE, key));
        });
    }
    end(&mut batch);
    socket.run(&mut batch)
}

fn parse(payload: &[u8], map: Map) -> Vec<Element> {
    let inner = |bytes, kind| attributes(bytes).filter(move |(k, _)| *k == kind).map(|(_, v)| v);
    let lists = inner(payload.get(4..).unwrap_or(&[]), NFTA_SET_ELEM_LIST_ELEMENTS);
    let mut out = Vec::new();
    for element in lists.flat_map(|list| inner(list, NFTA_LIST_ELEM)) {
        let Some(key) = inner(element, NFTA_SET_ELEM_KEY).flat_map(|k| inner(k, NFTA_DATA_VALUE)).next()
        else {
            continue;
        };
        let owner = inner(element, NFTA_SET_ELEM_USERDATA).next().map(comment_of).unwrap_or_default();
        out.push(Element { sandbox_id: owner, description: describe(map, key), map, key: key.to_vec() });
    }
    out
}

fn describe(map: Map, key: &[u8]) -> String {
    let skip = if map.with_address() { map.family().address_len() as usize } else { 0 };
    match key.get(skip..) {
        Some([proto, _, _, _, high, low, ..]) => {
            let name = match proto {
                6 => "tcp",
                17 => "udp",
                132 => "sctp",
                _ => "?",
            };
            format!("host port {}/{name} in map {}", u16::from_be_bytes([*high, *low]), map.name())
        }
        _ => format!("an element of map {}", map.name()),
    }
}
