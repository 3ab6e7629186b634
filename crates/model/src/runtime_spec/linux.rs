//! The Linux part of a spec: namespaces, devices, seccomp, masked paths.

use std::collections::BTreeMap;

use super::{Extra, LinuxResources, spec_structs, word_enum};

spec_structs! {
    /// What only Linux has.
    pub struct Linux {
        /// uid mapping of a new user namespace.
        pub uid_mappings: Vec<IdMap>,
        /// gid mapping of a new user namespace.
        pub gid_mappings: Vec<IdMap>,
        /// Kernel parameters.
        pub sysctl: BTreeMap<String, String>,
        /// Limits.
        pub resources: Option<LinuxResources>,
        /// cgroup of the container, below the root of each hierarchy.
        pub cgroups_path: String,
        /// Namespaces that are made or joined; those of kinds not listed are the runtime's.
        pub namespaces: Vec<LinuxNamespace>,
        /// Device nodes, besides the usual ones.
        pub devices: Vec<LinuxDevice>,
        /// Network devices to move in, by their names on the host.
        pub net_devices: BTreeMap<String, LinuxNetDevice>,
        /// Filter of system calls.
        pub seccomp: Option<Seccomp>,
        /// `private`, `slave`, `shared`, `unbindable`, with or without `r` in front.
        pub rootfs_propagation: String,
        /// Paths hidden from the container.
        pub masked_paths: Vec<String>,
        /// Paths made read-only.
        pub readonly_paths: Vec<String>,
        /// SELinux label of the mounts.
        pub mount_label: String,
        /// Cache and memory bandwidth.
        pub intel_rdt: Option<IntelRdt>,
        /// NUMA policy.
        pub memory_policy: Option<LinuxMemoryPolicy>,
        /// Execution domain.
        pub personality: Option<LinuxPersonality>,
        /// Offsets of a time namespace, by clock.
        pub time_offsets: BTreeMap<String, TimeOffset>,
        /// Fields that we do not know.
        #[serde(flatten)]
        pub extra: Extra,
    }

    /// A range of ids.
    pub struct IdMap {
        /// First id inside.
        #[serde(rename = "containerID")]
        pub container_id: u32,
        /// First id on the host.
        #[serde(rename = "hostID")]
        pub host_id: u32,
        /// How many.
        pub size: u32,
    }

    /// A namespace.
    pub struct LinuxNamespace {
        /// Its kind.
        #[serde(rename = "type")]
        pub kind: NamespaceType,
        /// The one to join; empty: a new one.
        pub path: String,
    }

    /// A device node.
    pub struct LinuxDevice {
        /// Absolute path in the container.
        pub path: String,
        /// `c`, `b`, `u` or `p`.
        #[serde(rename = "type")]
        pub kind: String,
        /// Major number.
        pub major: i64,
        /// Minor number.
        pub minor: i64,
        /// Permissions; `None`: 0666.
        pub file_mode: Option<u32>,
        /// Owner; `None`: root.
        pub uid: Option<u32>,
        /// Group; `None`: root.
        pub gid: Option<u32>,
    }

    /// A filter of system calls.
    pub struct Seccomp {
        /// What happens to calls that no rule names.
        pub default_action: SeccompAction,
        /// The errno of the default action; `None`: EPERM.
        pub default_errno_ret: Option<u32>,
        /// `SCMP_ARCH_..`; empty: the machine's own.
        pub architectures: Vec<String>,
        /// `SECCOMP_FILTER_FLAG_..`; `None`: the runtime's choice.
        pub flags: Option<Vec<String>>,
        /// Socket of a notification agent.
        pub listener_path: String,
        /// Told to that agent.
        pub listener_metadata: String,
        /// The rules.
        pub syscalls: Vec<SeccompSyscall>,
    }

    /// A rule of a filter.
    pub struct SeccompSyscall {
        /// The calls, by name.
        pub names: Vec<String>,
        /// What happens.
        pub action: SeccompAction,
        /// Its errno; `None`: EPERM.
        pub errno_ret: Option<u32>,
        /// Conditions on arguments, all of which must hold.
        pub args: Vec<SeccompArg>,
    }

    /// A condition on an argument.
    pub struct SeccompArg {
        /// Which argument, from 0.
        pub index: u32,
        /// What it is compared with; the mask of `SCMP_CMP_MASKED_EQ`.
        pub value: u64,
        /// What the masked argument is compared with.
        pub value_two: u64,
        /// How.
        pub op: SeccompOp,
    }

    /// A network device to move in.
    pub struct LinuxNetDevice {
        /// Its name in the container; empty: as on the host.
        pub name: String,
    }

    /// Cache and memory bandwidth, as resctrl has it.
    pub struct IntelRdt {
        /// The class of service; empty: one of the container's own. `/` is the root's.
        #[serde(rename = "closID")]
        pub clos_id: String,
        /// Lines of the class' schemata.
        pub schemata: Vec<String>,
        /// Such lines for the L3 cache, before version 1.3.
        pub l3_cache_schema: String,
        /// Such lines for memory bandwidth, before version 1.3.
        pub mem_bw_schema: String,
        /// A folder of monitoring for the container alone.
        pub enable_monitoring: bool,
        /// What asked for that before version 1.3: for caches.
        #[serde(rename = "enableCMT")]
        pub enable_cmt: bool,
        /// The same for memory bandwidth.
        #[serde(rename = "enableMBM")]
        pub enable_mbm: bool,
        /// Fields that we do not know.
        #[serde(flatten)]
        pub extra: Extra,
    }

    /// NUMA policy, as set_mempolicy(2) has it.
    pub struct LinuxMemoryPolicy {
        /// `MPOL_..`.
        pub mode: String,
        /// List of nodes, such as `0-3,7`.
        pub nodes: String,
        /// `MPOL_F_..`.
        pub flags: Vec<String>,
    }

    /// Execution domain.
    pub struct LinuxPersonality {
        /// `LINUX` or `LINUX32`.
        pub domain: String,
        /// None is defined yet.
        pub flags: Vec<String>,
    }

    /// Offset of a clock.
    pub struct TimeOffset {
        /// Seconds.
        pub secs: i64,
        /// And nanoseconds.
        pub nanosecs: u32,
    }
}

word_enum! {
    /// A kind of namespace.
    pub enum NamespaceType {
        /// Processes.
        Pid = "pid",
        /// Network.
        Network = "network",
        /// Mounts.
        Mount = "mount",
        /// System V IPC and POSIX message queues.
        Ipc = "ipc",
        /// Host and domain name.
        Uts = "uts",
        /// Users.
        User = "user",
        /// cgroups.
        Cgroup = "cgroup",
        /// Clocks.
        Time = "time",
    }
}

impl Default for NamespaceType {
    fn default() -> Self {
        NamespaceType::Other(String::new())
    }
}

impl NamespaceType {
    /// The `CLONE_NEW*` flag.
    pub fn clone_flag(&self) -> Option<u64> {
        Some(match self {
            NamespaceType::Time => 0x80,
            NamespaceType::Mount => 0x0002_0000,
            NamespaceType::Cgroup => 0x0200_0000,
            NamespaceType::Uts => 0x0400_0000,
            NamespaceType::Ipc => 0x0800_0000,
            NamespaceType::User => 0x1000_0000,
            NamespaceType::Pid => 0x2000_0000,
            NamespaceType::Network => 0x4000_0000,
            NamespaceType::Other(_) => return None,
        })
    }
}

word_enum! {
    /// What a filter does with a call.
    pub enum SeccompAction {
        /// Ends the thread.
        Kill = "SCMP_ACT_KILL",
        /// Ends the process.
        KillProcess = "SCMP_ACT_KILL_PROCESS",
        /// Ends the thread.
        KillThread = "SCMP_ACT_KILL_THREAD",
        /// Sends SIGSYS.
        Trap = "SCMP_ACT_TRAP",
        /// Fails with an errno.
        Errno = "SCMP_ACT_ERRNO",
        /// Asks the tracer.
        Trace = "SCMP_ACT_TRACE",
        /// Lets it pass.
        Allow = "SCMP_ACT_ALLOW",
        /// Lets it pass and logs it.
        Log = "SCMP_ACT_LOG",
        /// Asks an agent.
        Notify = "SCMP_ACT_NOTIFY",
    }
}

impl Default for SeccompAction {
    fn default() -> Self {
        SeccompAction::Other(String::new())
    }
}

word_enum! {
    /// A comparison.
    pub enum SeccompOp {
        /// `!=`
        NotEqual = "SCMP_CMP_NE",
        /// `<`
        Less = "SCMP_CMP_LT",
        /// `<=`
        LessOrEqual = "SCMP_CMP_LE",
        /// `==`
        Equal = "SCMP_CMP_EQ",
        /// `>=`
        GreaterOrEqual = "SCMP_CMP_GE",
        /// `>`
        Greater = "SCMP_CMP_GT",
        /// `(argument & value) == valueTwo`
        MaskedEqual = "SCMP_CMP_MASKED_EQ",
    }
}

impl Default for SeccompOp {
    fn default() -> Self {
        SeccompOp::Other(String::new())
    }
}
