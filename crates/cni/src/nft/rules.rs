//! Chains and rules.

use std::collections::HashSet;

use ipnet::IpNet;

use super::expr::{Expressions, FIRST, Family};
use super::message::{DELRULE, NEWCHAIN, NEWRULE, comment, nft};
use super::ports::{MAPS, Map};
use crate::netlink::{APPEND, Batch, CREATE};

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;

/// `NF_INET_*`
const PRE_ROUTING: u32 = 0;
const LOCAL_OUT: u32 = 3;
const POST_ROUTING: u32 = 4;

const LOCALHOST: &str = "base localhost";

/// The tags of the rules that do not depend on a network.
pub(super) const BASE: [&str; 8] = [
    "base guard",
    "base prerouting",
    "base output",
    LOCALHOST,
    "base ports4_at",
    "base ports4",
    "base ports6_at",
    "base ports6",
];

/// A rule of one network.
pub(super) struct Rule {
    /// Stands in the rule's comment; by it we know what is there.
    pub(super) tag: String,
    subnet: IpNet,
    hairpin: bool,
}

impl Rule {
    pub(super) fn masquerade(network: &str, subnet: IpNet) -> Rule {
        Rule { tag: format!("masquerade {network} {subnet}"), subnet, hairpin: false }
    }

    pub(super) fn hairpin(network: &str, subnet: IpNet) -> Rule {
        Rule { tag: format!("hairpin {network} {subnet}"), subnet, hairpin: true }
    }

    pub(super) fn write(&self, batch: &mut Batch, table: &str) {
        let family = Family::of(self.subnet.addr().is_ipv4());
        rule(batch, table, "postrouting", &self.tag, |e| {
            e.family(family).saddr_in(&self.subnet);
            if self.hairpin {
                e.daddr_in(&self.subnet, true).was_dnated();
            } else {
                e.daddr_in(&self.subnet, false).daddr_in(&multicast(family), false);
            }
            e.masquerade();
        });
    }
}

/// The network that a rule with this tag belongs to.
pub(super) fn network_of(tag: &str) -> Option<&str> {
    let mut words = tag.split(' ');
    matches!(words.next(), Some("masquerade" | "hairpin")).then(|| words.next()).flatten()
}

fn multicast(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert([224, 0, 0, 0].into(), 4),
        Family::V6 => IpNet::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    }
}

fn loopback() -> IpNet {
    IpNet::new_assert([127, 0, 0, 0].into(), 8)
}

/// All chains; those that exist stay as they are.
pub(super) fn chains(batch: &mut Batch, table: &str) {
    let hooked = [
        ("guard", "filter", PRE_ROUTING, -300),
        ("prerouting", "nat", PRE_ROUTING, -100),
        ("output", "nat", LOCAL_OUT, -100),
        ("postrouting", "nat", POST_ROUTING, 100),
    ];
    for (name, kind, hook, priority) in hooked {
        nft(batch, NEWCHAIN, CREATE, |m| {
            m.string(NFTA_CHAIN_TABLE, table);
            m.string(NFTA_CHAIN_NAME, name);
            m.nest(NFTA_CHAIN_HOOK, |m| {
                m.be32(NFTA_HOOK_HOOKNUM, hook);
                m.attr(NFTA_HOOK_PRIORITY, &i32::to_be_bytes(priority));
            });
            m.string(NFTA_CHAIN_TYPE, kind);
        });
    }
    nft(batch, NEWCHAIN, CREATE, |m| {
        m.string(NFTA_CHAIN_TABLE, table);
        m.string(NFTA_CHAIN_NAME, "hostports");
    });
}

/// Empties the chains whose rules are always the same and fills them anew, in one transaction with the rest.
pub(super) fn rebuild_base(batch: &mut Batch, table: &str, there: &HashSet<String>) {
    for chain in ["guard", "prerouting", "output", "hostports"] {
        nft(batch, DELRULE, 0, |m| {
            m.string(NFTA_RULE_TABLE, table);
            m.string(NFTA_RULE_CHAIN, chain);
        });
    }
    // Host ports on 127.0.0.1 need route_localnet on the bridge, and that would let pods and neighbours reach what
    // listens on the host's loopback (CVE-2020-8558). Nobody but the host itself may.
    rule(batch, table, "guard", "base guard", |e| {
        e.family(Family::V4).not_from_loopback().daddr_in(&loopback(), true).drop();
    });
    // Only what is addressed to the host itself: a mapping must not catch traffic that passes through
    // (CVE-2025-67499).
    for chain in ["prerouting", "output"] {
        rule(batch, table, chain, &format!("base {chain}"), |e| {
            e.daddr_is_local().jump("hostports");
        });
    }
    for map in MAPS {
        rule(batch, table, "hostports", &format!("base {}", map.name()), |e| translate(e, map));
    }
    // The chain of the networks' rules is not emptied, so this one may be there.
    if there.contains(LOCALHOST) {
        return;
    }
    // A pod cannot answer to 127.0.0.1.
    rule(batch, table, "postrouting", LOCALHOST, |e| {
        e.family(Family::V4).saddr_in(&loopback()).was_dnated().masquerade();
    });
}

/// `dnat to [daddr .] l4proto . dport map @..`
fn translate(e: &mut Expressions<'_, '_>, map: Map) {
    /// Behind the longest key: an IPv6 address, the protocol and the port.
    const VALUE: u32 = FIRST + 6;
    let words = map.family().address_len() / 4;
    e.family(map.family());
    let mut next = FIRST;
    if map.with_address() {
        e.load_daddr(map.family(), next);
        next += words;
    }
    e.load_l4proto(next).load_dport(next + 1);
    e.lookup(map.name(), FIRST, VALUE).dnat(map.family(), VALUE, VALUE + words);
}

fn rule(
    batch: &mut Batch,
    table: &str,
    chain: &str,
    tag: &str,
    expressions: impl FnOnce(&mut Expressions<'_, '_>),
) {
    nft(batch, NEWRULE, CREATE | APPEND, |m| {
        m.string(NFTA_RULE_TABLE, table);
        m.string(NFTA_RULE_CHAIN, chain);
        m.nest(NFTA_RULE_EXPRESSIONS, |m| expressions(&mut Expressions(m)));
        m.attr(NFTA_RULE_USERDATA, &comment(tag));
    });
}
