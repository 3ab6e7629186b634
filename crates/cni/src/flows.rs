//! Connection tracking: flows that must not outlive a change of a host port.

use std::io;

use bowline_linux::netlink::NetlinkFamily;
use rustix::io::Errno;

use crate::netlink::{Batch, DUMP, SocketPool, attributes};

/// `NFNL_SUBSYS_CTNETLINK`
const SUBSYSTEM: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;
/// Flows forgotten in one go; the rest ages out.
const MOST: usize = 4096;

/// Access to the flow table of one namespace.
pub(crate) struct Flows {
    sockets: Option<SocketPool>,
}

impl Flows {
    /// A kernel without connection tracking has no flows.
    pub(crate) fn new() -> Flows {
        Flows { sockets: SocketPool::new(NetlinkFamily::Netfilter).ok() }
    }

    /// Forgets the UDP flows to this port of the host, whomever they were led to.
    pub(crate) fn forget_udp(&self, host_port: u16, ipv4: bool) -> io::Result<()> {
        let Some(sockets) = &self.sockets else { return Ok(()) };
        let family = if ipv4 { 2 } else { 10 };
        sockets.with(|socket| {
            let mut list = Batch::new();
            list.message(SUBSYSTEM << 8 | IPCTNL_MSG_CT_GET, DUMP, |m| m.raw(&[family, 0, 0, 0]));
            let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            socket.exchange(&mut list, |_, payload| {
                if found.len() < MOST {
                    found.extend(matching(payload, host_port));
                }
            })?;
            if found.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for (tuple, id) in &found {
                batch.message(SUBSYSTEM << 8 | IPCTNL_MSG_CT_DELETE, 0, |m| {
                    m.raw(&[family, 0, 0, 0]);
                    // Never without the tuple: that would empty the whole table.
                    m.attr(CTA_TUPLE_ORIG | 0x8000, tuple);
                    m.attr(CTA_ID, id);
                });
            }
            match socket
                .exchange(&mut batch, |_, _| {})?
                .into_iter()
                .flatten()
                .find(|r| r.errno != Errno::NOENT)
            {
                Some(refusal) => Err(refusal.into_io()),
                None => Ok(()),
            }
        })
    }
}

/// The original tuple and the id of a flow to this UDP port.
fn matching(payload: &[u8], port: u16) -> Option<(Vec<u8>, Vec<u8>)> {
    let all = payload.get(4..)?;
    let one = |bytes, kind| attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v);
    let tuple = one(all, CTA_TUPLE_ORIG)?;
    let proto = one(tuple, CTA_TUPLE_PROTO)?;
    if one(proto, CTA_PROTO_NUM)? != [UDP] || one(proto, CTA_PROTO_DST_PORT)? != port.to_be_bytes() {
        return None;
    }
    Some((tuple.to_vec(), one(all, CTA_ID)?.to_vec()))
}
