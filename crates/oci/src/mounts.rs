//! The mounts of a container: the usual ones, the pod's files, the volumes.

use bowline_model::runtime_spec::Mount;
use bowline_model::spec::{self, NamespaceMode, Propagation};

use crate::{ContainerInputs, SpecError};

/// All mounts, parents before children. A volume on the path of a usual mount replaces it.
pub(crate) fn mounts(inputs: &ContainerInputs<'_>) -> Result<Vec<Mount>, SpecError> {
    let mut all = usual(inputs);
    all.extend(pod_files(inputs));
    let mut volumes = Vec::new();
    for (index, asked) in inputs.container.mounts.iter().enumerate() {
        volumes.push(volume(inputs, index, asked)?);
    }
    all.retain(|mount| volumes.iter().all(|volume| volume.destination != mount.destination));
    all.append(&mut volumes);
    // A stable sort: what has the same depth stays in the order asked for.
    all.sort_by_key(|mount| depth(&mount.destination));
    Ok(all)
}

/// An absolute path in its shortest form, `..` resolved as text; `None` if it is relative or contains a NUL byte.
/// Symlinks are the launcher's business: it resolves inside the root.
pub fn clean_path(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

fn depth(path: &str) -> usize {
    path.split('/').filter(|part| !part.is_empty()).count()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Mount::default()
    }
}

fn usual(inputs: &ContainerInputs<'_>) -> Vec<Mount> {
    let namespaces = &inputs.pod.security.namespaces;
    let privileged = inputs.container.security.privileged;
    let mut sys = vec!["nosuid", "noexec", "nodev"];
    let mut cgroup = vec!["nosuid", "noexec", "nodev", "relatime"];
    if !privileged {
        sys.push("ro");
        cgroup.push("ro");
    }
    let in_user_namespace = namespaces.user.as_ref().is_some_and(|user| !user.node);
    let sysfs = if in_user_namespace && namespaces.network == NamespaceMode::Node {
        // sysfs shows the network namespace, so only its owner may mount one: a pod with a user namespace of its own
        // and the host's network gets the host's, bound.
        mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", "rro"])
    } else {
        mount("/sys", "sysfs", "sysfs", &sys)
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        sysfs,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        shm(inputs),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup),
    ]
}

fn shm(inputs: &ContainerInputs<'_>) -> Mount {
    let bind = ["rbind", "rprivate", "nosuid", "noexec", "nodev"];
    match &inputs.files.shm {
        _ if inputs.pod.security.namespaces.ipc == NamespaceMode::Node => {
            mount("/dev/shm", "bind", "/dev/shm", &bind)
        }
        Some(path) => mount("/dev/shm", "bind", path, &bind),
        None => mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    }
}

fn pod_files(inputs: &ContainerInputs<'_>) -> Vec<Mount> {
    let files = inputs.files;
    // Read-only with a read-only root: the file is the pod's, and a write would reach its neighbours.
    let mut options = vec!["rbind", "rprivate"];
    if inputs.container.security.readonly_rootfs {
        options.push("ro");
    }
    [
        ("/etc/hosts", &files.hosts),
        ("/etc/hostname", &files.hostname),
        ("/etc/resolv.conf", &files.resolv_conf),
    ]
    .into_iter()
    .filter_map(|(path, source)| source.as_ref().map(|source| mount(path, "bind", source, &options)))
    .map(|mount| owned_inside(inputs, mount))
    .collect()
}

/// Files of root are root's in the pod's user namespace as well.
fn owned_inside(inputs: &ContainerInputs<'_>, mut mount: Mount) -> Mount {
    if let Some(user) = inputs.pod.security.namespaces.user.as_ref().filter(|user| !user.node) {
        mount.uid_mappings = vec![crate::spec::id_map(&user.uids)];
        mount.gid_mappings = vec![crate::spec::id_map(&user.gids)];
    }
    mount
}

/// A volume. Nothing is said for a writable one: an explicit `rw` makes runc 1.2 and later clear flags of the source.
fn volume(inputs: &ContainerInputs<'_>, index: usize, asked: &spec::Mount) -> Result<Mount, SpecError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let destination = clean_path(&asked.container_path).filter(|path| path != "/").ok_or_else(|| {
        let reason = format!("{:?} is not an absolute path below the root", asked.container_path);
        SpecError::invalid(field("container_path"), reason)
    })?;
    let source = source(inputs, index, asked)?;

    let mut options = vec!["rbind", propagation(asked.propagation)];
    if asked.recursive_read_only {
        check_recursive(inputs, index, asked)?;
        options.push("rro");
    } else if asked.readonly {
        options.push("ro");
    }
    for option in &asked.options {
        match option.as_str() {
            "noexec" | "nodev" | "nosuid" => options.push(option),
            other => {
                let reason = format!("{other:?} is not possible; noexec, nodev and nosuid are");
                return Err(SpecError::invalid(field("mount_options"), reason));
            }
        }
    }
    let mut volume = mount(&destination, "bind", &source, &options);
    volume.uid_mappings = asked.uid_mappings.iter().map(crate::spec::id_map).collect();
    volume.gid_mappings = asked.gid_mappings.iter().map(crate::spec::id_map).collect();
    if volume.uid_mappings.is_empty() != volume.gid_mappings.is_empty() {
        return Err(SpecError::invalid(
            field("uid_mappings"),
            "uid and gid mappings go together; give both or none",
        ));
    }
    Ok(volume)
}

fn source(inputs: &ContainerInputs<'_>, index: usize, asked: &spec::Mount) -> Result<String, SpecError> {
    if asked.image.is_some() {
        let field = format!("mounts[{index}].image");
        if !asked.readonly {
            return Err(SpecError::invalid(field, "an image volume is read-only; set readonly"));
        }
        let path = inputs.image_volumes.get(&index).cloned();
        return path
            .ok_or_else(|| SpecError::invalid(field, "the image of the volume is not there; pull it first"));
    }
    match asked.host_path.as_str() {
        path if path.starts_with('/') && !path.contains('\0') => Ok(path.to_owned()),
        path => {
            Err(SpecError::invalid(format!("mounts[{index}].host_path"), format!("{path:?} is not absolute")))
        }
    }
}

fn propagation(asked: Propagation) -> &'static str {
    match asked {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    }
}

fn check_recursive(inputs: &ContainerInputs<'_>, index: usize, asked: &spec::Mount) -> Result<(), SpecError> {
    let field = format!("mounts[{index}].recursive_read_only");
    if !asked.readonly {
        return Err(SpecError::invalid(field, "needs readonly as well"));
    }
    if asked.propagation != Propagation::Private {
        // A mount that arrives later would be writable.
        return Err(SpecError::invalid(field, "needs propagation PROPAGATION_PRIVATE"));
    }
    if !inputs.node.recursive_read_only {
        return Err(SpecError::RecursiveReadOnlyUnsupported { field });
    }
    Ok(())
}
