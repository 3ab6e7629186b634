//! `events`: what happens to pods and containers, from now on.

use bowline_cri_proto::v1;
use bowline_cri_proto::v1::ContainerEventType as Kind;

use crate::args::{EventsArgs, Output};
use crate::client::Client;
use crate::failure::{Done, Failure, doing};
use crate::reflect::to_json;
use crate::render::{print, print_line, rfc3339, short};

pub(crate) async fn events(client: &Client, args: &EventsArgs) -> Done {
    // No deadline: it goes on until somebody presses Ctrl-C.
    let request = tonic::Request::new(v1::GetEventsRequest {});
    let mut stream =
        client.runtime().get_container_events(request).await.map_err(doing("listen"))?.into_inner();
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(event) = stream.message().await.map_err(doing("listen"))? else { break };
        if args.pod.as_ref().is_some_and(|pod| !is_of(&event, pod)) {
            continue;
        }
        show(args.output, &event)?;
        left -= 1;
    }
    Ok(0)
}

fn is_of(event: &v1::ContainerEventResponse, pod: &str) -> bool {
    let Some(status) = &event.pod_sandbox_status else { return false };
    let name = status.metadata.as_ref().map(|metadata| metadata.name.as_str());
    name == Some(pod) || (!pod.is_empty() && status.id.starts_with(pod))
}

fn show(output: Output, event: &v1::ContainerEventResponse) -> Result<(), Failure> {
    match output {
        Output::Table => print_line(&line(event)),
        // An object per line: a stream has no end that brackets could close at.
        Output::Json => print_line(&to_json("ContainerEventResponse", event)?.to_string()),
        Output::Yaml => {
            print("---\n")?;
            crate::render::print_value(output, &to_json("ContainerEventResponse", event)?)
        }
    }
}

fn line(event: &v1::ContainerEventResponse) -> String {
    let what = match event.container_event_type() {
        Kind::ContainerCreatedEvent => "created",
        Kind::ContainerStartedEvent => "started",
        Kind::ContainerStoppedEvent => "stopped",
        Kind::ContainerDeletedEvent => "deleted",
    };
    let pod = event.pod_sandbox_status.clone().unwrap_or_default();
    let metadata = pod.metadata.unwrap_or_default();
    let pod_name = format!("{}/{}", metadata.namespace, metadata.name);
    let of_pod = event.container_id == pod.id;
    let status = event.containers_statuses.iter().find(|status| status.id == event.container_id);
    let name = status.and_then(|status| status.metadata.as_ref()).map_or("", |metadata| &metadata.name);
    let kind = if of_pod { "pod" } else { "container" };
    let mut line = format!(
        "{} {what:<8}{kind:<10}{} {pod_name}",
        rfc3339(event.created_at),
        short(&event.container_id, false)
    );
    if !name.is_empty() {
        line.push_str(&format!(" {name}"));
    }
    if let Some(status) = status.filter(|_| event.container_event_type() == Kind::ContainerStoppedEvent) {
        line.push_str(&format!(" {} ({})", status.reason, status.exit_code));
    }
    // What strangers wrote stays off the terminal's controls.
    line.replace(|c: char| c.is_control(), "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn an_event(kind: Kind, id: &str) -> v1::ContainerEventResponse {
        let metadata =
            v1::PodSandboxMetadata { name: "web".into(), namespace: "n".into(), ..Default::default() };
        let ended = v1::ContainerStatus {
            id: "c0ffee".into(),
            metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt: 0 }),
            reason: "Error".into(),
            exit_code: 7,
            ..Default::default()
        };
        v1::ContainerEventResponse {
            container_id: id.into(),
            container_event_type: kind.into(),
            created_at: 1_700_000_000_000_000_000,
            pod_sandbox_status: Some(v1::PodSandboxStatus {
                id: "p0d".into(),
                metadata: Some(metadata),
                ..Default::default()
            }),
            containers_statuses: vec![ended],
        }
    }

    #[test]
    fn lines_say_what_happened_to_whom() {
        let text = line(&an_event(Kind::ContainerStoppedEvent, "c0ffee"));
        assert_eq!(text, "2023-11-14T22:13:20Z stopped container c0ffee n/web main Error (7)");
        let text = line(&an_event(Kind::ContainerCreatedEvent, "p0d"));
        assert_eq!(text, "2023-11-14T22:13:20Z created pod       p0d n/web");
    }

    #[test]
    fn pods_are_meant_by_name_or_id() {
        let event = an_event(Kind::ContainerCreatedEvent, "p0d");
        assert!(is_of(&event, "web") && is_of(&event, "p0") && !is_of(&event, "we") && !is_of(&event, ""));
    }
}
