//! The daemon away and back again. All need `--restart-cmd`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;

use super::case::{Case, case, same};
use crate::container::Ctr;
use crate::endpoint::{self, ask};
use crate::images::PROGRAM;
use crate::node::{Found, Node, skip, until};

pub(super) const CASES: &[Case] = &[
    case!("restart/survive", "K", survive).serial(),
    case!("restart/meanwhile", "K", meanwhile).serial(),
    case!("restart/calls", "K", calls).serial(),
    case!("restart/work-goes-on", "K", work_goes_on).serial(),
];

/// Restarts the daemon and waits until it answers.
pub(super) async fn restart(node: &Node) -> Result<()> {
    let Some(command) = node.run.restart.clone() else { return skip("no --restart-cmd was given") };
    let mut child = tokio::process::Command::new("/bin/sh");
    child.arg("-c").arg(&command).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let status = crate::patience::timeout(Duration::from_secs(60), child.status())
        .await
        .context("the restart command hangs")??;
    ensure!(status.success(), "the restart command ended with {status}");
    ready(node).await
}

async fn ready(node: &Node) -> Result<()> {
    until("the daemon back", Duration::from_secs(30), async || {
        Ok(match node.list_pods(v1::PodSandboxFilter::default()).await {
            Ok(_) => Found::Yes(()),
            Err(status) => Found::Not(status.to_string()),
        })
    })
    .await
}

fn wanted(node: &Node) -> Result<()> {
    if node.run.restart.is_none() { skip("no --restart-cmd was given") } else { Ok(()) }
}

async fn survive(node: Node) -> Result<()> {
    wanted(&node)?;
    let volume = node.folder("volume")?;
    let pod = node.pod("survive").run().await?;
    let stopped = node.pod("stopped").run().await?;
    stopped.stop().await?;
    let running = pod.container("running").mount(&volume, "/vol").start().await?;
    let created = pod.container("created").create().await?;
    let exited = pod.container("exited").cmd(&["exit", "42"]).start().await?;
    exited.exited().await?;
    let look = async || {
        let mut statuses = Vec::new();
        for container in [&running, &created, &exited] {
            statuses.push(container.status().await?);
        }
        anyhow::Ok((pod.status().await?, stopped.status().await?, statuses))
    };
    let before = look().await?;
    restart(&node).await?;
    let after = look().await?;
    same!(after.0, before.0, "the pod's status");
    same!(
        (after.1.state, &after.1.metadata),
        (before.1.state, &before.1.metadata),
        "the stopped pod's status"
    );
    for (after, before) in after.2.iter().zip(&before.2) {
        same!(after, before, "a container's status");
    }
    created.start().await.context("starting what was created before")
}

async fn meanwhile(node: Node) -> Result<()> {
    wanted(&node)?;
    let folder = node.folder("volume")?;
    let pod = node.pod("meanwhile").run().await?;
    let words = ["await-file", "/vol/go", ";", "numbers", "out", "5000", "50", ";", "exit", "9"];
    let container = pod.container("main").cmd(&words).mount(&folder, "/vol").start().await?;
    let command = node.run.restart.clone().unwrap_or_default();
    // The container is let go when the old daemon is being ended, so that part of it happens without one.
    std::fs::write(folder.join("go"), "")?;
    let child = tokio::process::Command::new("/bin/sh")
        .arg("-c")
        .arg(&command)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .status();
    ensure!(child.await?.success(), "the restart command failed");
    ready(&node).await?;
    let status = container.exited().await?;
    same!(status.exit_code, 9, "exit code");
    let lines = container.log()?;
    same!(lines.len(), 5000, "lines in the log");
    let right = lines
        .iter()
        .enumerate()
        .all(|(index, line)| line.content.starts_with(format!("{index:08}").as_bytes()));
    ensure!(right, "a line is missing or doubled");
    Ok(())
}

async fn calls(node: Node) -> Result<()> {
    wanted(&node)?;
    let command = node.run.restart.clone().unwrap_or_default();
    let child = tokio::process::Command::new("/bin/sh")
        .arg("-c")
        .arg(&command)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .status();
    let soon = crate::patience::at_most(Duration::from_secs(2));
    let watch = async {
        let mut unavailable = 0;
        let mut up = false;
        until("an answer to everything", Duration::from_secs(30), async || {
            let Ok(channel) = endpoint::connect(&node.run.endpoint).await else {
                return Ok(Found::Not("no connection".into()));
            };
            let mut images = endpoint::images(channel.clone());
            let mut runtime = endpoint::runtime(channel);
            let early = async {
                images.image_fs_info(endpoint::within(v1::ImageFsInfoRequest {}, soon)).await?;
                runtime.runtime_config(endpoint::within(v1::RuntimeConfigRequest {}, soon)).await
            };
            let early = early.await.is_ok();
            let list = runtime.list_pod_sandbox(endpoint::within(v1::ListPodSandboxRequest::default(), soon));
            match list.await {
                Ok(_) => {
                    // Two answers in a row from the new daemon: the first may still be the old one's.
                    let done = up && early;
                    up = true;
                    Ok(if done { Found::Yes(()) } else { Found::Not("once".into()) })
                }
                Err(status) => {
                    unavailable += 1;
                    up = false;
                    let fast =
                        status.code() == tonic::Code::Unavailable || status.code() == tonic::Code::Unknown;
                    ensure!(
                        fast || status.code() == tonic::Code::Cancelled,
                        "{:?}: {}",
                        status.code(),
                        status.message()
                    );
                    Ok(Found::Not(status.to_string()))
                }
            }
        })
        .await
    };
    let (ended, watched) = tokio::join!(child, watch);
    ensure!(ended?.success(), "the restart command failed");
    // The cases after this one find the daemon there, whatever came out here.
    ready(&node).await?;
    watched
}

async fn work_goes_on(node: Node) -> Result<()> {
    wanted(&node)?;
    let pod = node.pod("goes-on").run().await?;
    let container: Ctr = pod.container("main").cmd(&["count", "1000"]).start().await?;
    restart(&node).await?;
    let answer = node.exec_sync(&container.id, &[PROGRAM, "say", "here"], 10).await.context("ExecSync")?;
    same!(answer.stdout, b"here\n".to_vec(), "output of an exec");
    let stats = v1::ContainerStatsRequest { container_id: container.id.clone() };
    node.runtime().container_stats(ask(stats)).await.context("ContainerStats")?;
    let path = container.log_path();
    std::fs::rename(&path, path.with_extension("old"))?;
    let reopen = v1::ReopenContainerLogRequest { container_id: container.id.clone() };
    node.runtime().reopen_container_log(ask(reopen)).await.context("ReopenContainerLog")?;
    until("lines in the new file", Duration::from_secs(5), async || {
        let size = std::fs::metadata(&path).map_or(0, |data| data.len());
        Ok(if size > 0 { Found::Yes(()) } else { Found::Not("it is empty".to_owned()) })
    })
    .await?;
    container.stop(1).await.context("StopContainer")?;
    container.remove().await.context("RemoveContainer")?;
    pod.container("new").start().await.context("a new container in the old pod")?;
    Ok(())
}
