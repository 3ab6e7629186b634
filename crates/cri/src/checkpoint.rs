//! CheckpointContainer, CheckpointPod and RestorePod.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bowline_cri_proto::v1;
use bowline_model::ContainerId;
use bowline_pods::{PodRestore, Pods};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::convert::{Refused, check, container, invalid, pod as convert_pod};
use crate::{codes, find};

/// Writes a running container into an archive. `timeout` 0 is no limit of ours.
pub(crate) async fn container(
    pods: &Pods,
    request: v1::CheckpointContainerRequest,
) -> Result<v1::CheckpointContainerResponse, Status> {
    let refused = |refused: Refused| codes::of_refused(&refused);
    let location = path("location", &request.location).map_err(refused)?;
    let deadline = match request.timeout {
        0 => None,
        seconds => {
            let seconds = u64::try_from(seconds);
            let seconds =
                seconds.map_err(|_| refused(invalid("timeout", "must not be negative; 0 is no limit")))?;
            Instant::now().checked_add(Duration::from_secs(seconds))
        }
    };
    let id = find::container_id(pods, &request.container_id)?;
    let written = pods.checkpoint_container(&id, location, deadline).await;
    written.map_err(|error| codes::of_pod(&error))?;
    Ok(v1::CheckpointContainerResponse {})
}

/// Writes a pod, all its containers standing still at once. No option is known yet.
pub(crate) async fn pod(
    pods: &Pods,
    request: v1::CheckpointPodRequest,
    deadline: Option<Instant>,
) -> Result<v1::CheckpointPodResponse, Status> {
    let refused = |refused: Refused| codes::of_refused(&refused);
    no_options(request.options.keys()).map_err(refused)?;
    let output = path("output_path", &request.output_path).map_err(refused)?;
    if request.container_ids.is_empty() {
        return Err(refused(invalid("container_ids", "must name the pod's running containers")));
    }
    let pod = find::pod_id(pods, &request.pod_sandbox_id)?;
    let mut ids: Vec<ContainerId> = Vec::new();
    for id in &request.container_ids {
        let id = find::container_id(pods, id)?;
        if ids.contains(&id) {
            return Err(refused(invalid("container_ids", format!("{id} is there twice"))));
        }
        ids.push(id);
    }
    let written = pods.checkpoint_pod(&pod, output, ids, deadline).await;
    written.map_err(|error| codes::of_pod(&error))?;
    Ok(v1::CheckpointPodResponse {})
}

/// Makes a pod from a checkpoint. What it is comes from the configs alone.
pub(crate) async fn restore_pod(
    pods: &Pods,
    request: v1::RestorePodRequest,
) -> Result<v1::RestorePodResponse, Status> {
    let refused = |refused: Refused| codes::of_refused(&refused);
    no_options(request.options.keys()).map_err(refused)?;
    let checkpoint = path("checkpoint_path", &request.checkpoint_path).map_err(refused)?;
    let asked = v1::RunPodSandboxRequest { config: request.config, runtime_handler: request.runtime_handler };
    let pod = convert_pod::spec(asked).map_err(refused)?;
    let containers = request.container_configs.into_iter().map(|config| container::spec(Some(config)));
    let containers = containers.collect::<Result<Vec<_>, _>>().map_err(refused)?;
    let names: BTreeSet<&str> = containers.iter().map(|spec| spec.name.as_str()).collect();
    if names.len() != containers.len() || names.is_empty() {
        let reason = "must name each container of the checkpoint once";
        return Err(refused(invalid("container_configs", reason)));
    }
    let restored = pods.restore_pod(PodRestore { checkpoint, pod, containers }).await;
    let restored = restored.map_err(|error| codes::of_pod(&error))?;
    let container =
        |(name, id): (String, ContainerId)| v1::RestoredContainer { name, container_id: id.to_string() };
    Ok(v1::RestorePodResponse {
        pod_sandbox_id: restored.pod.to_string(),
        restored_containers: restored.containers.into_iter().map(container).collect(),
    })
}

fn no_options<'a>(mut keys: impl Iterator<Item = &'a String>) -> Result<(), Refused> {
    match keys.next() {
        None => Ok(()),
        Some(key) => {
            Err(invalid("options", format!("`{}` is not known; there are none yet", check::brief(key))))
        }
    }
}

fn path(field: &str, path: &str) -> Result<PathBuf, Refused> {
    check::absolute(field, path)?;
    Ok(PathBuf::from(path))
}

/// When the caller stops waiting: the header `grpc-timeout`, a number of at most eight digits and a unit
/// (PROTOCOL-HTTP2.md of gRPC).
pub(crate) fn deadline(headers: &MetadataMap) -> Option<Instant> {
    Instant::now().checked_add(timeout(headers.get("grpc-timeout")?.to_str().ok()?)?)
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_s_patience_is_read_from_its_header() {
        let table = [
            ("5S", Some(Duration::from_secs(5))),
            ("1500m", Some(Duration::from_millis(1500))),
            ("2H", Some(Duration::from_secs(7200))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("123456789S", None),
            ("5", None),
            ("S", None),
            ("", None),
            ("-5S", None),
            ("5ä", None),
        ];
        for (text, wanted) in table {
            assert_eq!(timeout(text), wanted, "{text}");
        }
    }

    #[test]
    fn an_option_that_nobody_knows_is_refused() {
        no_options([].iter()).unwrap();
        let error = no_options(["leave-stopped".to_owned()].iter()).unwrap_err();
        assert!(error.to_string().contains("leave-stopped"), "{error}");
    }
}
