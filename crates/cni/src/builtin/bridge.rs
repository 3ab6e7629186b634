//! `bridge`: a link pair per pod, one end in the pod, the other a port of a bridge on the host.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;

pub(crate) use super::bridge_config::BridgeConfig;
use super::{Attachment, Node, PluginInput, PodSide};
use crate::CniError;
use crate::config::hash_bytes;
use crate::netlink::address::{self, RouteOptions};
use crate::netlink::link::{self, Change, Link, Mac, PROMISC, UP, VethPair, Which, mac_text};
use crate::netlink::{Batch, Socket};
use crate::netns;
use crate::result::{CniResult, Interface, IpConfig, Route};
use crate::spare::Pair;

/// How often links that a name of ours collides with are cleared away before we give up.
const TRIES: usize = 3;
/// How often the bridge may vanish between two of our calls.
const BRIDGE_TRIES: usize = 3;

/// Makes the pod's link with the addresses in `given` (what the IPAM plugin said) and tells what was made.
pub(crate) fn add(
    node: &Node,
    at: &Attachment<'_>,
    input: &PluginInput<'_>,
    pod: &mut PodSide<'_>,
    given: CniResult,
) -> Result<CniResult, CniError> {
    let config = BridgeConfig::parse(at.network, input)?;
    let mut result = given;
    if config.is_default_gateway {
        add_default_routes(&mut result);
    }
    let gateways = if config.is_gateway { gateways(&result.ips) } else { Vec::new() };
    if config.is_gateway {
        forward(&gateways)?;
    }
    let name = node.config.instance.veth_name(at.sandbox_id, at.if_name);
    let peer_mac = config.mac.unwrap_or_else(|| mac_of_addresses(&name, &result.ips));
    let made = pod.made.take();
    // The peer of a pair that was made in advance has no address of ours yet.
    let late_mac = made.as_ref().map(|_| peer_mac);
    let Pair { bridge, name, host_mac } = match made {
        Some(made) => made,
        None => make_pair(node, at, &config, Some(peer_mac), pod.netns)?,
    };
    node.route
        .with(|socket| ensure_gateways(socket, &bridge, &gateways, config.force_address))
        .map_err(CniError::kernel(format!("give bridge {} its address", config.bridge)))?;
    configure_pod(pod, at.if_name, late_mac, &config, &result)
        .map_err(CniError::kernel(format!("set up {} of sandbox {}", at.if_name, at.sandbox_id)))?;

    if config.ip_masq {
        node.nft.ensure_masquerade(at.network, result.ips.iter().map(|ip| ip.address))?;
    }
    describe(&mut result, &bridge, &name, host_mac, at.if_name, peer_mac, &config, &pod.sandbox);
    Ok(result)
}

/// Makes the pod's pair of links: one end up and a port of the bridge, the other in the pod's namespace, down.
pub(crate) fn make_pair(
    node: &Node,
    at: &Attachment<'_>,
    config: &BridgeConfig,
    peer_mac: Option<Mac>,
    netns: BorrowedFd<'_>,
) -> Result<Pair, CniError> {
    let name = node.config.instance.veth_name(at.sandbox_id, at.if_name);
    let host_mac = local_mac(0x5a, hash_bytes(&[name.as_bytes()]));
    let bridge = node.route.with(|socket| {
        let bridge = ensure_bridge(node, socket, config)?;
        let pair = VethPair {
            name: &name,
            mac: host_mac,
            mtu: config.mtu,
            group: node.config.instance.link_group(),
            master: bridge.index,
            peer_name: at.if_name,
            peer_mac,
            peer_netns: netns,
        };
        let alias = format!("{}{}", node.config.instance.alias_prefix(), at.sandbox_id);
        add_pair(node, socket, &pair, &alias, config)?;
        Ok(bridge)
    });
    let attaching = CniError::kernel(format!("attach sandbox {} to bridge {}", at.sandbox_id, config.bridge));
    Ok(Pair { bridge: bridge.map_err(attaching)?, name, host_mac })
}

/// Puts back the masquerade rule, after somebody emptied the ruleset.
pub(crate) fn restore(
    node: &Node,
    at: &Attachment<'_>,
    input: &PluginInput<'_>,
    made: &CniResult,
) -> Result<(), CniError> {
    if !BridgeConfig::parse(at.network, input)?.ip_masq {
        return Ok(());
    }
    node.nft.ensure_masquerade(at.network, made.ips.iter().map(|ip| ip.address))
}

/// Takes the pod's link off the bridge and down, and marks it for the reaper: a fraction of what deleting takes.
pub(crate) fn detach(node: &Node, at: &Attachment<'_>) -> Result<(), CniError> {
    let name = node.config.instance.veth_name(at.sandbox_id, at.if_name);
    let gone = Change {
        flags: Some((0, UP)),
        group: Some(node.config.instance.dying_group()),
        master: Some(0),
        ..Change::default()
    };
    node.route
        .with(|socket| {
            let mut batch = Batch::new();
            link::change(&mut batch, Which::Name(&name), &gone);
            match socket.exchange(&mut batch, |_, _| {})?.into_iter().flatten().next() {
                Some(refusal) if refusal.errno != Errno::NODEV => Err(refusal.into_io()),
                _ => Ok(()),
            }
        })
        .map_err(CniError::kernel(format!("take link {name} of sandbox {} off its bridge", at.sandbox_id)))
}

/// Deletes the pod's link and waits for it: where an IPAM plugin of others releases the address right after.
pub(crate) fn delete_now(node: &Node, at: &Attachment<'_>) -> Result<(), CniError> {
    let name = node.config.instance.veth_name(at.sandbox_id, at.if_name);
    node.route
        .with(|socket| match link::find(socket, &name)? {
            Some(found) => delete_if_there(socket, found.index),
            None => Ok(()),
        })
        .map_err(CniError::kernel(format!("delete link {name} of sandbox {}", at.sandbox_id)))
}

/// CHECK: the link is there, on its bridge and up, and the pod's end has its addresses.
pub(crate) fn check(
    node: &Node,
    at: &Attachment<'_>,
    input: &PluginInput<'_>,
    pod: &mut PodSide<'_>,
    made: &CniResult,
) -> Result<(), CniError> {
    let config = BridgeConfig::parse(at.network, input)?;
    let name = node.config.instance.veth_name(at.sandbox_id, at.if_name);
    let differs = |problem: String| Err(CniError::Differs { sandbox: at.sandbox_id.to_owned(), problem });
    let (host, bridge) = node
        .route
        .with(|socket| Ok((link::find(socket, &name)?, link::find(socket, &config.bridge)?)))
        .map_err(CniError::kernel(format!("look at link {name}")))?;
    let Some(bridge) = bridge else { return differs(format!("bridge {} is gone", config.bridge)) };
    let Some(host) = host else { return differs(format!("link {name} is gone")) };
    if host.master != Some(bridge.index) {
        return differs(format!("link {name} is not on bridge {}", config.bridge));
    }
    let look = |socket: &mut Socket| -> io::Result<Option<Vec<IpNet>>> {
        let Some(link) = link::find(socket, at.if_name)? else { return Ok(None) };
        address::list(socket, link.index, made.ips.iter().map(|ip| ip.address.addr())).map(Some)
    };
    let has = pod
        .socket
        .get()
        .and_then(look)
        .map_err(CniError::kernel(format!("look at {} of sandbox {}", at.if_name, at.sandbox_id)))?;
    let Some(has) = has else { return differs(format!("{} is gone", at.if_name)) };
    for ip in &made.ips {
        let ours = ip.interface.and_then(|i| made.interfaces.get(i)).is_some_and(|i| i.name == at.if_name);
        if ours && !has.contains(&ip.address) {
            return differs(format!("{} has lost {}", at.if_name, ip.address));
        }
    }
    Ok(())
}

/// Finds or makes the bridge. Two daemons, or two pods, may do so at once: whoever is second finds it.
fn ensure_bridge(node: &Node, socket: &mut Socket, config: &BridgeConfig) -> io::Result<Link> {
    let name = config.bridge.as_str();
    for _ in 0..BRIDGE_TRIES {
        if let Some(found) = link::find(socket, name)? {
            if found.kind != "bridge" {
                return Err(io::Error::other(format!("{name} exists and is no bridge but a {}", found.kind)));
            }
            let wanted = if config.promisc { UP | PROMISC } else { UP };
            if found.flags & wanted != wanted {
                let mut batch = Batch::new();
                let up = Change { flags: Some((wanted, wanted)), ..Change::default() };
                link::change(&mut batch, Which::Index(found.index), &up);
                socket.run(&mut batch)?;
            }
            return Ok(found);
        }
        let instance = &node.config.instance;
        let mac = local_mac(0x5b, random()?);
        let mut batch = Batch::new();
        link::add_bridge(&mut batch, name, mac, config.mtu, instance.link_group(), config.promisc);
        match socket.exchange(&mut batch, |_, _| {})?.into_iter().flatten().next() {
            None => adopt_new_bridge(node, socket, name)?,
            Some(refusal) if refusal.errno == Errno::EXIST => {}
            Some(refusal) => return Err(refusal.into_io()),
        }
    }
    Err(io::Error::other(format!("bridge {name} vanishes as soon as it is made")))
}

/// Not a hash of names: a bridge may be tied to a wire, and other machines on it have the same names.
fn random() -> io::Result<[u8; 4]> {
    std::fs::read("/proc/sys/kernel/random/uuid").map(|uuid| hash_bytes(&[&uuid]))
}

/// Marks a bridge that we made, and closes it to router advertisements of pods (CVE-2020-10749).
fn adopt_new_bridge(node: &Node, socket: &mut Socket, name: &str) -> io::Result<()> {
    let alias = format!("{}bridge", node.config.instance.alias_prefix());
    let mut batch = Batch::new();
    link::change(&mut batch, Which::Name(name), &Change { alias: Some(&alias), ..Change::default() });
    socket.run(&mut batch)?;
    netns::set(&format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0")
}

fn add_pair(
    node: &Node,
    socket: &mut Socket,
    pair: &VethPair<'_>,
    alias: &str,
    config: &BridgeConfig,
) -> io::Result<()> {
    for _ in 0..TRIES {
        let mut batch = Batch::new();
        link::add_veth(&mut batch, pair);
        let extra = Change {
            alias: Some(alias),
            port: (config.port != Default::default()).then_some(config.port),
            ..Change::default()
        };
        link::change(&mut batch, Which::Name(pair.name), &extra);
        let answers = socket.exchange(&mut batch, |_, _| {})?;
        let made = answers.first().cloned().flatten();
        let marked = answers.into_iter().nth(1).flatten();
        match (made, marked) {
            (None, None) => return Ok(()),
            (None, Some(refusal)) => return Err(refusal.into_io()),
            (Some(refusal), _) if refusal.errno == Errno::EXIST => {
                // Either end may be what exists. Ours on the host is of an earlier try for this sandbox, dying or
                // cut short; the peer's name taken is the caller's mistake.
                let ours = link::find(socket, pair.name)?.filter(|found| is_ours(node, found));
                let Some(stale) = ours else { return Err(refusal.into_io()) };
                delete_if_there(socket, stale.index)?;
            }
            (Some(refusal), _) => return Err(refusal.into_io()),
        }
    }
    Err(io::Error::other(format!("link {} comes back as often as it is deleted", pair.name)))
}

/// By group alone: a crash can fall between the making of a link, which gives the group, and its alias.
fn is_ours(node: &Node, found: &Link) -> bool {
    let instance = &node.config.instance;
    found.group == instance.link_group() || found.group == instance.dying_group()
}

fn delete_if_there(socket: &mut Socket, index: u32) -> io::Result<()> {
    let mut batch = Batch::new();
    link::delete(&mut batch, index);
    match socket.exchange(&mut batch, |_, _| {})?.into_iter().flatten().next() {
        Some(refusal) if refusal.errno != Errno::NODEV => Err(refusal.into_io()),
        _ => Ok(()),
    }
}

/// The addresses that the bridge must have: each subnet's gateway.
fn gateways(ips: &[IpConfig]) -> Vec<IpNet> {
    ips.iter().filter_map(|ip| IpNet::new(ip.gateway?, ip.address.prefix_len()).ok()).collect()
}

fn ensure_gateways(socket: &mut Socket, bridge: &Link, gateways: &[IpNet], force: bool) -> io::Result<()> {
    if gateways.is_empty() {
        return Ok(());
    }
    let has = address::list(socket, bridge.index, gateways.iter().map(IpNet::addr))?;
    let mut batch = Batch::new();
    for gateway in gateways.iter().filter(|g| !has.contains(g)) {
        // The official plugin's rule: a second IPv4 address, or an IPv6 one of the same subnet, is a conflict.
        let rivals = has.iter().filter(|old| match (old, gateway) {
            (IpNet::V4(_), IpNet::V4(_)) => true,
            (IpNet::V6(old), IpNet::V6(new)) => old.contains(&new.addr()) || new.contains(&old.addr()),
            _ => false,
        });
        for rival in rivals {
            if !force {
                return Err(io::Error::other(format!(
                    "bridge {} already has address {rival}, not {gateway}; `forceAddress` would replace it",
                    bridge.name
                )));
            }
            address::delete(&mut batch, bridge.index, rival);
        }
        address::add(&mut batch, bridge.index, gateway, false);
    }
    if batch.len() == 0 {
        return Ok(());
    }
    for refusal in socket.exchange(&mut batch, |_, _| {})?.into_iter().flatten() {
        // Another pod, or another daemon, was quicker.
        if !matches!(refusal.errno, Errno::EXIST | Errno::ADDRNOTAVAIL) {
            return Err(refusal.into_io());
        }
    }
    Ok(())
}

fn forward(gateways: &[IpNet]) -> Result<(), CniError> {
    for (path, needed) in [
        ("/proc/sys/net/ipv4/ip_forward", gateways.iter().any(|g| matches!(g, IpNet::V4(_)))),
        ("/proc/sys/net/ipv6/conf/all/forwarding", gateways.iter().any(|g| matches!(g, IpNet::V6(_)))),
    ] {
        if needed {
            netns::ensure(path, "1").map_err(CniError::file("switch on forwarding in", path))?;
        }
    }
    Ok(())
}

/// A default route by each gateway, unless the IPAM plugin gave one.
fn add_default_routes(result: &mut CniResult) {
    for ip in result.ips.clone() {
        let Some(gw) = ip.gateway else { continue };
        let is_default = |r: &Route| r.dst.prefix_len() == 0 && r.dst.addr().is_ipv4() == gw.is_ipv4();
        if result.routes.iter().any(is_default) {
            continue;
        }
        let everywhere: IpNet = match gw {
            IpAddr::V4(_) => IpNet::V4(Default::default()),
            IpAddr::V6(_) => IpNet::V6(Default::default()),
        };
        let dst = everywhere;
        result.routes.push(Route {
            dst,
            gw: Some(gw),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        });
    }
}

/// Hardware address, if it has none of ours yet, addresses, then routes, of the pod's end.
fn configure_pod(
    pod: &mut PodSide<'_>,
    if_name: &str,
    mac: Option<Mac>,
    config: &BridgeConfig,
    result: &CniResult,
) -> io::Result<()> {
    let socket = pod.socket.get()?;
    // Not by netlink, which would wait for the kernel's lock of all links.
    let index = socket.index_of(if_name).map_err(|error| match error.raw_os_error() {
        Some(errno) if errno == Errno::NODEV.raw_os_error() => {
            io::Error::other(format!("{if_name} is not there although it was made"))
        }
        _ => error,
    })?;
    let mut batch = Batch::new();
    if config.pod_link_up || mac.is_some() {
        let flags = config.pod_link_up.then_some((UP, UP));
        link::change(&mut batch, Which::Index(index), &Change { flags, mac, ..Change::default() });
    }
    for ip in &result.ips {
        address::add(&mut batch, index, &ip.address, config.detect_duplicates);
    }
    for route in &result.routes {
        let of_family = |ip: &&IpConfig| ip.address.addr().is_ipv4() == route.dst.addr().is_ipv4();
        let gateway = route.gw.or_else(|| result.ips.iter().filter(of_family).find_map(|ip| ip.gateway));
        let options = RouteOptions {
            mtu: route.mtu,
            advmss: route.advmss,
            priority: route.priority,
            table: route.table,
            scope: route.scope,
        };
        address::add_route(&mut batch, index, &route.dst, gateway.as_ref(), &options);
    }
    if batch.len() == 0 { Ok(()) } else { socket.run(&mut batch) }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one sentence, said once")]
fn describe(
    result: &mut CniResult,
    bridge: &Link,
    veth: &str,
    host_mac: Mac,
    if_name: &str,
    pod_mac: Mac,
    config: &BridgeConfig,
    sandbox: &str,
) {
    let mtu = Some(config.mtu.unwrap_or(1500));
    let interface = |name: &str, mac: &Mac, mtu, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: mac_text(mac),
        mtu,
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    };
    result.interfaces = vec![
        interface(&bridge.name, &bridge.mac.unwrap_or_default(), Some(bridge.mtu), ""),
        interface(veth, &host_mac, mtu, ""),
        interface(if_name, &pod_mac, mtu, sandbox),
    ];
    for ip in &mut result.ips {
        ip.interface = Some(2);
    }
}

/// The pod's hardware address follows from its IP address. Whoever gets the address next has the same one, so no
/// neighbour holds a stale entry and nothing need be announced.
fn mac_of_addresses(name: &str, ips: &[IpConfig]) -> Mac {
    match ips.first().map(|ip| ip.address.addr()) {
        Some(IpAddr::V4(ip)) => local_mac(0x58, ip.octets()),
        Some(IpAddr::V6(ip)) => local_mac(0x59, hash_bytes(&[&ip.octets()])),
        None => local_mac(0x5c, hash_bytes(&[name.as_bytes(), b"pod"])),
    }
}

/// 0a is locally administered, unicast.
fn local_mac(second: u8, rest: [u8; 4]) -> Mac {
    [0x0a, second, rest[0], rest[1], rest[2], rest[3]]
}

/// How long a lock that other processes take may keep an ADD waiting.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(60);
