//! ListContainers, and what other calls share with it: finding the containers that fit a filter.

use std::collections::BTreeMap;
use std::sync::Arc;

use bowline_cri_proto::v1;
use bowline_pods::{ContainerView, Pods};
use tonic::Status;

use crate::convert::view;
use crate::find;

/// The containers that fit a filter, from memory; no filter and an empty one mean all.
pub(crate) fn list_containers(
    pods: &Pods,
    filter: Option<v1::ContainerFilter>,
) -> Result<impl Iterator<Item = v1::Container> + Send + use<>, Status> {
    let filter = filter.unwrap_or_default();
    let mut found = matching(pods, &filter.id, &filter.pod_sandbox_id, &filter.label_selector)?;
    let wanted = filter.state.map(|wanted| wanted.state);
    found.retain(|view| wanted.is_none_or(|state| state == i32::from(view::container_state(&view.life))));
    let images = pods.images().clone();
    Ok(found.into_iter().map(move |view| view::container(&view, &images)))
}

/// The containers with this id, of this pod (both may be beginnings, empty means any) and with these labels.
pub(crate) fn matching(
    pods: &Pods,
    id: &str,
    pod: &str,
    labels: &BTreeMap<String, String>,
) -> Result<Vec<Arc<ContainerView>>, Status> {
    let views = pods.views();
    let pod = match pod {
        "" => None,
        pod => match find::filtered(views.pod(pod))? {
            Some(pod) => Some(pod.id.clone()),
            None => return Ok(Vec::new()),
        },
    };
    let mut found = match (id, &pod) {
        ("", None) => views.containers(),
        ("", Some(pod)) => views.containers_of(pod),
        (id, _) => find::filtered(views.container(id))?.into_iter().collect(),
    };
    found.retain(|view| {
        pod.as_ref().is_none_or(|pod| view.pod == *pod) && find::has_labels(&view.spec.labels, labels)
    });
    Ok(found)
}
