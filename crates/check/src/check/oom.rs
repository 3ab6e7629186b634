//! Memory that runs out.

use anyhow::{Result, ensure};
use bowline_cri_proto::v1::ContainerState;

use super::case::{Case, case, same};
use crate::node::Node;

pub(super) const CASES: &[Case] =
    &[case!("oom/killed", "CK", killed).quick(), case!("oom/child-killed", "K", child_killed)];

async fn killed(node: Node) -> Result<()> {
    let spec = node.pod("oom").run().await?.container("main").cmd(&["eat", "200", ";", "pause"]);
    let container = spec.resources(|linux| linux.memory_limit_in_bytes = 15 << 20).start().await?;
    let status = container.exited().await?;
    same!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "exit code and reason");
    Ok(())
}

async fn child_killed(node: Node) -> Result<()> {
    let words = ["run", "eat", "200", ";", "say", "ready=1", ";", "pause"];
    let spec = node.pod("oom").run().await?.container("main").cmd(&words);
    let container = spec.resources(|linux| linux.memory_limit_in_bytes = 24 << 20).start().await?;
    let report = container.says("ready").await?;
    ensure!(report.get("status")?.contains("signal: 9"), "the child ended with {}", report.get("status")?);
    same!(container.status().await?.state, ContainerState::ContainerRunning as i32, "the container");
    let cgroup = container.cgroup().await?;
    let file = if crate::host::is_unified() { "memory.events" } else { "memory.oom_control" };
    let text = cgroup.read("memory", file).unwrap_or_default();
    let kills = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.parse::<u64>().ok());
    ensure!(kills.is_some_and(|kills| kills > 0), "the kill was not counted: {text}");
    Ok(())
}
