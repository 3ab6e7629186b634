//! ContainerStats and ListContainerStats.

use bowline_cri_proto::v1;
use bowline_pods::Pods;
use tonic::Status;

use crate::convert::stats;
use crate::{find, list_containers};

/// One container's measurements. Of one that does not run only the name is told: nothing is measured.
pub(crate) async fn container_stats(
    pods: &Pods,
    request: v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse, Status> {
    let container = find::container(pods, &request.container_id)?;
    let measured = pods.stats(vec![container.clone()]).await;
    let stats = match measured.first() {
        Some((view, measured)) => stats::to_cri(view, measured),
        None => v1::ContainerStats { attributes: Some(stats::attributes(&container)), ..Default::default() },
    };
    Ok(v1::ContainerStatsResponse { stats: Some(stats) })
}

/// The measurements of the running containers that fit a filter. One that ends meanwhile is left out.
pub(crate) async fn list_container_stats(
    pods: &Pods,
    filter: Option<v1::ContainerStatsFilter>,
) -> Result<Vec<v1::ContainerStats>, Status> {
    let filter = filter.unwrap_or_default();
    let mut found =
        list_containers::matching(pods, &filter.id, &filter.pod_sandbox_id, &filter.label_selector)?;
    found.retain(|view| view.life.pid().is_some());
    let measured = pods.stats(found).await;
    Ok(measured.iter().map(|(view, measured)| stats::to_cri(view, measured)).collect())
}
