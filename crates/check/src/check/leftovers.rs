//! Nothing stays behind, and nothing of others goes.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use futures_util::stream::{self, StreamExt as _};

use super::case::{Case, case, same};
use super::restart;
use crate::host;
use crate::node::{Found, Node, skip, until};

pub(super) const CASES: &[Case] = &[
    case!("leftovers/pods", "S", pods).serial(),
    case!("leftovers/restart-clean", "S", restart_clean).serial(),
    case!("leftovers/log-and-volume", "K", log_and_volume).quick(),
];

/// What the host has of the kinds of things that pods are made of.
#[derive(Clone, Debug, PartialEq)]
struct Census {
    mounts: usize,
    cgroups: usize,
    links: BTreeSet<String>,
    namespaces: usize,
    processes: usize,
}

fn census() -> Census {
    let links = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let links = links
        .map(|link| link.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("veth"));
    let pids = host::pids();
    let namespaces: BTreeSet<_> =
        pids.iter().filter_map(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).ok()).collect();
    let with_files = |pid: &&u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    Census {
        mounts: host::mounts_naming(&[String::new()]).len(),
        cgroups: host::cgroups_naming(&[String::new()]).len(),
        links: links.collect(),
        namespaces: namespaces.len(),
        processes: pids.iter().filter(with_files).count(),
    }
}

async fn up_and_down(node: &Node, name: &str) -> Result<()> {
    let pod = node.pod(name).run().await?;
    let container = pod.container("main").start().await?;
    container.stop(0).await?;
    container.remove().await?;
    pod.stop().await?;
    pod.remove().await?;
    Ok(())
}

async fn pods(node: Node) -> Result<()> {
    // The first pod may make a bridge and the like, which stays by right.
    up_and_down(&node, "first").await?;
    let before = census();
    let all: Vec<_> = stream::iter(0..100)
        .map(|index| {
            let (node, name) = (node.clone(), format!("p{index}"));
            async move { up_and_down(&node, &name).await }
        })
        .buffer_unordered(10)
        .collect()
        .await;
    all.into_iter().collect::<Result<Vec<_>>>()?;
    until("the host as before", Duration::from_secs(10), async || {
        let after = census();
        // Other people's processes come and go, and a runtime may have the next pod's link ready; a hundred would show.
        let same = after.mounts <= before.mounts
            && after.cgroups <= before.cgroups
            && after.links.difference(&before.links).count() <= 1
            && after.namespaces <= before.namespaces
            && after.processes <= before.processes + 10;
        Ok(if same { Found::Yes(()) } else { Found::Not(format!("{after:?}, before {before:?}")) })
    })
    .await
}

async fn restart_clean(node: Node) -> Result<()> {
    if node.run.restart.is_none() {
        return skip("no --restart-cmd was given");
    }
    up_and_down(&node, "first").await?;
    let before = census();
    let specs: Vec<_> = (0..25).map(|index| node.pod(&format!("p{index}"))).collect();
    let busy = stream::iter(&specs).map(|spec| async {
        if let Ok(id) = spec.try_run().await {
            let _ = node.stop_pod(&id).await;
            let _ = node.remove_pod(&id).await;
        }
    });
    let busy = async { busy.buffer_unordered(8).collect::<Vec<()>>().await };
    let (_, restarted) = tokio::join!(busy, restart::restart(&node));
    restarted?;
    // The kubelet asks again: whatever is there is stopped and removed.
    for pod in node.own_pods().await? {
        node.stop_pod(&pod.id).await.context("stop after the restart")?;
        node.remove_pod(&pod.id).await.context("removal after the restart")?;
    }
    until("the host as before", Duration::from_secs(10), async || {
        let after = census();
        let same = after.mounts <= before.mounts
            && after.cgroups <= before.cgroups
            && after.links.difference(&before.links).count() <= 1;
        Ok(if same { Found::Yes(()) } else { Found::Not(format!("{after:?}, before {before:?}")) })
    })
    .await
}

async fn log_and_volume(node: Node) -> Result<()> {
    let volume = node.folder("volume")?;
    let pod = node.pod("kept").run().await?;
    let spec = pod
        .container("main")
        .cmd(&["write", "/vol/word", "kept", ";", "say", "kept=1"])
        .mount(&volume, "/vol");
    let container = spec.start().await?;
    container.exited().await?;
    container.remove().await?;
    pod.stop().await?;
    pod.remove().await?;
    same!(fs::read_to_string(volume.join("word"))?, "kept", "the volume");
    container.output()?.is("kept", "1")?;
    ensure!(pod.logs().is_dir(), "the log folder is gone");
    let gone = node
        .list_containers(v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() })
        .await?;
    ensure!(gone.is_empty(), "a container is still listed");
    Ok(())
}
