//! What a pod sandbox should be.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bowline_cri_proto::v1;
use bowline_model::spec::{Dns, NamespaceMode, Namespaces, PodMetadata, PodSpec, PortMapping, Protocol};

use super::{Refused, check, invalid, security};

/// The longest name that the kernel gives a host.
const MAX_HOSTNAME: usize = 64;

/// The spec of a pod, from the request to run it.
pub(crate) fn spec(asked: v1::RunPodSandboxRequest) -> Result<PodSpec, Refused> {
    let config = asked.config.ok_or_else(|| invalid("config", "must be set"))?;
    handler("runtime_handler", &asked.runtime_handler)?;
    let linux = config.linux.unwrap_or_default();
    let security =
        security::of_pod("config.linux.security_context", linux.security_context.unwrap_or_default())?;
    check_hostname(&config.hostname)?;
    if !config.log_directory.is_empty() {
        check::absolute("config.log_directory", &config.log_directory)?;
    }
    check::no_parent("config.linux.cgroup_parent", &linux.cgroup_parent)?;
    check::pairs("config.labels", &config.labels)?;
    check::pairs("config.annotations", &config.annotations)?;
    Ok(PodSpec {
        metadata: metadata(config.metadata)?,
        hostname: config.hostname,
        log_directory: config.log_directory,
        dns: config.dns_config.map(dns).transpose()?,
        port_mappings: config.port_mappings.into_iter().enumerate().map(port).collect::<Result<_, _>>()?,
        labels: config.labels,
        annotations: config.annotations,
        cgroup_parent: linux.cgroup_parent,
        sysctls: sysctls(linux.sysctls, &security.namespaces)?,
        security,
        runtime_handler: asked.runtime_handler,
    })
}

/// A RuntimeClass handler. There is only the default one yet; another is refused, for it may promise an isolation
/// that we do not give.
pub(crate) fn handler(field: &str, name: &str) -> Result<(), Refused> {
    match name.is_empty() {
        true => Ok(()),
        false => Err(invalid(field, format!("there is no runtime handler `{}`", check::brief(name)))),
    }
}

fn metadata(asked: Option<v1::PodSandboxMetadata>) -> Result<PodMetadata, Refused> {
    let asked = asked.ok_or_else(|| invalid("config.metadata", "must be set"))?;
    check::name("config.metadata.name", &asked.name)?;
    check::name("config.metadata.namespace", &asked.namespace)?;
    check::name("config.metadata.uid", &asked.uid)?;
    Ok(PodMetadata { name: asked.name, uid: asked.uid, namespace: asked.namespace, attempt: asked.attempt })
}

fn check_hostname(hostname: &str) -> Result<(), Refused> {
    let field = "config.hostname";
    if hostname.len() > MAX_HOSTNAME {
        return Err(invalid(
            field,
            format!("is {} bytes long; {MAX_HOSTNAME} are the limit", hostname.len()),
        ));
    }
    // It becomes part of lines in /etc/hosts and /etc/hostname.
    match hostname.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/') {
        true => Err(invalid(field, "must not contain spaces, slashes or control characters")),
        false => Ok(()),
    }
}

fn dns(asked: v1::DnsConfig) -> Result<Dns, Refused> {
    for (field, entries) in [
        ("config.dns_config.servers", &asked.servers),
        ("config.dns_config.searches", &asked.searches),
        ("config.dns_config.options", &asked.options),
    ] {
        entries.iter().try_for_each(|entry| check::one_line(field, entry))?;
    }
    Ok(Dns { servers: asked.servers, searches: asked.searches, options: asked.options })
}

fn port((index, asked): (usize, v1::PortMapping)) -> Result<PortMapping, Refused> {
    let field = |name: &str| format!("config.port_mappings[{index}].{name}");
    let protocol = match check::known(&field("protocol"), asked.protocol)? {
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Udp => Protocol::Udp,
        v1::Protocol::Sctp => Protocol::Sctp,
    };
    let number = |name: &str, port: i32| {
        u16::try_from(port).map_err(|_| invalid(field(name), format!("{port} is not within 0 and 65535")))
    };
    let (container_port, host_port) =
        (number("container_port", asked.container_port)?, number("host_port", asked.host_port)?);
    if host_port != 0 && container_port == 0 {
        return Err(invalid(field("container_port"), "must be set when host_port is"));
    }
    if !asked.host_ip.is_empty() && asked.host_ip.parse::<IpAddr>().is_err() {
        let reason = format!("`{}` is no IP address", check::brief(&asked.host_ip));
        return Err(invalid(field("host_ip"), reason));
    }
    Ok(PortMapping { protocol, container_port, host_port, host_ip: asked.host_ip })
}

/// Whose namespace a kernel parameter belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Network,
    Ipc,
}

/// Parameters with dots as separators. Any that is not of one of the pod's own namespaces would be set for the whole
/// node.
fn sysctls(
    asked: BTreeMap<String, String>,
    namespaces: &Namespaces,
) -> Result<BTreeMap<String, String>, Refused> {
    let field = "config.linux.sysctls";
    let mut found = BTreeMap::new();
    for (name, value) in asked {
        let dotted = dotted(&name);
        let (mode, whose) = match owner(&dotted) {
            Some(Owner::Network) => (namespaces.network, "network"),
            Some(Owner::Ipc) => (namespaces.ipc, "IPC"),
            None => {
                let reason = format!("`{}` belongs to no namespace of a pod", check::brief(&name));
                return Err(invalid(field, reason));
            }
        };
        if mode == NamespaceMode::Node {
            let reason =
                format!("`{}` cannot be set: the pod uses the node's {whose} namespace", check::brief(&name));
            return Err(invalid(field, reason));
        }
        check::no_nul(field, &value)?;
        if found.insert(dotted, value).is_some() {
            return Err(invalid(field, format!("`{}` is set twice", check::brief(&name))));
        }
    }
    Ok(found)
}

/// sysctl(8): the first separator decides which of the two separates; the other one is then part of a name
/// (`net/ipv4/conf/eth0.1/forwarding` is `net.ipv4.conf.eth0/1.forwarding`).
fn dotted(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

fn owner(dotted: &str) -> Option<Owner> {
    let clean = dotted.split('.').all(|part| !part.is_empty() && !part.split('/').any(str::is_empty));
    if !clean || dotted.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return None;
    }
    let (group, rest) = dotted.split_once('.')?;
    match group {
        "net" => Some(Owner::Network),
        "fs" if rest.starts_with("mqueue.") => Some(Owner::Ipc),
        "kernel" if rest == "sem" || rest.starts_with("shm") || rest.starts_with("msg") => Some(Owner::Ipc),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
