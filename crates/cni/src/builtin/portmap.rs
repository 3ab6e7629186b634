//! `portmap`: ports of the host that lead to the pod.

use std::net::IpAddr;

use serde_json::Value;

use super::{Attachment, Node, PluginInput};
use crate::CniError;
use crate::netns;
use crate::nft::HostPort;
use crate::request::Protocol;
use crate::result::CniResult;

/// ADD. The result that came before is passed on unchanged.
pub(crate) fn add(
    node: &Node,
    at: &Attachment<'_>,
    input: &PluginInput<'_>,
    prev: &CniResult,
) -> Result<(), CniError> {
    let ports = ports(at, input, Some(prev))?;
    if ports.is_empty() {
        return Ok(());
    }
    prepare(node, at, input, prev)?;
    node.nft.add_ports(at.sandbox_id, &ports)?;
    forget_flows(node, &ports);
    Ok(())
}

/// What all pods with host ports share, unless the configuration says that sources are to be kept, at the price of
/// 127.0.0.1 and hairpins.
fn prepare(
    node: &Node,
    at: &Attachment<'_>,
    input: &PluginInput<'_>,
    made: &CniResult,
) -> Result<(), CniError> {
    if input.config.get("snat").and_then(Value::as_bool) == Some(false) {
        return Ok(());
    }
    node.nft.ensure_hairpin(at.network, made.ips.iter().map(|ip| ip.address))?;
    if let Some(link) = made.interfaces.iter().find(|i| i.sandbox.is_empty()) {
        let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", link.name);
        netns::ensure(&path, "1").map_err(CniError::file("open the way from 127.0.0.1 in", path))?;
    }
    Ok(())
}

/// Puts back what is missing of a pod's host ports, after somebody emptied the ruleset.
pub(crate) fn restore(
    node: &Node,
    at: &Attachment<'_>,
    input: &PluginInput<'_>,
    made: &CniResult,
) -> Result<(), CniError> {
    let mut missing = ports(at, input, Some(made))?;
    if missing.is_empty() {
        return Ok(());
    }
    prepare(node, at, input, made)?;
    let mut owned = Vec::new();
    for port in &missing {
        owned.push(node.nft.port_owner(port)?.is_some());
    }
    let mut owned = owned.into_iter();
    missing.retain(|_| owned.next() == Some(false));
    if missing.is_empty() { Ok(()) } else { node.nft.add_ports(at.sandbox_id, &missing) }
}

/// DEL. `made` is the result of ADD, if ADD came that far.
pub(crate) fn del(
    node: &Node,
    at: &Attachment<'_>,
    input: &PluginInput<'_>,
    made: Option<&CniResult>,
) -> Result<(), CniError> {
    let ports = ports(at, input, made)?;
    if ports.is_empty() {
        return Ok(());
    }
    node.nft.remove_ports(at.sandbox_id, &ports)?;
    forget_flows(node, &ports);
    Ok(())
}

/// CHECK: every port still leads to the pod.
pub(crate) fn check(
    node: &Node,
    at: &Attachment<'_>,
    input: &PluginInput<'_>,
    made: &CniResult,
) -> Result<(), CniError> {
    for port in ports(at, input, Some(made))? {
        if node.nft.port_owner(&port)?.as_deref() != Some(at.sandbox_id) {
            let problem = format!("host port {}/{} does not lead to it", port.host_port, port.protocol);
            return Err(CniError::Differs { sandbox: at.sandbox_id.to_owned(), problem });
        }
    }
    Ok(())
}

/// A datagram's sender that goes on sending keeps its old translation for ever; TCP and SCTP end by themselves.
fn forget_flows(node: &Node, ports: &[HostPort]) {
    for port in ports.iter().filter(|p| p.protocol == Protocol::Udp) {
        // Best effort: the flow ages out in the end, and the mapping itself is in place.
        let _ = node.flows.forget_udp(port.host_port, port.pod_ip.is_ipv4());
    }
}

/// The mappings as map elements, one per family in which the pod has an address; both where that is unknown.
fn ports(
    at: &Attachment<'_>,
    input: &PluginInput<'_>,
    made: Option<&CniResult>,
) -> Result<Vec<HostPort>, CniError> {
    let pod_ips: Vec<IpAddr> = match made {
        Some(result) => {
            let first =
                |v4: bool| result.ips.iter().map(|ip| ip.address.addr()).find(|ip| ip.is_ipv4() == v4);
            [first(true), first(false)].into_iter().flatten().collect()
        }
        None => vec![IpAddr::V4([0; 4].into()), IpAddr::V6([0u8; 16].into())],
    };
    let mut out = Vec::new();
    for entry in input.runtime.get("portMappings").and_then(Value::as_array).into_iter().flatten() {
        let mapping =
            parse(entry).map_err(|problem| CniError::config(at.network, "portMappings", problem))?;
        let Some((protocol, host_port, pod_port, host_ip)) = mapping else { continue };
        for pod_ip in pod_ips.iter().copied() {
            if host_ip.is_none_or(|ip| ip.is_ipv4() == pod_ip.is_ipv4()) {
                let host_ip = host_ip.filter(|ip| !ip.is_unspecified());
                out.push(HostPort { protocol, host_ip, host_port, pod_ip, pod_port });
            }
        }
    }
    Ok(out)
}

type Mapping = (Protocol, u16, u16, Option<IpAddr>);

fn parse(entry: &Value) -> Result<Option<Mapping>, String> {
    let port = |field: &str| match entry.get(field) {
        None | Some(Value::Null) => Ok(0),
        Some(v) => v
            .as_u64()
            .and_then(|n| u16::try_from(n).ok())
            .ok_or_else(|| format!("`{field}` must be a port, not {v}")),
    };
    let (host_port, pod_port) = (port("hostPort")?, port("containerPort")?);
    if host_port == 0 {
        return Ok(None);
    }
    if pod_port == 0 {
        return Err(format!("lead host port {host_port} to port 0"));
    }
    let protocol = entry.get("protocol").and_then(Value::as_str).unwrap_or("tcp");
    let protocol =
        Protocol::parse(protocol).ok_or_else(|| format!("name the unknown protocol `{protocol}`"))?;
    let host_ip = crate::result::optional_ip(entry.get("hostIP"), "hostIP")?;
    Ok(Some((protocol, host_port, pod_port, host_ip)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

    fn sizes(mappings: Value, made: Option<&CniResult>) -> Result<Vec<HostPort>, CniError> {
        let runtime = json!({ "portMappings": mappings });
        let at = Attachment { sandbox_id: "s", if_name: "eth0", network: "n" };
        let input = PluginInput { config: &Map::new(), runtime: runtime.as_object().unwrap() };
        ports(&at, &input, made)
    }

    #[test]
    fn a_mapping_without_host_port_publishes_nothing() {
        assert!(
            sizes(json!([{"containerPort": 80}, {"containerPort": 80, "hostPort": 0}]), None)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn the_family_of_the_host_address_limits_the_mapping() {
        let both =
            |ip: &str| sizes(json!([{"containerPort": 80, "hostPort": 8080, "hostIP": ip}]), None).unwrap();
        assert_eq!(both("").len(), 2);
        assert_eq!(both("0.0.0.0").len(), 1);
        assert_eq!(
            both("0.0.0.0")[0].host_ip,
            None,
            "the unspecified address is all addresses of its family"
        );
        assert_eq!(both("10.0.0.1")[0].host_ip, Some("10.0.0.1".parse().unwrap()));
        assert!(both("::")[0].pod_ip.is_ipv6());
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            json!([{"hostPort": 8080}]),
            json!([{"hostPort": 99999, "containerPort": 80}]),
            json!([{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]),
            json!([{"hostPort": 80, "containerPort": 80, "hostIP": "x"}]),
        ] {
            assert!(matches!(sizes(bad, None), Err(CniError::Config { .. })));
        }
    }
}
