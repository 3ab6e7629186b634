//! Addresses and routes: rtnetlink's `RTM_*ADDR` and `RTM_*ROUTE`.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::batch::{Batch, CREATE, DUMP, EXCL, attributes};
use super::socket::Socket;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// `IFA_F_NODAD`: usable at once; the allocator already knows that nobody else has it.
const NODAD: u8 = 0x02;
/// `IFA_F_PERMANENT`
const PERMANENT: u8 = 0x80;
const SCOPE_UNIVERSE: u8 = 0;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

const RT_TABLE_UNSPEC: u8 = 0;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;

/// A route to make. `None` leaves the kernel's default.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteOptions {
    pub(crate) mtu: Option<u32>,
    pub(crate) advmss: Option<u32>,
    pub(crate) priority: Option<u32>,
    pub(crate) table: Option<u32>,
    pub(crate) scope: Option<u8>,
}

fn family(ip: &IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// The bytes of an address, in network order.
pub(crate) fn octets(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address_header(index: u32, address: &IpNet, flags: u8) -> [u8; 8] {
    let mut header = [family(&address.addr()), address.prefix_len(), flags, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// Gives the link an address.
pub(crate) fn add(batch: &mut Batch, index: u32, address: &IpNet, detect_duplicates: bool) -> usize {
    batch.message(RTM_NEWADDR, CREATE | EXCL, |m| {
        let no_dad = matches!(address, IpNet::V6(_)) && !detect_duplicates;
        m.raw(&address_header(index, address, if no_dad { NODAD } else { 0 }));
        let bytes = octets(&address.addr());
        m.attr(IFA_LOCAL, &bytes);
        m.attr(IFA_ADDRESS, &bytes);
        if let IpNet::V4(v4) = address
            && v4.prefix_len() < 31
        {
            m.attr(IFA_BROADCAST, &v4.broadcast().octets());
        }
    })
}

/// Takes an address off the link.
pub(crate) fn delete(batch: &mut Batch, index: u32, address: &IpNet) -> usize {
    batch.message(RTM_DELADDR, 0, |m| {
        m.raw(&address_header(index, address, 0));
        m.attr(IFA_LOCAL, &octets(&address.addr()));
    })
}

/// The addresses of one link, of the families of `like`; link-local ones are left out.
///
/// Each family is asked for by itself: since Linux 6.9 that takes no lock of the kernel's, and a question about all
/// families does.
pub(crate) fn list(
    socket: &mut Socket,
    index: u32,
    like: impl Iterator<Item = IpAddr>,
) -> io::Result<Vec<IpNet>> {
    let mut families: Vec<u8> = like.map(|ip| family(&ip)).collect();
    families.sort_unstable();
    families.dedup();
    let mut found = Vec::new();
    // One at a time: a socket takes one dump at once.
    for family in families {
        let mut batch = Batch::new();
        batch.message(RTM_GETADDR, DUMP, |m| {
            let mut header = [family, 0, 0, 0, 0, 0, 0, 0];
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            m.raw(&header);
        });
        let answers = socket.exchange(&mut batch, |_, payload| {
            found.extend(parse(payload).filter(|(at, _)| *at == index).map(|(_, address)| address));
        })?;
        if let Some(refusal) = answers.into_iter().flatten().next() {
            return Err(refusal.into_io());
        }
    }
    Ok(found)
}

/// The addresses of one link that stay (`IFA_F_PERMANENT`) and are known everywhere (`RT_SCOPE_UNIVERSE`).
pub(crate) fn permanent(socket: &mut Socket, index: u32) -> io::Result<Vec<IpNet>> {
    let mut batch = Batch::new();
    batch.message(RTM_GETADDR, DUMP, |m| m.raw(&[0u8; 8]));
    let mut found = Vec::new();
    let answers = socket.exchange(&mut batch, |_, payload| {
        // Family, prefix, flags, scope.
        let stays = payload.get(2).is_some_and(|flags| flags & PERMANENT != 0);
        let everywhere = payload.get(3) == Some(&SCOPE_UNIVERSE);
        let address = parse(payload).filter(|(at, _)| *at == index && stays && everywhere);
        found.extend(address.map(|(_, address)| address));
    })?;
    match answers.into_iter().flatten().next() {
        Some(refusal) => Err(refusal.into_io()),
        None => Ok(found),
    }
}

fn parse(payload: &[u8]) -> Option<(u32, IpNet)> {
    let header = payload.get(..8)?;
    let index = u32::from_ne_bytes(header[4..8].try_into().ok()?);
    // IFA_LOCAL is absent for IPv6, where IFA_ADDRESS is the address itself.
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(&payload[8..]) {
        match kind {
            IFA_LOCAL => local = ip_of(value),
            IFA_ADDRESS => address = ip_of(value),
            _ => {}
        }
    }
    let ip = local.or(address)?;
    if let IpAddr::V6(v6) = ip
        && v6.segments()[0] & 0xffc0 == 0xfe80
    {
        return None;
    }
    IpNet::new(ip, header[1]).ok().map(|net| (index, net))
}

fn ip_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Makes a route out of the link `index`.
pub(crate) fn add_route(
    batch: &mut Batch,
    index: u32,
    to: &IpNet,
    gateway: Option<&IpAddr>,
    options: &RouteOptions,
) -> usize {
    batch.message(RTM_NEWROUTE, CREATE | EXCL, |m| {
        let scope = match (options.scope, gateway, to) {
            (Some(scope), _, _) => scope,
            // IPv6 knows no scopes.
            (None, None, IpNet::V4(_)) => RT_SCOPE_LINK,
            _ => RT_SCOPE_UNIVERSE,
        };
        let table = if options.table.is_some() { RT_TABLE_UNSPEC } else { RT_TABLE_MAIN };
        m.raw(&[
            family(&to.addr()),
            to.prefix_len(),
            0,
            0,
            table,
            RTPROT_BOOT,
            scope,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ]);
        if to.prefix_len() > 0 {
            m.attr(RTA_DST, &octets(&to.network()));
        }
        m.u32(RTA_OIF, index);
        if let Some(gateway) = gateway {
            m.attr(RTA_GATEWAY, &octets(gateway));
        }
        if let Some(priority) = options.priority {
            m.u32(RTA_PRIORITY, priority);
        }
        if let Some(table) = options.table {
            m.u32(RTA_TABLE, table);
        }
        if options.mtu.is_some() || options.advmss.is_some() {
            m.nest(RTA_METRICS, |m| {
                for (kind, value) in [(RTAX_MTU, options.mtu), (RTAX_ADVMSS, options.advmss)] {
                    if let Some(value) = value {
                        m.u32(kind, value);
                    }
                }
            });
        }
    })
}
