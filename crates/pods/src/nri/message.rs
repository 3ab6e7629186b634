//! Pods and containers, as plugins see them.

use bowline_model::container::Life;
use bowline_model::runtime_spec::{self as oci, LinuxResources, Spec};
use bowline_model::spec::{ContainerSpec, NamespaceMode, PodSpec, Resources, SecurityProfile};
use bowline_model::{ContainerId, SandboxId};
use bowline_nri::api;
use bowline_store::{ContainerRecord, ImageRecord, PodRecord, PodResources, UserRecord};

use super::limits;
use crate::PodError;
use crate::shared::Shared;
use crate::view::{ContainerView, PodView};

/// What a pod's message is made from.
pub(super) struct PodFacts<'a> {
    id: &'a SandboxId,
    spec: &'a PodSpec,
    ips: &'a [String],
    monitor: i32,
    cgroup: &'a str,
    resources: &'a PodResources,
}

impl<'a> From<&'a PodRecord> for PodFacts<'a> {
    fn from(record: &'a PodRecord) -> Self {
        PodFacts {
            id: &record.id,
            spec: &record.spec,
            ips: record.network.as_ref().map_or(&[][..], |network| &network.ips),
            monitor: record.monitor,
            cgroup: &record.cgroup,
            resources: &record.resources,
        }
    }
}

impl<'a> From<&'a PodView> for PodFacts<'a> {
    fn from(view: &'a PodView) -> Self {
        PodFacts {
            id: &view.id,
            spec: &view.spec,
            ips: &view.ips,
            monitor: view.monitor,
            cgroup: &view.cgroup,
            resources: &view.resources,
        }
    }
}

pub(super) fn pod(shared: &Shared, facts: &PodFacts<'_>) -> api::PodSandbox {
    let PodSpec { metadata, labels, annotations, runtime_handler, cgroup_parent, .. } = facts.spec;
    let limits = |resources: &Resources| cri_limits(shared, resources).ok();
    api::PodSandbox {
        id: facts.id.to_string(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        labels: labels.clone(),
        annotations: annotations.clone(),
        runtime_handler: runtime_handler.clone(),
        linux: Some(api::LinuxPodSandbox {
            pod_overhead: limits(&facts.resources.overhead),
            pod_resources: limits(&facts.resources.sum),
            cgroup_parent: cgroup_parent.clone(),
            cgroups_path: format!("/{}", facts.cgroup),
            namespaces: namespaces(facts),
            resources: None,
        }),
        // There is no pause process; this one holds the namespaces.
        pid: u32::try_from(facts.monitor).unwrap_or(0),
        ips: facts.ips.to_vec(),
    }
}

/// The pod's own namespaces, by the process that holds them.
fn namespaces(facts: &PodFacts<'_>) -> Vec<api::LinuxNamespace> {
    let asked = &facts.spec.security.namespaces;
    let user = crate::user::of_pod(facts.spec).map_or(NamespaceMode::Node, |_| NamespaceMode::Pod);
    let own = |mode: NamespaceMode| mode != NamespaceMode::Node && facts.monitor > 0;
    [
        ("network", "net", asked.network),
        ("ipc", "ipc", asked.ipc),
        ("uts", "uts", asked.network),
        ("user", "user", user),
    ]
    .into_iter()
    .filter(|(_, _, mode)| own(*mode))
    .map(|(kind, file, _)| api::LinuxNamespace {
        r#type: kind.into(),
        path: format!("/proc/{}/ns/{file}", facts.monitor),
    })
    .collect()
}

/// What a container's message is made from.
pub(super) struct ContainerFacts<'a> {
    id: &'a ContainerId,
    pod: &'a SandboxId,
    spec: &'a ContainerSpec,
    created_at: i64,
    life: &'a Life,
    image: &'a ImageRecord,
    user: &'a UserRecord,
    cgroup: &'a str,
    /// What was made of it, if that can be read.
    stored: Option<&'a Spec>,
}

impl<'a> ContainerFacts<'a> {
    pub(super) fn of(record: &'a ContainerRecord, life: &'a Life, stored: Option<&'a Spec>) -> Self {
        ContainerFacts {
            id: &record.id,
            pod: &record.pod,
            spec: &record.spec,
            created_at: record.created_at,
            life,
            image: &record.image,
            user: &record.user,
            cgroup: &record.cgroup,
            stored,
        }
    }

    pub(super) fn of_view(view: &'a ContainerView, stored: Option<&'a Spec>) -> Self {
        ContainerFacts {
            id: &view.id,
            pod: &view.pod,
            spec: &view.spec,
            created_at: view.created_at,
            life: &view.life,
            image: &view.image,
            user: &view.user,
            cgroup: &view.cgroup,
            stored,
        }
    }
}

/// `pod` has the namespaces that the container joins.
pub(super) fn container(
    shared: &Shared,
    facts: &ContainerFacts<'_>,
    pod: &api::PodSandbox,
) -> api::Container {
    let empty = Spec::default();
    let stored = facts.stored.unwrap_or(&empty);
    let (state, started_at, exit) = match facts.life {
        Life::Created | Life::Starting { .. } => (api::ContainerState::ContainerCreated, 0, None),
        Life::Running { started_at, .. } | Life::Stopping { started_at, .. } => {
            (api::ContainerState::ContainerRunning, *started_at, None)
        }
        Life::Exited { started_at, exit } => (api::ContainerState::ContainerStopped, *started_at, Some(exit)),
    };
    let mut annotations = stored.annotations.clone();
    annotations.extend(facts.spec.annotations.clone());
    let process = stored.process.clone().unwrap_or_default();
    let image = &facts.spec.image;
    let image_name = if image.user_specified.is_empty() { &image.image } else { &image.user_specified };
    api::Container {
        id: facts.id.to_string(),
        pod_sandbox_id: facts.pod.to_string(),
        name: facts.spec.name.clone(),
        state: state as i32,
        labels: facts.spec.labels.clone(),
        annotations,
        args: process.args.clone(),
        // Messages hold text; what is none is shown with U+FFFD, and stays as it is.
        env: process.env.iter().map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned()).collect(),
        mounts: stored.mounts.iter().map(mount).collect(),
        hooks: stored.hooks.as_ref().filter(|hooks| !hooks.is_empty()).map(hooks),
        rlimits: process.rlimits.iter().map(rlimit).collect(),
        linux: Some(linux(shared, facts, stored, &process, pod)),
        pid: facts.life.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        created_at: facts.created_at,
        started_at,
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        status_reason: exit.map(|exit| exit.reason().to_owned()).unwrap_or_default(),
        status_message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        cdi_devices: facts
            .spec
            .cdi_devices
            .iter()
            .map(|name| api::CdiDevice { name: name.clone() })
            .collect(),
        user: Some(api::User {
            uid: facts.user.uid,
            gid: facts.user.gid,
            additional_gids: facts.user.groups.clone(),
        }),
        image: Some(api::Image {
            name: image_name.clone(),
            digest: facts
                .image
                .reference
                .split_once('@')
                .map(|(_, digest)| digest)
                .unwrap_or_default()
                .into(),
            config_digest: facts.image.id.clone(),
        }),
    }
}

fn linux(
    shared: &Shared,
    facts: &ContainerFacts<'_>,
    stored: &Spec,
    process: &oci::Process,
    pod: &api::PodSandbox,
) -> api::LinuxContainer {
    let part = stored.linux.clone().unwrap_or_default();
    // Those of the pod are joined without being listed.
    let mut namespaces: Vec<api::LinuxNamespace> = part
        .namespaces
        .iter()
        .map(|namespace| api::LinuxNamespace {
            r#type: namespace.kind.as_str().to_owned(),
            path: namespace.path.clone(),
        })
        .collect();
    for joined in pod.linux.iter().flat_map(|linux| &linux.namespaces) {
        if !namespaces.iter().any(|namespace| namespace.r#type == joined.r#type) {
            namespaces.push(joined.clone());
        }
    }
    let resources = match &part.resources {
        Some(resources) => Some(limits::message(resources)),
        None => cri_limits(shared, &facts.spec.resources).ok(),
    };
    api::LinuxContainer {
        namespaces,
        devices: part.devices.iter().map(device).collect(),
        resources,
        oom_score_adj: process.oom_score_adj.map(|score| api::OptionalInt { value: score.into() }),
        cgroups_path: format!("/{}", facts.cgroup),
        seccomp_profile: Some(security_profile(&facts.spec.security.seccomp)),
        seccomp_policy: part.seccomp.as_ref().map(seccomp),
        sysctl: part.sysctl.clone(),
        ..api::LinuxContainer::default()
    }
}

/// Limits as CRI has them.
pub(super) fn cri_limits(shared: &Shared, resources: &Resources) -> Result<api::LinuxResources, PodError> {
    let built: LinuxResources = bowline_oci::linux_resources(resources, &shared.host.facts, &mut Vec::new())
        .map_err(|error| PodError::Invalid(error.to_string()))?;
    Ok(limits::message(&built))
}

/// The spec that was made of a container; none if it is on its way out.
pub(super) async fn read_spec(
    shared: &std::sync::Arc<Shared>,
    pod: &SandboxId,
    id: &ContainerId,
) -> Option<Spec> {
    let (shared, pod, id) = (shared.clone(), pod.clone(), id.clone());
    let read = tokio::task::spawn_blocking(move || {
        let stored: crate::create::Stored = shared.store.read_config(&pod, &id).ok()?;
        Some(stored.spec)
    });
    read.await.ok().flatten()
}

fn hooks(hooks: &bowline_model::runtime_spec::Hooks) -> api::Hooks {
    let list = |hooks: &[bowline_model::runtime_spec::Hook]| {
        let told = hooks.iter().map(|hook| api::Hook {
            path: hook.path.clone(),
            args: hook.args.clone(),
            env: hook.env.clone(),
            timeout: hook.timeout.map(|timeout| api::OptionalInt { value: timeout.into() }),
        });
        told.collect()
    };
    api::Hooks {
        prestart: list(&hooks.prestart),
        create_runtime: list(&hooks.create_runtime),
        create_container: list(&hooks.create_container),
        start_container: list(&hooks.start_container),
        poststart: list(&hooks.poststart),
        poststop: list(&hooks.poststop),
    }
}

fn mount(from: &oci::Mount) -> api::Mount {
    api::Mount {
        destination: from.destination.clone(),
        r#type: from.kind.clone(),
        source: from.source.clone(),
        options: from.options.clone(),
    }
}

fn rlimit(from: &oci::Rlimit) -> api::PosixRlimit {
    api::PosixRlimit { r#type: from.kind.clone(), hard: from.hard, soft: from.soft }
}

fn device(from: &oci::LinuxDevice) -> api::LinuxDevice {
    api::LinuxDevice {
        path: from.path.clone(),
        r#type: from.kind.clone(),
        major: from.major,
        minor: from.minor,
        file_mode: from.file_mode.map(|value| api::OptionalFileMode { value }),
        uid: from.uid.map(|value| api::OptionalUInt32 { value }),
        gid: from.gid.map(|value| api::OptionalUInt32 { value }),
    }
}

fn security_profile(from: &SecurityProfile) -> api::SecurityProfile {
    use api::security_profile::ProfileType;
    let (kind, path) = match from {
        SecurityProfile::Unset | SecurityProfile::Unconfined => (ProfileType::Unconfined, ""),
        SecurityProfile::RuntimeDefault => (ProfileType::RuntimeDefault, ""),
        SecurityProfile::Localhost(path) => (ProfileType::Localhost, path.as_str()),
    };
    api::SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() }
}

fn seccomp(from: &oci::Seccomp) -> api::LinuxSeccomp {
    api::LinuxSeccomp {
        default_action: from.default_action.as_str().to_owned(),
        default_errno: from.default_errno_ret.map(|value| api::OptionalUInt32 { value }),
        architectures: from.architectures.clone(),
        flags: from.flags.clone().unwrap_or_default(),
        listener_path: from.listener_path.clone(),
        listener_metadata: from.listener_metadata.clone(),
        syscalls: from
            .syscalls
            .iter()
            .map(|rule| api::LinuxSyscall {
                names: rule.names.clone(),
                action: rule.action.as_str().to_owned(),
                errno_ret: rule.errno_ret.map(|value| api::OptionalUInt32 { value }),
                args: rule
                    .args
                    .iter()
                    .map(|arg| api::LinuxSeccompArg {
                        index: arg.index,
                        value: arg.value,
                        value_two: arg.value_two,
                        op: arg.op.as_str().to_owned(),
                    })
                    .collect(),
            })
            .collect(),
    }
}
