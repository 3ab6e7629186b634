//! The spec, put together.

use std::collections::BTreeMap;

use bowline_model::runtime_spec::{
    DeviceRule, IdMap, Linux, LinuxDevice, LinuxNamespace, LinuxResources, NamespaceType, Process,
    ProcessUser, Root, Spec,
};
use bowline_model::spec::{IdMapping, NamespaceMode, Propagation};

use crate::{ContainerInputs, HostDevice, Note, SpecError, clean_path};
use crate::{capabilities, mounts, process, resources, security};

/// The version of the spec that we write.
const OCI_VERSION: &str = "1.2.0";

/// A spec and what came with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    /// The spec.
    pub spec: Spec,
    /// What was left out, and why.
    pub notes: Vec<Note>,
    /// Folders of the image's VOLUMEs, to be made in the root where they are missing. They hold what the image has
    /// there and are written per container because the whole root is.
    pub directories: Vec<String>,
}

/// The spec of a container. Mistakes of the client are found here, so that they fail CreateContainer.
pub fn container_spec(inputs: &ContainerInputs<'_>) -> Result<Built, SpecError> {
    let security = &inputs.container.security;
    if security.run_as_group.is_some()
        && security.run_as_user.is_none()
        && security.run_as_username.is_empty()
    {
        return Err(SpecError::GroupWithoutUser);
    }
    if security.privileged && !inputs.pod.security.privileged {
        return Err(SpecError::PrivilegedInUnprivilegedSandbox);
    }
    for (index, device) in inputs.container.devices.iter().enumerate() {
        if !device.permissions.chars().all(|letter| "rwm".contains(letter)) {
            let reason = format!("{:?} is not possible; r, w and m are", device.permissions);
            return Err(SpecError::invalid(format!("devices[{index}].permissions"), reason));
        }
    }
    let mut notes = Vec::new();
    let process = process(inputs, &mut notes)?;
    let linux = linux(inputs, &process, &mut notes)?;
    let spec = Spec {
        oci_version: OCI_VERSION.into(),
        root: Some(Root { path: "rootfs".into(), readonly: security.readonly_rootfs }),
        mounts: mounts::mounts(inputs)?,
        annotations: annotations(inputs),
        process: Some(process),
        linux: Some(linux),
        ..Spec::default()
    };
    let directories = volume_directories(inputs, &spec, &mut notes);
    Ok(Built { spec, notes, directories })
}

fn process(inputs: &ContainerInputs<'_>, notes: &mut Vec<Note>) -> Result<Process, SpecError> {
    let security = &inputs.container.security;
    let oom_score_adj = i32::try_from(inputs.container.resources.oom_score_adj)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| SpecError::invalid("linux.resources.oom_score_adj", "goes from -1000 to 1000"))?;
    Ok(Process {
        terminal: inputs.container.tty,
        user: ProcessUser {
            uid: inputs.user.uid,
            gid: inputs.user.gid,
            additional_gids: inputs.user.groups.clone(),
            ..ProcessUser::default()
        },
        args: process::args(inputs)?,
        env: process::env(inputs, notes)?,
        cwd: process::cwd(inputs)?,
        capabilities: Some(capabilities::capability_sets(security, inputs.node, notes)?),
        rlimits: inputs.node.default_ulimits.clone(),
        no_new_privileges: security.no_new_privs,
        apparmor_profile: {
            security::selinux(inputs)?;
            security::apparmor(inputs, notes)?
        },
        oom_score_adj: Some(oom_score_adj),
        selinux_label: inputs.selinux.map(|labels| labels.process.clone()).unwrap_or_default(),
        ..Process::default()
    })
}

fn linux(inputs: &ContainerInputs<'_>, process: &Process, notes: &mut Vec<Note>) -> Result<Linux, SpecError> {
    let security = &inputs.container.security;
    let sets = process.capabilities.clone().unwrap_or_default();
    let (masked_paths, readonly_paths) = if security.privileged {
        (Vec::new(), Vec::new())
    } else {
        (
            clean_list("security_context.masked_paths", &security.masked_paths)?,
            clean_list("security_context.readonly_paths", &security.readonly_paths)?,
        )
    };
    let (uid_mappings, gid_mappings) = match &inputs.pod.security.namespaces.user {
        Some(user) if !user.node => (vec![id_map(&user.uids)], vec![id_map(&user.gids)]),
        _ => (Vec::new(), Vec::new()),
    };
    let resources = resources::linux_resources(&inputs.container.resources, inputs.node, notes)?;
    Ok(Linux {
        uid_mappings,
        gid_mappings,
        resources: Some(LinuxResources { devices: device_rules(inputs), ..resources }),
        cgroups_path: inputs.cgroup_path.to_owned(),
        namespaces: namespaces(inputs)?,
        devices: devices(inputs).iter().map(device).collect(),
        seccomp: security::seccomp(inputs, &sets)?,
        rootfs_propagation: root_propagation(inputs).to_owned(),
        masked_paths,
        readonly_paths,
        mount_label: inputs.selinux.map(|labels| labels.mount.clone()).unwrap_or_default(),
        ..Linux::default()
    })
}

/// Other runtimes make mounts below a private root private; the root must let pass what a volume asks for.
fn root_propagation(inputs: &ContainerInputs<'_>) -> &'static str {
    let asked = |what| inputs.container.mounts.iter().any(|mount| mount.propagation == what);
    if asked(Propagation::Bidirectional) {
        "rshared"
    } else if asked(Propagation::HostToContainer) {
        "rslave"
    } else {
        ""
    }
}

/// The pod's namespaces are joined, whatever the container says about them; only PID is its own choice. A
/// namespace that is not listed is the launcher's: the host's, or one that it is in already.
fn namespaces(inputs: &ContainerInputs<'_>) -> Result<Vec<LinuxNamespace>, SpecError> {
    let pod = &inputs.pod.security.namespaces;
    let paths = inputs.namespaces;
    let mut list = Vec::new();
    let mut add = |kind, path: &str| list.push(LinuxNamespace { kind, path: path.to_owned() });

    if let (Some(user), Some(path)) = (&pod.user, &paths.user)
        && !user.node
    {
        add(NamespaceType::User, path);
    }
    match inputs.container.security.namespaces.pid {
        NamespaceMode::Container => add(NamespaceType::Pid, ""),
        NamespaceMode::Node => {}
        NamespaceMode::Pod => {
            if let Some(path) = &paths.pid {
                add(NamespaceType::Pid, path);
            }
        }
        NamespaceMode::Target => match &paths.pid {
            Some(path) => add(NamespaceType::Pid, path),
            None => {
                let field = "security_context.namespace_options.target_id";
                return Err(SpecError::invalid(field, "the target container does not run"));
            }
        },
    }
    if let (NamespaceMode::Pod, Some(path)) = (pod.network, &paths.network) {
        add(NamespaceType::Network, path);
    }
    if let (NamespaceMode::Pod, Some(path)) = (pod.ipc, &paths.ipc) {
        add(NamespaceType::Ipc, path);
    }
    // With the host's network a pod has the host's name too.
    if let (NamespaceMode::Pod, Some(path)) = (pod.network, &paths.uts) {
        add(NamespaceType::Uts, path);
    }
    add(NamespaceType::Mount, "");
    add(NamespaceType::Cgroup, "");
    Ok(list)
}

/// All devices that the container sees besides the usual ones; what it names itself counts before the host's.
fn devices(inputs: &ContainerInputs<'_>) -> Vec<HostDevice> {
    let mut list = inputs.devices.to_vec();
    if inputs.container.security.privileged && !inputs.node.privileged_without_host_devices {
        for device in &inputs.node.host_devices {
            if list.iter().all(|there| there.path != device.path) {
                list.push(device.clone());
            }
        }
    }
    list
}

fn device(from: &HostDevice) -> LinuxDevice {
    LinuxDevice {
        path: from.path.clone(),
        kind: from.kind.to_string(),
        major: from.major.into(),
        minor: from.minor.into(),
        file_mode: Some(from.mode & 0o7777),
        uid: Some(from.uid),
        gid: Some(from.gid),
    }
}

/// Nothing is allowed but what is listed; the usual devices (null, zero, ..) are the runtime's to add.
fn device_rules(inputs: &ContainerInputs<'_>) -> Vec<DeviceRule> {
    let everything = |allow| DeviceRule { allow, access: "rwm".into(), ..DeviceRule::default() };
    if inputs.container.security.privileged && !inputs.node.privileged_without_host_devices {
        return vec![everything(true)];
    }
    let mut rules = vec![everything(false)];
    rules.extend(inputs.devices.iter().filter(|device| matches!(device.kind, 'c' | 'b')).map(|device| {
        DeviceRule {
            allow: true,
            kind: device.kind.to_string(),
            major: Some(device.major.into()),
            minor: Some(device.minor.into()),
            access: if device.permissions.is_empty() { "rwm".into() } else { device.permissions.clone() },
        }
    }));
    rules
}

/// What containerd sets, which Kata, NRI plugins and other shims read. Nothing comes from the image's labels.
fn annotations(inputs: &ContainerInputs<'_>) -> BTreeMap<String, String> {
    let metadata = &inputs.pod.metadata;
    let image = &inputs.container.image;
    let image_name = if image.user_specified.is_empty() { &image.image } else { &image.user_specified };
    [
        ("container-type", "container"),
        ("sandbox-id", inputs.sandbox_id),
        ("sandbox-name", &metadata.name),
        ("sandbox-namespace", &metadata.namespace),
        ("sandbox-uid", &metadata.uid),
        ("container-name", &inputs.container.name),
        ("image-name", image_name),
    ]
    .into_iter()
    .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value.to_owned()))
    .collect()
}

fn clean_list(field: &str, paths: &[String]) -> Result<Vec<String>, SpecError> {
    paths
        .iter()
        .map(|path| {
            clean_path(path).ok_or_else(|| SpecError::invalid(field, format!("{path:?} is not absolute")))
        })
        .collect()
}

fn volume_directories(inputs: &ContainerInputs<'_>, spec: &Spec, notes: &mut Vec<Note>) -> Vec<String> {
    let mut list = Vec::new();
    for volume in &inputs.image.volumes {
        match clean_path(volume).filter(|path| path != "/") {
            Some(path) if spec.mounts.iter().any(|mount| mount.destination == path) => {}
            Some(path) => list.push(path),
            None => notes
                .push(Note::new("image", format!("VOLUME {volume:?} left out: not a path below the root"))),
        }
    }
    list
}

pub(crate) fn id_map(from: &IdMapping) -> IdMap {
    IdMap { container_id: from.container_id, host_id: from.host_id, size: from.length }
}
