//! What the daemon decides about networks.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

/// How the network code is set up.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// Where conflists are looked for; the first valid file of the first folder that has one is the network.
    pub conf_dirs: Vec<PathBuf>,
    /// Where plugins that are not built in are looked for.
    pub bin_dirs: Vec<PathBuf>,
    /// Where the record of each attachment is kept until its DEL is complete.
    pub cache_dir: PathBuf,
    /// Marks what is ours among links and nftables objects.
    pub instance: InstanceTag,
    /// The network to have when no conflist exists. `None`: then the node has no network, as the kubelet expects.
    pub default_network: Option<DefaultNetwork>,
    /// How long a plugin that is not built in may take to ADD (and to CHECK and to tell its STATUS).
    pub plugin_timeout_add: Duration,
    /// How long it may take to DEL (and to GC).
    pub plugin_timeout_del: Duration,
    /// Which family the primary address of a dual-stack pod has.
    pub primary: PrimaryFamily,
}

impl CniConfig {
    /// The standard folders and limits, for a daemon whose own files lie below `root`.
    pub fn below(root: &Path) -> CniConfig {
        CniConfig {
            conf_dirs: vec![PathBuf::from("/etc/cni/net.d")],
            bin_dirs: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            cache_dir: root.join("cni"),
            instance: InstanceTag::of_root(root),
            default_network: None,
            plugin_timeout_add: Duration::from_secs(300),
            plugin_timeout_del: Duration::from_secs(60),
            primary: PrimaryFamily::Ipv4First,
        }
    }
}

/// Which of a pod's addresses comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrimaryFamily {
    /// The first IPv4 address, if there is one.
    #[default]
    Ipv4First,
    /// The first IPv6 address, if there is one.
    Ipv6First,
    /// The order of the CNI result.
    AsInResult,
}

impl PrimaryFamily {
    /// Moves the primary address to the front; the others keep their order.
    pub(crate) fn order(self, ips: &mut [IpAddr]) {
        match self {
            PrimaryFamily::Ipv4First => ips.sort_by_key(|ip| !ip.is_ipv4()),
            PrimaryFamily::Ipv6First => ips.sort_by_key(|ip| ip.is_ipv4()),
            PrimaryFamily::AsInResult => {}
        }
    }
}

/// The bridge network of a machine without Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultNetwork {
    /// Addresses of the pods.
    pub subnet: Ipv4Net,
    /// Their IPv6 addresses; `None`: IPv4 only.
    pub subnet_v6: Option<Ipv6Net>,
    /// The bridge's name, `bowline0` as a rule.
    pub bridge: String,
    /// Where reservations of addresses lie; below it a folder per network.
    pub data_dir: PathBuf,
}

/// Tells the daemons of one machine apart: a short hash of the daemon's root folder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceTag(String);

impl InstanceTag {
    /// The tag of the daemon with this root folder.
    pub fn of_root(root: &Path) -> InstanceTag {
        InstanceTag(hash_hex(&[root.as_os_str().as_encoded_bytes()]))
    }

    /// A tag made elsewhere: 1 to 16 lower-case letters and digits.
    pub fn parse(text: &str) -> Option<InstanceTag> {
        let fits = (1..=16).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        fits.then(|| InstanceTag(text.to_owned()))
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The link group of our links. Never 0, which is everybody's; the bit 0x4000_0000 keeps clear of the small
    /// numbers that people choose.
    pub fn link_group(&self) -> u32 {
        let h = hash(&[self.0.as_bytes()]);
        0x4000_0000 | (u32::from_be_bytes([h[0], h[1], h[2], h[3]]) & 0x0fff_fffe)
    }

    /// The link group of those of our links that wait to be deleted.
    pub fn dying_group(&self) -> u32 {
        self.link_group() | 1
    }

    /// What the alias of each of our links starts with.
    pub(crate) fn alias_prefix(&self) -> String {
        format!("bowline:{}:", self.0)
    }

    /// The nftables table.
    pub(crate) fn table(&self) -> String {
        format!("bowline-{}", self.0)
    }

    /// The name of the host's end of a pod's link, the same at each try, so that it can be found after a crash.
    pub(crate) fn veth_name(&self, sandbox_id: &str, if_name: &str) -> String {
        format!("veth{}", hash_hex(&[self.0.as_bytes(), sandbox_id.as_bytes(), if_name.as_bytes()]))
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 4] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let digest = hasher.finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

/// Eight hexadecimal digits that stand for the parts.
pub(crate) fn hash_hex(parts: &[&[u8]]) -> String {
    hash(parts).iter().map(|b| format!("{b:02x}")).collect()
}

/// Four bytes that stand for the parts.
pub(crate) fn hash_bytes(parts: &[&[u8]]) -> [u8; 4] {
    hash(parts)
}
