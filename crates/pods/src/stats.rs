//! What pods and containers use, read when somebody asks.
//!
//! ```text
//!   group.rs      files of a cgroup, v1 and v2            figures.rs   all of it at once, for metrics
//!   files.rs      those read often, kept open
//!   processes.rs  /proc of those in it                    network.rs   interfaces of a pod
//!   writable.rs   what was written, by a scan in the background
//!   rate.rs       cores in use, from two readings
//! ```
//!
//! Nothing is sampled while nobody asks. What cannot be read is left out, never an error: one failed container fails no
//! list.

mod figures;
mod files;
mod group;
mod network;
mod processes;
mod rate;
mod writable;

use std::sync::Arc;

pub use figures::{BlockIo, ContainerFigures, Disk, Figures, HugePages, PodFigures, Sources};
pub use group::{MemoryStats, Pressure, Psi, PsiLine, SwapStats};
pub use network::InterfaceStats;
pub use writable::WritableStats;

pub(crate) use files::Files;
pub(crate) use rate::Rates;
pub(crate) use writable::Usage;

use crate::shared::{Shared, now};
use crate::view::{ContainerView, PodView};
use group::Group;

/// How many containers one thread reads: about a millisecond of work.
const AT_ONCE: usize = 25;

/// What a container or a pod uses.
#[derive(Debug, Clone, Default)]
pub struct GroupStats {
    /// When it was read, nanoseconds since the epoch.
    pub timestamp: i64,
    /// CPU time so far, nanoseconds.
    pub cpu_usage_ns: u64,
    /// CPU in use lately, billionths of a core; `None` until somebody has asked twice.
    pub nano_cores: Option<u64>,
    /// Memory.
    pub memory: MemoryStats,
    /// Swap, where it is counted.
    pub swap: Option<SwapStats>,
    /// How long its processes had to wait, where the kernel tells.
    pub pressure: Pressure,
}

/// What a container uses.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Its cgroup.
    pub group: GroupStats,
    /// The writable layer.
    pub writable: WritableStats,
}

/// What a pod uses.
#[derive(Debug, Clone, Default)]
pub struct PodStats {
    /// Its cgroup, which holds those of its containers. The parent that a client named counts as the pod's, whatever
    /// else is in it: the kubelet names one per pod.
    pub group: GroupStats,
    /// The interfaces of its own network, without the loopback; none with the host's network.
    pub interfaces: Vec<InterfaceStats>,
    /// Its processes.
    pub processes: u64,
    /// Those of its containers that could be read.
    pub containers: Vec<(Arc<ContainerView>, Stats)>,
}

/// Reads those containers that can be read; one that has ended meanwhile is left out.
pub(crate) async fn stats(
    shared: &Arc<Shared>,
    containers: Vec<Arc<ContainerView>>,
) -> Vec<(Arc<ContainerView>, Stats)> {
    let mut parts = Vec::new();
    let mut rest = containers.into_iter().peekable();
    while rest.peek().is_some() {
        let (shared, part) = (shared.clone(), rest.by_ref().take(AT_ONCE).collect::<Vec<_>>());
        parts.push(tokio::task::spawn_blocking(move || {
            let each = part.into_iter();
            each.filter_map(|view| of_container(&shared, &view).map(|stats| (view, stats)))
                .collect::<Vec<_>>()
        }));
    }
    let mut read = Vec::new();
    for part in parts {
        read.extend(part.await.unwrap_or_default());
    }
    read
}

/// Reads pods with their running containers.
pub(crate) async fn pod_stats(
    shared: &Arc<Shared>,
    pods: Vec<Arc<PodView>>,
) -> Vec<(Arc<PodView>, PodStats)> {
    let shared = shared.clone();
    let read = tokio::task::spawn_blocking(move || {
        let each = pods.into_iter().map(|pod| {
            let stats = of_pod(&shared, &pod);
            (pod, stats)
        });
        each.collect()
    });
    read.await.unwrap_or_default()
}

/// Reads everything that there is a metric for.
pub(crate) async fn figures(shared: &Arc<Shared>, pods: Vec<Arc<PodView>>) -> Vec<PodFigures> {
    let shared = shared.clone();
    let read = tokio::task::spawn_blocking(move || {
        let device = figures::device(&shared.config.root);
        pods.into_iter().map(|pod| figures::of_pod(&shared, pod, &device)).collect()
    });
    read.await.unwrap_or_default()
}

fn of_container(shared: &Arc<Shared>, view: &ContainerView) -> Option<Stats> {
    writable::scan_if_due(shared, view);
    Some(Stats { group: of_group(shared, &view.cgroup)?, writable: writable::last(shared, view) })
}

fn of_group(shared: &Shared, cgroup: &Arc<str>) -> Option<GroupStats> {
    let group = Group::kept(&shared.host, cgroup, &shared.files);
    let timestamp = now();
    let Some(cpu_usage_ns) = group.cpu_usage_ns() else {
        shared.files.forget(cgroup);
        return None;
    };
    let (memory, swap) = group.memory()?;
    Some(GroupStats {
        timestamp,
        cpu_usage_ns,
        nano_cores: shared.rates.of(cgroup, timestamp, cpu_usage_ns),
        memory,
        swap,
        pressure: group.pressure(),
    })
}

fn of_pod(shared: &Arc<Shared>, pod: &PodView) -> PodStats {
    // A pod that has run nothing yet has no cgroup, and uses nothing.
    let group = of_group(shared, &pod.cgroup)
        .unwrap_or_else(|| GroupStats { timestamp: now(), ..Default::default() });
    PodStats {
        group,
        interfaces: network::interfaces(pod),
        processes: Group::new(&shared.host, &pod.cgroup).processes().len() as u64,
        containers: running(shared, pod)
            .into_iter()
            .filter_map(|view| of_container(shared, &view).map(|stats| (view, stats)))
            .collect(),
    }
}

fn running(shared: &Shared, pod: &PodView) -> Vec<Arc<ContainerView>> {
    let mut containers = shared.views.containers_of(&pod.id);
    containers.retain(|view| view.life.pid().is_some());
    containers
}
