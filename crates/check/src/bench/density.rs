//! What many pods weigh.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::figures::Figures;
use super::pods;
use crate::host;
use crate::node::Node;

/// Count and proportional set size (KiB) of the processes of one program.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Weight {
    count: usize,
    kib: u64,
}

/// Runs the pods and adds what each kind of process weighs: those that came with the pods, and the daemon.
pub(super) async fn measure(node: &Node, count: usize, figures: &mut Figures) -> Result<()> {
    let endpoint = node.run.endpoint.as_str();
    let daemon = daemon_of(endpoint).await?;
    let before = weights();
    let containers = pods::many(node, count, 10).await?;
    let after = weights();
    let mut total = 0;
    for (kind, now) in &after {
        let was = before.get(kind).copied().unwrap_or_default();
        let ours = now.count >= was.count + count.max(2) / 2;
        if *kind == daemon {
            figures.add(&format!("PSS of {kind}, {count} pods"), "KiB", endpoint, now.kib as f64);
        } else if ours {
            let added = now.kib.saturating_sub(was.kib);
            total += added;
            figures.add(&format!("PSS of {kind}, each pod"), "KiB", endpoint, added as f64 / count as f64);
        }
    }
    figures.add("PSS added, each pod, daemon not counted", "KiB", endpoint, total as f64 / count as f64);
    pods::none(containers).await
}

/// The program behind the socket.
async fn daemon_of(endpoint: &str) -> Result<String> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    let stream = tokio::net::UnixStream::connect(path).await?;
    let pid = stream.peer_cred()?.pid().context("the kernel does not say who listens")?;
    kind_of(u32::try_from(pid)?).context("the daemon is not to be found")
}

/// A process' program, by the name of its file; of kernel threads and the like none.
fn kind_of(pid: u32) -> Option<String> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = Path::new(&program).file_name()?.to_string_lossy().into_owned();
    // A file that was replaced since.
    Some(name.trim_end_matches(" (deleted)").to_owned())
}

fn weights() -> BTreeMap<String, Weight> {
    let mut weights: BTreeMap<String, Weight> = BTreeMap::new();
    for pid in host::pids() {
        let (Some(kind), Some(kib)) = (kind_of(pid), proportional(pid)) else { continue };
        let weight = weights.entry(kind).or_default();
        weight.count += 1;
        weight.kib += kib;
    }
    weights
}

fn proportional(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
