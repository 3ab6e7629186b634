//! The stream of events.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bowline_cri_proto::v1::{self, ContainerEventType as Kind};
use tonic::{Code, Streaming};

use super::case::{Case, case, same};
use crate::node::{Node, skip};

pub(super) const CASES: &[Case] = &[
    case!("events/life", "K", life).quick(),
    case!("events/committed", "K", committed),
    case!("events/subscribers", "K", subscribers),
];

/// How long an event may be on its way.
const SOON: Duration = Duration::from_secs(20);

struct Reader(Streaming<v1::ContainerEventResponse>);

impl Reader {
    /// Listens; leaves the case where there are no events.
    async fn listen(node: &Node) -> Result<Reader> {
        // Some runtimes answer the headers with the first event only.
        let mut runtime = node.runtime();
        let answer = crate::patience::timeout(SOON, runtime.get_container_events(v1::GetEventsRequest {}));
        match answer.await.context("GetContainerEvents did not answer")? {
            Ok(answer) => Ok(Reader(answer.into_inner())),
            Err(status) if status.code() == Code::Unimplemented => skip("the endpoint has no events"),
            Err(status) => Err(status.into()),
        }
    }

    /// The next event of one of these; others' are passed over.
    async fn next(&mut self, ids: &[&str]) -> Result<v1::ContainerEventResponse> {
        loop {
            let event = crate::patience::timeout(SOON, self.0.message()).await.context("no event came")?;
            match event {
                Ok(Some(event)) if ids.contains(&event.container_id.as_str()) => return Ok(event),
                Ok(Some(_)) => {}
                Ok(None) => bail!("the stream ended"),
                Err(status) if status.code() == Code::Unimplemented => {
                    return skip("the endpoint has no events");
                }
                Err(status) => return Err(status.into()),
            }
        }
    }
}

/// Brings a pod with a container up and down again.
async fn live(node: &Node, name: &str) -> Result<(String, String)> {
    let pod = node.pod(name).run().await?;
    let container = pod.container("main").start().await?;
    container.stop(0).await?;
    container.remove().await?;
    pod.stop().await?;
    pod.remove().await?;
    Ok((pod.id.clone(), container.id.clone()))
}

async fn life(node: Node) -> Result<()> {
    let mut reader = Reader::listen(&node).await?;
    let (pod, container) = live(&node, "life").await?;
    let mut told = Vec::new();
    while told.len() < 8 {
        let event = reader.next(&[&pod, &container]).await?;
        let (kind, of_pod) = (event.container_event_type(), event.container_id == pod);
        let gone = kind == Kind::ContainerDeletedEvent && of_pod;
        match &event.pod_sandbox_status {
            Some(status) => same!(status.id, pod, "the sandbox of an event"),
            // Of what is gone nobody must know a status.
            None => ensure!(gone, "an event {kind:?} without the sandbox's status"),
        }
        let here = event.containers_statuses.iter().any(|status| status.id == container);
        if !of_pod && kind != Kind::ContainerDeletedEvent {
            ensure!(here, "an event {kind:?} without its container's status");
        }
        told.push((of_pod, kind));
    }
    let of = |wanted: bool| {
        told.iter().filter(|(pod, _)| *pod == wanted).map(|(_, kind)| *kind).collect::<Vec<_>>()
    };
    let whole = vec![
        Kind::ContainerCreatedEvent,
        Kind::ContainerStartedEvent,
        Kind::ContainerStoppedEvent,
        Kind::ContainerDeletedEvent,
    ];
    same!(of(false), whole, "events of the container");
    same!(of(true), whole, "events of the sandbox");
    Ok(())
}

async fn committed(node: Node) -> Result<()> {
    let mut reader = Reader::listen(&node).await?;
    let pod = node.pod("committed").run().await?;
    let container = pod.container("main").create().await?;
    let ids = [pod.id.as_str(), container.id.as_str()];
    let mut last = 0;
    let mut expect = async |id: &str, wanted: Kind| -> Result<()> {
        let event = reader.next(&ids).await?;
        same!((event.container_id.as_str(), event.container_event_type()), (id, wanted), "the next event");
        ensure!(event.created_at > last, "created_at {} is not later than {last}", event.created_at);
        last = event.created_at;
        Ok(())
    };
    expect(&pod.id, Kind::ContainerCreatedEvent).await?;
    expect(&pod.id, Kind::ContainerStartedEvent).await?;
    expect(&container.id, Kind::ContainerCreatedEvent).await?;
    container.start().await?;
    expect(&container.id, Kind::ContainerStartedEvent).await?;
    same!(
        container.status().await?.state(),
        v1::ContainerState::ContainerRunning,
        "at the event of the start"
    );
    container.stop(0).await?;
    expect(&container.id, Kind::ContainerStoppedEvent).await?;
    same!(container.status().await?.state(), v1::ContainerState::ContainerExited, "at the event of the end");
    container.remove().await?;
    expect(&container.id, Kind::ContainerDeletedEvent).await?;
    let filter = v1::ContainerFilter { id: container.id.clone(), ..Default::default() };
    same!(node.list_containers(filter).await?.len(), 0, "containers at the event of the removal");
    pod.stop().await?;
    expect(&pod.id, Kind::ContainerStoppedEvent).await?;
    same!(pod.status().await?.state(), v1::PodSandboxState::SandboxNotready, "at the event of the pod's end");
    Ok(())
}

async fn subscribers(node: Node) -> Result<()> {
    let (old_pod, old) = live(&node, "before").await?;
    // This one is never read.
    let _idle = Reader::listen(&node).await?;
    let mut readers = Vec::new();
    for _ in 0..3 {
        readers.push(Reader::listen(&node).await?);
    }
    let (pod, container) = live(&node, "after").await?;
    let ids = [old_pod.as_str(), &old, &pod, &container];
    for reader in &mut readers {
        for _ in 0..8 {
            let event = reader.next(&ids).await?;
            let new = event.container_id == pod || event.container_id == container;
            ensure!(new, "a new reader is told of what was before it");
        }
    }
    Ok(())
}
