//! ListMetricDescriptors and ListPodSandboxMetrics: the names that dashboards know from cAdvisor, with its labels.
//!
//! Announced is what this host can feed. Values are whole numbers, as the message has no others; seconds are cut off.
//! The rows of a pod's own cgroup have an empty `container`, as cAdvisor's.

mod table;

use bowline_cri_proto::v1;
use bowline_pods::{ContainerFigures, ContainerView, PodFigures, PodView, Pods, Sources};

use table::{METRICS, Metric, Of, Sample};

/// The labels that every metric has, before its own. `id` is the path of the cgroup, `name` the CRI id.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// What there is to be measured; the same for the life of the daemon.
pub(crate) fn list_metric_descriptors(pods: &Pods) -> v1::ListMetricDescriptorsResponse {
    v1::ListMetricDescriptorsResponse { descriptors: descriptors(&pods.sources()) }
}

fn descriptors(sources: &Sources) -> Vec<v1::MetricDescriptor> {
    let announced = METRICS.iter().filter(|metric| (metric.fed)(sources));
    let described = announced.map(|metric| v1::MetricDescriptor {
        name: metric.name.into(),
        help: metric.help.into(),
        label_keys: LABELS.iter().chain(metric.labels).map(|label| (*label).to_owned()).collect(),
    });
    described.collect()
}

/// The measurements of all ready pods.
pub(crate) async fn list_pod_sandbox_metrics(pods: &Pods) -> Vec<v1::PodSandboxMetrics> {
    let mut found = pods.views().pods();
    found.retain(|pod| pod.ready);
    let sources = pods.sources();
    pods.figures(found).await.iter().map(|figures| of_pod(&sources, figures)).collect()
}

fn of_pod(sources: &Sources, of: &PodFigures) -> v1::PodSandboxMetrics {
    let labels = pod_labels(&of.pod);
    let metrics = METRICS.iter().filter(|metric| (metric.fed)(sources)).flat_map(|metric| {
        let samples: Vec<Sample> = match metric.of {
            Of::Group(read) => read(&of.figures),
            Of::Interface(read) => of
                .interfaces
                .iter()
                .map(|interface| (vec![interface.name.clone()], read(interface)))
                .collect(),
            Of::Container(_) => Vec::new(),
            Of::Started => vec![(Vec::new(), seconds(of.pod.created_at))],
        };
        rows(metric, &labels, samples)
    });
    v1::PodSandboxMetrics {
        pod_sandbox_id: of.pod.id.to_string(),
        metrics: metrics.collect(),
        container_metrics: of
            .containers
            .iter()
            .map(|container| of_container(sources, &of.pod, container))
            .collect(),
    }
}

fn of_container(sources: &Sources, pod: &PodView, of: &ContainerFigures) -> v1::ContainerMetrics {
    let labels = container_labels(pod, &of.container);
    let metrics = METRICS.iter().filter(|metric| (metric.fed)(sources)).flat_map(|metric| {
        let samples: Vec<Sample> = match metric.of {
            Of::Group(read) => read(&of.figures),
            Of::Container(read) => read(of),
            // The network is the pod's.
            Of::Interface(_) => Vec::new(),
            Of::Started => vec![(Vec::new(), started(&of.container))],
        };
        rows(metric, &labels, samples)
    });
    v1::ContainerMetrics { container_id: of.container.id.to_string(), metrics: metrics.collect() }
}

fn rows<'a>(
    metric: &'a Metric,
    labels: &'a [String; LABELS.len()],
    samples: Vec<Sample>,
) -> impl Iterator<Item = v1::Metric> + 'a {
    samples.into_iter().map(|(own, value)| v1::Metric {
        name: metric.name.into(),
        // Measured just now.
        timestamp: 0,
        metric_type: metric.kind.into(),
        label_values: labels.iter().cloned().chain(own).collect(),
        value: Some(v1::UInt64Value { value }),
    })
}

fn pod_labels(pod: &PodView) -> [String; LABELS.len()] {
    let metadata = &pod.spec.metadata;
    [
        String::new(),
        format!("/{}", pod.cgroup),
        String::new(),
        pod.id.to_string(),
        metadata.namespace.clone(),
        metadata.name.clone(),
    ]
}

fn container_labels(pod: &PodView, container: &ContainerView) -> [String; LABELS.len()] {
    let (metadata, image) = (&pod.spec.metadata, &container.spec.image);
    let image = if image.user_specified.is_empty() { &image.image } else { &image.user_specified };
    [
        container.spec.name.clone(),
        format!("/{}", container.cgroup),
        image.clone(),
        container.id.to_string(),
        metadata.namespace.clone(),
        metadata.name.clone(),
    ]
}

fn started(container: &ContainerView) -> u64 {
    use bowline_model::container::Life;
    match container.life {
        Life::Running { started_at, .. } | Life::Stopping { started_at, .. } => seconds(started_at),
        _ => 0,
    }
}

fn seconds(nanoseconds: i64) -> u64 {
    nanoseconds.unsigned_abs() / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bowline_model::container::Life;
    use bowline_pods::{BlockIo, Disk, Figures, HugePages, InterfaceStats, Pressure, Psi};

    use super::*;
    use crate::convert::view::tests::{a_container, a_pod};

    const ALL: Sources = Sources { hugetlb: true, hugetlb_max: true, pressure: true, block_io: true };

    fn a_busy_pod() -> PodFigures {
        let figures = Figures {
            cpu_quota: Some(20_000),
            huge_pages: vec![HugePages { size: "2MB".into(), usage: 1, max_usage: Some(2) }],
            block_io: vec![BlockIo { major: 8, read_bytes: 1, ..BlockIo::default() }],
            open_files_limit: Some(1024),
            pressure: Pressure {
                cpu: Some(Psi::default()),
                memory: Some(Psi::default()),
                io: Some(Psi::default()),
            },
            ..Figures::default()
        };
        PodFigures {
            pod: Arc::new(a_pod(1)),
            figures: figures.clone(),
            interfaces: vec![InterfaceStats { name: "eth0".into(), ..InterfaceStats::default() }],
            containers: vec![ContainerFigures {
                container: Arc::new(a_container(1, Life::Running { pid: 7, started_at: 5_000_000_000 })),
                figures,
                writable: Default::default(),
                disk: Disk::default(),
            }],
        }
    }

    #[test]
    fn every_name_has_help_labels_and_samples_that_fit() {
        let told = of_pod(&ALL, &a_busy_pod());
        let all: Vec<&v1::Metric> =
            told.metrics.iter().chain(told.container_metrics.iter().flat_map(|one| &one.metrics)).collect();
        let described = descriptors(&ALL);
        assert_eq!(described.len(), 56);
        for descriptor in &described {
            assert!(
                !descriptor.help.is_empty() && descriptor.label_keys.len() >= LABELS.len(),
                "{descriptor:?}"
            );
            let samples: Vec<_> = all.iter().filter(|metric| metric.name == descriptor.name).collect();
            assert!(!samples.is_empty(), "no sample of {}", descriptor.name);
            for sample in samples {
                assert_eq!(sample.label_values.len(), descriptor.label_keys.len(), "{}", descriptor.name);
            }
        }
        let mut names: Vec<_> = described.iter().map(|descriptor| &descriptor.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 56, "a name twice");
    }

    #[test]
    fn what_the_host_lacks_is_not_announced() {
        let described = descriptors(&Sources::default());
        let has = |part: &str| described.iter().any(|descriptor| descriptor.name.contains(part));
        assert!(!has("pressure") && !has("hugetlb") && !has("blkio") && !has("fs_reads"));
        assert!(has("fs_usage") && has("network") && has("cpu_quota"));
    }

    #[test]
    fn labels_carry_the_names_of_cri() {
        let told = of_pod(&ALL, &a_busy_pod());
        let metric = &told.container_metrics[0].metrics[0];
        let image = "busybox:1".to_owned();
        let expected =
            ["c".to_owned(), "/".to_owned(), image, "01".repeat(32), "n".to_owned(), "web".to_owned()];
        assert_eq!(metric.label_values[..6], expected);
        let of_pod = told.metrics.iter().find(|metric| metric.name.starts_with("container_network")).unwrap();
        assert_eq!((of_pod.label_values[0].as_str(), of_pod.label_values[6].as_str()), ("", "eth0"));
    }
}
