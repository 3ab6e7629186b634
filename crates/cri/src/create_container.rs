//! CreateContainer.

use bowline_cri_proto::v1;
use bowline_pods::{PodError, Pods};
use tonic::Status;

use crate::convert::container;
use crate::{codes, find};

/// Makes a container that can be started. `sandbox_config` is not looked at: the id names the pod, and the config it
/// was made with counts (crictl sends another uid each time).
pub(crate) async fn create_container(
    pods: &Pods,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, Status> {
    let pod = find::pod_id(pods, &request.pod_sandbox_id)?;
    let spec = container::spec(request.config).map_err(|refused| codes::of_refused(&refused))?;
    // Nothing is pulled here; the kubelet did, or it is told which image is missing.
    // A path is a checkpoint's archive, which brings its own image's id (CRI-O takes such names as well).
    if !spec.image.image.starts_with('/') && pods.images().resolve(&spec.image.image).is_none() {
        let missing = PodError::NotFound { what: "image", id: spec.image.image };
        return Err(codes::of_pod(&missing));
    }
    let id = pods.create_container(&pod, spec).await.map_err(|error| codes::of_pod(&error))?;
    Ok(v1::CreateContainerResponse { container_id: id.to_string() })
}
