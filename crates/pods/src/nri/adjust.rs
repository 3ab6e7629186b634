//! What plugins want of a container that is being made, onto its spec. Whatever we cannot do is refused by name: a
//! container without it would not be what was asked for.

use bowline_model::runtime_spec::{
    DeviceRule, EnvLine, Hook, Hooks, IntelRdt, IoPriority, LinuxDevice, LinuxMemoryPolicy, LinuxNamespace,
    LinuxNetDevice, LinuxResources, Mount, NamespaceType, Process, Rlimit, Scheduler, Seccomp, SeccompAction,
    SeccompArg, SeccompOp, SeccompSyscall, Spec,
};
use bowline_nri::{Adjustment, api};
use bowline_store::{ContainerRecord, PodRecord};
use rustix::fs::AtFlags;

use super::limits::{self, keep, overlay};
use crate::PodError;
use crate::create::Stored;
use crate::shared::Shared;

/// Changes the spec, and what CRI tells of the container's limits.
pub(super) fn apply(
    shared: &Shared,
    pod: &PodRecord,
    adjustment: &Adjustment,
    record: &mut ContainerRecord,
    stored: &mut Stored,
) -> Result<(), PodError> {
    let wanted = &adjustment.wanted;
    annotations(&wanted.annotations, &mut stored.spec);
    let names: Vec<String> = wanted.cdi_devices.iter().map(|device| device.name.clone()).collect();
    let moved = crate::cdi::apply(&shared.config.cdi_folders, &names, &mut stored.spec)?;
    stored.device_sources.extend(moved);
    process(wanted, stored.spec.process.get_or_insert_default())?;
    mounts(&wanted.mounts, &mut stored.spec)?;
    if let Some(wanted) = &wanted.hooks {
        hooks(wanted, stored.spec.hooks.get_or_insert_default())?;
    }
    let Some(linux) = &wanted.linux else { return Ok(()) };
    if let Some(score) = linux.oom_score_adj {
        let value = i32::try_from(score.value).ok().filter(|score| (-1000..=1000).contains(score));
        let value = value.ok_or_else(|| invalid("oom_score_adj", "goes from -1000 to 1000"))?;
        stored.spec.process.get_or_insert_default().oom_score_adj = Some(value);
        record.spec.resources.oom_score_adj = value.into();
    }
    let part = stored.spec.linux.get_or_insert_default();
    if let Some(resources) = &linux.resources {
        let change = limits::change(resources)?;
        let merged = bowline_oci::merged_resources(&record.spec.resources, &change.asked);
        let built = bowline_oci::linux_resources(&merged, &shared.host.facts, &mut Vec::new());
        let mut after = built.map_err(|error| invalid("resources", &error.to_string()))?;
        let before = part.resources.take().unwrap_or_default();
        keep(&before, &mut after);
        let mut after = LinuxResources { devices: before.devices, ..after };
        overlay(&change.more, &mut after);
        part.resources = Some(after);
        record.spec.resources = merged;
    }
    devices(&linux.devices, part)?;
    namespaces(&linux.namespaces, &mut part.namespaces)?;
    for (name, value) in &linux.sysctl {
        match name.strip_prefix('-') {
            Some(name) => drop(part.sysctl.remove(name)),
            None => drop(part.sysctl.insert(name.clone(), value.clone())),
        }
    }
    if let Some(policy) = &linux.seccomp_policy {
        part.seccomp = Some(seccomp(policy));
    }
    for (host, device) in &linux.net_devices {
        match host.strip_prefix('-') {
            Some(host) => drop(part.net_devices.remove(host)),
            None => {
                let device = LinuxNetDevice { name: device.name.clone() };
                part.net_devices.insert(host.clone(), device);
            }
        }
    }
    if let Some(wish) = &linux.rdt {
        rdt(wish, &mut part.intel_rdt);
    }
    if !linux.cgroups_path.is_empty() {
        record.cgroup = cgroup(shared, pod, record, &linux.cgroups_path)?;
        part.cgroups_path = format!("/{}", record.cgroup);
    }
    schedule(linux, &mut stored.spec);
    Ok(())
}

/// What is not named stays.
fn rdt(wanted: &api::LinuxRdt, rdt: &mut Option<IntelRdt>) {
    if wanted.remove {
        *rdt = None;
    }
    let set = [wanted.clos_id.is_some(), wanted.schemata.is_some(), wanted.enable_monitoring.is_some()];
    if set == [false; 3] {
        return;
    }
    let rdt = rdt.get_or_insert_default();
    if let Some(name) = &wanted.clos_id {
        rdt.clos_id.clone_from(&name.value);
    }
    if let Some(lines) = &wanted.schemata {
        rdt.schemata.clone_from(&lines.value);
    }
    if let Some(enable) = &wanted.enable_monitoring {
        rdt.enable_monitoring = enable.value;
    }
}

/// A container's cgroup by another name. Its place is not the plugin's to choose: below the pod's own group it is ended, counted and
/// removed with its pod, whichever driver made that; elsewhere it would escape the pod's limits, or be somebody else's.
fn cgroup(
    shared: &Shared,
    pod: &PodRecord,
    record: &ContainerRecord,
    wanted: &str,
) -> Result<String, PodError> {
    let path = cgroup_below(&pod.cgroup, wanted)?;
    if path == record.cgroup {
        return Ok(path);
    }
    let is_there = |root| {
        rustix::fs::accessat(root, path.as_str(), rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    };
    if shared.host.roots.iter().any(is_there) {
        return Err(invalid("cgroups_path", &format!("{wanted:?} is there already")));
    }
    let others = shared.views.containers_of(&pod.id);
    if others.iter().any(|other| *other.cgroup == *path) {
        return Err(invalid("cgroups_path", &format!("{wanted:?} is another container's")));
    }
    Ok(path)
}

/// The path below the hierarchies' roots, if it names one folder in the pod's group.
fn cgroup_below(pod: &str, wanted: &str) -> Result<String, PodError> {
    let bad = |reason: String| Err(invalid("cgroups_path", &format!("{wanted:?} {reason}")));
    if wanted.contains(':') {
        return bad(format!("is systemd's notation; name a folder below /{pod}"));
    }
    let name = wanted.strip_prefix('/').and_then(|path| path.strip_prefix(pod));
    let Some(name) = name.and_then(|rest| rest.strip_prefix('/')) else {
        return bad(format!("is not below the pod's cgroup, /{pod}"));
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.@".contains(c);
    let taken = name.ends_with("-hooks") || name.starts_with("cgroup.") || name == "monitor";
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(plain) || taken {
        return bad(format!("is no folder that a container can have right below /{pod}"));
    }
    Ok(format!("{pod}/{name}"))
}

/// Names are the spec's on both sides; the planner knows which make sense.
fn schedule(wanted: &api::LinuxContainerAdjustment, spec: &mut Spec) {
    let process = spec.process.get_or_insert_default();
    if let Some(wish) = &wanted.scheduler {
        process.scheduler = (wish.policy() != api::LinuxSchedulerPolicy::SchedNone).then(|| Scheduler {
            policy: wish.policy().as_str_name().to_owned(),
            nice: wish.nice,
            priority: wish.priority,
            flags: wish.flags().map(|flag| flag.as_str_name().to_owned()).collect(),
            runtime: wish.runtime,
            deadline: wish.deadline,
            period: wish.period,
        });
    }
    if let Some(wish) = &wanted.io_priority {
        process.io_priority = (wish.class() != api::IoPrioClass::IoprioClassNone)
            .then(|| IoPriority { class: wish.class().as_str_name().to_owned(), priority: wish.priority });
    }
    if let Some(wish) = &wanted.memory_policy {
        spec.linux.get_or_insert_default().memory_policy = Some(LinuxMemoryPolicy {
            mode: wish.mode().as_str_name().to_owned(),
            nodes: wish.nodes.clone(),
            flags: wish.flags().map(|flag| flag.as_str_name().to_owned()).collect(),
        });
    }
}

fn invalid(field: &str, reason: &str) -> PodError {
    PodError::Invalid(format!("{field}, adjusted by an NRI plugin: {reason}"))
}

fn annotations(wanted: &std::collections::BTreeMap<String, String>, spec: &mut Spec) {
    for key in wanted.keys().filter_map(|key| key.strip_prefix('-')) {
        spec.annotations.remove(key);
    }
    for (key, value) in wanted.iter().filter(|(key, _)| !key.starts_with('-')) {
        spec.annotations.insert(key.clone(), value.clone());
    }
}

fn process(wanted: &api::ContainerAdjustment, process: &mut Process) -> Result<(), PodError> {
    for entry in &wanted.env {
        let name = entry.key.strip_prefix('-').unwrap_or(&entry.key);
        if name.is_empty() || name.contains(['=', '\0']) || entry.value.contains('\0') {
            return Err(invalid("env", &format!("{name:?} cannot be a variable")));
        }
        let place = process.env.iter().position(|line| line.name() == name.as_bytes());
        match (place, entry.key.starts_with('-')) {
            (Some(_), true) => process.env.retain(|line| line.name() != name.as_bytes()),
            (None, true) => {}
            (Some(place), false) => {
                if let Some(line) = process.env.get_mut(place) {
                    *line = EnvLine::new(name, entry.value.as_bytes());
                }
            }
            (None, false) => process.env.push(EnvLine::new(name, entry.value.as_bytes())),
        }
    }
    if !wanted.args.is_empty() {
        process.args.clone_from(&wanted.args);
    }
    for limit in &wanted.rlimits {
        let kind = limit.r#type.strip_prefix('-').unwrap_or(&limit.r#type);
        process.rlimits.retain(|known| known.kind != kind);
        if !limit.r#type.starts_with('-') {
            process.rlimits.push(Rlimit { kind: kind.to_owned(), hard: limit.hard, soft: limit.soft });
        }
    }
    Ok(())
}

/// Behind those that are there; the planner knows which make sense.
fn hooks(wanted: &api::Hooks, hooks: &mut Hooks) -> Result<(), PodError> {
    let api::Hooks { prestart, create_runtime, create_container, start_container, poststart, poststop } =
        wanted;
    let pairs = [
        (prestart, &mut hooks.prestart),
        (create_runtime, &mut hooks.create_runtime),
        (create_container, &mut hooks.create_container),
        (start_container, &mut hooks.start_container),
        (poststart, &mut hooks.poststart),
        (poststop, &mut hooks.poststop),
    ];
    for (from, into) in pairs {
        for hook in from {
            let timeout = hook.timeout.map(|timeout| i32::try_from(timeout.value)).transpose();
            let timeout = timeout.map_err(|_| invalid("hooks", "a timeout is out of range"))?;
            into.push(Hook {
                path: hook.path.clone(),
                args: hook.args.clone(),
                env: hook.env.clone(),
                // Zero is how their library says none.
                timeout: timeout.filter(|timeout| *timeout != 0),
            });
        }
    }
    Ok(())
}

fn mounts(wanted: &[api::Mount], spec: &mut Spec) -> Result<(), PodError> {
    if wanted.is_empty() {
        return Ok(());
    }
    for mount in wanted {
        let marked = mount.destination.strip_prefix('-');
        let destination = bowline_oci::clean_path(marked.unwrap_or(&mount.destination));
        let destination = destination.filter(|path| path != "/").ok_or_else(|| {
            invalid("mounts", &format!("{:?} is no absolute path below the root", mount.destination))
        })?;
        spec.mounts.retain(|known| known.destination != destination);
        if marked.is_some() {
            continue;
        }
        let asked = |option: &str| mount.options.iter().any(|known| known == option);
        let linux = spec.linux.get_or_insert_default();
        if asked("rshared") || asked("shared") {
            propagates(mount, true)?;
            linux.rootfs_propagation = "rshared".into();
        } else if asked("rslave") || asked("slave") {
            propagates(mount, false)?;
            if linux.rootfs_propagation != "rshared" {
                linux.rootfs_propagation = "rslave".into();
            }
        }
        spec.mounts.push(Mount {
            destination,
            kind: mount.r#type.clone(),
            source: mount.source.clone(),
            options: mount.options.clone(),
            ..Mount::default()
        });
    }
    // What lies below another mount is made after it.
    spec.mounts.sort_by_key(|mount| mount.destination.split('/').filter(|part| !part.is_empty()).count());
    Ok(())
}

/// What is asked of propagation must be there to give.
fn propagates(mount: &api::Mount, both: bool) -> Result<(), PodError> {
    let (shared, slave) = crate::mount_table::propagation_of(std::path::Path::new(&mount.source))
        .map_err(crate::error::doing(format!("look at the mount of {}", mount.source)))?;
    if shared || (slave && !both) {
        return Ok(());
    }
    Err(invalid("mounts", &format!("{} is on a mount that does not propagate that way", mount.source)))
}

fn devices(
    wanted: &[api::LinuxDevice],
    linux: &mut bowline_model::runtime_spec::Linux,
) -> Result<(), PodError> {
    for device in wanted {
        let marked = device.path.strip_prefix('-');
        let path = bowline_oci::clean_path(marked.unwrap_or(&device.path))
            .ok_or_else(|| invalid("devices", &format!("{:?} is no absolute path", device.path)))?;
        linux.devices.retain(|known| known.path != path);
        if marked.is_some() {
            continue;
        }
        linux.devices.push(LinuxDevice {
            path,
            kind: device.r#type.clone(),
            major: device.major,
            minor: device.minor,
            file_mode: device.file_mode.map(|mode| mode.value & 0o7777),
            uid: device.uid.map(|uid| uid.value),
            gid: device.gid.map(|gid| gid.value),
        });
        if matches!(device.r#type.as_str(), "c" | "u" | "b") {
            linux.resources.get_or_insert_default().devices.push(DeviceRule {
                allow: true,
                kind: if device.r#type == "b" { "b".into() } else { "c".into() },
                major: Some(device.major),
                minor: Some(device.minor),
                access: "rwm".into(),
            });
        }
    }
    Ok(())
}

/// A container is born into its pod's namespaces, and only these can be others.
fn namespaces(wanted: &[api::LinuxNamespace], namespaces: &mut Vec<LinuxNamespace>) -> Result<(), PodError> {
    for namespace in wanted {
        let marked = namespace.r#type.strip_prefix('-');
        let kind = NamespaceType::from(marked.unwrap_or(&namespace.r#type).to_owned());
        let known = matches!(
            kind,
            NamespaceType::Network | NamespaceType::Ipc | NamespaceType::Uts | NamespaceType::Cgroup
        );
        if !known || (marked.is_some() && kind != NamespaceType::Cgroup) {
            return Err(PodError::Unsupported(format!(
                "an NRI plugin adjusts the {} namespace, which is the pod's to have; configure it not to",
                kind.as_str()
            )));
        }
        namespaces.retain(|known| known.kind != kind);
        if marked.is_none() {
            namespaces.push(LinuxNamespace { kind, path: namespace.path.clone() });
        }
    }
    Ok(())
}

fn seccomp(from: &api::LinuxSeccomp) -> Seccomp {
    let number = |value: Option<api::OptionalUInt32>| value.map(|value| value.value);
    Seccomp {
        default_action: SeccompAction::from(from.default_action.clone()),
        default_errno_ret: number(from.default_errno),
        architectures: from.architectures.clone(),
        flags: Some(from.flags.clone()).filter(|flags| !flags.is_empty()),
        listener_path: from.listener_path.clone(),
        listener_metadata: from.listener_metadata.clone(),
        syscalls: from
            .syscalls
            .iter()
            .map(|rule| SeccompSyscall {
                names: rule.names.clone(),
                action: SeccompAction::from(rule.action.clone()),
                errno_ret: number(rule.errno_ret),
                args: rule
                    .args
                    .iter()
                    .map(|arg| SeccompArg {
                        index: arg.index,
                        value: arg.value,
                        value_two: arg.value_two,
                        op: SeccompOp::from(arg.op.clone()),
                    })
                    .collect(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use bowline_model::runtime_spec::Linux;

    use super::*;

    fn mount(destination: &str) -> api::Mount {
        api::Mount {
            destination: destination.into(),
            r#type: "bind".into(),
            source: "/src".into(),
            options: vec!["rbind".into(), "ro".into()],
        }
    }

    #[test]
    fn mounts_replace_remove_and_keep_their_order() {
        let there = |destination: &str| Mount { destination: destination.into(), ..Mount::default() };
        let mut spec =
            Spec { mounts: vec![there("/proc"), there("/a/b/c"), there("/gone")], ..Spec::default() };
        mounts(&[mount("/a/b"), mount("-/gone"), mount("/proc/")], &mut spec).unwrap();
        let shown: Vec<(&str, &str)> =
            spec.mounts.iter().map(|mount| (mount.destination.as_str(), mount.source.as_str())).collect();
        assert_eq!(shown, [("/proc", "/src"), ("/a/b", "/src"), ("/a/b/c", "")]);
        assert!(mounts(&[mount("relative")], &mut spec).is_err());
    }

    #[test]
    fn variables_and_limits_of_the_process() {
        let mut spec = Process {
            env: vec!["A=1".into(), "B=2".into()],
            rlimits: vec![Rlimit { kind: "RLIMIT_CORE".into(), hard: 1, soft: 1 }],
            ..Process::default()
        };
        let pair = |key: &str, value: &str| api::KeyValue { key: key.into(), value: value.into() };
        let limit = |kind: &str, value| api::PosixRlimit { r#type: kind.into(), hard: value, soft: value };
        let wanted = api::ContainerAdjustment {
            env: vec![pair("-A", ""), pair("B", "3"), pair("C", "4")],
            rlimits: vec![limit("-RLIMIT_CORE", 0), limit("RLIMIT_NOFILE", 7)],
            args: vec!["new".into()],
            ..api::ContainerAdjustment::default()
        };
        process(&wanted, &mut spec).unwrap();
        let env: Vec<String> = spec.env.into_iter().map(String::from).collect();
        assert_eq!(env, ["B=3", "C=4"]);
        assert_eq!(spec.rlimits, [Rlimit { kind: "RLIMIT_NOFILE".into(), hard: 7, soft: 7 }]);
        assert_eq!(spec.args, ["new"]);
    }

    #[test]
    fn a_device_comes_with_the_right_to_use_it() {
        let mut linux = Linux::default();
        let device = api::LinuxDevice {
            path: "/dev/x".into(),
            r#type: "c".into(),
            major: 1,
            minor: 3,
            ..api::LinuxDevice::default()
        };
        devices(std::slice::from_ref(&device), &mut linux).unwrap();
        assert_eq!(linux.devices.len(), 1);
        let rule = &linux.resources.as_ref().unwrap().devices[0];
        assert_eq!((rule.allow, rule.major, rule.minor), (true, Some(1), Some(3)));
        devices(&[api::LinuxDevice { path: "-/dev/x".into(), ..device }], &mut linux).unwrap();
        assert!(linux.devices.is_empty());
    }

    #[test]
    fn some_namespaces_are_the_pods() {
        let namespace = |kind: &str| api::LinuxNamespace { r#type: kind.into(), path: String::new() };
        let mut list = vec![LinuxNamespace { kind: NamespaceType::Cgroup, path: String::new() }];
        namespaces(&[namespace("-cgroup"), namespace("uts")], &mut list).unwrap();
        assert_eq!(list, [LinuxNamespace { kind: NamespaceType::Uts, path: String::new() }]);
        for bad in ["pid", "user", "mount", "-network", "time", "nonsense"] {
            assert!(namespaces(&[namespace(bad)], &mut list).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cgroup_is_a_folder_of_the_pods() {
        for pod in ["bowline/x/pods/y", "kubepods.slice/pod7.slice/bowline-y.scope"] {
            let good = format!("/{pod}/worker-1");
            assert_eq!(cgroup_below(pod, &good).unwrap(), format!("{pod}/worker-1"));
            for bad in
                ["", "/", "/..", "/a/b", "/a/../b", "-other/x", "/x-hooks", "/cgroup.procs", "/.x", "/a b"]
            {
                let bad = format!("/{pod}{bad}");
                assert!(cgroup_below(pod, &bad).is_err(), "{bad}");
            }
            for bad in ["/elsewhere/x", "worker", "pod7.slice:cri:x"] {
                let error = cgroup_below(pod, bad).unwrap_err().to_string();
                assert!(error.contains("cgroups_path") && error.contains(pod), "{error}");
            }
        }
    }

    #[test]
    fn a_class_of_service_is_changed_where_it_is_named() {
        let mut known = Some(IntelRdt { clos_id: "gold".into(), ..IntelRdt::default() });
        let lines = api::OptionalRepeatedString { value: vec!["L3:0=f".into()] };
        rdt(&api::LinuxRdt { schemata: Some(lines), ..api::LinuxRdt::default() }, &mut known);
        let both = known.clone().unwrap();
        assert_eq!((both.clos_id.as_str(), both.schemata.len()), ("gold", 1));
        rdt(&api::LinuxRdt { remove: true, ..api::LinuxRdt::default() }, &mut known);
        assert_eq!(known, None);
    }
}
