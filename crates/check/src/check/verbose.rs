//! The free-form `info` that people look at.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use serde_json::Value;

use super::case::{Case, case, same};
use crate::endpoint::ask;
use crate::node::Node;

pub(super) const CASES: &[Case] =
    &[case!("verbose/container", "T", container).quick(), case!("verbose/sandbox", "T", sandbox)];

/// Tools look for things both at the top and in an `info` object.
fn find(info: &BTreeMap<String, String>, key: &str) -> Option<Value> {
    let parse =
        |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    if let Some(text) = info.get(key) {
        return Some(parse(text));
    }
    parse(info.get("info")?).get(key).cloned()
}

async fn of_container(node: &Node, id: &str) -> Result<BTreeMap<String, String>> {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    Ok(node.runtime().container_status(ask(request)).await?.into_inner().info)
}

async fn container(node: Node) -> Result<()> {
    let container = node.pod("verbose").run().await?.container("main").create().await?;
    let pid = |info: &BTreeMap<String, String>| find(info, "pid").and_then(|pid| pid.as_u64()).unwrap_or(0);
    same!(pid(&of_container(&node, &container.id).await?), 0, "pid in CREATED");
    container.start().await?;
    let info = of_container(&node, &container.id).await?;
    same!(pid(&info), u64::from(container.host_pid().await?), "pid in RUNNING");
    let spec = find(&info, "runtimeSpec").context("no runtimeSpec")?;
    ensure!(spec.get("process").is_some() && spec.get("linux").is_some(), "the runtimeSpec is {spec}");
    container.stop(0).await?;
    same!(pid(&of_container(&node, &container.id).await?), 0, "pid in EXITED");
    let request = v1::ContainerStatusRequest { container_id: container.id, verbose: false };
    let plain = node.runtime().container_status(ask(request)).await;
    same!(plain?.into_inner().info.len(), 0, "info without verbose");
    Ok(())
}

async fn sandbox(node: Node) -> Result<()> {
    let pod = node.pod("verbose").run().await?;
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = node.runtime().pod_sandbox_status(ask(request)).await?.into_inner().info;
    find(&info, "pid").and_then(|pid| pid.as_u64()).context("no pid")?;
    let spec = find(&info, "runtimeSpec").context("no runtimeSpec")?;
    let namespaces = spec.pointer("/linux/namespaces").and_then(Value::as_array).context("no namespaces")?;
    let network =
        namespaces.iter().find(|namespace| namespace["type"] == "network").context("no network namespace")?;
    let path = network["path"].as_str().context("no path")?;
    ensure!(std::path::Path::new(path).exists(), "the network namespace's path {path} does not exist");
    Ok(())
}
