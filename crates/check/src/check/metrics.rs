//! Metrics of pods, as the kubelet passes them on.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use tonic::{Code, Status};

use super::case::{Case, case, same};
use crate::endpoint::ask;
use crate::node::{Found, NAMESPACE, Node, skip, until};

pub(super) const CASES: &[Case] = &[
    case!("metrics/descriptors", "CK", descriptors).quick(),
    case!("metrics/samples", "C", samples),
    case!("metrics/labels", "K", labels),
];

/// Names of which every busy pod has a sample, without `container_`.
const ALWAYS: &[&str] = &[
    "cpu_cfs_periods_total",
    "cpu_cfs_throttled_periods_total",
    "cpu_cfs_throttled_seconds_total",
    "cpu_system_seconds_total",
    "cpu_usage_seconds_total",
    "cpu_user_seconds_total",
    "file_descriptors",
    "fs_inodes_free",
    "fs_inodes_total",
    "fs_limit_bytes",
    "fs_usage_bytes",
    "last_seen",
    "memory_cache",
    "memory_failcnt",
    "memory_failures_total",
    "memory_kernel_usage",
    "memory_mapped_file",
    "memory_max_usage_bytes",
    "memory_rss",
    "memory_swap",
    "memory_usage_bytes",
    "memory_working_set_bytes",
    "network_receive_bytes_total",
    "network_receive_errors_total",
    "network_receive_packets_dropped_total",
    "network_receive_packets_total",
    "network_transmit_bytes_total",
    "network_transmit_errors_total",
    "network_transmit_packets_dropped_total",
    "network_transmit_packets_total",
    "oom_events_total",
    "processes",
    "sockets",
    "spec_cpu_period",
    "spec_cpu_shares",
    "spec_memory_limit_bytes",
    "spec_memory_swap_limit_bytes",
    "start_time_seconds",
    "threads",
    "threads_max",
];

/// Names that a host may not have, or a pod no sample of.
const MAY_LACK: &[&str] = &[
    "blkio_device_usage_total",
    "fs_reads_bytes_total",
    "fs_reads_total",
    "fs_writes_bytes_total",
    "fs_writes_total",
    "hugetlb_max_usage_bytes",
    "hugetlb_usage_bytes",
    "pressure_cpu_stalled_seconds_total",
    "pressure_cpu_waiting_seconds_total",
    "pressure_io_stalled_seconds_total",
    "pressure_io_waiting_seconds_total",
    "pressure_memory_stalled_seconds_total",
    "pressure_memory_waiting_seconds_total",
    "spec_cpu_quota",
    "spec_memory_reservation_limit_bytes",
    "ulimits_soft",
];

fn bare(name: &str) -> &str {
    name.strip_prefix("container_").unwrap_or(name)
}

fn served<T>(answer: Result<T, Status>) -> Result<T> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(status) if status.code() == Code::Unimplemented => skip("the endpoint has no metrics"),
        Err(status) => Err(status.into()),
    }
}

async fn described(node: &Node) -> Result<Vec<v1::MetricDescriptor>> {
    let answer = node.runtime().list_metric_descriptors(ask(v1::ListMetricDescriptorsRequest {})).await;
    Ok(served(answer)?.into_inner().descriptors)
}

async fn of(node: &Node, pod: &str) -> Result<v1::PodSandboxMetrics> {
    let answer = node.runtime().list_pod_sandbox_metrics(ask(v1::ListPodSandboxMetricsRequest {})).await;
    let all = served(answer)?.into_inner().pod_metrics;
    all.into_iter().find(|one| one.pod_sandbox_id == pod).context("our pod has no metrics")
}

fn all(of: &v1::PodSandboxMetrics) -> impl Iterator<Item = &v1::Metric> {
    of.metrics.iter().chain(of.container_metrics.iter().flat_map(|one| &one.metrics))
}

async fn descriptors(node: Node) -> Result<()> {
    let first = described(&node).await?;
    for descriptor in &first {
        ensure!(!descriptor.help.is_empty(), "{} has no help", descriptor.name);
        ensure!(!descriptor.label_keys.is_empty(), "{} has no labels", descriptor.name);
    }
    for name in ALWAYS {
        ensure!(first.iter().any(|one| bare(&one.name) == *name), "container_{name} is not announced");
    }
    let known: Vec<_> = first
        .iter()
        .filter(|one| ALWAYS.iter().chain(MAY_LACK).any(|name| *name == bare(&one.name)))
        .collect();
    ensure!(known.len() <= 56, "a name is announced twice");
    same!(described(&node).await?, first, "descriptors asked for again");
    Ok(())
}

async fn samples(node: Node) -> Result<()> {
    let described = described(&node).await?;
    let pod = node.pod("samples").run().await?;
    pod.container("main").cmd(&["fill", "/data/bytes", "4194304", ";", "pause"]).start().await?;
    let keys: BTreeMap<&str, usize> =
        described.iter().map(|one| (one.name.as_str(), one.label_keys.len())).collect();
    until("a sample of every name", Duration::from_secs(25), async || {
        let metrics = of(&node, &pod.id).await?;
        for metric in all(&metrics) {
            let keys = keys.get(metric.name.as_str());
            same!(Some(&metric.label_values.len()), keys, "labels of a sample of {}", metric.name);
        }
        let missing: Vec<_> = described
            .iter()
            .filter(|one| !MAY_LACK.contains(&bare(&one.name)))
            .filter(|one| !all(&metrics).any(|metric| metric.name == one.name))
            .map(|one| one.name.as_str())
            .collect();
        Ok(if missing.is_empty() { Found::Yes(()) } else { Found::Not(format!("missing: {missing:?}")) })
    })
    .await
}

async fn labels(node: Node) -> Result<()> {
    let described = described(&node).await?;
    let pod = node.pod("labels").run().await?;
    let container = pod.container("main").start().await?;
    let first = of(&node, &pod.id).await?;
    let own = first.container_metrics.iter().find(|one| one.container_id == container.id);
    let own = own.context("our container has no metrics")?;
    let pod_name = pod.status().await?.metadata.context("no metadata")?.name;
    for metric in &own.metrics {
        let keys =
            described.iter().find(|one| one.name == metric.name).context("a sample of an unknown name")?;
        let label = |name: &str| {
            let at = keys.label_keys.iter().position(|key| key == name)?;
            metric.label_values.get(at).map(String::as_str)
        };
        let name = &metric.name;
        same!(label("pod"), Some(pod_name.as_str()), "label pod of {name}");
        same!(label("namespace"), Some(NAMESPACE), "label namespace of {name}");
        same!(label("container"), Some("main"), "label container of {name}");
        let id = label("id").unwrap_or_default();
        // The id itself, or the cgroup whose last part it is.
        ensure!(id.contains(&container.id), "label id of {name} is `{id}`");
        ensure!(label("image").is_some_and(|image| !image.is_empty()), "label image of {name} is empty");
    }
    let second = of(&node, &pod.id).await?;
    let counters = |of: &v1::PodSandboxMetrics| -> BTreeMap<(String, Vec<String>), u64> {
        let counters = all(of).filter(|metric| metric.metric_type() == v1::MetricType::Counter);
        let value = |metric: &v1::Metric| metric.value.as_ref().map_or(0, |value| value.value);
        counters.map(|metric| ((metric.name.clone(), metric.label_values.clone()), value(metric))).collect()
    };
    let later = counters(&second);
    for (key, before) in counters(&first) {
        let now = later.get(&key).copied().unwrap_or(before);
        ensure!(now >= before, "{} fell from {before} to {now}", key.0);
    }
    Ok(())
}
