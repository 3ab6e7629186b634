//! Checkpoints: containers and pods that are written go on, and what was written goes on elsewhere.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use tonic::{Code, Status};

use super::case::{Case, case, same};
use crate::container::Ctr;
use crate::endpoint::ask;
use crate::images::PROGRAM;
use crate::node::{Node, refused, skip};

pub(super) const CASES: &[Case] = &[
    case!("checkpoint/container", "KT", container),
    case!("checkpoint/image", "K", image),
    case!("checkpoint/pod", "P", pod),
];

/// An endpoint that cannot says why.
fn or_skip<T>(answer: Result<T, Status>, what: &str) -> Result<T> {
    match answer {
        Err(status) if status.code() == Code::Unimplemented => skip(format!("{what}: {}", status.message())),
        other => other.with_context(|| what.to_owned()),
    }
}

async fn goes_on(container: &Ctr, pid: u32) -> Result<()> {
    let status = container.status().await?;
    same!(status.state, i32::from(v1::ContainerState::ContainerRunning), "state after the checkpoint");
    same!(container.host_pid().await?, pid, "first process after the checkpoint");
    let answer = container.pod.node.exec_sync(&container.id, &[PROGRAM, "say", "still"], 10).await?;
    same!(String::from_utf8_lossy(&answer.stdout), "still\n", "what it says after the checkpoint");
    Ok(())
}

async fn container(node: Node) -> Result<()> {
    let pod = node.pod("written").run().await?;
    let container = pod.container("main").start().await?;
    let pid = container.host_pid().await?;
    let archive = node.folder("archives")?.join("archive.tar");
    let write = async |timeout| {
        let location = archive.to_string_lossy().into_owned();
        let request =
            v1::CheckpointContainerRequest { container_id: container.id.clone(), location, timeout };
        node.runtime().checkpoint_container(ask(request)).await
    };
    let codes = [Code::InvalidArgument, Code::Unimplemented];
    refused(write(-1).await, &codes, "CheckpointContainer with a negative timeout")?;
    or_skip(write(60).await, "CheckpointContainer")?;
    let size = std::fs::metadata(&archive).context("the archive is not there")?.len();
    ensure!(size > 4096, "the archive has {size} bytes");
    goes_on(&container, pid).await
}

/// Kubernetes' "forensic container checkpointing": the archive's files in an image that says so, and a container of that.
async fn image(node: Node) -> Result<()> {
    let pod = node.pod("written").run().await?;
    let container = pod.container("main").start().await?;
    let archive = node.folder("archives")?.join("archive.tar");
    let location = archive.to_string_lossy().into_owned();
    let request =
        v1::CheckpointContainerRequest { container_id: container.id.clone(), location, timeout: 60 };
    or_skip(node.runtime().checkpoint_container(ask(request)).await, "CheckpointContainer")?;
    let bytes = std::fs::read(&archive).context("the archive is not there")?;
    container.stop(0).await?;
    let name = "org.criu.checkpoint.container.name";
    let built = bowline_testkit::checkpoint_image(bytes, "main").annotation(name, "main").build();
    let reference = node.pull_built("archive", &built).await?;

    let second = node.pod("second").run().await?;
    let wish = second.container("main").image(&reference);
    let id = or_skip(wish.try_create().await, "CreateContainer from an image")?;
    node.start(&id).await.context("StartContainer of a restored container")?;
    let answer = node.exec_sync(&id, &[PROGRAM, "say", "back"], 10).await?;
    same!(String::from_utf8_lossy(&answer.stdout), "back\n", "what it says");
    let status = node.container_status(&id).await?;
    same!(status.state, i32::from(v1::ContainerState::ContainerRunning), "its state");
    Ok(())
}

async fn pod(node: Node) -> Result<()> {
    let sandbox = node.pod("written").run().await?;
    let one = sandbox.container("one").start().await?;
    let two = sandbox.container("two").start().await?;
    let pids = [one.host_pid().await?, two.host_pid().await?];
    let write = async |output: &Path, ids: &[&str]| {
        let request = v1::CheckpointPodRequest {
            pod_sandbox_id: sandbox.id.clone(),
            output_path: output.to_string_lossy().into_owned(),
            container_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        };
        node.runtime().checkpoint_pod(ask(request)).await
    };
    let (first, second) = (one.id.as_str(), two.id.as_str());
    let output = node.folder("pod")?;
    let codes = [Code::InvalidArgument, Code::FailedPrecondition, Code::Unimplemented];
    refused(write(&output, &[]).await, &codes, "CheckpointPod of no container")?;
    refused(write(&output, &[first]).await, &codes, "CheckpointPod of half the containers")?;
    refused(write(&output, &[first, second, first]).await, &codes, "CheckpointPod of one twice")?;
    refused(write(&output.join("none"), &[first, second]).await, &codes, "CheckpointPod into nowhere")?;
    let empty = || std::fs::read_dir(&output).map(|entries| entries.count());
    same!(empty()?, 0, "files after refusals");
    or_skip(write(&output, &[first, second]).await, "CheckpointPod")?;
    ensure!(empty()? > 0, "the folder is still empty");
    goes_on(&one, pids[0]).await?;
    goes_on(&two, pids[1]).await?;
    sandbox.stop().await?;
    node.remove_pod(&sandbox.id).await?;

    let request = v1::RestorePodRequest {
        checkpoint_path: output.to_string_lossy().into_owned(),
        config: Some((*sandbox.config).clone()),
        container_configs: vec![two.config.clone(), one.config.clone()],
        runtime_handler: node.run.handler.clone(),
        ..Default::default()
    };
    let restored = or_skip(node.runtime().restore_pod(ask(request)).await, "RestorePod")?.into_inner();
    node.made_pod(&restored.pod_sandbox_id);
    same!(restored.restored_containers.len(), 2, "restored containers");
    for container in &restored.restored_containers {
        node.made_container(&container.container_id);
        let status = node.container_status(&container.container_id).await?;
        same!(status.state, i32::from(v1::ContainerState::ContainerCreated), "state before the start");
        node.start(&container.container_id).await.context("StartContainer of a restored container")?;
        let answer = node.exec_sync(&container.container_id, &[PROGRAM, "say", "back"], 10).await?;
        same!(String::from_utf8_lossy(&answer.stdout), "back\n", "what it says");
    }
    Ok(())
}
