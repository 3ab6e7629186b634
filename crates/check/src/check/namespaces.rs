//! Which namespaces a container is in.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1::{ContainerState, NamespaceMode};

use super::case::{Case, case, same};
use crate::host;
use crate::node::{Found, Node, refused, until};

pub(super) const CASES: &[Case] = &[
    case!("namespaces/unset-is-pod", "C", unset_is_pod).quick(),
    case!("namespaces/container-pid", "CK", container_pid).quick(),
    case!("namespaces/host-pid", "C", host_pid),
    case!("namespaces/target-pid", "K", target_pid),
    case!("namespaces/host-ipc", "CK", host_ipc),
    case!("namespaces/shm", "K", shm),
    case!("namespaces/container-unset", "C", container_unset),
    case!("namespaces/shared-pid-reaper", "K", shared_pid_reaper),
];

/// The inode of a namespace of this process: the host's.
fn own(kind: &str) -> Result<String> {
    Ok(fs::read_link(format!("/proc/self/ns/{kind}"))?.to_string_lossy().into_owned())
}

async fn unset_is_pod(node: Node) -> Result<()> {
    let pod = node.pod("unset").edit(|config| config.linux = None).run().await?;
    let first = pod.container("first").edit(|config| config.linux = None).start().await?;
    let second = pod.container("second").edit(|config| config.linux = None).start().await?;
    let (one, two) = (first.exec(&["ns", ";", "procs"]).await?, second.exec(&["ns"]).await?);
    for kind in ["net", "ipc", "pid"] {
        let key = format!("ns.{kind}");
        same!(one.get(&key)?, two.get(&key)?, "the {kind} namespaces of two containers");
        ensure!(one.get(&key)? != own(kind)?, "the {kind} namespace is the host's");
    }
    let main = one.get("proc.1")?;
    ensure!(!main.contains("/bin/helper pause"), "process 1 is the container's: {main}");
    Ok(())
}

async fn container_pid(node: Node) -> Result<()> {
    let words = ["ids", ";", "ns", ";", "pause"];
    let pod = node.pod("own").run().await?;
    let container = pod.container("main").cmd(&words).start().await?;
    container.says("ns.user").await?.is("pid", "1")?;
    let exec = container.exec(&["procs", ";", "ns"]).await?;
    ensure!(exec.get("proc.1")?.contains("/bin/helper"), "process 1 is {}", exec.get("proc.1")?);
    same!(exec.all("proc.").len(), 2, "processes seen");
    Ok(())
}

async fn host_pid(node: Node) -> Result<()> {
    let pod = node.pod("host").namespaces(|options| options.pid = NamespaceMode::Node as i32).run().await?;
    let container =
        pod.container("main").cmd(&["ns", ";", "procs", ";", "say", "ready=1", ";", "pause"]).start().await?;
    let inside = container.says("ready").await?;
    inside.is("ns.pid", &own("pid")?)?;
    let key = format!("proc.{}", std::process::id());
    inside.get(&key).context("our own process is invisible")?;
    container.exec(&["procs"]).await?.get(&key).context("our own process is invisible to exec")?;
    Ok(())
}

async fn target_pid(node: Node) -> Result<()> {
    let pod = node.pod("target").run().await?;
    let target = pod.container("target").cmd(&["on", "USR1", "0", ";", "pause"]).start().await?;
    let look = |id: &str, name: &str| {
        let id = id.to_owned();
        pod.container(name).security(|security| {
            let options = security.namespace_options.get_or_insert_default();
            (options.pid, options.target_id) = (NamespaceMode::Target as i32, id);
        })
    };
    let seen = look(&target.id, "debug").cmd(&["procs"]).report().await?;
    ensure!(seen.get("proc.1")?.contains("USR1"), "the target's process is not 1: {}", seen.get("proc.1")?);
    let unknown = look(&"7".repeat(64), "unknown").try_create().await;
    refused(unknown, &[], "an unknown target")?;
    target.stop(0).await?;
    look(&target.id, "late").refused("an ended target").await?;
    Ok(())
}

async fn host_ipc(node: Node) -> Result<()> {
    let name = node.unique("shm");
    let path = format!("/dev/shm/{name}");
    fs::write(&path, "host")?;
    let looked = async {
        for (mode, visible) in [(NamespaceMode::Node, true), (NamespaceMode::Pod, false)] {
            let pod = node.pod("ipc").namespaces(|options| options.ipc = mode as i32).run().await?;
            let report = pod.report("main", &["ns", ";", "read", &path]).await?;
            same!(report.get("ns.ipc")? == own("ipc")?, visible, "the host's IPC namespace with {mode:?}");
            same!(report.find("read") == Some("host"), visible, "the host's /dev/shm with {mode:?}");
        }
        Ok(())
    };
    let result = looked.await;
    let _ = fs::remove_file(&path);
    result
}

async fn shm(node: Node) -> Result<()> {
    let pod = node.pod("shm").run().await?;
    let first = pod.container("first").start().await?;
    first.exec(&["write", "/dev/shm/word", "shared"]).await?.worked("write")?;
    let second = pod.container("second").start().await?;
    let seen = second.exec(&["read", "/dev/shm/word", ";", "mounts"]).await?;
    seen.is("read", "shared")?;
    let line = seen.all("mount.").into_iter().map(|(_, line)| line).find(|line| line.contains(" /dev/shm "));
    let line = line.context("no mount at /dev/shm")?;
    ensure!(line.contains("size=65536k"), "not 64 MiB: {line}");
    Ok(())
}

async fn container_unset(node: Node) -> Result<()> {
    let pod = node
        .pod("joined")
        .host_network()
        .namespaces(|options| options.ipc = NamespaceMode::Node as i32)
        .run()
        .await?;
    let seen = pod.container("main").cmd(&["ns"]).security(|s| s.namespace_options = None).report().await?;
    same!(seen.get("ns.net")?, own("net")?, "the network namespace");
    same!(seen.get("ns.ipc")?, own("ipc")?, "the IPC namespace");
    let bare = pod.container("bare").cmd(&["ns"]).edit(|config| config.linux = None).report().await?;
    same!(bare.get("ns.net")?, own("net")?, "the network namespace without a linux section");
    Ok(())
}

async fn shared_pid_reaper(node: Node) -> Result<()> {
    let pod = node.pod("reaper").shared_pid().run().await?;
    let other = pod.container("other").start().await?;
    let words = ["detach", "sleep", "100", ";", "detach", "pause", ";", "say", "ready=1", ";", "pause"];
    let main = pod.container("main").cmd(&words).start().await?;
    main.says("ready").await?;
    until("the orphan reaped", Duration::from_secs(5), async || {
        let seen = other.exec(&["procs"]).await?;
        let zombies =
            seen.all("proc.").iter().filter(|(_, line)| line.split(' ').nth(1) == Some("Z")).count();
        let sleeping = seen.all("proc.").iter().filter(|(_, line)| line.contains("exe sleep 100")).count();
        Ok(if zombies + sleeping == 0 { Found::Yes(()) } else { Found::Not(format!("{zombies} zombies")) })
    })
    .await?;
    main.stop(0).await?;
    until("the end of the container's processes", Duration::from_secs(3), async || {
        let left: Vec<_> = main.host_pids().into_iter().filter(|pid| host::alive(*pid)).collect();
        Ok(if left.is_empty() { Found::Yes(()) } else { Found::Not(format!("{left:?}")) })
    })
    .await?;
    same!(other.status().await?.state, ContainerState::ContainerRunning as i32, "the other container");
    Ok(())
}
