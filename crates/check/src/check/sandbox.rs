//! Life of a sandbox.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use futures_util::future::join_all;
use tonic::Code;

use super::case::{Case, case, same};
use crate::endpoint::within;
use crate::node::{Found, Node, denied, refused, until};

pub(super) const CASES: &[Case] = &[
    case!("sandbox/run", "CK", run).quick(),
    case!("sandbox/minimal", "CT", minimal),
    case!("sandbox/free-names", "C", free_names),
    case!("sandbox/attributes", "CK", attributes),
    case!("sandbox/echo-options", "K", echo_options),
    case!("sandbox/stop", "CK", stop).quick(),
    case!("sandbox/stop-kills", "KP", stop_kills),
    case!("sandbox/stop-again", "CK", stop_again),
    case!("sandbox/remove", "CK", remove).quick(),
    case!("sandbox/remove-while-ready", "P", remove_while_ready),
    case!("sandbox/same-identity-again", "C", same_identity_again),
    case!("sandbox/next-attempt", "K", next_attempt),
    case!("sandbox/equal-calls-join", "KS", equal_calls_join),
    case!("sandbox/failed-run", "CK", failed_run),
    case!("sandbox/bad-metadata", "S", bad_metadata),
    case!("sandbox/twenty-at-once", "K", twenty_at_once),
];

const READY: i32 = v1::PodSandboxState::SandboxReady as i32;
const NOT_READY: i32 = v1::PodSandboxState::SandboxNotready as i32;

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

async fn run(node: Node) -> Result<()> {
    let before = now();
    let pod = node.pod("run").run().await?;
    let after = now();
    let status = pod.status().await?;
    same!(status.state, READY, "state when the call returns");
    ensure!(
        (before..=after).contains(&status.created_at),
        "created_at {} is not within the call",
        status.created_at
    );
    let listed = node.own_pods().await?;
    same!(listed.len(), 1, "listed pods");
    same!((&listed[0].id, listed[0].state), (&pod.id, READY), "the listed pod");
    same!(listed[0].created_at, status.created_at, "created_at in the list");
    Ok(())
}

async fn minimal(node: Node) -> Result<()> {
    let pod = node
        .pod("minimal")
        .edit(|config| {
            config.linux = None;
            config.log_directory = String::new();
            config.hostname = String::new();
        })
        .run()
        .await?;
    same!(pod.status().await?.state, READY, "state");
    let container = pod.container("main").edit(|config| config.log_path = String::new()).start().await?;
    same!(container.status().await?.state, v1::ContainerState::ContainerRunning as i32, "its container");
    Ok(())
}

async fn free_names(node: Node) -> Result<()> {
    let long = format!("Long_Name-{}", "x".repeat(80));
    let pod = node
        .pod("free")
        .edit(|config| {
            let metadata = config.metadata.get_or_insert_default();
            metadata.name = format!("Pod_{long}");
            metadata.namespace = format!("Space_{long}");
        })
        .run()
        .await?;
    let status = pod.status().await?;
    same!(status.metadata, pod.config.metadata, "metadata");
    let container = pod
        .container("free")
        .edit(|config| config.metadata.get_or_insert_default().name = format!("Ctr_{long}"))
        .create()
        .await?;
    same!(container.status().await?.metadata, container.config.metadata, "the container's metadata");
    Ok(())
}

async fn attributes(node: Node) -> Result<()> {
    let odd = "spaces,\t\"quotes\" {braces} \u{e4}\u{4e2d} \\ %s\nlines";
    let pod = node
        .pod("attributes")
        .edit(|config| {
            config.labels.insert("app.example/Name_1".to_owned(), "Value.x-1".to_owned());
            config.annotations.insert("example/odd".to_owned(), odd.to_owned());
            config.annotations.insert("example/empty".to_owned(), String::new());
        })
        .run()
        .await?;
    let status = pod.status().await?;
    let listed = node.own_pods().await?.into_iter().next().context("the pod is not listed")?;
    same!(status.metadata, pod.config.metadata, "metadata in status");
    same!(listed.metadata, pod.config.metadata, "metadata in the list");
    same!(status.labels, pod.config.labels, "labels in status");
    same!(listed.labels, pod.config.labels, "labels in the list");
    same!(status.annotations, pod.config.annotations, "annotations in status");
    same!(listed.annotations, pod.config.annotations, "annotations in the list");
    Ok(())
}

async fn echo_options(node: Node) -> Result<()> {
    let modes = [(0, 1, 0), (2, 1, 0), (0, 0, 0), (2, 2, 2)];
    for (network, pid, ipc) in modes {
        let named = if network == 2 { "" } else { "echo" };
        let spec = node.pod("echo").edit(|config| config.hostname = named.to_owned()).namespaces(|options| {
            (options.network, options.pid, options.ipc) = (network, pid, ipc);
        });
        let asked =
            spec.config.linux.clone().and_then(|l| l.security_context).and_then(|s| s.namespace_options);
        let pod = spec.run().await?;
        let status = pod.status().await?;
        let given = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
        let plain = |options: &v1::NamespaceOption| (options.network, options.pid, options.ipc);
        same!(given.as_ref().map(plain), asked.as_ref().map(plain), "namespace options");
        same!(status.runtime_handler, node.run.handler, "runtime handler");
    }
    Ok(())
}

async fn stop(node: Node) -> Result<()> {
    let pod = node.pod("stop").run().await?;
    pod.ip().await?;
    pod.stop().await?;
    same!(pod.status().await?.state, NOT_READY, "state");
    let listed = node.own_pods().await?;
    same!(listed.iter().map(|pod| pod.state).collect::<Vec<_>>(), vec![NOT_READY], "listed states");
    Ok(())
}

async fn stop_kills(node: Node) -> Result<()> {
    let pod = node.pod("kills").run().await?;
    let plain = pod.container("plain").start().await?;
    let stubborn =
        pod.container("stubborn").cmd(&["on", "TERM", "ignore", ";", "say", "ready=1", ";", "pause"]);
    let stubborn = stubborn.start().await?;
    stubborn.says("ready").await?;
    pod.stop().await?;
    for container in [plain, stubborn] {
        let status = container.status().await?;
        same!(status.state, v1::ContainerState::ContainerExited as i32, "state when the call returns");
        ensure!(status.finished_at > 0, "no finish time");
    }
    Ok(())
}

async fn stop_again(node: Node) -> Result<()> {
    let pod = node.pod("again").run().await?;
    for _ in 0..3 {
        pod.stop().await?;
    }
    let dashed = "0b7e6b3c-5a4f-4c6c-9f29-6d3c7a1f2e11";
    for unknown in [&"f".repeat(64), dashed] {
        node.stop_pod(unknown).await.with_context(|| format!("stop of the unknown {unknown}"))?;
    }
    Ok(())
}

async fn remove(node: Node) -> Result<()> {
    let pod = node.pod("remove").run().await?;
    pod.stop().await?;
    pod.remove().await?;
    ensure!(node.own_pods().await?.is_empty(), "still listed");
    refused(pod.status().await, &[Code::NotFound], "the status of a removed pod")?;
    pod.remove().await.context("the second removal")?;
    node.remove_pod(&"e".repeat(64)).await.context("removal of an unknown id")?;
    Ok(())
}

async fn remove_while_ready(node: Node) -> Result<()> {
    let pod = node.pod("ready").run().await?;
    pod.container("running").start().await?;
    pod.container("created").create().await?;
    pod.container("exited").cmd(&["exit", "3"]).start().await?.exited().await?;
    pod.remove().await?;
    ensure!(node.own_pods().await?.is_empty(), "the pod is still listed");
    ensure!(node.own_containers().await?.is_empty(), "a container is still listed");
    Ok(())
}

async fn same_identity_again(node: Node) -> Result<()> {
    let spec = node.pod("twin");
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = spec.try_run().await?;
        node.stop_pod(&id).await?;
        node.remove_pod(&id).await?;
        ids.push(id);
    }
    ids.sort();
    ids.dedup();
    same!(ids.len(), 3, "different ids");
    Ok(())
}

async fn next_attempt(node: Node) -> Result<()> {
    let spec = node.pod("attempts");
    let first = spec.try_run().await?;
    node.stop_pod(&first).await?;
    let second = spec.edit(|config| config.metadata.get_or_insert_default().attempt = 1).run().await?;
    same!(node.pod_status(&first).await?.state, NOT_READY, "the first");
    same!(second.status().await?.state, READY, "the second");
    same!(node.own_pods().await?.len(), 2, "listed pods");
    Ok(())
}

async fn equal_calls_join(node: Node) -> Result<()> {
    let spec = node.pod("joined");
    let (first, second) = tokio::join!(spec.try_run(), spec.try_run());
    same!(first?, second?, "the ids of two equal calls");
    let other = node.pod("late");
    let request = v1::RunPodSandboxRequest {
        config: Some(other.config.clone()),
        runtime_handler: other.handler.clone(),
    };
    let cut = node.runtime().run_pod_sandbox(within(request, Duration::from_millis(1))).await;
    let again = other.try_run().await.context("the repeat after the deadline")?;
    if let Ok(answer) = cut {
        same!(answer.into_inner().pod_sandbox_id, again, "the id of the repeat");
    }
    same!(node.own_pods().await?.len(), 2, "listed pods");
    Ok(())
}

async fn failed_run(node: Node) -> Result<()> {
    let mut unknown = node.pod("handler");
    unknown.handler = "no-such-handler".to_owned();
    refused(unknown.try_run().await, &[], "an unknown handler")?;
    let bad = node.pod("sysctl").sysctl("kernel.no_such_thing", "1");
    refused(bad.try_run().await, &[], "an unknown sysctl")?;
    let half = node.pod("mapping").namespaces(|options| {
        options.userns_options = Some(v1::UserNamespace { mode: 0, ..Default::default() });
    });
    denied(half.try_run().await, "a user namespace without a mapping")?;
    until("nothing listed of failed runs", Duration::from_secs(5), async || {
        let listed = node.own_pods().await?;
        Ok(if listed.is_empty() { Found::Yes(()) } else { Found::Not(format!("{} pods", listed.len())) })
    })
    .await?;
    let good = bad.edit(|config| config.linux.get_or_insert_default().sysctls.clear());
    good.run().await.context("the retry with a good config")?;
    Ok(())
}

async fn bad_metadata(node: Node) -> Result<()> {
    type Break = fn(&mut v1::PodSandboxMetadata);
    let breaks: [(&str, Break); 3] = [
        ("name", |metadata| metadata.name.clear()),
        ("namespace", |metadata| metadata.namespace.clear()),
        ("uid", |metadata| metadata.uid.clear()),
    ];
    for (field, change) in breaks {
        let spec = node.pod("bad").edit(|config| change(config.metadata.get_or_insert_default()));
        let status = refused(spec.try_run().await, &[Code::InvalidArgument], &format!("an empty {field}"))?;
        ensure!(status.message().contains(field), "the message does not name {field}: {}", status.message());
    }
    Ok(())
}

async fn twenty_at_once(node: Node) -> Result<()> {
    let pods = join_all((0..20).map(|index| node.pod(&format!("p{index}")).run())).await;
    let mut addresses = Vec::new();
    for pod in pods {
        let pod = pod?;
        same!(pod.status().await?.state, READY, "state of {}", pod.id);
        addresses.push(pod.ip().await?);
    }
    addresses.sort();
    addresses.dedup();
    same!(addresses.len(), 20, "different addresses");
    Ok(())
}
