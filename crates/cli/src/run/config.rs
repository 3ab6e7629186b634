//! From the flags of `run` to what CRI wants.

use std::path::PathBuf;

use bowline_cri_proto::v1;
use clap::{Args, ValueEnum};

use crate::args::{CredentialArgs, pair};
use crate::failure::Failure;

/// The annotation that names the folder we made for the log.
pub(crate) const LOG_FOLDER: &str = "bowline.run/log-folder";
/// The log's name in its folder.
pub(crate) const LOG_NAME: &str = "container.log";

/// One scheduling period, the kernel's own.
const PERIOD: i64 = 100_000;

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The name of the pod and of the container [default: made up]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Remove the pod when its container has ended
    #[arg(long = "rm", conflicts_with = "detach")]
    pub(crate) remove: bool,
    /// Print the container's id and return
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Pass stdin on (not built yet)
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// Give it a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// An environment variable; without a value: ours
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// A folder or file of this machine
    #[arg(long, short, value_name = "HOST:CONTAINER[:ro]")]
    pub(crate) volume: Vec<String>,
    /// A port of this machine
    #[arg(long, short, value_name = "[IP:]HOST:CONTAINER[/udp]")]
    pub(crate) publish: Vec<String>,
    /// A label for pod and container
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
    /// Without confinement
    #[arg(long)]
    pub(crate) privileged: bool,
    /// At most so many processors
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<f64>,
    /// At most so much memory
    #[arg(long, short, value_name = "BYTES[k|m|g]")]
    pub(crate) memory: Option<String>,
    /// Its own network, or this machine's
    #[arg(long, value_enum, default_value = "pod")]
    pub(crate) network: Network,
    /// The user to be: a number or a name
    #[arg(long, short, value_name = "UID[:GID]|NAME")]
    pub(crate) user: Option<String>,
    /// The folder to start in
    #[arg(long, short, value_name = "FOLDER")]
    pub(crate) workdir: Option<String>,
    /// Instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Nothing can be written to its root
    #[arg(long)]
    pub(crate) read_only: bool,
    /// A pod as crictl takes it, to start from
    #[arg(long, value_name = "FILE")]
    pub(crate) pod_config: Option<PathBuf>,
    /// Which runtime handler to use
    #[arg(long, default_value = "")]
    pub(crate) runtime: String,
    /// When to pull the image
    #[arg(long, value_enum, default_value = "missing")]
    pub(crate) pull: Pull,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
    /// Show no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// What to run it from
    pub(crate) image: String,
    /// What to run [default: what the image says]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// Whose network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// The pod's own
    Pod,
    /// This machine's
    Host,
}

/// When to pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    /// Each time
    Always,
    /// When it is not there
    Missing,
    /// Never
    Never,
}

fn name(args: &RunArgs, random: &str) -> String {
    args.name.clone().unwrap_or_else(|| format!("run-{random}"))
}

/// Fills in what the flags say. A flag is stronger than the file.
pub(super) fn complete_pod(
    pod: &mut v1::PodSandboxConfig,
    args: &RunArgs,
    random: &str,
) -> Result<(), Failure> {
    let name = name(args, random);
    let metadata = pod.metadata.get_or_insert_default();
    for (field, value) in [
        (&mut metadata.name, name.as_str()),
        (&mut metadata.namespace, "default"),
        (&mut metadata.uid, random),
    ] {
        if field.is_empty() {
            *field = value.to_owned();
        }
    }
    if args.name.is_some() {
        metadata.name = name;
    }
    let is_host = args.network == Network::Host;
    if pod.hostname.is_empty() && !is_host {
        // A label of DNS.
        pod.hostname =
            metadata.name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(63).collect();
    }
    pod.labels.extend(args.label.iter().cloned());
    for text in &args.publish {
        pod.port_mappings.push(port(text)?);
    }
    if is_host && !args.publish.is_empty() {
        return Err(Failure::hint("--publish has no meaning with this machine's network", "one of the two"));
    }
    let security = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.privileged |= args.privileged;
    let namespaces = security.namespace_options.get_or_insert_default();
    if args.pod_config.is_none() {
        // The protocol's zero is the pod's own process namespace shared by its containers.
        namespaces.set_pid(v1::NamespaceMode::Container);
    }
    if is_host {
        namespaces.set_network(v1::NamespaceMode::Node);
    }
    Ok(())
}

/// The container.
pub(super) fn container(args: &RunArgs, random: &str) -> Result<v1::ContainerConfig, Failure> {
    let mounts = args.volume.iter().map(|text| mount(text)).collect::<Result<_, _>>()?;
    let envs = args.env.iter().filter_map(|text| variable(text)).collect();
    let mut security = v1::LinuxContainerSecurityContext {
        privileged: args.privileged,
        readonly_rootfs: args.read_only,
        namespace_options: Some(v1::NamespaceOption {
            network: match args.network {
                Network::Host => v1::NamespaceMode::Node as i32,
                Network::Pod => v1::NamespaceMode::Pod as i32,
            },
            pid: v1::NamespaceMode::Container as i32,
            ..Default::default()
        }),
        ..Default::default()
    };
    if let Some(text) = &args.user {
        user(text, &mut security)?;
    }
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name(args, random), attempt: 0 }),
        image: Some(crate::images::spec(&args.image)),
        command: args.entrypoint.iter().cloned().collect(),
        args: args.command.clone(),
        working_dir: args.workdir.clone().unwrap_or_default(),
        envs,
        mounts,
        labels: args.label.iter().cloned().collect(),
        log_path: LOG_NAME.to_owned(),
        tty: args.tty,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources(args)?),
            security_context: Some(security),
        }),
        ..Default::default()
    })
}

fn resources(args: &RunArgs) -> Result<v1::LinuxContainerResources, Failure> {
    let mut resources = v1::LinuxContainerResources::default();
    if let Some(cpus) = args.cpus {
        if !(0.01..=100_000.0).contains(&cpus) {
            return Err(Failure::hint(format!("{cpus} is no number of processors"), "--cpus 0.5"));
        }
        resources.cpu_period = PERIOD;
        resources.cpu_quota = (cpus * PERIOD as f64).round() as i64;
        resources.cpu_shares = ((cpus * 1024.0).round() as i64).max(2);
    }
    if let Some(text) = &args.memory {
        resources.memory_limit_in_bytes = bytes(text)
            .ok_or_else(|| Failure::hint(format!("`{text}` is no amount of memory"), "--memory 64m"))?;
    }
    Ok(resources)
}

/// `64m`, `64Mi`, `1g`, `4096`: powers of 1024.
fn bytes(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let bare = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, shift) = match bare.char_indices().last()? {
        (at, 'k') => (&bare[..at], 10),
        (at, 'm') => (&bare[..at], 20),
        (at, 'g') => (&bare[..at], 30),
        (at, 't') => (&bare[..at], 40),
        _ => (bare, 0),
    };
    digits.parse::<i64>().ok().filter(|count| *count > 0)?.checked_mul(1 << shift)
}

fn user(text: &str, security: &mut v1::LinuxContainerSecurityContext) -> Result<(), Failure> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    match user.parse::<i64>() {
        Ok(value) => security.run_as_user = Some(v1::Int64Value { value }),
        Err(_) => security.run_as_username = user.to_owned(),
    }
    if let Some(group) = group {
        let value = group.parse().map_err(|_| {
            Failure::hint(format!("`{group}` is no number of a group"), "--user UID:GID, both as numbers")
        })?;
        security.run_as_group = Some(v1::Int64Value { value });
    }
    Ok(())
}

/// Without a value: ours, if we have it.
fn variable(text: &str) -> Option<v1::KeyValue> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, value.as_bytes().to_vec()),
        None => (text, std::os::unix::ffi::OsStringExt::into_vec(std::env::var_os(text)?)),
    };
    Some(v1::KeyValue { key: key.to_owned(), value })
}

fn mount(text: &str) -> Result<v1::Mount, Failure> {
    let wrong = |why: &str| Failure::hint(format!("`{text}`: {why}"), "-v /HOST:/CONTAINER[:ro]");
    let mut parts = text.split(':');
    let (Some(host), Some(container)) = (parts.next(), parts.next()) else {
        return Err(wrong("a volume has two paths"));
    };
    if !host.starts_with('/') || !container.starts_with('/') {
        return Err(wrong("both paths begin with a slash"));
    }
    let readonly = match parts.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(wrong("what follows is `ro` or `rw`")),
    };
    if parts.next().is_some() {
        return Err(wrong("too many colons"));
    }
    Ok(v1::Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        readonly,
        ..Default::default()
    })
}

fn port(text: &str) -> Result<v1::PortMapping, Failure> {
    let wrong = |why: &str| Failure::hint(format!("`{text}`: {why}"), "-p [IP:]HOST:CONTAINER[/udp]");
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => v1::Protocol::Tcp,
        "udp" => v1::Protocol::Udp,
        "sctp" => v1::Protocol::Sctp,
        _ => return Err(wrong("the protocol is tcp, udp or sctp")),
    };
    // From the right: an IPv6 address has colons of its own.
    let (front, container) = ports.rsplit_once(':').ok_or_else(|| wrong("a port has two numbers"))?;
    let (ip, host) = front.rsplit_once(':').unwrap_or(("", front));
    let ip = ip.trim_start_matches('[').trim_end_matches(']');
    if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong("this is no address"));
    }
    let number = |text: &str| match text.parse::<u16>() {
        Ok(number) if number > 0 => Ok(i32::from(number)),
        _ => Err(wrong("a port is a number from 1 to 65535")),
    };
    Ok(v1::PortMapping {
        protocol: protocol as i32,
        container_port: number(container)?,
        host_port: number(host)?,
        host_ip: ip.to_owned(),
    })
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
