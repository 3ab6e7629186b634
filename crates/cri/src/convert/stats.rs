//! Measurements of containers.

use bowline_cri_proto::v1;
use bowline_image::FsUsage;
use bowline_pods::{ContainerView, Stats};

use super::view;

fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

/// Who the measurements are of.
pub(crate) fn attributes(view: &ContainerView) -> v1::ContainerAttributes {
    v1::ContainerAttributes {
        id: view.id.to_string(),
        metadata: Some(view::container_metadata(view)),
        labels: view.spec.labels.clone(),
        annotations: view.spec.annotations.clone(),
    }
}

/// A container's measurements. `usage_nano_cores` stays empty: it needs two measurements, and the kubelet takes its own.
pub(crate) fn to_cri(view: &ContainerView, stats: &Stats) -> v1::ContainerStats {
    let timestamp = stats.timestamp;
    let memory = &stats.memory;
    let writable = &stats.writable;
    v1::ContainerStats {
        attributes: Some(attributes(view)),
        cpu: Some(v1::CpuUsage {
            timestamp,
            usage_core_nano_seconds: number(stats.cpu_usage_ns),
            ..Default::default()
        }),
        memory: Some(v1::MemoryUsage {
            timestamp,
            working_set_bytes: number(memory.working_set),
            available_bytes: memory.available.and_then(number),
            usage_bytes: number(memory.usage),
            rss_bytes: number(memory.rss),
            page_faults: number(memory.page_faults),
            major_page_faults: number(memory.major_page_faults),
            psi: None,
        }),
        writable_layer: Some(v1::FilesystemUsage {
            timestamp: writable.timestamp,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: writable.mountpoint.clone() }),
            used_bytes: number(writable.used_bytes),
            inodes_used: number(writable.inodes_used),
        }),
        swap: stats.swap_usage.map(|usage| v1::SwapUsage {
            timestamp,
            swap_available_bytes: None,
            swap_usage_bytes: number(usage),
        }),
        io: None,
    }
}

/// What images take.
pub(crate) fn images(usage: &FsUsage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: usage.timestamp_ns,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: usage.mountpoint.to_string_lossy().into_owned() }),
        used_bytes: number(usage.used_bytes),
        inodes_used: number(usage.inodes_used),
    }
}
