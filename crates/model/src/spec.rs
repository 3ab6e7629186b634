//! What a client asked for: the specs of pods and containers, free of any wire format.
//!
//! They are checked and built by `cri` and never change afterwards, but for the resources, which an update
//! replaces. `serde` is derived because a spec is also stored as it is, inside the records of `store`; fields
//! may be added with `#[serde(default)]` and are never renamed (docs/design/records.md).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Signal;

/// A pod sandbox as its client wants it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSpec {
    /// Who the pod is.
    pub metadata: PodMetadata,
    /// UTS hostname; empty: derived from the sandbox id (or the node's name with the host's network).
    pub hostname: String,
    /// Absolute folder of the container logs; empty: containers have no log.
    pub log_directory: String,
    /// resolv.conf of the pod; `None` or empty: the host's.
    pub dns: Option<Dns>,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// Returned byte for byte.
    pub labels: BTreeMap<String, String>,
    /// Returned byte for byte.
    pub annotations: BTreeMap<String, String>,
    /// cgroup path (cgroupfs notation) or slice name below which everything of the pod lives; may be empty.
    pub cgroup_parent: String,
    /// Kernel parameters by name, dots as separators.
    pub sysctls: BTreeMap<String, String>,
    /// Security settings of the sandbox.
    pub security: PodSecurity,
    /// RuntimeClass handler; empty: the default one.
    pub runtime_handler: String,
}

/// The identity of a pod: the four together are unique.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodMetadata {
    /// Name of the pod.
    pub name: String,
    /// Kubernetes uid.
    pub uid: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Counts sandboxes of one pod.
    pub attempt: u32,
}

/// DNS settings of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// Transport protocol of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port inside the pod.
    pub container_port: u16,
    /// Port on the host; 0: not published.
    pub host_port: u16,
    /// Host address to publish on; empty: all.
    pub host_ip: String,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// Shared by the containers of the pod.
    #[default]
    Pod,
    /// Of this container alone.
    Container,
    /// The host's.
    Node,
    /// Another container's.
    Target,
}

/// The namespaces of a pod or container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Network: `Pod` or `Node`.
    pub network: NamespaceMode,
    /// PID: any mode.
    pub pid: NamespaceMode,
    /// IPC: `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// Whose PID namespace to join with `Target`.
    pub target_id: String,
    /// User namespace of the pod; `None`: the host's.
    pub user: Option<UserNamespace>,
}

/// A user namespace by its one mapping of uids and one of gids.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UserNamespace {
    /// The uid mapping.
    pub uids: IdMapping,
    /// The gid mapping.
    pub gids: IdMapping,
    /// The client asked for the host's namespace in so many words (mode NODE); echoed in status.
    pub node: bool,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    /// First id on the host.
    pub host_id: u32,
    /// First id inside.
    pub container_id: u32,
    /// How many.
    pub length: u32,
}

/// How supplemental groups and those of the image go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupsPolicy {
    /// Groups that the image lists for the user are added.
    #[default]
    Merge,
    /// Only what was asked for.
    Strict,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityProfile {
    /// Nothing was said; treated as `Unconfined` for seccomp, as the default profile for AppArmor.
    #[default]
    Unset,
    /// The runtime's own profile.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile of the host: an absolute path for seccomp, a profile's name for AppArmor.
    Localhost(String),
}

/// SELinux label parts; empty parts are the runtime's to choose.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxOptions {
    /// User part.
    pub user: String,
    /// Role part.
    pub role: String,
    /// Type part.
    pub r#type: String,
    /// Level part (MCS).
    pub level: String,
}

/// Security settings of a sandbox.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSecurity {
    /// Which namespaces are the pod's own.
    pub namespaces: Namespaces,
    /// SELinux label.
    pub selinux: Option<SelinuxOptions>,
    /// uid of the sandbox's own processes.
    pub run_as_user: Option<u32>,
    /// gid of the sandbox's own processes.
    pub run_as_group: Option<u32>,
    /// Groups of the sandbox's own processes.
    pub supplemental_groups: Vec<u32>,
    /// How these groups are merged.
    pub groups_policy: GroupsPolicy,
    /// The sandbox's own root is read-only.
    pub readonly_rootfs: bool,
    /// Privileged containers are allowed in the pod.
    pub privileged: bool,
    /// Seccomp profile.
    pub seccomp: SecurityProfile,
    /// AppArmor profile.
    pub apparmor: SecurityProfile,
}

/// A container as its client wants it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Name in the pod.
    pub name: String,
    /// Counts restarts; (name, attempt) is unique in a sandbox.
    pub attempt: u32,
    /// The image.
    pub image: ImageRef,
    /// Replaces the image's entrypoint and drops its command.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// Overrides the image's; empty: the image's, else `/`.
    pub working_dir: String,
    /// Added after the image's; later ones win. Values may be any bytes without NUL.
    pub envs: Vec<(String, Vec<u8>)>,
    /// Volumes.
    pub mounts: Vec<Mount>,
    /// Host devices.
    pub devices: Vec<Device>,
    /// CDI device names.
    pub cdi_devices: Vec<String>,
    /// Returned byte for byte.
    pub labels: BTreeMap<String, String>,
    /// Returned byte for byte.
    pub annotations: BTreeMap<String, String>,
    /// Log file relative to the pod's log directory; empty: output is discarded.
    pub log_path: String,
    /// Keep standard input open for attach.
    pub stdin: bool,
    /// Close standard input when the first attach session ends.
    pub stdin_once: bool,
    /// Give the container a terminal.
    pub tty: bool,
    /// Overrides the image's STOPSIGNAL.
    pub stop_signal: Option<Signal>,
    /// Limits.
    pub resources: Resources,
    /// Security settings.
    pub security: ContainerSecurity,
}

/// An image as a client names it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageRef {
    /// Tag, digest or id.
    pub image: String,
    /// What the user wrote in the pod; empty if not told.
    pub user_specified: String,
    /// Returned byte for byte.
    pub annotations: BTreeMap<String, String>,
    /// Handler to pull for.
    pub runtime_handler: String,
}

/// How mounts travel between host and container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the host to the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Absolute path in the container.
    pub container_path: String,
    /// Path on the host; empty for an image volume.
    pub host_path: String,
    /// No writes through this mount.
    pub readonly: bool,
    /// Nor through mounts below it.
    pub recursive_read_only: bool,
    /// Give the source the container's SELinux label.
    pub selinux_relabel: bool,
    /// How mounts travel.
    pub propagation: Propagation,
    /// uid mappings of an idmapped mount.
    pub uid_mappings: Vec<IdMapping>,
    /// gid mappings of an idmapped mount.
    pub gid_mappings: Vec<IdMapping>,
    /// An image as volume.
    pub image: Option<ImageRef>,
    /// Part of that image.
    pub image_sub_path: String,
    /// `noexec`, `nodev`, `nosuid`.
    pub options: Vec<String>,
}

/// A host device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Path in the container.
    pub container_path: String,
    /// Node, or folder of nodes, on the host.
    pub host_path: String,
    /// Some of `r`, `w`, `m`; empty: all three.
    pub permissions: String,
}

/// Limits of a container. Zero and empty mean: not set.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// CFS period, microseconds.
    pub cpu_period: i64,
    /// CFS quota per period, microseconds; negative: none.
    pub cpu_quota: i64,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: i64,
    /// Bytes.
    pub memory_limit: i64,
    /// Memory and swap together, bytes.
    pub memory_swap_limit: i64,
    /// -1000 to 1000.
    pub oom_score_adj: i64,
    /// CPU list.
    pub cpuset_cpus: String,
    /// Memory node list.
    pub cpuset_mems: String,
    /// (page size such as `2MB`, bytes).
    pub hugepage_limits: Vec<(String, u64)>,
    /// cgroup v2 files by name.
    pub unified: BTreeMap<String, String>,
}

/// Capability changes; names with or without `CAP_`, or `ALL`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Added.
    pub add: Vec<String>,
    /// Dropped.
    pub drop: Vec<String>,
    /// Added to the ambient set.
    pub add_ambient: Vec<String>,
}

/// Security settings of a container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSecurity {
    /// Capability changes.
    pub capabilities: Capabilities,
    /// Everything is allowed.
    pub privileged: bool,
    /// Only the PID part counts; all others are the sandbox's.
    pub namespaces: Namespaces,
    /// SELinux label.
    pub selinux: Option<SelinuxOptions>,
    /// uid.
    pub run_as_user: Option<u32>,
    /// gid; needs a user.
    pub run_as_group: Option<u32>,
    /// User by name, looked up in the image.
    pub run_as_username: String,
    /// Root file system is read-only.
    pub readonly_rootfs: bool,
    /// More groups.
    pub supplemental_groups: Vec<u32>,
    /// How these go with the image's.
    pub groups_policy: GroupsPolicy,
    /// Set no_new_privs.
    pub no_new_privs: bool,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// Seccomp profile.
    pub seccomp: SecurityProfile,
    /// AppArmor profile.
    pub apparmor: SecurityProfile,
}
