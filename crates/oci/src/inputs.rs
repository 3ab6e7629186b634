//! What a spec is made from.

use std::collections::BTreeMap;

use bowline_model::cgroup::CgroupMode;
use bowline_model::runtime_spec::Rlimit;
use bowline_model::spec::{ContainerSpec, PodSpec};

use crate::{ResolvedUser, SeccompArch};

/// Everything that goes into a container's spec.
#[derive(Debug, Clone, Copy)]
pub struct ContainerInputs<'a> {
    /// Id of the sandbox.
    pub sandbox_id: &'a str,
    /// Id of the container.
    pub container_id: &'a str,
    /// The pod, as its sandbox was made.
    pub pod: &'a PodSpec,
    /// The container.
    pub container: &'a ContainerSpec,
    /// What its image says.
    pub image: &'a ImageDefaults,
    /// Who it runs as: the result of `resolve_user`.
    pub user: &'a ResolvedUser,
    /// The machine.
    pub node: &'a NodeFacts,
    /// Files that the daemon made for the pod.
    pub files: &'a PodFiles,
    /// Namespaces to join.
    pub namespaces: &'a NamespacePaths,
    /// cgroup below the root of each hierarchy.
    pub cgroup_path: &'a str,
    /// The pod's hostname, as its UTS namespace has it.
    pub hostname: &'a str,
    /// The container's devices, looked up on the host, with CDI ones.
    pub devices: &'a [HostDevice],
    /// Paths of image volumes on the host, by position in `container.mounts`.
    pub image_volumes: &'a BTreeMap<usize, String>,
    /// The text of the profile, where seccomp is `Localhost`.
    pub seccomp_profile: Option<LocalhostSeccomp<'a>>,
    /// SELinux labels, as [`container_labels`](crate::container_labels) makes them; `None`: no SELinux.
    pub selinux: Option<&'a SelinuxLabels>,
}

/// A seccomp profile of the host.
#[derive(Debug, Clone, Copy)]
pub struct LocalhostSeccomp<'a> {
    /// Its JSON text.
    pub json: &'a [u8],
}

/// The labels of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SelinuxLabels {
    /// Of its processes; empty: the policy's choice for children of the daemon.
    pub process: String,
    /// Of its mounts.
    pub mount: String,
}

/// What an image says about a container made from it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageDefaults {
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub cmd: Vec<String>,
    /// ENV, as `NAME=value`.
    pub env: Vec<String>,
    /// WORKDIR.
    pub working_dir: String,
    /// USER: `user[:group]`.
    pub user: String,
    /// VOLUME.
    pub volumes: Vec<String>,
    /// STOPSIGNAL.
    pub stop_signal: String,
}

/// Where the namespaces are that a container joins; `None`: whoever launches it is in that namespace already.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespacePaths {
    /// The pod's network namespace.
    pub network: Option<String>,
    /// The pod's IPC namespace.
    pub ipc: Option<String>,
    /// The pod's UTS namespace.
    pub uts: Option<String>,
    /// The PID namespace of the pod, or of the target container.
    pub pid: Option<String>,
    /// The pod's user namespace.
    pub user: Option<String>,
}

/// What this machine is like, as the daemon found it at start.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeFacts {
    /// How cgroups are mounted.
    pub cgroup_mode: CgroupMode,
    /// What the daemon itself may do. The rest is left out of what containers get, and reported.
    pub capabilities: u64,
    /// The highest capability number of the kernel.
    pub last_cap: u32,
    /// AppArmor is on.
    pub apparmor: bool,
    /// The profile for `RuntimeDefault`, if it is loaded.
    pub apparmor_default: Option<String>,
    /// SELinux is on.
    pub selinux: bool,
    /// The machine, for the default seccomp profile.
    pub seccomp_arch: SeccompArch,
    /// What privileged containers see below /dev.
    pub host_devices: Vec<HostDevice>,
    /// Privileged containers do not see host devices (`privileged_without_host_devices` of a handler).
    pub privileged_without_host_devices: bool,
    /// Page sizes that the hugetlb controller limits (`2MB`, `1GB`); empty: no controller.
    pub hugetlb_sizes: Vec<String>,
    /// Recursive read-only mounts work.
    pub recursive_read_only: bool,
    /// Swap can be limited.
    pub swap: bool,
    /// Limits that every container gets.
    pub default_ulimits: Vec<Rlimit>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostDevice {
    /// Path in the container.
    pub path: String,
    /// `c` or `b`; `p` for a FIFO.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Some of `r`, `w`, `m`; empty: all three.
    pub permissions: String,
}

/// Host paths of files that the daemon made for the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodFiles {
    /// For /etc/hosts.
    pub hosts: Option<String>,
    /// For /etc/hostname.
    pub hostname: Option<String>,
    /// For /etc/resolv.conf.
    pub resolv_conf: Option<String>,
    /// Folder for /dev/shm; `None`: a tmpfs of the container's own (or the host's, with host IPC).
    pub shm: Option<String>,
}
