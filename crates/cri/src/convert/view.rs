//! Pods and containers as lists and statuses show them.

use bowline_cri_proto::v1;
use bowline_image::Images;
use bowline_model::container::Life;
use bowline_model::spec::{Mount, PodMetadata};
use bowline_pods::{ContainerView, PodView};

use super::{image, mount, namespaces, resources, signal};

fn pod_metadata(metadata: &PodMetadata) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

/// READY means: takes containers.
pub(crate) fn pod_state(view: &PodView) -> v1::PodSandboxState {
    match view.ready {
        true => v1::PodSandboxState::SandboxReady,
        false => v1::PodSandboxState::SandboxNotready,
    }
}

/// A pod in a list.
pub(crate) fn pod(view: &PodView) -> v1::PodSandbox {
    v1::PodSandbox {
        id: view.id.to_string(),
        metadata: Some(pod_metadata(&view.spec.metadata)),
        state: pod_state(view).into(),
        created_at: view.created_at,
        labels: view.spec.labels.clone(),
        annotations: view.spec.annotations.clone(),
        runtime_handler: view.spec.runtime_handler.clone(),
    }
}

/// A pod's status.
pub(crate) fn pod_status(view: &PodView) -> v1::PodSandboxStatus {
    let mut ips = view.ips.iter().cloned();
    let network = v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    };
    let namespaces = v1::Namespace { options: Some(namespaces::echo(&view.spec.security.namespaces)) };
    v1::PodSandboxStatus {
        id: view.id.to_string(),
        metadata: Some(pod_metadata(&view.spec.metadata)),
        state: pod_state(view).into(),
        created_at: view.created_at,
        network: Some(network),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(namespaces) }),
        labels: view.spec.labels.clone(),
        annotations: view.spec.annotations.clone(),
        runtime_handler: view.spec.runtime_handler.clone(),
    }
}

/// A container's name.
pub(crate) fn container_metadata(view: &ContainerView) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: view.spec.name.clone(), attempt: view.spec.attempt }
}

/// CRI knows no Starting and no Stopping: a container runs from the moment its program does until it has ended.
pub(crate) fn container_state(life: &Life) -> v1::ContainerState {
    match life {
        Life::Created | Life::Starting { .. } => v1::ContainerState::ContainerCreated,
        Life::Running { .. } | Life::Stopping { .. } => v1::ContainerState::ContainerRunning,
        Life::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

/// A container in a list.
pub(crate) fn container(view: &ContainerView, images: &Images) -> v1::Container {
    v1::Container {
        id: view.id.to_string(),
        pod_sandbox_id: view.pod.to_string(),
        metadata: Some(container_metadata(view)),
        image: Some(v1::ImageSpec { image: listed_image(view, images), ..image::echo(&view.spec.image) }),
        image_ref: view.image.id.clone(),
        state: container_state(&view.life).into(),
        created_at: view.created_at,
        labels: view.spec.labels.clone(),
        annotations: view.spec.annotations.clone(),
        image_id: view.image.id.clone(),
    }
}

/// The image by the name it was asked for, unless that name means another image by now: tools look the name up again
/// (`crictl rmi --prune`) and would take the container's own image for unused.
fn listed_image(view: &ContainerView, images: &Images) -> String {
    let asked = &view.spec.image.image;
    match images.resolve(asked) {
        Some(now) if now.id.to_string() != view.image.id => view.image.id.clone(),
        _ => asked.clone(),
    }
}

/// A container's status.
pub(crate) fn container_status(view: &ContainerView) -> v1::ContainerStatus {
    let spec = &view.spec;
    let asked = &spec.image;
    let shown = if asked.user_specified.is_empty() { &asked.image } else { &asked.user_specified };
    let (started_at, finished_at, exit_code, reason, message) = outcome(&view.life);
    let reference = if view.image.reference.is_empty() { &view.image.id } else { &view.image.reference };
    v1::ContainerStatus {
        id: view.id.to_string(),
        metadata: Some(container_metadata(view)),
        state: container_state(&view.life).into(),
        created_at: view.created_at,
        started_at,
        finished_at,
        exit_code,
        image: Some(v1::ImageSpec { image: shown.clone(), ..image::echo(asked) }),
        image_ref: reference.clone(),
        reason,
        message,
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        mounts: spec
            .mounts
            .iter()
            .enumerate()
            .map(|(index, asked)| shown_mount(view, index, asked))
            .collect(),
        log_path: view.log_path.to_string(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources::to_cri(&spec.resources)),
            windows: None,
        }),
        image_id: view.image.id.clone(),
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: view.user.uid.into(),
                gid: view.user.gid.into(),
                supplemental_groups: view.user.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        }),
        stop_signal: signal::to_cri(view.stop_signal),
    }
}

/// A mount as it was asked for; of an image, the id, by which the kubelet knows what is in use.
fn shown_mount(view: &ContainerView, index: usize, asked: &Mount) -> v1::Mount {
    let mut shown = mount::echo(asked);
    let volume = view.image_volumes.iter().find(|volume| volume.mount == index);
    if let (Some(volume), Some(image)) = (volume, &mut shown.image) {
        image.image = volume.id.clone();
        // What PullImage answered.
        image.image_ref = volume.id.clone();
    }
    shown
}

/// Started, finished, exit code, reason, message.
fn outcome(life: &Life) -> (i64, i64, i32, String, String) {
    match life {
        Life::Created | Life::Starting { .. } => Default::default(),
        Life::Running { started_at, .. } | Life::Stopping { started_at, .. } => {
            (*started_at, 0, 0, String::new(), String::new())
        }
        Life::Exited { started_at, exit } => {
            (*started_at, exit.finished_at, exit.code, exit.reason().to_owned(), exit.message.clone())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
