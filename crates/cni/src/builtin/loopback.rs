//! `loopback`: the pod's `lo`.

use std::io;

use crate::netlink::link::{Change, UP, Which, change};
use crate::netlink::{Batch, Socket};
use crate::result::{CniResult, Interface, IpConfig};

/// The kernel gives it to `lo` in every namespace.
const INDEX: u32 = 1;

/// Brings `lo` up; the kernel then gives it its addresses. Nothing undoes it: it goes with the namespace.
pub(crate) fn up(batch: &mut Batch) {
    change(batch, Which::Index(INDEX), &Change { flags: Some((UP, UP)), ..Change::default() });
}

/// ADD. A result that came before is passed on, as the official plugin does.
pub(crate) fn add(socket: &mut Socket, sandbox: &str, prev: Option<CniResult>) -> io::Result<CniResult> {
    let mut batch = Batch::new();
    up(&mut batch);
    socket.run(&mut batch)?;
    Ok(prev.unwrap_or_else(|| CniResult {
        interfaces: vec![Interface {
            name: "lo".to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: sandbox.to_owned(),
            ..Interface::default()
        }],
        ips: ["127.0.0.1/8", "::1/128"]
            .iter()
            .filter_map(|ip| ip.parse().ok())
            .map(|address| IpConfig { interface: Some(0), address, gateway: None })
            .collect(),
        ..CniResult::default()
    }))
}
