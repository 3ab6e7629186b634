//! The expressions that our rules are made of.

use ipnet::IpNet;

use crate::netlink::Body;
use crate::netlink::address::octets;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_JUMP: i32 = -3;
const NF_DROP: i32 = 0;

/// `NFT_REG32_00`: the first of sixteen registers of four bytes.
pub(super) const FIRST: u32 = 8;

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(ipv4: bool) -> Family {
        if ipv4 { Family::V4 } else { Family::V6 }
    }

    pub(super) fn proto(self) -> u8 {
        if self == Family::V4 { 2 } else { 10 }
    }

    pub(super) fn address_len(self) -> u32 {
        if self == Family::V4 { 4 } else { 16 }
    }

    fn saddr(self) -> u32 {
        if self == Family::V4 { 12 } else { 8 }
    }

    pub(super) fn daddr(self) -> u32 {
        if self == Family::V4 { 16 } else { 24 }
    }
}

/// Expressions in the order in which the kernel evaluates them; the first that does not match ends the rule.
pub(super) struct Expressions<'a, 'b>(pub(super) &'a mut Body<'b>);

impl Expressions<'_, '_> {
    fn expr(&mut self, name: &str, data: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        self.0.nest(NFTA_LIST_ELEM, |m| {
            m.string(NFTA_EXPR_NAME, name);
            m.nest(NFTA_EXPR_DATA, data);
        });
        self
    }

    /// `meta nfproto` is this family.
    pub(super) fn family(&mut self, family: Family) -> &mut Self {
        const NFT_META_NFPROTO: u32 = 15;
        self.meta(NFT_META_NFPROTO, FIRST).cmp(true, &[family.proto()])
    }

    /// The packet did not come from `lo` (by type, `ARPHRD_LOOPBACK`: a name can be anything).
    pub(super) fn not_from_loopback(&mut self) -> &mut Self {
        const NFT_META_IIFTYPE: u32 = 8;
        const ARPHRD_LOOPBACK: u16 = 772;
        self.meta(NFT_META_IIFTYPE, FIRST).cmp(false, &ARPHRD_LOOPBACK.to_ne_bytes())
    }

    /// Loads `meta l4proto`.
    pub(super) fn load_l4proto(&mut self, register: u32) -> &mut Self {
        const NFT_META_L4PROTO: u32 = 16;
        self.meta(NFT_META_L4PROTO, register)
    }

    /// Loads `th dport`.
    pub(super) fn load_dport(&mut self, register: u32) -> &mut Self {
        self.payload(2, 2, 2, register)
    }

    /// Loads the destination address.
    pub(super) fn load_daddr(&mut self, family: Family, register: u32) -> &mut Self {
        self.payload(1, family.daddr(), family.address_len(), register)
    }

    /// The source is in the subnet.
    pub(super) fn saddr_in(&mut self, subnet: &IpNet) -> &mut Self {
        let family = Family::of(subnet.addr().is_ipv4());
        self.in_subnet(family, family.saddr(), subnet, true)
    }

    /// The destination is in the subnet, or is not.
    pub(super) fn daddr_in(&mut self, subnet: &IpNet, inside: bool) -> &mut Self {
        let family = Family::of(subnet.addr().is_ipv4());
        self.in_subnet(family, family.daddr(), subnet, inside)
    }

    fn in_subnet(&mut self, family: Family, offset: u32, subnet: &IpNet, inside: bool) -> &mut Self {
        let len = family.address_len();
        self.payload(1, offset, len, FIRST)
            .mask(len, &octets(&subnet.netmask()))
            .cmp(inside, &octets(&subnet.network()))
    }

    /// The connection's destination was changed (`ct status dnat`).
    pub(super) fn was_dnated(&mut self) -> &mut Self {
        const NFT_CT_STATUS: u32 = 2;
        const IPS_DST_NAT: u32 = 1 << 5;
        self.expr("ct", |m| {
            m.be32(1, FIRST); // NFTA_CT_DREG
            m.be32(2, NFT_CT_STATUS); // NFTA_CT_KEY
        })
        .mask(4, &IPS_DST_NAT.to_ne_bytes())
        .cmp(false, &[0; 4])
    }

    /// `fib daddr type local`
    pub(super) fn daddr_is_local(&mut self) -> &mut Self {
        const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
        const NFTA_FIB_F_DADDR: u32 = 2;
        const RTN_LOCAL: u32 = 2;
        self.expr("fib", |m| {
            m.be32(1, FIRST); // NFTA_FIB_DREG
            m.be32(2, NFT_FIB_RESULT_ADDRTYPE); // NFTA_FIB_RESULT
            m.be32(3, NFTA_FIB_F_DADDR); // NFTA_FIB_FLAGS
        })
        .cmp(true, &RTN_LOCAL.to_ne_bytes())
    }

    /// Looks the key up in a map; no element, no match.
    pub(super) fn lookup(&mut self, map: &str, key: u32, value: u32) -> &mut Self {
        self.expr("lookup", |m| {
            m.string(1, map); // NFTA_LOOKUP_SET
            m.be32(2, key); // NFTA_LOOKUP_SREG
            m.be32(3, value); // NFTA_LOOKUP_DREG
        })
    }

    /// `dnat to <address> . <port>`, both from registers.
    pub(super) fn dnat(&mut self, family: Family, address: u32, port: u32) -> &mut Self {
        const NFT_NAT_DNAT: u32 = 1;
        self.expr("nat", |m| {
            m.be32(1, NFT_NAT_DNAT); // NFTA_NAT_TYPE
            m.be32(2, u32::from(family.proto())); // NFTA_NAT_FAMILY
            m.be32(3, address); // NFTA_NAT_REG_ADDR_MIN
            m.be32(5, port); // NFTA_NAT_REG_PROTO_MIN
        })
    }

    /// `masquerade`
    pub(super) fn masquerade(&mut self) -> &mut Self {
        self.expr("masq", |_| {})
    }

    /// `jump <chain>`
    pub(super) fn jump(&mut self, chain: &str) -> &mut Self {
        self.verdict(NFT_JUMP, Some(chain))
    }

    /// `drop`
    pub(super) fn drop(&mut self) -> &mut Self {
        self.verdict(NF_DROP, None)
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) -> &mut Self {
        const NFT_REG_VERDICT: u32 = 0;
        self.expr("immediate", |m| {
            m.be32(1, NFT_REG_VERDICT); // NFTA_IMMEDIATE_DREG
            // NFTA_IMMEDIATE_DATA
            m.nest(2, |m| {
                m.nest(NFTA_DATA_VERDICT, |m| {
                    m.be32(NFTA_VERDICT_CODE, code as u32);
                    if let Some(chain) = chain {
                        m.string(NFTA_VERDICT_CHAIN, chain);
                    }
                });
            });
        })
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.expr("meta", |m| {
            m.be32(1, register); // NFTA_META_DREG
            m.be32(2, key); // NFTA_META_KEY
        })
    }

    /// `base` 1 is the network header, 2 the transport header.
    fn payload(&mut self, base: u32, offset: u32, len: u32, register: u32) -> &mut Self {
        self.expr("payload", |m| {
            m.be32(1, register); // NFTA_PAYLOAD_DREG
            m.be32(2, base); // NFTA_PAYLOAD_BASE
            m.be32(3, offset); // NFTA_PAYLOAD_OFFSET
            m.be32(4, len); // NFTA_PAYLOAD_LEN
        })
    }

    fn mask(&mut self, len: u32, mask: &[u8]) -> &mut Self {
        self.expr("bitwise", |m| {
            m.be32(1, FIRST); // NFTA_BITWISE_SREG
            m.be32(2, FIRST); // NFTA_BITWISE_DREG
            m.be32(3, len); // NFTA_BITWISE_LEN
            m.nest(4, |m| m.attr(NFTA_DATA_VALUE, mask)); // NFTA_BITWISE_MASK
            m.nest(5, |m| m.attr(NFTA_DATA_VALUE, &vec![0; mask.len()])); // NFTA_BITWISE_XOR
        })
    }

    fn cmp(&mut self, equal: bool, value: &[u8]) -> &mut Self {
        self.expr("cmp", |m| {
            m.be32(1, FIRST); // NFTA_CMP_SREG
            m.be32(2, u32::from(!equal)); // NFTA_CMP_OP: 0 equal, 1 not equal
            m.nest(3, |m| m.attr(NFTA_DATA_VALUE, value)); // NFTA_CMP_DATA
        })
    }
}
