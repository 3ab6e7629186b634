//! How long the calls of a pod's life take.

use std::time::{Duration, Instant};

use anyhow::Result;
use bowline_cri_proto::v1;
use futures_util::stream::{self, StreamExt as _};

use super::figures::Figures;
use crate::container::Ctr;
use crate::endpoint::ask;
use crate::images::PROGRAM;
use crate::node::Node;

/// How many pods a burst has, and how many are on their way at a time.
const BURST: (usize, usize) = (50, 10);

/// One pod up, a command in it, and down again.
pub(super) async fn round(node: &Node, gap: Duration, figures: &mut Figures) -> Result<()> {
    let endpoint = node.run.endpoint.as_str();
    let calls = Calls { gap };
    let (pod, ran) = calls.time(node.pod("bench").run()).await?;
    let (container, created) = calls.time(pod.container("main").create()).await?;
    let ((), started) = calls.time(container.start()).await?;
    figures.span("pod up", endpoint, ran + created + started);
    figures.span("  RunPodSandbox", endpoint, ran);
    figures.span("  CreateContainer", endpoint, created);
    figures.span("  StartContainer", endpoint, started);
    let (_, exec) = calls.time(node.exec_sync(&container.id, &[PROGRAM], 10)).await?;
    figures.span("ExecSync", endpoint, exec);
    let ((), stopped) = calls.time(container.stop(0)).await?;
    let ((), removed) = calls.time(container.remove()).await?;
    let ((), down) = calls.time(container.pod.stop()).await?;
    let ((), gone) = calls.time(container.pod.remove()).await?;
    figures.span("pod down", endpoint, stopped + removed + down + gone);
    Ok(())
}

/// Calls one after the other, with a pause before each.
struct Calls {
    gap: Duration,
}

impl Calls {
    /// Makes one; its own time is returned, not the pause.
    async fn time<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<(T, Duration), E> {
        if !self.gap.is_zero() {
            tokio::time::sleep(self.gap).await;
        }
        let start = Instant::now();
        let answer = call.await?;
        Ok((answer, start.elapsed()))
    }
}

async fn down(container: &Ctr) -> Result<()> {
    container.stop(0).await?;
    container.remove().await?;
    container.pod.stop().await?;
    container.pod.remove().await?;
    Ok(())
}

/// So many pods with a container each, some at a time.
pub(super) async fn many(node: &Node, count: usize, at_once: usize) -> Result<Vec<Ctr>> {
    let pods = stream::iter(0..count).map(|index| async move {
        node.pod(&format!("p{index}")).run().await?.container("main").start().await
    });
    let made: Vec<Result<Ctr>> = pods.buffer_unordered(at_once).collect().await;
    made.into_iter().collect()
}

/// Takes them down again.
pub(super) async fn none(containers: Vec<Ctr>) -> Result<()> {
    let ended = stream::iter(&containers).map(down);
    let ended: Vec<Result<()>> = ended.buffer_unordered(BURST.1).collect().await;
    ended.into_iter().collect()
}

/// Pods per second, up and down.
pub(super) async fn burst(node: &Node, figures: &mut Figures) -> Result<()> {
    let endpoint = node.run.endpoint.as_str();
    let start = Instant::now();
    let containers = many(node, BURST.0, BURST.1).await?;
    figures.add("burst up", "pods/s", endpoint, BURST.0 as f64 / start.elapsed().as_secs_f64());
    let start = Instant::now();
    none(containers).await?;
    figures.add("burst down", "pods/s", endpoint, BURST.0 as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

/// Lists and statuses with twenty pods.
pub(super) async fn lists(node: &Node, figures: &mut Figures) -> Result<()> {
    let endpoint = node.run.endpoint.as_str();
    let containers = many(node, 20, BURST.1).await?;
    for container in containers.iter().cycle().take(100) {
        let start = Instant::now();
        node.list_pods(v1::PodSandboxFilter::default()).await?;
        figures.span("ListPodSandbox, 20 pods", endpoint, start.elapsed());
        let start = Instant::now();
        node.list_containers(v1::ContainerFilter::default()).await?;
        figures.span("ListContainers, 20 pods", endpoint, start.elapsed());
        let start = Instant::now();
        container.pod.status().await?;
        figures.span("PodSandboxStatus, 20 pods", endpoint, start.elapsed());
        let start = Instant::now();
        container.status().await?;
        figures.span("ContainerStatus, 20 pods", endpoint, start.elapsed());
        let start = Instant::now();
        node.runtime().list_container_stats(ask(v1::ListContainerStatsRequest::default())).await?;
        figures.span("ListContainerStats, 20 pods", endpoint, start.elapsed());
    }
    none(containers).await
}
