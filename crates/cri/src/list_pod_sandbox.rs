//! ListPodSandbox.

use bowline_cri_proto::v1;
use bowline_pods::{PodView, Pods};
use tonic::Status;

use crate::convert::view;
use crate::find;

/// The pods that fit a filter, from memory; no filter and an empty one mean all.
pub(crate) fn list_pod_sandbox(
    pods: &Pods,
    filter: Option<v1::PodSandboxFilter>,
) -> Result<impl Iterator<Item = v1::PodSandbox> + Send + use<>, Status> {
    let filter = filter.unwrap_or_default();
    let mut views = match filter.id.as_str() {
        "" => pods.views().pods(),
        id => find::filtered(pods.views().pod(id))?.into_iter().collect::<Vec<_>>(),
    };
    views.retain(|pod| fits(&filter, pod));
    Ok(views.into_iter().map(|pod| view::pod(&pod)))
}

/// All but the id.
fn fits(filter: &v1::PodSandboxFilter, pod: &PodView) -> bool {
    filter.state.is_none_or(|wanted| wanted.state == i32::from(view::pod_state(pod)))
        && find::has_labels(&pod.spec.labels, &filter.label_selector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::view::tests::a_pod;

    #[test]
    fn conditions_are_anded() {
        let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
        let ready = v1::PodSandboxState::SandboxReady;
        let label = |value: &str| [("app".to_owned(), value.to_owned())].into();
        let none = v1::PodSandboxFilter::default;
        for (filter, expected) in [
            (none(), true),
            (v1::PodSandboxFilter { state: state(ready), ..none() }, true),
            (v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxNotready), ..none() }, false),
            (v1::PodSandboxFilter { label_selector: label("web"), ..none() }, true),
            (v1::PodSandboxFilter { label_selector: label("we"), ..none() }, false),
            (v1::PodSandboxFilter { state: state(ready), label_selector: label("we"), ..none() }, false),
        ] {
            assert_eq!(fits(&filter, &a_pod(1)), expected, "{filter:?}");
        }
    }
}
