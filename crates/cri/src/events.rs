//! GetContainerEvents: what happens, from now on.

use bowline_cri_proto::v1;
use bowline_pods::{NextEvent, PodEvent, PodEventKind, Pods, Subscription};
use futures_util::stream;
use tonic::Status;
use tonic::codegen::BoxStream;

use crate::convert::view;

/// A stream without end. A reader that is too slow is told and has to begin anew: an event that is missing in silence
/// would leave it with a wrong picture for ever.
pub(crate) fn container_events(pods: &Pods) -> BoxStream<v1::ContainerEventResponse> {
    let reader = Some(pods.events());
    Box::pin(stream::unfold(reader, |reader: Option<Subscription>| async move {
        let mut reader = reader?;
        match reader.next().await {
            NextEvent::Event(event) => Some((Ok(to_cri(&event)), Some(reader))),
            NextEvent::Lost(count) => Some((Err(lost(count)), None)),
            NextEvent::End => None,
        }
    }))
}

fn lost(count: u64) -> Status {
    Status::resource_exhausted(format!(
        "events are read too slowly: {count} are lost; ask for events again, then list pods and containers"
    ))
}

fn to_cri(event: &PodEvent) -> v1::ContainerEventResponse {
    let kind = match event.kind {
        PodEventKind::Created => v1::ContainerEventType::ContainerCreatedEvent,
        PodEventKind::Started => v1::ContainerEventType::ContainerStartedEvent,
        PodEventKind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        PodEventKind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    v1::ContainerEventResponse {
        // An event of the sandbox itself has its id here.
        container_id: event.container.as_ref().map_or_else(|| event.pod.id.to_string(), ToString::to_string),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(view::pod_status(&event.pod)),
        containers_statuses: event
            .containers
            .iter()
            .map(|container| view::container_status(container))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bowline_model::container::Life;

    use super::*;
    use crate::convert::view::tests::{a_container, a_pod};

    #[test]
    fn a_sandbox_goes_by_its_own_id() {
        let container = Arc::new(a_container(1, Life::Running { pid: 7, started_at: 5 }));
        let event = |container_id| PodEvent {
            kind: PodEventKind::Started,
            container: container_id,
            at: 9,
            pod: Arc::new(a_pod(2)),
            containers: vec![container.clone()],
        };
        let of_pod = to_cri(&event(None));
        assert_eq!((of_pod.container_id.as_str(), of_pod.created_at), ("02".repeat(32).as_str(), 9));
        assert_eq!(of_pod.pod_sandbox_status.unwrap().id, "02".repeat(32));
        assert_eq!(of_pod.containers_statuses[0].started_at, 5);
        assert_eq!(to_cri(&event(Some(container.id.clone()))).container_id, container.id.to_string());
    }
}
