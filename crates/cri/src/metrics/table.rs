//! The table of metrics: name, help, labels, type, and where the figure comes from.

use bowline_cri_proto::v1::MetricType::{self, Counter, Gauge};
use bowline_pods::{ContainerFigures, Figures, InterfaceStats, Psi, PsiLine, Sources};

/// Values of a metric's own labels, and the figure.
pub(super) type Sample = (Vec<String>, u64);

/// One metric.
pub(super) struct Metric {
    pub name: &'static str,
    pub help: &'static str,
    /// Its own labels.
    pub labels: &'static [&'static str],
    pub kind: MetricType,
    /// Whether this host has it.
    pub fed: fn(&Sources) -> bool,
    pub of: Of,
}

/// What a metric is of.
pub(super) enum Of {
    /// Of a cgroup, a pod's or a container's.
    Group(fn(&Figures) -> Vec<Sample>),
    /// Of a container alone.
    Container(fn(&ContainerFigures) -> Vec<Sample>),
    /// Of an interface of a pod.
    Interface(fn(&InterfaceStats) -> u64),
    /// When it began.
    Started,
}

const fn always(_: &Sources) -> bool {
    true
}

/// `metric!(Counter, "name", "help", source)`, with labels and a condition where there are some.
macro_rules! metric {
    ($kind:expr, $name:literal, $help:literal, $of:expr) => {
        metric!($kind, $name, $help, &[], always, $of)
    };
    ($kind:expr, $name:literal, $help:literal, $labels:expr, $fed:expr, $of:expr) => {
        Metric {
            name: concat!("container_", $name),
            help: $help,
            labels: $labels,
            kind: $kind,
            fed: $fed,
            of: $of,
        }
    };
}

/// A figure of a cgroup.
macro_rules! group {
    ($($field:tt).+) => { Of::Group(|figures| one(figures.$($field).+)) };
}

/// A time of a cgroup, from nanoseconds.
macro_rules! time {
    ($field:ident) => {
        Of::Group(|figures| one(figures.$field / NANOSECONDS))
    };
}

const NANOSECONDS: u64 = 1_000_000_000;

fn one(value: u64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

fn some(value: Option<u64>) -> Vec<Sample> {
    value.map_or_else(Vec::new, one)
}

fn waited(psi: Option<Psi>, line: fn(&Psi) -> PsiLine) -> Vec<Sample> {
    some(psi.map(|psi| line(&psi).total_ns / NANOSECONDS))
}

fn device(major: u32, minor: u32) -> String {
    // The kernel's link from the numbers to the name; where there is none the numbers are the name.
    let target = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    match target.ok().as_deref().and_then(std::path::Path::file_name) {
        Some(name) => format!("/dev/{}", name.to_string_lossy()),
        None => format!("{major}:{minor}"),
    }
}

fn per_device(figures: &Figures, of: fn(&bowline_pods::BlockIo) -> u64) -> Vec<Sample> {
    figures.block_io.iter().map(|io| (vec![device(io.major, io.minor)], of(io))).collect()
}

fn blkio(figures: &Figures) -> Vec<Sample> {
    let of = |io: &bowline_pods::BlockIo, operation: &str, value| {
        let (major, minor) = (io.major, io.minor);
        (vec![device(major, minor), major.to_string(), minor.to_string(), operation.to_owned()], value)
    };
    figures
        .block_io
        .iter()
        .flat_map(|io| [of(io, "Read", io.read_bytes), of(io, "Write", io.write_bytes)])
        .collect()
}

fn faults(figures: &Figures) -> Vec<Sample> {
    let of = |kind: &str, scope: &str, value| (vec![kind.to_owned(), scope.to_owned()], value);
    let (all, major) = figures.own_faults;
    vec![
        of("pgfault", "container", all),
        of("pgfault", "hierarchy", figures.memory.page_faults),
        of("pgmajfault", "container", major),
        of("pgmajfault", "hierarchy", figures.memory.major_page_faults),
    ]
}

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const PAGESIZE: &[&str] = &["pagesize"];

/// All 56.
pub(super) const METRICS: &[Metric] = &[
    // CPU.
    metric!(Counter, "cpu_user_seconds_total", "CPU time in programs, seconds.", time!(cpu_user_ns)),
    metric!(Counter, "cpu_system_seconds_total", "CPU time in the kernel, seconds.", time!(cpu_system_ns)),
    metric!(
        Counter,
        "cpu_usage_seconds_total",
        "CPU time, seconds.",
        &["cpu"],
        always,
        Of::Group(|figures| vec![(vec!["total".to_owned()], figures.cpu_ns / NANOSECONDS)])
    ),
    metric!(Counter, "cpu_cfs_periods_total", "Periods of the CPU quota.", group!(periods)),
    metric!(
        Counter,
        "cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up.",
        group!(throttled_periods)
    ),
    metric!(
        Counter,
        "cpu_cfs_throttled_seconds_total",
        "Time spent waiting for the next period of the CPU quota, seconds.",
        time!(throttled_ns)
    ),
    // Memory.
    metric!(Gauge, "memory_cache", "Files in memory, bytes.", group!(cache)),
    metric!(Gauge, "memory_rss", "Anonymous memory, bytes.", group!(memory.rss)),
    metric!(Gauge, "memory_swap", "Swap in use, bytes.", group!(swap)),
    metric!(Gauge, "memory_kernel_usage", "Memory of the kernel, bytes.", group!(kernel)),
    metric!(Gauge, "memory_mapped_file", "Files that are mapped, bytes.", group!(mapped_file)),
    metric!(
        Gauge,
        "memory_max_usage_bytes",
        "The most memory that was ever in use, bytes.",
        group!(max_usage)
    ),
    metric!(Gauge, "memory_usage_bytes", "Memory in use, bytes.", group!(memory.usage)),
    metric!(
        Gauge,
        "memory_working_set_bytes",
        "Memory in use without files that were not used lately, bytes.",
        group!(memory.working_set)
    ),
    metric!(Counter, "memory_failcnt", "How often the memory limit was hit.", group!(limit_hits)),
    metric!(
        Counter,
        "memory_failures_total",
        "Page faults.",
        &["failure_type", "scope"],
        always,
        Of::Group(faults)
    ),
    metric!(Counter, "oom_events_total", "Processes killed for want of memory.", group!(oom_kills)),
    // Huge pages.
    metric!(
        Gauge,
        "hugetlb_usage_bytes",
        "Huge pages in use, bytes.",
        PAGESIZE,
        |sources| sources.hugetlb,
        Of::Group(|figures| figures
            .huge_pages
            .iter()
            .map(|huge| (vec![huge.size.clone()], huge.usage))
            .collect())
    ),
    metric!(
        Gauge,
        "hugetlb_max_usage_bytes",
        "The most huge pages that were ever in use, bytes.",
        PAGESIZE,
        |sources| sources.hugetlb_max,
        Of::Group(|figures| {
            let most =
                figures.huge_pages.iter().filter_map(|huge| Some((vec![huge.size.clone()], huge.max_usage?)));
            most.collect()
        })
    ),
    // Network.
    metric!(
        Counter,
        "network_receive_bytes_total",
        "Bytes received.",
        INTERFACE,
        always,
        Of::Interface(|interface| interface.rx_bytes)
    ),
    metric!(
        Counter,
        "network_receive_packets_total",
        "Packets received.",
        INTERFACE,
        always,
        Of::Interface(|interface| interface.rx_packets)
    ),
    metric!(
        Counter,
        "network_receive_packets_dropped_total",
        "Packets that arrived and were dropped.",
        INTERFACE,
        always,
        Of::Interface(|interface| interface.rx_dropped)
    ),
    metric!(
        Counter,
        "network_receive_errors_total",
        "Packets that arrived broken.",
        INTERFACE,
        always,
        Of::Interface(|interface| interface.rx_errors)
    ),
    metric!(
        Counter,
        "network_transmit_bytes_total",
        "Bytes sent.",
        INTERFACE,
        always,
        Of::Interface(|interface| interface.tx_bytes)
    ),
    metric!(
        Counter,
        "network_transmit_packets_total",
        "Packets sent.",
        INTERFACE,
        always,
        Of::Interface(|interface| interface.tx_packets)
    ),
    metric!(
        Counter,
        "network_transmit_packets_dropped_total",
        "Packets that were dropped instead of sent.",
        INTERFACE,
        always,
        Of::Interface(|interface| interface.tx_dropped)
    ),
    metric!(
        Counter,
        "network_transmit_errors_total",
        "Packets that could not be sent.",
        INTERFACE,
        always,
        Of::Interface(|interface| interface.tx_errors)
    ),
    // Disks.
    metric!(
        Gauge,
        "fs_inodes_free",
        "Free inodes of the file system that holds the writable layer.",
        DEVICE,
        always,
        Of::Container(|of| vec![(vec![of.disk.device.clone()], of.disk.inodes_free)])
    ),
    metric!(
        Gauge,
        "fs_inodes_total",
        "Inodes of the file system that holds the writable layer.",
        DEVICE,
        always,
        Of::Container(|of| vec![(vec![of.disk.device.clone()], of.disk.inodes)])
    ),
    metric!(
        Gauge,
        "fs_limit_bytes",
        "Size of the file system that holds the writable layer, bytes.",
        DEVICE,
        always,
        Of::Container(|of| vec![(vec![of.disk.device.clone()], of.disk.total_bytes)])
    ),
    metric!(
        Gauge,
        "fs_usage_bytes",
        "Bytes in the writable layer, as last measured.",
        DEVICE,
        always,
        Of::Container(|of| vec![(vec![of.disk.device.clone()], of.writable.used_bytes)])
    ),
    metric!(
        Counter,
        "fs_reads_bytes_total",
        "Bytes read from disks.",
        DEVICE,
        |sources| sources.block_io,
        Of::Group(|figures| per_device(figures, |io| io.read_bytes))
    ),
    metric!(
        Counter,
        "fs_reads_total",
        "Reads from disks.",
        DEVICE,
        |sources| sources.block_io,
        Of::Group(|figures| per_device(figures, |io| io.reads))
    ),
    metric!(
        Counter,
        "fs_writes_bytes_total",
        "Bytes written to disks.",
        DEVICE,
        |sources| sources.block_io,
        Of::Group(|figures| per_device(figures, |io| io.write_bytes))
    ),
    metric!(
        Counter,
        "fs_writes_total",
        "Writes to disks.",
        DEVICE,
        |sources| sources.block_io,
        Of::Group(|figures| per_device(figures, |io| io.writes))
    ),
    metric!(
        Counter,
        "blkio_device_usage_total",
        "Bytes read from and written to disks.",
        &["device", "major", "minor", "operation"],
        |sources| sources.block_io,
        Of::Group(blkio)
    ),
    // Processes.
    metric!(Gauge, "processes", "Processes.", group!(processes)),
    metric!(Gauge, "threads", "Threads.", group!(threads)),
    metric!(
        Gauge,
        "threads_max",
        "The most threads that there may be; 0 without a limit.",
        group!(threads_max)
    ),
    metric!(Gauge, "file_descriptors", "Open files.", group!(open_files)),
    metric!(Gauge, "sockets", "Open sockets.", group!(sockets)),
    metric!(
        Gauge,
        "ulimits_soft",
        "Soft limits of the first process.",
        &["ulimit"],
        always,
        Of::Group(|figures| {
            let limit = figures.open_files_limit.map(|limit| (vec!["max_open_files".to_owned()], limit));
            limit.into_iter().collect()
        })
    ),
    // Waiting.
    metric!(
        Counter,
        "pressure_cpu_waiting_seconds_total",
        "Time in which some task waited for a CPU, seconds.",
        &[],
        |sources| sources.pressure,
        Of::Group(|figures| waited(figures.pressure.cpu, |psi| psi.some))
    ),
    metric!(
        Counter,
        "pressure_cpu_stalled_seconds_total",
        "Time in which all tasks waited for a CPU, seconds.",
        &[],
        |sources| sources.pressure,
        Of::Group(|figures| waited(figures.pressure.cpu, |psi| psi.full))
    ),
    metric!(
        Counter,
        "pressure_memory_waiting_seconds_total",
        "Time in which some task waited for memory, seconds.",
        &[],
        |sources| sources.pressure,
        Of::Group(|figures| waited(figures.pressure.memory, |psi| psi.some))
    ),
    metric!(
        Counter,
        "pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory, seconds.",
        &[],
        |sources| sources.pressure,
        Of::Group(|figures| waited(figures.pressure.memory, |psi| psi.full))
    ),
    metric!(
        Counter,
        "pressure_io_waiting_seconds_total",
        "Time in which some task waited for a disk, seconds.",
        &[],
        |sources| sources.pressure,
        Of::Group(|figures| waited(figures.pressure.io, |psi| psi.some))
    ),
    metric!(
        Counter,
        "pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for a disk, seconds.",
        &[],
        |sources| sources.pressure,
        Of::Group(|figures| waited(figures.pressure.io, |psi| psi.full))
    ),
    // Limits.
    metric!(Gauge, "spec_cpu_period", "Period of the CPU quota, microseconds.", group!(cpu_period)),
    metric!(
        Gauge,
        "spec_cpu_quota",
        "CPU time per period, microseconds; none without a quota.",
        &[],
        always,
        Of::Group(|figures| some(figures.cpu_quota))
    ),
    metric!(Gauge, "spec_cpu_shares", "CPU shares.", group!(cpu_shares)),
    metric!(Gauge, "spec_memory_limit_bytes", "Memory limit, bytes; 0 without one.", group!(memory_limit)),
    metric!(
        Gauge,
        "spec_memory_reservation_limit_bytes",
        "Memory that is kept from being reclaimed, bytes; 0 for none.",
        group!(memory_reservation)
    ),
    metric!(
        Gauge,
        "spec_memory_swap_limit_bytes",
        "Limit of memory and swap together, bytes; 0 without one.",
        group!(swap_limit)
    ),
    // Times.
    metric!(Gauge, "last_seen", "When this was measured, seconds since the epoch.", group!(seen)),
    metric!(Gauge, "start_time_seconds", "When it was started, seconds since the epoch.", Of::Started),
];
