//! The interfaces of a pod's network, from /proc/PID/net/dev of the process that is in it: one read for all of them.

use std::fs::File;
use std::io::Read as _;

use bowline_model::spec::NamespaceMode;

use crate::view::PodView;

/// The interface that CNI is asked for.
pub(crate) const DEFAULT_INTERFACE: &str = "eth0";
/// The longest table that is read, bytes: about two thousand interfaces.
const MAX_TABLE: u64 = 256 << 10;

/// Counters of one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceStats {
    /// Its name inside the pod.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets that arrived broken.
    pub rx_errors: u64,
    /// Packets that arrived and were dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets that were dropped instead of sent.
    pub tx_dropped: u64,
}

/// All but the loopback, the default one first. Empty with the host's network, and where nothing is up.
pub(super) fn interfaces(pod: &PodView) -> Vec<InterfaceStats> {
    if pod.monitor <= 0 || pod.spec.security.namespaces.network == NamespaceMode::Node {
        return Vec::new();
    }
    let mut text = String::new();
    let read = File::open(format!("/proc/{}/net/dev", pod.monitor))
        .and_then(|file| file.take(MAX_TABLE).read_to_string(&mut text));
    match read {
        Ok(_) => parse(&text),
        Err(_) => Vec::new(),
    }
}

/// Two lines of heading; then `name: bytes packets errs drop fifo frame compressed multicast` and
/// `bytes packets errs drop fifo colls carrier compressed`.
fn parse(text: &str) -> Vec<InterfaceStats> {
    let lines = text.lines().skip(2).filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let numbers: Vec<u64> =
            counters.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = numbers[..]
        else {
            return None;
        };
        let name = name.trim().to_owned();
        Some(InterfaceStats {
            name,
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        })
    });
    let mut found: Vec<InterfaceStats> = lines.filter(|interface| interface.name != "lo").collect();
    found.sort_by(|a, b| (a.name != DEFAULT_INTERFACE, &a.name).cmp(&(b.name != DEFAULT_INTERFACE, &b.name)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_interface_is_first() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:      10       1    0    0    0     0          0         0       10       1    0    0    0     0       0          0
  dev1:       1       2    3    4    0     0          0         0        5       6    7    8    0     0       0          0
  eth0:    1476      18    0    0    0     0          0         0      586       7    0    0    0     0       0          0
";
        let found = parse(text);
        assert_eq!(found.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["eth0", "dev1"]);
        assert_eq!((found[0].rx_bytes, found[0].tx_bytes), (1476, 586));
        let counters = (found[1].rx_packets, found[1].rx_errors, found[1].rx_dropped);
        assert_eq!(counters, (2, 3, 4));
        assert_eq!((found[1].tx_packets, found[1].tx_errors, found[1].tx_dropped), (6, 7, 8));
        assert_eq!(parse("\n\nbad: 1 2\n"), []);
    }
}
