//! The whole compilation, in the order in which the launcher acts.

use std::ffi::CString;

use bowline_launch_plan::{CgroupStep, FdIndex, LaunchPlan, Rlimit, Rootfs, Step};
use bowline_model::cgroup::CgroupLayout;
use bowline_model::runtime_spec::{Hooks, IntelRdt, Linux, LinuxResources, Process, Spec};

use crate::bytes::{absolute, c_string, parts};
use crate::{
    PlanError, credentials, devices, hooks, mounts, namespaces, resources, scheduling, seccomp, sysctls,
};

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct PlanInputs<'a> {
    /// The spec.
    pub spec: &'a Spec,
    /// Where the root file system comes from; the spec's own `root.path` is the caller's to turn into this.
    pub rootfs: &'a RootfsSource,
    /// Folders to make in the root before anything is mounted (VOLUMEs of the image).
    pub directories: &'a [String],
    /// The hierarchies of this host.
    pub cgroups: &'a CgroupLayout,
    /// The container's cgroup below the root of each hierarchy; `None`: what the spec says.
    pub cgroup_path: Option<&'a str>,
    /// `CLONE_NEW*` flags of namespaces in which the launcher is already: joining these is left out.
    pub inherited: u64,
    /// The highest capability number of the kernel.
    pub last_cap: u32,
    /// The machine.
    pub arch: seccomp::Arch,
    /// Filters that were compiled before.
    pub seccomp: &'a seccomp::SeccompCache,
}

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootfsSource {
    /// An overlay; paths are relative to the launcher's working directory.
    Overlay {
        /// Layers, topmost first.
        lower: Vec<CString>,
        /// Folder of writes.
        upper: CString,
        /// overlayfs' own folder.
        work: CString,
    },
    /// A tree of the host, which becomes a descriptor.
    Tree {
        /// Its path.
        path: String,
    },
}

/// A plan and what belongs to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// The plan.
    pub plan: LaunchPlan,
    /// What to open and send beside it; the position is the `FdIndex`.
    pub descriptors: Vec<Descriptor>,
    /// Hooks of the spec, for whoever starts the container: docs/design/hooks.md.
    pub hooks: Option<Hooks>,
    /// Network devices to move in, for whoever has the network: name on the host and in the container.
    pub net_devices: Vec<(String, String)>,
    /// A class of service, for whoever starts the container.
    pub intel_rdt: Option<IntelRdt>,
    /// What was left out because this kernel has nothing of the kind.
    pub notes: Vec<String>,
}

/// Something of the host to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Descriptor {
    /// A path to clone as a detached mount (`open_tree` with OPEN_TREE_CLONE), by a worker that may be killed: the
    /// file system may hang.
    HostTree {
        /// Absolute path on the host.
        path: String,
        /// With the mounts below it.
        recursive: bool,
        /// Symlinks on the way and at the end are followed, in the host's root.
        follow: bool,
        /// Shift the owners (`MOUNT_ATTR_IDMAP`).
        idmap: Option<IdmapText>,
        /// The field of the spec that asks for it.
        field: String,
    },
    /// A namespace.
    Namespace {
        /// Absolute path on the host.
        path: String,
        /// Its `CLONE_NEW*` flag, which the opener checks (NS_GET_NSTYPE).
        flag: u64,
    },
    /// The tree that becomes the root, to clone as a detached mount.
    Rootfs {
        /// Absolute path on the host.
        path: String,
    },
}

/// The mapping of an idmapped mount, as uid_map and gid_map would hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdmapText {
    /// Contents of uid_map.
    pub uid_map: String,
    /// Contents of gid_map.
    pub gid_map: String,
    /// For the mounts below as well.
    pub recursive: bool,
}

/// The list of descriptors while it grows.
#[derive(Debug, Default)]
pub(crate) struct Descriptors(pub(crate) Vec<Descriptor>);

impl Descriptors {
    pub(crate) fn add(&mut self, descriptor: Descriptor) -> Result<FdIndex, PlanError> {
        let index = FdIndex::try_from(self.0.len())
            .map_err(|_| PlanError::invalid("mounts", "more than 65536 of them need a descriptor"))?;
        self.0.push(descriptor);
        Ok(index)
    }
}

/// Turns a spec into a plan.
pub fn compile(inputs: &PlanInputs<'_>) -> Result<Compiled, PlanError> {
    let spec = inputs.spec;
    let default_linux = Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&default_linux);
    let process = spec.process.as_ref().ok_or_else(|| PlanError::invalid("process", "is missing"))?;
    refuse_unsupported(process, linux)?;

    let mut descriptors = Descriptors::default();
    let mut notes = Vec::new();
    let mut plan = program(process)?;
    let inherited = inputs.inherited;
    let namespaces = namespaces::resolve(spec, linux, inherited, &mut descriptors)?;
    plan.rootfs = Some(rootfs(inputs.rootfs, &mut descriptors)?);
    plan.steps = mounts::steps(
        &mounts::MountInputs {
            spec,
            linux,
            layout: inputs.cgroups,
            in_user_namespace: namespaces.user,
            new_cgroup_namespace: namespaces.cgroup,
            directories: inputs.directories,
        },
        &mut descriptors,
    )?;
    plan.new_namespaces = namespaces.new;
    plan.join_namespaces = namespaces.join;
    plan.user_maps = namespaces.user_maps;
    plan.hostname = namespaces.hostname;
    plan.domainname = namespaces.domainname;
    plan.readonly_root = spec.root.as_ref().is_some_and(|root| root.readonly);
    plan.root_propagation = mounts::root_propagation(&linux.rootfs_propagation)?;
    plan.sysctls = sysctls::sysctls(linux, inherited)?;

    let default_resources = LinuxResources::default();
    let limits = linux.resources.as_ref().unwrap_or(&default_resources);
    let path = inputs.cgroup_path.unwrap_or(&linux.cgroups_path);
    plan.cgroups = cgroups(path, limits, inputs.cgroups)?;
    if !plan.cgroups.is_empty() {
        plan.device_filter = devices::filter_for(limits, inputs.cgroups)?;
    }
    plan.rlimits = rlimits(process)?;
    plan.oom_score_adj = oom_score_adj(process)?;
    plan.scheduling = scheduling::scheduling(process, linux)?;
    plan.credentials = credentials::credentials(process, inputs.last_cap, &mut notes)?;
    if let Some(profile) = &linux.seccomp {
        plan.seccomp = Some(inputs.seccomp.compile(profile, inputs.arch)?);
    }
    let label = |field: &str, text: &str| match text {
        "" => Ok(None),
        // It becomes an option in quotes.
        text if text.contains(|letter: char| letter == '"' || letter.is_control()) => {
            Err(PlanError::invalid(field, format!("{text:?} is no label")))
        }
        text => c_string(field, text).map(Some),
    };
    plan.apparmor = label("process.apparmorProfile", &process.apparmor_profile)?;
    plan.selinux = label("process.selinuxLabel", &process.selinux_label)?;
    plan.mount_label = label("linux.mountLabel", &linux.mount_label)?;
    let hooks = spec.hooks.clone().filter(|hooks| !hooks.is_empty());
    hooks.as_ref().map_or(Ok(()), hooks::check)?;
    let net_devices = net_devices(linux)?;
    Ok(Compiled {
        plan,
        descriptors: descriptors.0,
        hooks,
        net_devices,
        intel_rdt: linux.intel_rdt.clone(),
        notes,
    })
}

fn refuse_unsupported(process: &Process, linux: &Linux) -> Result<(), PlanError> {
    let asked = [
        ("process.execCPUAffinity", process.exec_cpu_affinity.is_some()),
        ("linux.timeOffsets", !linux.time_offsets.is_empty()),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(PlanError::unsupported(*field)),
        None => Ok(()),
    }
}

/// The most network devices of a container.
const MAX_NET_DEVICES: usize = 64;

/// Who moves them knows which names the kernel takes.
fn net_devices(linux: &Linux) -> Result<Vec<(String, String)>, PlanError> {
    let field = "linux.netDevices";
    if linux.net_devices.len() > MAX_NET_DEVICES {
        let reason = format!("there are {}; the limit is {MAX_NET_DEVICES}", linux.net_devices.len());
        return Err(PlanError::invalid(field, reason));
    }
    let mut names: Vec<(String, String)> = Vec::new();
    for (host, device) in &linux.net_devices {
        let name = if device.name.is_empty() { host } else { &device.name };
        if !name.contains('%') && names.iter().any(|(_, taken)| taken == name) {
            return Err(PlanError::invalid(field, format!("two devices get the name {name:?}")));
        }
        names.push((host.clone(), name.clone()));
    }
    Ok(names)
}

/// argv, environment, working directory, terminal.
fn program(process: &Process) -> Result<LaunchPlan, PlanError> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(PlanError::invalid("process.args", "names no program"));
    }
    let argv =
        process.args.iter().map(|arg| c_string("process.args", arg.as_str())).collect::<Result<_, _>>()?;
    let mut plan = LaunchPlan::new(argv);
    plan.envp =
        process.env.iter().map(|line| c_string("process.env", line.as_bytes())).collect::<Result<_, _>>()?;
    plan.cwd = c_string("process.cwd", absolute("process.cwd", &process.cwd)?)?;
    plan.create_cwd = true;
    plan.terminal = process.terminal;
    if let Some(size) = process.console_size.as_ref().filter(|_| process.terminal) {
        plan.window = (size.height, size.width);
    }
    Ok(plan)
}

fn rootfs(source: &RootfsSource, descriptors: &mut Descriptors) -> Result<Rootfs, PlanError> {
    Ok(match source {
        RootfsSource::Overlay { lower, upper, work } => {
            Rootfs::Overlay { lower: lower.clone(), upper: upper.clone(), work: work.clone() }
        }
        RootfsSource::Tree { path } => {
            Rootfs::Tree { fd: descriptors.add(Descriptor::Rootfs { path: path.clone() })? }
        }
    })
}

/// A cgroup in every hierarchy, also those without a limit to write: kill, freeze and statistics want them all.
fn cgroups(path: &str, limits: &LinuxResources, layout: &CgroupLayout) -> Result<Vec<CgroupStep>, PlanError> {
    let field = "linux.cgroupsPath";
    if path.is_empty() {
        // No rules of devices either: without a cgroup there is nothing to hang them on.
        return match resources::values(limits, layout)?.is_empty() {
            true => Ok(Vec::new()),
            false => {
                Err(PlanError::invalid(field, "is empty, and linux.resources asks for limits; name a cgroup"))
            }
        };
    }
    if path.contains(':') {
        let hint = " in systemd's notation; give the path of the scope's cgroup";
        return Err(PlanError::Unsupported { field: field.into(), hint });
    }
    let parts = parts(path);
    if parts.is_empty() {
        return Err(PlanError::invalid(field, "is the root cgroup; name one below it"));
    }
    let path = c_string(field, parts.join("/"))?;
    let values = resources::values(limits, layout)?;
    let device_lines = devices::v1_writes(limits, layout)?;
    layout
        .numbered()
        .map(|(hierarchy, _)| {
            let mut writes = resources::writes(&values, hierarchy)?;
            if let Some((_, lines)) = device_lines.as_ref().filter(|(number, _)| *number == hierarchy) {
                writes.extend(lines.iter().cloned());
            }
            Ok(CgroupStep { hierarchy, path: path.clone(), create: true, writes })
        })
        .collect()
}

/// Names of `RLIMIT_*`, by number.
const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

fn rlimits(process: &Process) -> Result<Vec<Rlimit>, PlanError> {
    let mut list: Vec<Rlimit> = Vec::new();
    for (index, limit) in process.rlimits.iter().enumerate() {
        let field = format!("process.rlimits[{index}]");
        let name = limit.kind.strip_prefix("RLIMIT_").unwrap_or(&limit.kind);
        let (_, resource) =
            RLIMITS.iter().zip(0u32..).find(|(known, _)| **known == name).ok_or_else(|| {
                PlanError::invalid(
                    &field,
                    format!("there is no limit {:?}; names are those of getrlimit(2)", limit.kind),
                )
            })?;
        if limit.soft > limit.hard {
            return Err(PlanError::invalid(&field, "the soft limit is above the hard one"));
        }
        if list.iter().any(|there| there.resource == resource) {
            return Err(PlanError::invalid(&field, format!("{} is there twice", limit.kind)));
        }
        list.push(Rlimit { resource, soft: limit.soft, hard: limit.hard });
    }
    Ok(list)
}

fn oom_score_adj(process: &Process) -> Result<Option<i32>, PlanError> {
    match process.oom_score_adj {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(PlanError::invalid("process.oomScoreAdj", format!("{score} is not between -1000 and 1000")))
        }
        score => Ok(score),
    }
}

/// A folder in the root.
pub(crate) fn mkdir(path: CString) -> Step {
    Step::Mkdir { path, mode: 0o755 }
}
