//! UpdatePodSandboxResources.

use bowline_cri_proto::v1;
use bowline_pods::Pods;
use tonic::Status;

use crate::convert::resources;
use crate::{codes, find};

/// Takes note of what a pod is to have altogether. The cgroup of the pod is the kubelet's, which changes it after this
/// call and takes any error for a refusal of the resize.
pub(crate) async fn update_pod_sandbox_resources(
    pods: &Pods,
    request: v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse, Status> {
    let id = find::pod(pods, &request.pod_sandbox_id)?.id.clone();
    let parse = |field, asked: Option<v1::LinuxContainerResources>| {
        let parsed = asked.map(|asked| resources::resources(field, asked)).transpose();
        parsed.map_err(|refused| codes::of_refused(&refused))
    };
    let (overhead, all) = (parse("overhead", request.overhead)?, parse("resources", request.resources)?);
    pods.update_pod_resources(&id, overhead, all).await.map_err(|error| codes::of_pod(&error))?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}
