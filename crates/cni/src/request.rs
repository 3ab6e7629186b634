//! What a pod asks of the network, and what it gets.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::CniError;
use crate::result::{CniResult, Interface};

/// A pod to attach to the network.
pub struct PodNetworkRequest<'a> {
    /// Which pod.
    pub pod: PodRef<'a>,
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// A path to it. Needed only if [`Cni::needs_netns_path`](crate::Cni::needs_netns_path).
    pub netns_path: Option<&'a Path>,
    /// The link's name in the pod, `eth0` as a rule.
    pub if_name: &'a str,
    /// Ports of the host to lead to the pod; those with host port 0 publish nothing.
    pub port_mappings: &'a [PortMapping],
    /// For plugins with the capability `dns`.
    pub dns: Option<&'a DnsConfig>,
    /// For plugins with the capability `bandwidth`.
    pub bandwidth: Option<Bandwidth>,
    /// For plugins with the capability `cgroupPath`.
    pub cgroup_path: Option<&'a str>,
    /// For plugins with the capability `io.kubernetes.cri.pod-annotations`.
    pub annotations: &'a [(String, String)],
    /// Addresses that the pod must get; for plugins with the capability `ips`.
    pub ips: &'a [IpAddr],
    /// The hardware address that the pod must get; for plugins with the capability `mac`.
    pub mac: Option<&'a str>,
}

/// Which pod is meant.
#[derive(Clone, Copy, Debug)]
pub struct PodRef<'a> {
    /// The sandbox's id.
    pub sandbox_id: &'a str,
    /// The pod's name.
    pub name: &'a str,
    /// Its Kubernetes namespace.
    pub namespace: &'a str,
    /// Its uid.
    pub uid: &'a str,
}

/// A port of the host that leads to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The pod's port.
    pub container_port: u16,
    /// The host's port; 0 publishes nothing.
    pub host_port: u16,
    /// Only this address of the host; `None`: all.
    pub host_ip: Option<IpAddr>,
}

/// Protocols with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Protocol> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|p| p.text().eq_ignore_ascii_case(text))
    }

    fn text(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A pod's resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search list.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// Traffic limits, in bits per second and bits; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Into the pod.
    pub ingress_rate: u64,
    /// Burst into the pod.
    pub ingress_burst: u64,
    /// Out of the pod.
    pub egress_rate: u64,
    /// Burst out of the pod.
    pub egress_burst: u64,
}

/// What a pod got.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    /// The network's name.
    pub network: String,
    /// Addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Links, on the host and in the pod.
    pub interfaces: Vec<Interface>,
    /// The result as a whole.
    pub result: CniResult,
    /// The result as the network's version of CNI writes it.
    pub result_json: String,
}

/// The longest name the kernel gives a link.
const IF_NAME_MAX: usize = 15;
/// Most port mappings of a pod.
const MOST_PORTS: usize = 1024;

impl PodNetworkRequest<'_> {
    pub(crate) fn validate(&self) -> Result<(), CniError> {
        validate_id(self.pod.sandbox_id)?;
        let fits = (1..=IF_NAME_MAX).contains(&self.if_name.len())
            && !matches!(self.if_name, "." | "..")
            && self.if_name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if !fits {
            return Err(CniError::Request {
                field: "if_name",
                problem: format!("`{}` is no name", self.if_name),
            });
        }
        if self.port_mappings.len() > MOST_PORTS {
            return Err(CniError::Request {
                field: "port_mappings",
                problem: format!("has more than {MOST_PORTS} entries"),
            });
        }
        Ok(())
    }

    /// `CNI_ARGS`, as containerd and CRI-O give it.
    pub(crate) fn args(&self) -> String {
        // Names come from the API server and hold neither `;` nor `=`; should one, it must not start a new argument.
        let clean = |text: &str| text.replace([';', '='], "_");
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            clean(self.pod.namespace),
            clean(self.pod.name),
            clean(self.pod.sandbox_id),
            clean(self.pod.uid)
        )
    }

    /// What each capability would put into a plugin's `runtimeConfig`.
    pub(crate) fn capability_args(&self) -> Map<String, Value> {
        let mut out = Map::new();
        let mappings: Vec<Value> =
            self.port_mappings.iter().filter(|m| m.host_port != 0).map(mapping).collect();
        if !mappings.is_empty() {
            out.insert("portMappings".to_owned(), Value::Array(mappings));
        }
        if let Some(dns) = self.dns {
            out.insert(
                "dns".to_owned(),
                json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}),
            );
        }
        if let Some(b) = self.bandwidth {
            out.insert(
                "bandwidth".to_owned(),
                json!({"ingressRate": b.ingress_rate, "ingressBurst": b.ingress_burst,
                       "egressRate": b.egress_rate, "egressBurst": b.egress_burst}),
            );
        }
        if let Some(path) = self.cgroup_path {
            out.insert("cgroupPath".to_owned(), json!(path));
        }
        if !self.annotations.is_empty() {
            let all = self.annotations.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            out.insert("io.kubernetes.cri.pod-annotations".to_owned(), Value::Object(all));
        }
        if !self.ips.is_empty() {
            let all: Vec<String> = self.ips.iter().map(IpAddr::to_string).collect();
            out.insert("ips".to_owned(), json!(all));
        }
        if let Some(mac) = self.mac {
            out.insert("mac".to_owned(), json!(mac));
        }
        out
    }
}

fn mapping(m: &PortMapping) -> Value {
    let mut out = Map::new();
    out.insert("hostPort".to_owned(), json!(m.host_port));
    out.insert("containerPort".to_owned(), json!(m.container_port));
    out.insert("protocol".to_owned(), json!(m.protocol.text()));
    if let Some(ip) = m.host_ip {
        out.insert("hostIP".to_owned(), json!(ip.to_string()));
    }
    Value::Object(out)
}

/// Ids become file names and parts of link aliases.
pub(crate) fn validate_id(id: &str) -> Result<(), CniError> {
    if is_plain_name(id) && id.len() <= 128 {
        return Ok(());
    }
    Err(CniError::Request { field: "sandbox_id", problem: format!("`{id}` is no id") })
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`: CNI's rule for ids and network names.
pub(crate) fn is_plain_name(name: &str) -> bool {
    name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}
