//! Calls that meet each other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use futures_util::future::join_all;

use super::case::{Case, case, same};
use crate::endpoint::within;
use crate::node::{Found, Node, until};

pub(super) const CASES: &[Case] = &[
    case!("race/stop-stop", "P", stop_stop).quick(),
    case!("race/stop-during-create", "K", stop_during_create),
    case!("race/remove-all", "T", remove_all),
    case!("race/cancelled-client", "K", cancelled_client),
];

async fn stop_stop(node: Node) -> Result<()> {
    let pod = node.pod("twice").run().await?;
    let container = pod.container("main").cmd(&["on", "TERM", "ignore", ";", "say", "ready=1", ";", "pause"]);
    let container = container.start().await?;
    container.says("ready").await?;
    let stop = || async {
        container.stop(1).await?;
        anyhow::Ok(container.status().await?.state)
    };
    let (first, second) = tokio::join!(stop(), stop());
    let exited = v1::ContainerState::ContainerExited as i32;
    same!((first?, second?), (exited, exited), "the states when the two calls returned");
    Ok(())
}

async fn stop_during_create(node: Node) -> Result<()> {
    let pod = node.pod("during").run().await?;
    let creates = join_all((0..10).map(|index| {
        let spec = pod.container(&format!("c{index}"));
        let node = node.clone();
        async move {
            if let Ok(id) = spec.try_create().await {
                let _ = node.start(&id).await;
            }
        }
    }));
    let end = async {
        until("a container", Duration::from_secs(20), async || {
            let count = node.own_containers().await?.len();
            Ok(if count > 1 { Found::Yes(()) } else { Found::Not(format!("{count}")) })
        })
        .await?;
        pod.stop().await?;
        anyhow::Ok(pod.remove().await?)
    };
    let (_, ended) = tokio::join!(creates, end);
    ended?;
    ensure!(node.own_pods().await?.is_empty(), "the pod is still listed");
    let left = node.own_containers().await?;
    ensure!(left.is_empty(), "{} containers are still listed", left.len());
    Ok(())
}

async fn remove_all(node: Node) -> Result<()> {
    let mut pods = Vec::new();
    for pod in join_all((0..10).map(|index| node.pod(&format!("p{index}")).run())).await {
        let pod = pod?;
        pod.container("main").start().await?;
        pods.push(pod);
    }
    let gone = pods.iter().map(|pod| async move {
        pod.stop().await.context("stop")?;
        pod.remove().await.context("remove")
    });
    join_all(gone).await.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(node.own_pods().await?.is_empty(), "a pod is still listed");
    ensure!(node.own_containers().await?.is_empty(), "a container is still listed");
    Ok(())
}

/// Each call is cut off after so many milliseconds, then repeated until it is through.
async fn cancelled_client(node: Node) -> Result<()> {
    for cut in [1, 5, 20, 60] {
        let cut = Duration::from_millis(cut);
        let spec = node.pod("cut");
        let request = v1::RunPodSandboxRequest {
            config: Some(spec.config.clone()),
            runtime_handler: spec.handler.clone(),
        };
        let _ = tokio::time::timeout(cut, node.runtime().run_pod_sandbox(within(request, cut))).await;
        let id = repeat("RunPodSandbox", async || spec.try_run().await).await?;
        let pod = crate::pod::Pod { node: node.clone(), id, config: spec.config.clone().into() };
        let spec = pod.container("main");
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(spec.config.clone()),
            sandbox_config: spec.sandbox.clone(),
        };
        let _ = tokio::time::timeout(cut, node.runtime().create_container(within(request, cut))).await;
        let container = repeat("CreateContainer", async || spec.try_create().await).await?;
        let request = v1::StartContainerRequest { container_id: container.clone() };
        let _ = tokio::time::timeout(cut, node.runtime().start_container(within(request, cut))).await;
        // Whether the cut call or the repeat started it: it must run in the end.
        until("a running container", Duration::from_secs(10), async || {
            let _ = node.start(&container).await;
            let status = node.container_status(&container).await?;
            let running = status.state == v1::ContainerState::ContainerRunning as i32;
            Ok(if running {
                Found::Yes(())
            } else {
                Found::Not(format!("state {} {}", status.state, status.message))
            })
        })
        .await?;
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        let _ = tokio::time::timeout(cut, node.runtime().stop_pod_sandbox(within(request, cut))).await;
        repeat("StopPodSandbox", async || pod.stop().await).await?;
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        let _ = tokio::time::timeout(cut, node.runtime().remove_pod_sandbox(within(request, cut))).await;
        repeat("RemovePodSandbox", async || pod.remove().await).await?;
        same!(node.own_pods().await?.len(), 0, "pods after a cut of {cut:?}");
        same!(node.own_containers().await?.len(), 0, "containers after a cut of {cut:?}");
    }
    Ok(())
}

/// As the kubelet would: again, until it works, for a while.
async fn repeat<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T, tonic::Status>) -> Result<T> {
    until(format!("the repeated {what}"), Duration::from_secs(15), async || {
        Ok(match call().await {
            Ok(value) => Found::Yes(value),
            Err(status) => Found::Not(status.message().to_owned()),
        })
    })
    .await
}
