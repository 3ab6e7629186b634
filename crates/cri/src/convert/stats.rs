//! Measurements of containers and pods.

use bowline_cri_proto::v1;
use bowline_image::FsUsage;
use bowline_pods::{
    ContainerView, GroupStats, InterfaceStats, PodStats, PodView, Psi, PsiLine, Stats, WritableStats,
};

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

/// A container's measurements.
pub(crate) fn to_cri(view: &ContainerView, stats: &Stats) -> v1::ContainerStats {
    let group = &stats.group;
    v1::ContainerStats {
        attributes: Some(attributes(view)),
        cpu: Some(cpu(group)),
        memory: Some(memory(group)),
        writable_layer: Some(writable(&stats.writable)),
        swap: group.swap.map(|swap| v1::SwapUsage {
            timestamp: group.timestamp,
            swap_available_bytes: swap.available.and_then(number),
            swap_usage_bytes: number(swap.usage),
        }),
        io: io(group),
    }
}

/// A pod's measurements with its containers'.
pub(crate) fn pod_to_cri(view: &PodView, stats: &PodStats) -> v1::PodSandboxStats {
    let group = &stats.group;
    let mut interfaces = stats.interfaces.iter().map(interface);
    let network = v1::NetworkUsage {
        timestamp: group.timestamp,
        default_interface: interfaces.next(),
        // The kubelet adds these to the default one.
        interfaces: interfaces.collect(),
    };
    let metadata = &view.spec.metadata;
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: view.id.to_string(),
            metadata: Some(v1::PodSandboxMetadata {
                name: metadata.name.clone(),
                uid: metadata.uid.clone(),
                namespace: metadata.namespace.clone(),
                attempt: metadata.attempt,
            }),
            labels: view.spec.labels.clone(),
            annotations: view.spec.annotations.clone(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: Some(cpu(group)),
            memory: Some(memory(group)),
            network: network.default_interface.is_some().then_some(network),
            process: Some(v1::ProcessUsage {
                timestamp: group.timestamp,
                process_count: number(stats.processes),
            }),
            containers: stats.containers.iter().map(|(view, stats)| to_cri(view, stats)).collect(),
            io: io(group),
        }),
        windows: None,
    }
}

fn cpu(group: &GroupStats) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: group.timestamp,
        usage_core_nano_seconds: number(group.cpu_usage_ns),
        usage_nano_cores: group.nano_cores.and_then(number),
        psi: group.pressure.cpu.as_ref().map(psi),
    }
}

fn memory(group: &GroupStats) -> v1::MemoryUsage {
    let memory = &group.memory;
    v1::MemoryUsage {
        timestamp: group.timestamp,
        working_set_bytes: number(memory.working_set),
        available_bytes: memory.available.and_then(number),
        usage_bytes: number(memory.usage),
        rss_bytes: number(memory.rss),
        page_faults: number(memory.page_faults),
        major_page_faults: number(memory.major_page_faults),
        psi: group.pressure.memory.as_ref().map(psi),
    }
}

fn io(group: &GroupStats) -> Option<v1::IoUsage> {
    let pressure = group.pressure.io.as_ref()?;
    Some(v1::IoUsage { timestamp: group.timestamp, psi: Some(psi(pressure)) })
}

fn psi(pressure: &Psi) -> v1::PsiStats {
    let line = |line: &PsiLine| {
        Some(v1::PsiData { total: line.total_ns, avg10: line.avg10, avg60: line.avg60, avg300: line.avg300 })
    };
    v1::PsiStats { full: line(&pressure.full), some: line(&pressure.some) }
}

fn interface(of: &InterfaceStats) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: of.name.clone(),
        rx_bytes: number(of.rx_bytes),
        rx_errors: number(of.rx_errors),
        tx_bytes: number(of.tx_bytes),
        tx_errors: number(of.tx_errors),
    }
}

fn writable(layer: &WritableStats) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: layer.timestamp,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: layer.mountpoint.clone() }),
        used_bytes: number(layer.used_bytes),
        inodes_used: number(layer.inodes_used),
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

#[cfg(test)]
mod tests {
    use bowline_pods::Pressure;

    use super::*;
    use crate::convert::view::tests::a_pod;

    #[test]
    fn a_pods_network_has_a_default_interface_and_others() {
        let named = |name: &str| InterfaceStats { name: name.into(), rx_bytes: 3, ..Default::default() };
        let pressure =
            Psi { some: PsiLine { total_ns: 5, avg10: 0.5, ..Default::default() }, ..Default::default() };
        let stats = PodStats {
            group: GroupStats {
                timestamp: 9,
                nano_cores: Some(7),
                pressure: Pressure { io: Some(pressure), ..Default::default() },
                ..Default::default()
            },
            interfaces: vec![named("eth0"), named("net1")],
            processes: 4,
            ..Default::default()
        };
        let told = pod_to_cri(&a_pod(1), &stats);
        assert_eq!(told.attributes.unwrap().metadata.unwrap().name, "web");
        let linux = told.linux.unwrap();
        let network = linux.network.unwrap();
        assert_eq!(network.default_interface.unwrap().name, "eth0");
        assert_eq!(network.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["net1"]);
        assert_eq!(linux.process.unwrap().process_count, number(4));
        assert_eq!(linux.cpu.unwrap().usage_nano_cores, number(7));
        assert_eq!(linux.io.unwrap().psi.unwrap().some.unwrap().total, 5);
        let hosts = PodStats { interfaces: Vec::new(), ..stats };
        assert_eq!(pod_to_cri(&a_pod(1), &hosts).linux.unwrap().network, None);
    }
}
