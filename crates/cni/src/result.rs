//! Results of plugins, in every version of the specification that is still in use.
//!
//! Inside, a result is always of the newest version; older ones are translated where they come in and go out.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

/// Most interfaces, addresses or routes that a result may hold.
const MOST: usize = 1024;

/// What ADD made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Links, on the host and in the pod.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes in the pod.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Dns,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address; empty if unknown.
    pub mac: String,
    /// Its MTU; told from version 1.1 on.
    pub mtu: Option<u32>,
    /// The network namespace it is in; empty for the host's.
    pub sandbox: String,
    /// A path to a vhost-user socket.
    pub socket_path: Option<String>,
    /// The PCI device behind it.
    pub pci_id: Option<String>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// Index of the link it is on.
    pub interface: Option<usize>,
    /// The address with its prefix.
    pub address: IpNet,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By which gateway; `None`: the subnet's.
    pub gw: Option<IpAddr>,
    /// MTU of the path.
    pub mtu: Option<u32>,
    /// TCP segment size to announce.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// Scope of the destinations.
    pub scope: Option<u8>,
}

/// Name servers as a plugin tells them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: Option<String>,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl CniResult {
    /// Reads a result of any version; `Err` says what is wrong with which field.
    pub fn from_json(value: &Value) -> Result<CniResult, String> {
        let object = value.as_object().ok_or("a result must be an object")?;
        let version = object.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
        let mut result = CniResult { dns: dns(object.get("dns"))?, ..CniResult::default() };
        if matches!(version, "" | "0.1.0" | "0.2.0") {
            for key in ["ip4", "ip6"] {
                if let Some(family) = object.get(key).and_then(Value::as_object) {
                    let address = net(family.get("ip"), key)?;
                    let gateway = optional_ip(family.get("gateway"), key)?;
                    result.ips.push(IpConfig { interface: None, address, gateway });
                    for route in list(family.get("routes"), "routes")? {
                        result.routes.push(read_route(route)?);
                    }
                }
            }
            return Ok(result);
        }
        for interface in list(object.get("interfaces"), "interfaces")? {
            result.interfaces.push(Interface {
                name: string(interface.get("name")),
                mac: string(interface.get("mac")),
                mtu: small(interface.get("mtu")),
                sandbox: string(interface.get("sandbox")),
                socket_path: interface.get("socketPath").and_then(Value::as_str).map(str::to_owned),
                pci_id: interface.get("pciID").and_then(Value::as_str).map(str::to_owned),
            });
        }
        for ip in list(object.get("ips"), "ips")? {
            let interface = ip.get("interface").and_then(Value::as_u64).map(|i| i as usize);
            if interface.is_some_and(|i| i >= result.interfaces.len()) {
                return Err("`ips.interface` names no interface".to_owned());
            }
            result.ips.push(IpConfig {
                interface,
                address: net(ip.get("address"), "ips.address")?,
                gateway: optional_ip(ip.get("gateway"), "ips.gateway")?,
            });
        }
        for route in list(object.get("routes"), "routes")? {
            result.routes.push(read_route(route)?);
        }
        Ok(result)
    }

    /// Writes the result as version `version` has it.
    pub fn to_json(&self, version: &str) -> Value {
        let mut out = Map::new();
        out.insert("cniVersion".to_owned(), json!(version));
        if matches!(version, "0.1.0" | "0.2.0") {
            self.write_first_of_each_family(&mut out);
        } else {
            let newest = !matches!(version, "0.3.0" | "0.3.1" | "0.4.0" | "1.0.0");
            let with_family = matches!(version, "0.3.0" | "0.3.1" | "0.4.0");
            if !self.interfaces.is_empty() {
                let all: Vec<Value> = self.interfaces.iter().map(|i| write_interface(i, newest)).collect();
                out.insert("interfaces".to_owned(), Value::Array(all));
            }
            if !self.ips.is_empty() {
                let all: Vec<Value> = self.ips.iter().map(|ip| write_ip(ip, with_family)).collect();
                out.insert("ips".to_owned(), Value::Array(all));
            }
            if !self.routes.is_empty() {
                let all: Vec<Value> = self.routes.iter().map(|r| write_route(r, newest)).collect();
                out.insert("routes".to_owned(), Value::Array(all));
            }
        }
        out.insert("dns".to_owned(), write_dns(&self.dns));
        Value::Object(out)
    }

    fn write_first_of_each_family(&self, out: &mut Map<String, Value>) {
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4) else { continue };
            let mut family = Map::new();
            family.insert("ip".to_owned(), json!(ip.address.to_string()));
            if let Some(gateway) = ip.gateway {
                family.insert("gateway".to_owned(), json!(gateway.to_string()));
            }
            let routes: Vec<Value> = self
                .routes
                .iter()
                .filter(|r| r.dst.addr().is_ipv4() == v4)
                .map(|r| write_route(r, false))
                .collect();
            if !routes.is_empty() {
                family.insert("routes".to_owned(), Value::Array(routes));
            }
            out.insert(key.to_owned(), Value::Object(family));
        }
    }
}

fn write_interface(interface: &Interface, newest: bool) -> Value {
    let mut out = Map::new();
    out.insert("name".to_owned(), json!(interface.name));
    if !interface.mac.is_empty() {
        out.insert("mac".to_owned(), json!(interface.mac));
    }
    if newest {
        if let Some(mtu) = interface.mtu {
            out.insert("mtu".to_owned(), json!(mtu));
        }
        if let Some(path) = &interface.socket_path {
            out.insert("socketPath".to_owned(), json!(path));
        }
        if let Some(pci) = &interface.pci_id {
            out.insert("pciID".to_owned(), json!(pci));
        }
    }
    if !interface.sandbox.is_empty() {
        out.insert("sandbox".to_owned(), json!(interface.sandbox));
    }
    Value::Object(out)
}

fn write_ip(ip: &IpConfig, with_family: bool) -> Value {
    let mut out = Map::new();
    if with_family {
        let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
        out.insert("version".to_owned(), json!(family));
    }
    if let Some(interface) = ip.interface {
        out.insert("interface".to_owned(), json!(interface));
    }
    out.insert("address".to_owned(), json!(ip.address.to_string()));
    if let Some(gateway) = ip.gateway {
        out.insert("gateway".to_owned(), json!(gateway.to_string()));
    }
    Value::Object(out)
}

fn write_route(route: &Route, newest: bool) -> Value {
    let mut out = Map::new();
    out.insert("dst".to_owned(), json!(route.dst.to_string()));
    if let Some(gw) = route.gw {
        out.insert("gw".to_owned(), json!(gw.to_string()));
    }
    if newest {
        let numbers = [
            ("mtu", route.mtu),
            ("advmss", route.advmss),
            ("priority", route.priority),
            ("table", route.table),
            ("scope", route.scope.map(u32::from)),
        ];
        for (key, value) in numbers {
            if let Some(value) = value {
                out.insert(key.to_owned(), json!(value));
            }
        }
    }
    Value::Object(out)
}

fn write_dns(dns: &Dns) -> Value {
    let mut out = Map::new();
    for (key, value) in
        [("nameservers", &dns.nameservers), ("search", &dns.search), ("options", &dns.options)]
    {
        if !value.is_empty() {
            out.insert(key.to_owned(), json!(value));
        }
    }
    if let Some(domain) = &dns.domain {
        out.insert("domain".to_owned(), json!(domain));
    }
    Value::Object(out)
}

/// Reads `{"dst": .., "gw": ..}`, in results as in host-local's configuration.
pub(crate) fn read_route(value: &Value) -> Result<Route, String> {
    let scope = match value.get("scope").filter(|v| !v.is_null()) {
        None => None,
        Some(v) => Some(
            v.as_u64()
                .and_then(|n| u8::try_from(n).ok())
                .ok_or("`routes.scope` must be a number up to 255")?,
        ),
    };
    Ok(Route {
        dst: net(value.get("dst"), "routes.dst")?,
        gw: optional_ip(value.get("gw"), "routes.gw")?,
        mtu: small(value.get("mtu")).filter(|n| *n > 0),
        advmss: small(value.get("advmss")).filter(|n| *n > 0),
        priority: small(value.get("priority")).filter(|n| *n > 0),
        table: small(value.get("table")),
        scope,
    })
}

/// Reads a `dns` object, in results as in configurations.
pub(crate) fn dns(value: Option<&Value>) -> Result<Dns, String> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(Dns::default()) };
    let strings = |key: &str| -> Result<Vec<String>, String> {
        let field = format!("dns.{key}");
        let all = list(value.get(key), &field)?.iter();
        all.map(|v| v.as_str().map(str::to_owned).ok_or(format!("`{field}` must hold strings"))).collect()
    };
    Ok(Dns {
        nameservers: strings("nameservers")?,
        domain: value.get("domain").and_then(Value::as_str).filter(|d| !d.is_empty()).map(str::to_owned),
        search: strings("search")?,
        options: strings("options")?,
    })
}

fn list<'v>(value: Option<&'v Value>, field: &str) -> Result<&'v [Value], String> {
    match value {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(all)) if all.len() <= MOST => Ok(all),
        Some(Value::Array(_)) => Err(format!("`{field}` has more than {MOST} entries")),
        Some(_) => Err(format!("`{field}` must be a list")),
    }
}

fn string(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn small(value: Option<&Value>) -> Option<u32> {
    value.and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok())
}

fn net(value: Option<&Value>, field: &str) -> Result<IpNet, String> {
    let text = value.and_then(Value::as_str).ok_or_else(|| format!("`{field}` is missing"))?;
    text.parse().map_err(|_| format!("`{field}`: `{text}` is no address with a prefix"))
}

/// Reads an address that may be absent or empty.
pub(crate) fn optional_ip(value: Option<&Value>, field: &str) -> Result<Option<IpAddr>, String> {
    match value.and_then(Value::as_str) {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| format!("`{field}`: `{text}` is no address")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CniResult {
        CniResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "0a:58:0a:01:00:02".into(),
                mtu: Some(1400),
                sandbox: "/run/netns/x".into(),
                ..Interface::default()
            }],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.1.0.2/16".parse().unwrap(),
                    gateway: Some("10.1.0.1".parse().unwrap()),
                },
                IpConfig { interface: Some(0), address: "fd00::2/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: None,
                mtu: Some(1300),
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            }],
            dns: Dns { nameservers: vec!["10.0.0.10".into()], ..Dns::default() },
        }
    }

    #[test]
    fn the_newest_version_keeps_everything() {
        let result = sample();
        assert_eq!(CniResult::from_json(&result.to_json("1.1.0")), Ok(result));
    }

    #[test]
    fn each_older_version_keeps_the_addresses() {
        for version in ["0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let json = sample().to_json(version);
            let back = CniResult::from_json(&json).unwrap();
            let addresses: Vec<_> = back.ips.iter().map(|ip| ip.address).collect();
            assert_eq!(addresses, sample().ips.iter().map(|ip| ip.address).collect::<Vec<_>>(), "{version}");
            assert_eq!(back.dns, sample().dns, "{version}");
        }
        assert_eq!(sample().to_json("0.4.0")["ips"][1]["version"], "6");
        assert!(sample().to_json("1.0.0")["ips"][0].get("version").is_none());
        assert!(sample().to_json("1.0.0")["interfaces"][0].get("mtu").is_none());
        assert_eq!(sample().to_json("0.2.0")["ip4"]["gateway"], "10.1.0.1");
    }

    #[test]
    fn a_bad_result_names_the_field() {
        let error = |json: Value| CniResult::from_json(&json).unwrap_err();
        assert!(error(json!({"cniVersion":"1.0.0","ips":[{"address":"x"}]})).contains("ips.address"));
        assert!(
            error(json!({"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/8","interface":3}]}))
                .contains("ips.interface")
        );
        assert!(error(json!([])).contains("object"));
    }
}
