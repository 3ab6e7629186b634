//! PodSandboxStats and ListPodSandboxStats.

use std::sync::Arc;

use bowline_cri_proto::v1;
use bowline_pods::{PodView, Pods};
use tonic::Status;

use crate::convert::stats;
use crate::find;

/// One pod's measurements, whether it is ready or not.
pub(crate) async fn pod_sandbox_stats(
    pods: &Pods,
    request: v1::PodSandboxStatsRequest,
) -> Result<v1::PodSandboxStatsResponse, Status> {
    let pod = find::pod(pods, &request.pod_sandbox_id)?;
    let measured = pods.pod_stats(vec![pod]).await;
    let stats = measured.first().map(|(pod, measured)| stats::pod_to_cri(pod, measured));
    Ok(v1::PodSandboxStatsResponse { stats })
}

/// The measurements of the ready pods that fit a filter.
pub(crate) async fn list_pod_sandbox_stats(
    pods: &Pods,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> Result<Vec<v1::PodSandboxStats>, Status> {
    let measured = pods.pod_stats(matching(pods, filter)?).await;
    Ok(measured.iter().map(|(pod, measured)| stats::pod_to_cri(pod, measured)).collect())
}

fn matching(pods: &Pods, filter: Option<v1::PodSandboxStatsFilter>) -> Result<Vec<Arc<PodView>>, Status> {
    let filter = filter.unwrap_or_default();
    let mut found = match filter.id.as_str() {
        "" => pods.views().pods(),
        id => find::filtered(pods.views().pod(id))?.into_iter().collect(),
    };
    found.retain(|pod| pod.ready && find::has_labels(&pod.spec.labels, &filter.label_selector));
    Ok(found)
}
