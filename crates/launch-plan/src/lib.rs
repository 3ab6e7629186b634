//! The launch plan: everything that must happen between `clone3` and `execve`, resolved and flat.
//!
//! The daemon (or the CLI) compiles an OCI runtime spec to a plan (`plan`), seals it in a memfd and passes it,
//! with the descriptors that it counts on, to whoever launches (`launch`, in the pod's monitor). The launcher
//! needs no JSON, no BPF compiler and no look-up; its child, after `clone3`, only walks these lists.
//!
//! Design, limits and versions: docs/design/launch-plan.md.

mod hook;
pub mod wire;

pub use hook::{HookProgram, HookPrograms, MAX_HOOKS_LEN};

use std::ffi::CString;

use wire::{Blob, DecodeError, Reader, Wire};

/// First bytes of an encoded plan.
pub const MAGIC: [u8; 4] = *b"BWLP";
/// The version that this build writes and reads.
pub const VERSION: u32 = 1;
/// The longest plan that is accepted, in bytes: argv and environment of `execve` end at 2 MiB by default.
pub const MAX_LEN: usize = 4 << 20;

/// The position of a descriptor in the list that travels beside the plan.
pub type FdIndex = u16;

wire_struct! {
    /// One process to launch.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct LaunchPlan {
        /// Program and arguments; the program is looked up in the `PATH` of `envp` if it has no slash.
        pub argv: Vec<CString>,
        /// `NAME=value` lines.
        pub envp: Vec<CString>,
        /// Absolute working directory inside the root.
        pub cwd: CString,
        /// Make the working directory if it is missing.
        pub create_cwd: bool,
        /// Standard streams.
        pub terminal: bool,
        /// Terminal size at start: rows, columns; zeroes: unset.
        pub window: (u16, u16),
        /// `CLONE_NEW*` flags of namespaces made for this process. `CLONE_NEWNS` must be among them when `rootfs` is given.
        pub new_namespaces: u64,
        /// Namespaces joined before anything else: descriptor and its `CLONE_NEW*` flag.
        pub join_namespaces: Vec<JoinNamespace>,
        /// Mappings of a new user namespace: contents of uid_map and gid_map.
        pub user_maps: Option<UserMaps>,
        /// The root file system; `None`: that of the joined mount namespace (exec).
        pub rootfs: Option<Rootfs>,
        /// Mount program, in order, below the root.
        pub steps: Vec<Step>,
        /// Root is made read-only after the steps.
        pub readonly_root: bool,
        /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED` (with or without `MS_REC`) for the root; 0: private.
        pub root_propagation: u64,
        /// Hostname for a new UTS namespace.
        pub hostname: Option<CString>,
        /// NIS domain name for a new UTS namespace.
        pub domainname: Option<CString>,
        /// Kernel parameters: path below /proc/sys and value.
        pub sysctls: Vec<(CString, CString)>,
        /// cgroups to make (where `create`) and to join.
        pub cgroups: Vec<CgroupStep>,
        /// Device filter of cgroup v2, as BPF instructions of 8 bytes, attached to the cgroup of the unified hierarchy.
        pub device_filter: Option<Blob>,
        /// Limits, by number of the resource.
        pub rlimits: Vec<Rlimit>,
        /// Written to `oom_score_adj`.
        pub oom_score_adj: Option<i32>,
        /// What schedulers and the NUMA allocator are told.
        pub scheduling: Scheduling,
        /// User, groups, capabilities and what goes with them.
        pub credentials: Credentials,
        /// Seccomp filter.
        pub seccomp: Option<Seccomp>,
        /// AppArmor profile to enter at exec.
        pub apparmor: Option<CString>,
        /// SELinux label to take at exec.
        pub selinux: Option<CString>,
        /// SELinux label of the root and of what is mounted for the process alone.
        pub mount_label: Option<CString>,
        /// Wait here, before exec, until one byte can be read from this descriptor.
        pub hold: Option<FdIndex>,
    }
}

wire_struct! {
    /// What the kernel's schedulers and its NUMA allocator are told of a process and all that it starts.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Scheduling {
        /// sched_setattr(2).
        pub scheduler: Option<SchedAttr>,
        /// ioprio_set(2): the class in the upper three bits, then the priority.
        pub io_priority: Option<u16>,
        /// set_mempolicy(2).
        pub memory_policy: Option<MemoryPolicy>,
        /// personality(2).
        pub personality: Option<u32>,
    }
}

wire_struct! {
    /// A scheduling policy, with the kernel's numbers.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct SchedAttr {
        /// `SCHED_*`.
        pub policy: u32,
        /// `SCHED_FLAG_*`.
        pub flags: u64,
        /// -20 to 19.
        pub nice: i32,
        /// 1 to 99 for real-time policies, else 0.
        pub priority: u32,
        /// Nanoseconds, as the next two; for `SCHED_DEADLINE`.
        pub runtime: u64,
        /// See `runtime`.
        pub deadline: u64,
        /// See `runtime`.
        pub period: u64,
    }
}

wire_struct! {
    /// Where memory is allocated.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct MemoryPolicy {
        /// `MPOL_*` with `MPOL_F_*`.
        pub mode: u32,
        /// Bit n of the mask is node n.
        pub nodes: Vec<u64>,
    }
}

wire_struct! {
    /// A namespace to join.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct JoinNamespace {
        /// The namespace, or a pidfd.
        pub fd: FdIndex,
        /// Its `CLONE_NEW*` flag (several, for a pidfd).
        pub flags: u64,
    }
}

wire_struct! {
    /// The mappings of a new user namespace.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct UserMaps {
        /// Contents of uid_map.
        pub uid_map: CString,
        /// Contents of gid_map.
        pub gid_map: CString,
    }
}

wire_enum! {
    /// Where the root file system comes from.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Rootfs {
        /// An overlay. All paths are relative to the launcher's working directory (the folder of layers), so that they
        /// are short: a mount's data ends at one page.
        Overlay = 0 {
            /// Layers, topmost first, as overlayfs wants them.
            lower: Vec<CString>,
            /// Folder of writes; with `work`, on one file system.
            upper: CString,
            /// overlayfs' own folder.
            work: CString,
        },
        /// A detached mount that becomes the root.
        Tree = 1 {
            /// The mount.
            fd: FdIndex,
        },
    }
}

wire_enum! {
    /// What a mount shows.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Source {
        /// A detached mount (open_tree with OPEN_TREE_CLONE, or fsmount), which is moved to its place.
        Tree = 0 {
            /// The mount.
            fd: FdIndex,
        },
        /// A path in the launcher's own mount namespace, bound.
        Path = 1 {
            /// Absolute path.
            path: CString,
            /// With the mounts below it.
            recursive: bool,
        },
        /// A new file system.
        New = 2 {
            /// Its type.
            fstype: CString,
            /// What mountinfo shows as its source.
            name: CString,
            /// Options: key, and value where it has one.
            options: Vec<(CString, Option<CString>)>,
        },
        /// Layers of an image, or a part of them: an overlay without a folder of writes. Paths as in
        /// [`Rootfs::Overlay`].
        Layers = 3 {
            /// Layers, topmost first; at least one.
            lower: Vec<CString>,
            /// Path below the layers' root, resolved in it; empty: all.
            sub_path: CString,
        },
    }
}

wire_enum! {
    /// What the mount point is made as, if it is missing.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum TargetKind {
        /// A folder.
        Dir = 0,
        /// An empty file.
        File = 1,
        /// Whatever the source is.
        LikeSource = 2,
    }
}

wire_enum! {
    /// One step of building the root. Paths are absolute inside the root and resolved in it: a symlink of the image
    /// never leads out.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Step {
        /// Mounts something.
        Mount = 0 {
            /// What.
            source: Source,
            /// Where.
            target: CString,
            /// What to make of a missing mount point.
            kind: TargetKind,
            /// `MOUNT_ATTR_*` to set.
            attr_set: u64,
            /// `MOUNT_ATTR_*` to clear (`MOUNT_ATTR__ATIME` to change the atime mode).
            attr_clr: u64,
            /// The attributes hold for the mounts below as well.
            attr_recursive: bool,
            /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, with or without `MS_REC`; 0: private.
            propagation: u64,
            /// The file system may be missing in this kernel; then the step is left out.
            optional: bool,
        },
        /// Makes a device node, FIFO or regular file.
        Mknod = 1 {
            /// Path.
            path: CString,
            /// `S_IF*` and permissions.
            mode: u32,
            /// Device numbers.
            major: u32,
            /// Device numbers.
            minor: u32,
            /// Owner.
            uid: u32,
            /// Group.
            gid: u32,
        },
        /// Makes a symlink; one that is there already stays.
        Symlink = 2 {
            /// What it says.
            target: CString,
            /// Where it is.
            path: CString,
        },
        /// Makes a folder with its parents.
        Mkdir = 3 {
            /// Path.
            path: CString,
            /// Permissions of the last one.
            mode: u32,
        },
        /// Hides a path: a file behind /dev/null, a folder behind an empty read-only tmpfs. A missing one is fine.
        Mask = 4 {
            /// Path.
            path: CString,
        },
        /// Makes a path read-only. A missing one is fine.
        ReadOnly = 5 {
            /// Path.
            path: CString,
        },
        /// Changes the attributes of the mount at a path (`mount_setattr`): what a single `Mount` cannot say, because
        /// part of it holds for the mounts below and part does not, or because it may only hold once they are there.
        Attributes = 6 {
            /// The mount's root.
            path: CString,
            /// `MOUNT_ATTR_*` to set.
            attr_set: u64,
            /// `MOUNT_ATTR_*` to clear.
            attr_clr: u64,
            /// For the mounts below as well.
            recursive: bool,
        },
        /// Makes a path a mount of its own, so that it stays writable below a root that becomes read-only. A missing
        /// one is fine.
        Keep = 7 {
            /// Path.
            path: CString,
        },
    }
}

wire_struct! {
    /// A cgroup that the process joins.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct CgroupStep {
        /// Position of the hierarchy in the launcher's table (docs/design/cgroups.md).
        pub hierarchy: u8,
        /// Path from the root of the hierarchy, without a leading slash.
        pub path: CString,
        /// Make the folder, with missing parents.
        pub create: bool,
        /// Files to write before the process joins.
        pub writes: Vec<CgroupWrite>,
    }
}

wire_struct! {
    /// A value for a file of a cgroup.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct CgroupWrite {
        /// Name of the file.
        pub file: CString,
        /// What to write.
        pub value: Blob,
        /// A missing file (a controller that is not there) is fine.
        pub optional: bool,
    }
}

wire_struct! {
    /// A resource limit.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Rlimit {
        /// `RLIMIT_*`.
        pub resource: u32,
        /// Soft limit.
        pub soft: u64,
        /// Hard limit.
        pub hard: u64,
    }
}

wire_struct! {
    /// Who the process is.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct Credentials {
        /// User.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Supplemental groups.
        pub groups: Vec<u32>,
        /// File mode creation mask; `None`: 0022.
        pub umask: Option<u32>,
        /// Set no_new_privs.
        pub no_new_privs: bool,
        /// Capability sets by bit number.
        pub bounding: u64,
        /// Effective set.
        pub effective: u64,
        /// Permitted set.
        pub permitted: u64,
        /// Inheritable set.
        pub inheritable: u64,
        /// Ambient set.
        pub ambient: u64,
    }
}

wire_struct! {
    /// A compiled filter.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Seccomp {
        /// `struct sock_filter` instructions, 8 bytes each, host byte order.
        pub filter: Blob,
        /// `SECCOMP_FILTER_FLAG_*`.
        pub flags: u32,
    }
}

impl LaunchPlan {
    /// A plan that runs `argv` and nothing else; the rest is filled in by the caller.
    pub fn new(argv: Vec<CString>) -> Self {
        Self {
            argv,
            envp: Vec::new(),
            cwd: c"/".into(),
            create_cwd: false,
            terminal: false,
            window: (0, 0),
            new_namespaces: 0,
            join_namespaces: Vec::new(),
            user_maps: None,
            rootfs: None,
            steps: Vec::new(),
            readonly_root: false,
            root_propagation: 0,
            hostname: None,
            domainname: None,
            sysctls: Vec::new(),
            cgroups: Vec::new(),
            device_filter: None,
            rlimits: Vec::new(),
            oom_score_adj: None,
            scheduling: Scheduling::default(),
            credentials: Credentials::default(),
            seccomp: None,
            apparmor: None,
            selinux: None,
            mount_label: None,
            hold: None,
        }
    }

    /// The bytes of the plan, with magic and version in front.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        out.extend_from_slice(&MAGIC);
        VERSION.put(&mut out);
        self.put(&mut out);
        out
    }

    /// Reads a plan.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        if reader.take(4)? != MAGIC {
            return Err(DecodeError::Magic);
        }
        match u32::get(&mut reader)? {
            VERSION => {}
            other => return Err(DecodeError::Version(other)),
        }
        let plan = LaunchPlan::get(&mut reader)?;
        reader.finish()?;
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> LaunchPlan {
        let mut plan = LaunchPlan::new(vec![c"sh".into(), c"-c".into()]);
        plan.rootfs = Some(Rootfs::Overlay {
            lower: vec![c"a".into(), c"b".into()],
            upper: c"u".into(),
            work: c"w".into(),
        });
        plan.steps = vec![
            Step::Mount {
                source: Source::New {
                    fstype: c"proc".into(),
                    name: c"proc".into(),
                    options: vec![(c"hidepid".into(), Some(c"2".into()))],
                },
                target: c"/proc".into(),
                kind: TargetKind::Dir,
                attr_set: 14,
                attr_clr: 0,
                attr_recursive: false,
                propagation: 0,
                optional: false,
            },
            Step::Mask { path: c"/proc/keys".into() },
        ];
        plan.seccomp = Some(Seccomp { filter: Blob(vec![1; 16]), flags: 2 });
        plan
    }

    #[test]
    fn a_plan_survives_the_way_there_and_back() {
        assert_eq!(LaunchPlan::decode(&example().encode()), Ok(example()));
    }

    #[test]
    fn no_prefix_of_a_plan_is_a_plan() {
        let bytes = example().encode();
        for len in 0..bytes.len() {
            assert!(LaunchPlan::decode(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_lying_count_asks_for_no_memory() {
        let mut bytes = Vec::from(MAGIC);
        VERSION.put(&mut bytes);
        u32::MAX.put(&mut bytes);
        assert_eq!(LaunchPlan::decode(&bytes), Err(DecodeError::Short));
    }
}
