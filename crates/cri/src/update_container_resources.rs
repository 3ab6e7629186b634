//! UpdateContainerResources.

use bowline_cri_proto::v1;
use bowline_pods::Pods;
use tonic::Status;

use crate::convert::resources;
use crate::{codes, find};

/// Changes the limits of a container, all or none; zero and empty leave one as it is.
pub(crate) async fn update_container_resources(
    pods: &Pods,
    request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse, Status> {
    let id = find::container(pods, &request.container_id)?.id.clone();
    if let Some(linux) = request.linux {
        let resources =
            resources::resources("linux", linux).map_err(|refused| codes::of_refused(&refused))?;
        pods.update_resources(&id, resources).await.map_err(|error| codes::of_pod(&error))?;
    }
    Ok(v1::UpdateContainerResourcesResponse {})
}
