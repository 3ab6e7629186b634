//! RunPodSandbox.

use bowline_cri_proto::v1;
use bowline_pods::Pods;
use tonic::Status;

use crate::codes;
use crate::convert::pod;

/// Brings a pod up. When this returns the pod is READY; an equal call meanwhile joins this one.
pub(crate) async fn run_pod_sandbox(
    pods: &Pods,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse, Status> {
    let spec = pod::spec(request).map_err(|refused| codes::of_refused(&refused))?;
    let id = pods.run_pod(spec).await.map_err(|error| codes::of_pod(&error))?;
    Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}
