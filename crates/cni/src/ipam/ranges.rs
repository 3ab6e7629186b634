//! Ranges of addresses: pure arithmetic.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::result::IpConfig;

/// A field and what is wrong with it.
type Bad = (String, String);
/// Most range sets of a network and most ranges of a set.
const MOST: usize = 64;

/// Part of a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    subnet: IpNet,
    start: u128,
    end: u128,
    gateway: IpAddr,
}

/// Ranges out of which a pod gets one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeSet(Vec<Range>);

/// Reads `subnet`/`rangeStart`/.. (the old form), `ranges`, and `runtimeConfig.ipRanges`, in host-local's order.
pub(crate) fn parse(ipam: &Map<String, Value>, runtime: &Map<String, Value>) -> Result<Vec<RangeSet>, Bad> {
    let mut sets = Vec::new();
    for (field, from) in
        [("runtimeConfig.ipRanges", runtime.get("ipRanges")), ("ipam.ranges", ipam.get("ranges"))]
    {
        if field == "ipam.ranges" && ipam.get("subnet").is_some_and(|s| !s.is_null()) {
            sets.push(RangeSet(vec![range(ipam, "ipam")?]));
        }
        let Some(from) = from.filter(|v| !v.is_null()) else { continue };
        let all = from.as_array().filter(|a| a.len() <= MOST).ok_or_else(|| not_a_list(field))?;
        for (i, set) in all.iter().enumerate() {
            sets.push(range_set(set, &format!("{field}[{i}]"))?);
        }
    }
    if sets.is_empty() {
        return Err(("ipam.ranges".into(), "names no range".into()));
    }
    for (i, set) in sets.iter().enumerate() {
        if sets[..i].iter().any(|earlier| earlier.overlaps(set)) {
            return Err(("ipam.ranges".into(), format!("overlap: {set} and an earlier set")));
        }
    }
    Ok(sets)
}

fn not_a_list(field: &str) -> Bad {
    (field.to_owned(), format!("must be a list of at most {MOST} entries"))
}

fn range_set(value: &Value, field: &str) -> Result<RangeSet, Bad> {
    let all = value.as_array().filter(|a| (1..=MOST).contains(&a.len())).ok_or_else(|| not_a_list(field))?;
    let mut ranges: Vec<Range> = Vec::new();
    for (i, entry) in all.iter().enumerate() {
        let field = format!("{field}[{i}]");
        let object = entry.as_object().ok_or_else(|| (field.clone(), "must be an object".to_owned()))?;
        let new = range(object, &field)?;
        if ranges.iter().any(|r| r.is_ipv4() != new.is_ipv4()) {
            return Err((field, "mixes IPv4 and IPv6 in one set".into()));
        }
        if ranges.iter().any(|r| r.overlaps(&new)) {
            return Err((field, "overlaps an earlier range".into()));
        }
        ranges.push(new);
    }
    Ok(RangeSet(ranges))
}

fn range(object: &Map<String, Value>, field: &str) -> Result<Range, Bad> {
    let at = |name: &str| format!("{field}.{name}");
    let text = object.get("subnet").and_then(Value::as_str).unwrap_or_default();
    let subnet: IpNet =
        text.parse().map_err(|_| (at("subnet"), format!("`{text}` is no address with a prefix")))?;
    if subnet.network() != subnet.addr() {
        return Err((at("subnet"), format!("`{text}` has host bits set; meant is {}", subnet.trunc())));
    }
    if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
        return Err((at("subnet"), format!("`{text}` has no addresses to give")));
    }
    let first = number(subnet.network()) + 1;
    // host-local keeps the broadcast address of IPv4 back.
    let last = number(subnet.broadcast()) - u128::from(subnet.addr().is_ipv4());
    let inside = |name: &str, default: u128| -> Result<u128, Bad> {
        match object.get(name).and_then(Value::as_str).filter(|t| !t.is_empty()) {
            None => Ok(default),
            Some(text) => match text.parse::<IpAddr>() {
                Ok(ip) if subnet.contains(&ip) => Ok(number(ip)),
                Ok(_) => Err((at(name), format!("`{text}` is not in {subnet}"))),
                Err(_) => Err((at(name), format!("`{text}` is no address"))),
            },
        }
    };
    let (start, end) = (inside("rangeStart", first)?, inside("rangeEnd", last)?);
    if start > end {
        return Err((at("rangeStart"), "lies behind rangeEnd".into()));
    }
    let gateway = match object.get("gateway").and_then(Value::as_str).filter(|t| !t.is_empty()) {
        None => address(first, subnet.addr().is_ipv4()),
        // Outside of the subnet is allowed: point-to-point set-ups use it.
        Some(text) => text.parse().map_err(|_| (at("gateway"), format!("`{text}` is no address")))?,
    };
    Ok(Range { subnet, start, end, gateway })
}

impl Range {
    fn is_ipv4(&self) -> bool {
        self.subnet.addr().is_ipv4()
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.start <= other.end && other.start <= self.end
    }

    fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.is_ipv4() && (self.start..=self.end).contains(&number(ip))
    }
}

impl RangeSet {
    pub(crate) fn is_ipv4(&self) -> bool {
        self.0.iter().all(Range::is_ipv4)
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|r| r.contains(ip))
    }

    /// Gateways are never handed out.
    pub(crate) fn is_gateway(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|r| r.gateway == ip)
    }

    fn overlaps(&self, other: &RangeSet) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b)))
    }

    /// The address as a result tells it.
    pub(crate) fn config(&self, ip: IpAddr) -> IpConfig {
        let range = self.0.iter().find(|r| r.contains(ip));
        let prefix = range.map_or(if ip.is_ipv4() { 32 } else { 128 }, |r| r.subnet.prefix_len());
        IpConfig {
            interface: None,
            address: IpNet::new_assert(ip, prefix),
            gateway: range.map(|r| r.gateway),
        }
    }

    /// Every address once, beginning behind the one given out last, as host-local goes round.
    pub(crate) fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let at = last.and_then(|ip| self.0.iter().position(|r| r.contains(ip)).map(|i| (i, number(ip))));
        let (first, begin) = match at {
            Some((i, n)) => (i, n + 1),
            None => (0, self.0.first().map_or(0, |r| r.start)),
        };
        let count = self.0.len();
        let whole = (1..count).map(move |step| &self.0[(first + step) % count]);
        let tail = self.0.get(first).map(|r| (begin, r.end, r.is_ipv4()));
        let head = self.0.get(first).map(|r| (r.start, begin, r.is_ipv4()));
        tail.into_iter()
            .flat_map(|(a, b, v4)| (a..=b).map(move |n| address(n, v4)))
            .chain(whole.flat_map(|r| (r.start..=r.end).map(|n| address(n, r.is_ipv4()))))
            .chain(head.into_iter().flat_map(|(a, b, v4)| (a..b).map(move |n| address(n, v4))))
            .filter(|ip| !self.is_gateway(*ip))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{}-{}", address(r.start, r.is_ipv4()), address(r.end, r.is_ipv4()))?;
        }
        Ok(())
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn address(number: u128, ipv4: bool) -> IpAddr {
    if ipv4 {
        IpAddr::V4(Ipv4Addr::from_bits(number as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sets(ipam: Value) -> Result<Vec<RangeSet>, Bad> {
        parse(ipam.as_object().unwrap(), &Map::new())
    }

    fn order(ipam: Value, last: Option<&str>) -> Vec<String> {
        let sets = sets(ipam).unwrap();
        sets[0].after(last.map(|l| l.parse().unwrap())).map(|ip| ip.to_string()).collect()
    }

    #[test]
    fn a_subnet_gives_all_but_network_gateway_and_broadcast() {
        let all = order(json!({"subnet": "10.1.0.0/29"}), None);
        assert_eq!(all, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
    }

    #[test]
    fn it_goes_on_behind_the_last_and_comes_round() {
        let all = order(json!({"subnet": "10.1.0.0/29"}), Some("10.1.0.4"));
        assert_eq!(all, ["10.1.0.5", "10.1.0.6", "10.1.0.2", "10.1.0.3", "10.1.0.4"]);
        let all = order(json!({"subnet": "10.1.0.0/29"}), Some("10.1.0.6"));
        assert_eq!(all.first().map(String::as_str), Some("10.1.0.2"));
        let all = order(json!({"subnet": "10.1.0.0/29"}), Some("10.9.9.9"));
        assert_eq!(all.len(), 5, "a last address of another range starts over");
    }

    #[test]
    fn the_ranges_of_a_set_follow_one_another() {
        let ipam = json!({"ranges": [[
            {"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.11", "gateway": "10.1.0.254"},
            {"subnet": "10.2.0.0/30"}]]});
        assert_eq!(order(ipam.clone(), None), ["10.1.0.10", "10.1.0.11", "10.2.0.2"]);
        assert_eq!(order(ipam, Some("10.1.0.11")), ["10.2.0.2", "10.1.0.10", "10.1.0.11"]);
    }

    #[test]
    fn ipv6_gives_its_last_address_too() {
        assert_eq!(order(json!({"subnet": "fd00::/126"}), None), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn bad_ranges_name_the_field() {
        for (ipam, field) in [
            (json!({}), "ipam.ranges"),
            (json!({"subnet": "x"}), "ipam.subnet"),
            (json!({"subnet": "10.0.0.1/24"}), "ipam.subnet"),
            (json!({"subnet": "10.0.0.0/31"}), "ipam.subnet"),
            (json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.5"}), "ipam.rangeStart"),
            (
                json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}),
                "ipam.rangeStart",
            ),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}), "ipam.ranges[0][1]"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}), "ipam.ranges"),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24", "gateway": "?"}]]}), "ipam.ranges[0][0].gateway"),
        ] {
            assert_eq!(sets(ipam.clone()).unwrap_err().0, field, "{ipam}");
        }
    }

    #[test]
    fn the_old_form_comes_before_the_list() {
        let ipam = json!({"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "fd00::/64"}]]});
        let families: Vec<_> = sets(ipam).unwrap().iter().map(RangeSet::is_ipv4).collect();
        assert_eq!(families, [true, false]);
    }
}
