//! Lists and their filters.

use anyhow::{Result, ensure};
use bowline_cri_proto::v1;

use super::case::{Case, case, same};
use crate::endpoint::ask;
use crate::node::{LABEL, Node, image};

pub(super) const CASES: &[Case] = &[
    case!("list/filters", "CKT", filters).quick(),
    case!("list/empty-filter", "CT", empty_filter),
    case!("list/no-match", "C", no_match).quick(),
    case!("list/ambiguous-prefix", "TS", ambiguous_prefix),
    case!("list/streams", "K", streams),
    case!("list/big", "K", big).serial(),
];

fn labels(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn filters(node: Node) -> Result<()> {
    let mark = node.mark();
    let with = |name: &'static str, tier: &'static str| {
        node.pod(name).edit(|config| {
            config.labels.insert("tier".to_owned(), tier.to_owned());
        })
    };
    let (front, back) = (with("front", "front").run().await?, with("back", "back").run().await?);
    let running =
        front.container("running").edit(|c| drop(c.labels.insert("kind".into(), "a".into()))).start().await?;
    let created = front
        .container("created")
        .edit(|c| drop(c.labels.insert("kind".into(), "b".into())))
        .create()
        .await?;
    let other =
        back.container("other").edit(|c| drop(c.labels.insert("kind".into(), "a".into()))).create().await?;
    back.stop().await?;

    let ready = v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady as i32 };
    let pods: Vec<(&str, v1::PodSandboxFilter, Vec<&str>)> = vec![
        ("id", v1::PodSandboxFilter { id: front.id.clone(), ..Default::default() }, vec![&front.id]),
        (
            "prefix",
            v1::PodSandboxFilter { id: front.id[..20].to_owned(), ..Default::default() },
            vec![&front.id],
        ),
        (
            "state and label",
            v1::PodSandboxFilter {
                state: Some(ready),
                label_selector: labels(&[(LABEL, &mark)]),
                ..Default::default()
            },
            vec![&front.id],
        ),
        (
            "two labels",
            v1::PodSandboxFilter {
                label_selector: labels(&[(LABEL, &mark), ("tier", "back")]),
                ..Default::default()
            },
            vec![&back.id],
        ),
        (
            "id and a label of another",
            v1::PodSandboxFilter {
                id: front.id.clone(),
                label_selector: labels(&[("tier", "back")]),
                ..Default::default()
            },
            vec![],
        ),
    ];
    for (what, filter, expected) in pods {
        let got = node.list_pods(filter).await?;
        same!(got.iter().map(|pod| pod.id.as_str()).collect::<Vec<_>>(), expected, "pods by {what}");
    }

    let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state as i32 });
    let all = labels(&[(LABEL, &mark)]);
    let is_created = state(v1::ContainerState::ContainerCreated);
    let containers: Vec<(&str, v1::ContainerFilter, Vec<&str>)> = vec![
        ("id", v1::ContainerFilter { id: created.id.clone(), ..Default::default() }, vec![&created.id]),
        (
            "prefix",
            v1::ContainerFilter { id: created.id[..20].to_owned(), ..Default::default() },
            vec![&created.id],
        ),
        (
            "state",
            v1::ContainerFilter { state: is_created, label_selector: all.clone(), ..Default::default() },
            vec![&created.id, &other.id],
        ),
        (
            "sandbox",
            v1::ContainerFilter { pod_sandbox_id: front.id.clone(), ..Default::default() },
            vec![&running.id, &created.id],
        ),
        (
            "sandbox prefix and label",
            v1::ContainerFilter {
                pod_sandbox_id: front.id[..20].to_owned(),
                label_selector: labels(&[("kind", "b")]),
                ..Default::default()
            },
            vec![&created.id],
        ),
        (
            "sandbox and state",
            v1::ContainerFilter {
                pod_sandbox_id: back.id.clone(),
                state: state(v1::ContainerState::ContainerRunning),
                ..Default::default()
            },
            vec![],
        ),
    ];
    for (what, filter, mut expected) in containers {
        let got = node.list_containers(filter).await?;
        let mut got: Vec<_> = got.iter().map(|container| container.id.as_str()).collect();
        got.sort_unstable();
        expected.sort_unstable();
        same!(got, expected, "containers by {what}");
    }
    Ok(())
}

async fn empty_filter(node: Node) -> Result<()> {
    let pod = node.pod("empty").run().await?;
    let container = pod.container("main").create().await?;
    for filter in [None, Some(v1::PodSandboxFilter::default())] {
        let items = node
            .runtime()
            .list_pod_sandbox(ask(v1::ListPodSandboxRequest { filter }))
            .await?
            .into_inner()
            .items;
        ensure!(items.iter().any(|item| item.id == pod.id), "our pod is not in the list");
    }
    for filter in [None, Some(v1::ContainerFilter::default())] {
        let answer =
            node.runtime().list_containers(ask(v1::ListContainersRequest { filter })).await?.into_inner();
        ensure!(
            answer.containers.iter().any(|item| item.id == container.id),
            "our container is not in the list"
        );
    }
    for filter in [None, Some(v1::ImageFilter::default()), Some(v1::ImageFilter { image: Some(image("")) })] {
        let answer = node.images().list_images(ask(v1::ListImagesRequest { filter })).await?.into_inner();
        let ours = answer.images.iter().any(|item| item.repo_tags.contains(&node.run.image));
        ensure!(ours, "our image is not in the list");
    }
    Ok(())
}

async fn no_match(node: Node) -> Result<()> {
    let id = "6".repeat(64);
    same!(
        node.list_pods(v1::PodSandboxFilter { id: id.clone(), ..Default::default() }).await?.len(),
        0,
        "pods"
    );
    same!(
        node.list_containers(v1::ContainerFilter { id, ..Default::default() }).await?.len(),
        0,
        "containers"
    );
    Ok(())
}

/// Seventeen ids have two that start alike.
async fn ambiguous_prefix(node: Node) -> Result<()> {
    let pod = node.pod("ambiguous").run().await?;
    let mut ids = Vec::new();
    for index in 0..17 {
        ids.push(pod.container(&format!("c{index}")).create().await?.id);
    }
    ids.sort();
    let twins = ids.windows(2).find(|pair| pair[0][..1] == pair[1][..1]);
    let prefix = &twins.map_or("", |pair| &pair[0][..1]);
    match node.container_status(prefix).await {
        Ok(status) => anyhow::bail!("the prefix `{prefix}` of several gave {}", status.id),
        Err(status) => {
            ensure!(status.code() != tonic::Code::Unknown || !status.message().is_empty(), "an empty error")
        }
    }
    Ok(())
}

/// All messages of a stream.
async fn whole<T>(mut stream: tonic::Streaming<T>) -> Result<Vec<T>, tonic::Status> {
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

/// What a stream gave, one list of ids; leaves the case where it is not served.
macro_rules! streamed {
    ($call:expr, $items:ident, $id:expr) => {{
        let messages = match $call.await {
            Ok(answer) => whole(answer.into_inner()).await,
            Err(status) => Err(status),
        };
        match messages {
            Ok(messages) => {
                let mut ids: Vec<String> =
                    messages.into_iter().flat_map(|message| message.$items).map($id).collect();
                ids.sort();
                ids
            }
            Err(status) if status.code() == tonic::Code::Unimplemented => {
                return crate::node::skip("the endpoint does not serve streams of lists");
            }
            Err(status) => return Err(status.into()),
        }
    }};
}

/// Each of the six gives the items of the unary call, each once.
async fn streams(node: Node) -> Result<()> {
    let (one, two) = (node.pod("one").run().await?, node.pod("two").run().await?);
    let running = one.container("running").start().await?;
    let created = two.container("created").create().await?;
    let label = labels(&[(LABEL, &node.mark())]);
    let sorted = |ids: &[&str]| {
        let mut ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        ids.sort();
        ids
    };
    let mut runtime = node.runtime();

    let filter = v1::PodSandboxFilter { label_selector: label.clone(), ..Default::default() };
    let request = ask(v1::StreamPodSandboxesRequest { filter: Some(filter) });
    let pods = streamed!(runtime.stream_pod_sandboxes(request), pod_sandboxes, |pod| pod.id);
    same!(pods, sorted(&[&one.id, &two.id]), "StreamPodSandboxes");

    let filter = v1::ContainerFilter { label_selector: label.clone(), ..Default::default() };
    let request = ask(v1::StreamContainersRequest { filter: Some(filter) });
    let containers = streamed!(runtime.stream_containers(request), containers, |container| container.id);
    same!(containers, sorted(&[&running.id, &created.id]), "StreamContainers");

    let filter = v1::ContainerStatsFilter { label_selector: label.clone(), ..Default::default() };
    let request = ask(v1::StreamContainerStatsRequest { filter: Some(filter) });
    let stats = streamed!(runtime.stream_container_stats(request), container_stats, |stats| {
        stats.attributes.unwrap_or_default().id
    });
    same!(stats, sorted(&[&running.id]), "StreamContainerStats");

    let filter = v1::PodSandboxStatsFilter { label_selector: label, ..Default::default() };
    let request = ask(v1::StreamPodSandboxStatsRequest { filter: Some(filter) });
    let stats = streamed!(runtime.stream_pod_sandbox_stats(request), pod_sandbox_stats, |stats| {
        stats.attributes.unwrap_or_default().id
    });
    same!(stats, sorted(&[&one.id, &two.id]), "StreamPodSandboxStats");

    let request = ask(v1::StreamPodSandboxMetricsRequest {});
    let metrics = streamed!(runtime.stream_pod_sandbox_metrics(request), pod_sandbox_metrics, |metrics| {
        metrics.pod_sandbox_id
    });
    for pod in [&one.id, &two.id] {
        same!(metrics.iter().filter(|id| *id == pod).count(), 1, "StreamPodSandboxMetrics");
    }

    let request = ask(v1::StreamImagesRequest::default());
    let images = streamed!(node.images().stream_images(request), images, |image| image.id);
    let own = node.image_status(&node.run.image).await?.map(|image| image.id).unwrap_or_default();
    same!(images.iter().filter(|id| **id == own).count(), 1, "StreamImages");

    // Nothing to send is no error.
    let filter = v1::PodSandboxFilter { id: "6".repeat(64), ..Default::default() };
    let request = ask(v1::StreamPodSandboxesRequest { filter: Some(filter) });
    let none = streamed!(runtime.stream_pod_sandboxes(request), pod_sandboxes, |pod| pod.id);
    same!(none.len(), 0, "a stream of nothing");
    Ok(())
}

/// More than 16 MiB of annotations: the unary list stays within what the kubelet takes, or says that it cannot.
async fn big(node: Node) -> Result<()> {
    let much = "x".repeat(60 << 10);
    let spec = |index: usize| {
        let much = much.clone();
        // In the host's network, so that three hundred of them need no addresses.
        node.pod(&format!("big{index}")).host_network().edit(move |config| {
            config.annotations.insert("much".to_owned(), much);
        })
    };
    use futures_util::stream::{self, StreamExt as _};
    let made: Vec<_> =
        stream::iter(0..300).map(|index| spec(index).run()).buffer_unordered(10).collect().await;
    let made = made.into_iter().collect::<Result<Vec<_>>>()?;
    let request = v1::ListPodSandboxRequest { filter: None };
    match node.runtime().list_pod_sandbox(ask(request)).await {
        Ok(answer) => {
            let items = answer.into_inner().items;
            let size: usize = items.iter().map(prost_size).sum();
            ensure!(size <= 16 << 20, "the unary list has {size} bytes; the kubelet takes 16 MiB");
        }
        Err(status) => {
            let code = status.code();
            let says_so = matches!(code, tonic::Code::ResourceExhausted | tonic::Code::OutOfRange);
            ensure!(says_so, "the unary list gave {code:?}: {}", status.message());
        }
    }
    match node.runtime().stream_pod_sandboxes(ask(v1::StreamPodSandboxesRequest::default())).await {
        Err(status) if status.code() == tonic::Code::Unimplemented => {}
        Err(status) => return Err(status.into()),
        Ok(answer) => {
            let messages = whole(answer.into_inner()).await?;
            let sizes =
                messages.iter().map(|message| message.pod_sandboxes.iter().map(prost_size).sum::<usize>());
            let large = sizes.max().unwrap_or(0);
            ensure!(large <= 16 << 20, "a message of the stream has {large} bytes");
            let items: Vec<_> = messages.into_iter().flat_map(|message| message.pod_sandboxes).collect();
            for pod in &made {
                same!(items.iter().filter(|item| item.id == pod.id).count(), 1, "our pod in the stream");
            }
        }
    }
    for chunk in made.chunks(10) {
        let gone = chunk.iter().map(|pod| async move {
            pod.stop().await?;
            pod.remove().await
        });
        futures_util::future::join_all(gone).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    }
    Ok(())
}

/// Nearly the encoded size: the annotations are what counts.
fn prost_size(pod: &v1::PodSandbox) -> usize {
    pod.annotations.iter().map(|(key, value)| key.len() + value.len()).sum()
}
