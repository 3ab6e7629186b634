//! From what a client wrote to the pod or container that it means.

use std::collections::BTreeMap;
use std::sync::Arc;

use bowline_model::{ContainerId, SandboxId};
use bowline_pods::{ContainerView, PodError, PodView, Pods};
use tonic::Status;

use crate::codes;

/// The view of a pod, by id or by an unambiguous beginning of it.
pub(crate) fn pod(pods: &Pods, id: &str) -> Result<Arc<PodView>, Status> {
    pods.views().pod(id).map_err(|error| codes::of_pod(&error))
}

/// The view of a container, likewise.
pub(crate) fn container(pods: &Pods, id: &str) -> Result<Arc<ContainerView>, Status> {
    pods.views().container(id).map_err(|error| codes::of_pod(&error))
}

/// The id of a pod. A full one is taken as it is: what becomes of it is for `pods` to say, which may know of pods that
/// nobody sees yet.
pub(crate) fn pod_id(pods: &Pods, id: &str) -> Result<SandboxId, Status> {
    SandboxId::parse(id).or_else(|_| pod(pods, id).map(|view| view.id.clone()))
}

/// The id of a container, likewise.
pub(crate) fn container_id(pods: &Pods, id: &str) -> Result<ContainerId, Status> {
    ContainerId::parse(id).or_else(|_| container(pods, id).map(|view| view.id.clone()))
}

/// The one thing that the id of a filter means, if there is such a thing. A beginning that several ids share is an
/// error, since a list of the wrong thing is worse than none.
pub(crate) fn filtered<V>(found: Result<V, PodError>) -> Result<Option<V>, Status> {
    match found {
        Ok(view) => Ok(Some(view)),
        Err(PodError::NotFound { .. }) => Ok(None),
        Err(error) => Err(codes::of_pod(&error)),
    }
}

/// Whether the labels hold all those that a filter asks for, with exactly these values.
pub(crate) fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A stop or removal of what is gone is done: the kubelet repeats these calls until it hears yes.
pub(crate) fn gone_is_fine<T>(outcome: Result<T, Status>) -> Result<Option<T>, Status> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_match_exactly_and_all_of_them() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let labels = map(&[("a", "1"), ("b", "")]);
        for (wanted, expected) in [
            (map(&[]), true),
            (map(&[("a", "1")]), true),
            (map(&[("a", "1"), ("b", "")]), true),
            (map(&[("a", "")]), false),
            (map(&[("c", "")]), false),
            (map(&[("a", "1"), ("c", "1")]), false),
        ] {
            assert_eq!(has_labels(&labels, &wanted), expected, "{wanted:?}");
        }
    }

    #[test]
    fn only_what_is_unknown_is_fine() {
        assert_eq!(gone_is_fine::<()>(Err(Status::not_found("x"))).unwrap(), None);
        assert!(gone_is_fine::<()>(Err(Status::internal("x"))).is_err());
        let unknown = PodError::NotFound { what: "container", id: "x".into() };
        assert_eq!(filtered::<()>(Err(unknown)).unwrap(), None);
        assert!(filtered::<()>(Err(PodError::Invalid("several".into()))).is_err());
    }
}
