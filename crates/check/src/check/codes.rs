//! The codes of errors.

use anyhow::{Result, ensure};
use bowline_cri_proto::v1;
use tonic::{Code, Status};

use super::case::{Case, case};
use crate::endpoint::ask;
use crate::images::PROGRAM;
use crate::node::{Node, refused};

pub(super) const CASES: &[Case] = &[
    case!("codes/not-found", "K", not_found).quick(),
    case!("codes/unimplemented", "K", unimplemented),
    case!("codes/limits", "S", limits),
];

async fn not_found(node: Node) -> Result<()> {
    let id = || "3".repeat(64);
    let mut runtime = node.runtime();
    let expected = [Code::NotFound];
    refused(node.pod_status(&id()).await, &expected, "PodSandboxStatus")?;
    refused(node.container_status(&id()).await, &expected, "ContainerStatus")?;
    refused(node.start(&id()).await, &expected, "StartContainer")?;
    refused(node.exec_sync(&id(), &[PROGRAM], 1).await, &expected, "ExecSync")?;
    let stats = v1::ContainerStatsRequest { container_id: id() };
    refused(runtime.container_stats(ask(stats)).await, &expected, "ContainerStats")?;
    let linux = v1::LinuxContainerResources { cpu_shares: 100, ..Default::default() };
    let update =
        v1::UpdateContainerResourcesRequest { container_id: id(), linux: Some(linux), ..Default::default() };
    refused(runtime.update_container_resources(ask(update)).await, &expected, "UpdateContainerResources")?;
    let reopen = v1::ReopenContainerLogRequest { container_id: id() };
    refused(runtime.reopen_container_log(ask(reopen)).await, &expected, "ReopenContainerLog")?;
    // These may not be served at all yet.
    let or_missing = [Code::NotFound, Code::Unimplemented];
    let exec = v1::ExecRequest {
        container_id: id(),
        cmd: vec![PROGRAM.to_owned()],
        stdout: true,
        ..Default::default()
    };
    refused(runtime.exec(ask(exec)).await, &or_missing, "Exec")?;
    let attach = v1::AttachRequest { container_id: id(), stdout: true, ..Default::default() };
    refused(runtime.attach(ask(attach)).await, &or_missing, "Attach")?;
    let forward = v1::PortForwardRequest { pod_sandbox_id: id(), port: vec![80] };
    refused(runtime.port_forward(ask(forward)).await, &or_missing, "PortForward")?;
    let stats = v1::PodSandboxStatsRequest { pod_sandbox_id: id() };
    refused(runtime.pod_sandbox_stats(ask(stats)).await, &or_missing, "PodSandboxStats")?;
    let checkpoint =
        v1::CheckpointContainerRequest { container_id: id(), location: "/none".to_owned(), timeout: 1 };
    refused(runtime.checkpoint_container(ask(checkpoint)).await, &or_missing, "CheckpointContainer")?;
    Ok(())
}

/// Calls that an endpoint may well lack answer, or say so by the code; streams on the first receive.
async fn unimplemented(node: Node) -> Result<()> {
    let mut runtime = node.runtime();
    let fair = |what: &str, status: Option<Status>| {
        let code = status.as_ref().map(Status::code);
        let fine = matches!(code, None | Some(Code::Unimplemented | Code::NotFound | Code::InvalidArgument));
        ensure!(fine, "{what} gave {status:?}");
        Ok(())
    };
    let descriptors = runtime.list_metric_descriptors(ask(v1::ListMetricDescriptorsRequest {})).await;
    fair("ListMetricDescriptors", descriptors.err())?;
    let metrics = runtime.list_pod_sandbox_metrics(ask(v1::ListPodSandboxMetricsRequest {})).await;
    fair("ListPodSandboxMetrics", metrics.err())?;
    let stats = runtime.list_pod_sandbox_stats(ask(v1::ListPodSandboxStatsRequest::default())).await;
    fair("ListPodSandboxStats", stats.err())?;
    let restore = runtime.restore_pod(ask(v1::RestorePodRequest::default())).await;
    fair("RestorePod", restore.err())?;
    let first = match runtime.stream_pod_sandboxes(ask(v1::StreamPodSandboxesRequest::default())).await {
        Err(status) => Some(status),
        Ok(answer) => answer.into_inner().message().await.err(),
    };
    fair("StreamPodSandboxes", first)
}

async fn limits(node: Node) -> Result<()> {
    let huge = "x".repeat(17 << 20);
    let big = node.pod("huge").edit(|config| drop(config.annotations.insert("much".to_owned(), huge)));
    refused(
        big.try_run().await,
        &[Code::ResourceExhausted, Code::InvalidArgument, Code::OutOfRange],
        "a request of 17 MiB",
    )?;
    let many = node.pod("labels").edit(|config| {
        config.labels.extend((0..100_000).map(|index| (format!("label-{index}"), "x".to_owned())));
    });
    if let Ok(id) = many.try_run().await {
        node.remove_pod(&id).await?;
    }
    let long =
        node.pod("name").edit(|config| config.metadata.get_or_insert_default().name = "n".repeat(1 << 20));
    refused(long.try_run().await, &[], "a name of 1 MiB")?;
    node.pod("after").run().await?.status().await?;
    Ok(())
}
