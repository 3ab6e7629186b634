//! Everything that there is a metric for, of one cgroup. Names and labels are the caller's business.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use bowline_model::cgroup::CgroupMode;

use super::group::{Group, MemoryStats, Pressure, keyed};
use super::network::{self, InterfaceStats};
use super::writable::WritableStats;
use super::{of_container, processes, running};
use crate::host::Host;
use crate::shared::{Shared, now};
use crate::view::{ContainerView, PodView};

/// Which figures this host has. Fixed while the daemon lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sources {
    /// Huge pages are counted.
    pub hugetlb: bool,
    /// And the most that was ever used.
    pub hugetlb_max: bool,
    /// The kernel tells of waiting.
    pub pressure: bool,
    /// Reads and writes are counted.
    pub block_io: bool,
}

impl Sources {
    /// Looks at the host.
    pub(crate) fn of(host: &Host) -> Sources {
        let version = |name: &str| host.layout.find(name).map(|(_, hierarchy)| hierarchy.unified);
        // On a hybrid host the v2 tree may name controllers that it hands to nobody.
        let usable = |name: &str| match version(name) {
            Some(true) => host.layout.mode() == CgroupMode::V2,
            other => other == Some(false),
        };
        let hugetlb = usable("hugetlb") && !host.facts.hugetlb_sizes.is_empty();
        Sources {
            hugetlb,
            hugetlb_max: hugetlb && version("hugetlb") == Some(false),
            pressure: host.layout.unified().is_some() && std::fs::read("/proc/pressure/cpu").is_ok(),
            block_io: usable("blkio") || usable("io"),
        }
    }
}

/// A pod's figures and those of its running containers.
#[derive(Debug, Clone)]
pub struct PodFigures {
    /// Whose.
    pub pod: Arc<PodView>,
    /// Of its cgroup.
    pub figures: Figures,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceStats>,
    /// Of its containers.
    pub containers: Vec<ContainerFigures>,
}

/// A container's figures.
#[derive(Debug, Clone)]
pub struct ContainerFigures {
    /// Whose.
    pub container: Arc<ContainerView>,
    /// Of its cgroup.
    pub figures: Figures,
    /// Its writable layer.
    pub writable: WritableStats,
    /// The file system that holds it.
    pub disk: Disk,
}

/// A file system.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// What is mounted, as mountinfo names it.
    pub device: String,
    /// Bytes.
    pub total_bytes: u64,
    /// Inodes; 0 where the file system has no fixed number.
    pub inodes: u64,
    /// Of these free.
    pub inodes_free: u64,
}

/// Of one cgroup; 0 where the kernel counts nothing, `None` where there is no such thing.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Seconds since the epoch.
    pub seen: u64,
    /// CPU time, nanoseconds: all, in programs, in the kernel.
    pub cpu_ns: u64,
    /// In programs.
    pub cpu_user_ns: u64,
    /// In the kernel.
    pub cpu_system_ns: u64,
    /// Periods of the CPU quota, and of these throttled.
    pub periods: u64,
    /// Throttled ones.
    pub throttled_periods: u64,
    /// Time spent throttled, nanoseconds.
    pub throttled_ns: u64,
    /// Quota and its period, microseconds.
    pub cpu_quota: Option<u64>,
    /// The period.
    pub cpu_period: u64,
    /// Shares as v1 counts them.
    pub cpu_shares: u64,
    /// Memory as stats tell it.
    pub memory: MemoryStats,
    /// Files in memory, bytes.
    pub cache: u64,
    /// Files that are mapped, bytes.
    pub mapped_file: u64,
    /// The kernel's, bytes.
    pub kernel: u64,
    /// Swap in use, bytes.
    pub swap: u64,
    /// The most that was ever used, bytes.
    pub max_usage: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
    /// Page faults of the group alone, without those below: all and major ones.
    pub own_faults: (u64, u64),
    /// Limits, bytes; 0: none.
    pub memory_limit: u64,
    /// What is protected from reclaim.
    pub memory_reservation: u64,
    /// Memory and swap together.
    pub swap_limit: u64,
    /// Processes that were killed for want of memory.
    pub oom_kills: u64,
    /// Huge pages.
    pub huge_pages: Vec<HugePages>,
    /// Reads and writes.
    pub block_io: Vec<BlockIo>,
    /// Processes.
    pub processes: u64,
    /// Threads.
    pub threads: u64,
    /// Their limit; 0: none.
    pub threads_max: u64,
    /// Open files.
    pub open_files: u64,
    /// Sockets among these.
    pub sockets: u64,
    /// How many files the first process may have open.
    pub open_files_limit: Option<u64>,
    /// Waiting.
    pub pressure: Pressure,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePages {
    /// `2MB`.
    pub size: String,
    /// Bytes in use.
    pub usage: u64,
    /// The most that was ever in use, bytes.
    pub max_usage: Option<u64>,
}

/// Reads and writes of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockIo {
    /// Its numbers.
    pub major: u32,
    /// The minor one.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// The device of the file system that a folder is on, by mountinfo; its numbers where that says nothing.
pub(super) fn device(folder: &Path) -> String {
    let Ok(meta) = std::fs::metadata(folder) else { return String::new() };
    let numbers = format!("{}:{}", rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let source = text.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        (front.split(' ').nth(2)? == numbers).then(|| back.split(' ').nth(1).map(str::to_owned))?
    });
    source.unwrap_or(numbers)
}

/// A pod with its containers.
pub(super) fn of_pod(shared: &Arc<Shared>, pod: Arc<PodView>, device: &str) -> PodFigures {
    let containers = running(shared, &pod).into_iter().filter_map(|container| {
        let resources = &container.spec.resources;
        let figures = read(shared, &container.cgroup, u64::try_from(resources.cpu_shares).unwrap_or(0))?;
        let stats = of_container(shared, &container)?;
        let disk = disk(&shared.config.root, device);
        Some(ContainerFigures { container, figures, writable: stats.writable, disk })
    });
    let containers = containers.collect();
    PodFigures {
        figures: read(shared, &pod.cgroup, 0).unwrap_or_default(),
        interfaces: network::interfaces(&pod),
        containers,
        pod,
    }
}

fn disk(folder: &Path, device: &str) -> Disk {
    let Ok(all) = rustix::fs::statvfs(folder) else {
        return Disk { device: device.to_owned(), ..Disk::default() };
    };
    Disk {
        device: device.to_owned(),
        total_bytes: all.f_blocks.saturating_mul(all.f_frsize),
        inodes: all.f_files,
        inodes_free: all.f_ffree,
    }
}

/// Reads a cgroup; `shares` are those that were asked for, which v2 does not keep. `None`: it is gone.
fn read(shared: &Shared, cgroup: &Arc<str>, shares: u64) -> Option<Figures> {
    let host = &shared.host;
    let group = Group::new(host, cgroup);
    let (memory, swap) = group.memory()?;
    let pids = group.processes();
    let open = processes::open_files(&pids);
    let mut figures = Figures {
        seen: now().unsigned_abs() / 1_000_000_000,
        cpu_ns: group.cpu_usage_ns()?,
        memory,
        swap: swap.map_or(0, |swap| swap.usage),
        processes: pids.len() as u64,
        open_files: open.files,
        sockets: open.sockets,
        open_files_limit: pids.first().and_then(|pid| processes::open_files_limit(*pid)),
        pressure: group.pressure(),
        ..Figures::default()
    };
    cpu(&group, shares, &mut figures);
    match group.controller("memory") {
        Some((root, false)) => memory_v1(&group, root, &mut figures),
        Some((root, true)) => memory_v2(&group, root, &mut figures),
        None => {}
    }
    if let Some((root, _)) = group.controller("pids") {
        figures.threads = group.number(root, "pids.current").unwrap_or(0);
        figures.threads_max = group.number(root, "pids.max").unwrap_or(0);
    }
    if let Some((root, unified)) = group.controller("hugetlb") {
        let sizes = &host.facts.hugetlb_sizes;
        figures.huge_pages =
            sizes.iter().filter_map(|size| huge_pages(&group, root, unified, size)).collect();
    }
    figures.block_io = match (group.controller("io"), group.controller("blkio")) {
        (Some((root, true)), _) => block_io_v2(&group.text(root, "io.stat").unwrap_or_default()),
        (_, Some((root, false))) => {
            let text = |name| group.text(root, name).unwrap_or_default();
            block_io_v1(
                &text("blkio.throttle.io_service_bytes_recursive"),
                &text("blkio.throttle.io_serviced_recursive"),
            )
        }
        _ => Vec::new(),
    };
    Some(figures)
}

fn cpu(group: &Group<'_>, shares: u64, figures: &mut Figures) {
    match group.controller("cpuacct") {
        Some((root, false)) => {
            figures.cpu_user_ns = group.number(root, "cpuacct.usage_user").unwrap_or(0);
            figures.cpu_system_ns = group.number(root, "cpuacct.usage_sys").unwrap_or(0);
        }
        _ => {
            if let Some(stat) = group.unified().and_then(|root| group.text(root, "cpu.stat")) {
                let of = |key: &str| keyed(&stat, key).unwrap_or(0) * 1000;
                (figures.cpu_user_ns, figures.cpu_system_ns) = (of("user_usec"), of("system_usec"));
            }
        }
    }
    let Some((root, unified)) = group.controller("cpu") else { return };
    let stat = group.text(root, "cpu.stat").unwrap_or_default();
    let of = |key: &str| keyed(&stat, key).unwrap_or(0);
    (figures.periods, figures.throttled_periods) = (of("nr_periods"), of("nr_throttled"));
    if unified {
        figures.throttled_ns = of("throttled_usec") * 1000;
        let max = group.text(root, "cpu.max").unwrap_or_default();
        let mut words = max.split_whitespace();
        figures.cpu_quota = words.next().and_then(|quota| quota.parse().ok());
        figures.cpu_period = words.next().and_then(|period| period.parse().ok()).unwrap_or(0);
        figures.cpu_shares = shares;
    } else {
        figures.throttled_ns = of("throttled_time");
        // -1, no quota, is no number here.
        figures.cpu_quota = group.number(root, "cpu.cfs_quota_us");
        figures.cpu_period = group.number(root, "cpu.cfs_period_us").unwrap_or(0);
        figures.cpu_shares = group.number(root, "cpu.shares").unwrap_or(0);
    }
}

fn memory_v1(group: &Group<'_>, root: &OwnedFd, figures: &mut Figures) {
    let stat = group.text(root, "memory.stat").unwrap_or_default();
    let of = |key: &str| keyed(&stat, key).unwrap_or(0);
    let number = |name: &str| group.number(root, name).unwrap_or(0);
    figures.cache = of("total_cache");
    figures.mapped_file = of("total_mapped_file");
    figures.own_faults = (of("pgfault"), of("pgmajfault"));
    figures.kernel = number("memory.kmem.usage_in_bytes");
    figures.max_usage = number("memory.max_usage_in_bytes");
    figures.limit_hits = number("memory.failcnt");
    figures.memory_limit = number("memory.limit_in_bytes");
    figures.memory_reservation = number("memory.soft_limit_in_bytes");
    figures.swap_limit = number("memory.memsw.limit_in_bytes");
    let control = group.text(root, "memory.oom_control").unwrap_or_default();
    figures.oom_kills = keyed(&control, "oom_kill").unwrap_or(0);
}

fn memory_v2(group: &Group<'_>, root: &OwnedFd, figures: &mut Figures) {
    let stat = group.text(root, "memory.stat").unwrap_or_default();
    let of = |key: &str| keyed(&stat, key).unwrap_or(0);
    let number = |name: &str| group.number(root, name).unwrap_or(0);
    figures.cache = of("file");
    figures.mapped_file = of("file_mapped");
    // v2 counts with what is below only; a container seldom has anything below.
    figures.own_faults = (of("pgfault"), of("pgmajfault"));
    // The sum is there since Linux 5.18.
    figures.kernel = keyed(&stat, "kernel")
        .unwrap_or_else(|| of("slab") + of("kernel_stack") + of("pagetables") + of("percpu"));
    // Since Linux 5.19.
    figures.max_usage = number("memory.peak");
    let events = group.text(root, "memory.events").unwrap_or_default();
    figures.limit_hits = keyed(&events, "max").unwrap_or(0);
    figures.oom_kills = keyed(&events, "oom_kill").unwrap_or(0);
    figures.memory_limit = number("memory.max");
    figures.memory_reservation = number("memory.low");
    let swap = group.number(root, "memory.swap.max");
    figures.swap_limit = match (figures.memory_limit, swap) {
        (0, _) | (_, None) => 0,
        (limit, Some(swap)) => limit.saturating_add(swap),
    };
}

fn huge_pages(group: &Group<'_>, root: &OwnedFd, unified: bool, size: &str) -> Option<HugePages> {
    let (usage, max_usage) = match unified {
        true => (group.number(root, &format!("hugetlb.{size}.current"))?, None),
        false => (
            group.number(root, &format!("hugetlb.{size}.usage_in_bytes"))?,
            group.number(root, &format!("hugetlb.{size}.max_usage_in_bytes")),
        ),
    };
    Some(HugePages { size: size.to_owned(), usage, max_usage })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`
fn block_io_v2(text: &str) -> Vec<BlockIo> {
    let lines = text.lines().filter_map(|line| {
        let (numbers, fields) = line.split_once(' ')?;
        let (major, minor) = numbers.split_once(':')?;
        let field = |key: &str| {
            let value = fields.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        Some(BlockIo {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            read_bytes: field("rbytes"),
            write_bytes: field("wbytes"),
            reads: field("rios"),
            writes: field("wios"),
        })
    });
    lines.collect()
}

/// Lines of `8:0 Read 1` in both files, one of bytes and one of operations.
fn block_io_v1(bytes: &str, operations: &str) -> Vec<BlockIo> {
    let mut found: Vec<BlockIo> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(numbers), Some(what), Some(value)) = (words.next(), words.next(), words.next()) else {
                // The last line is a total of everything.
                continue;
            };
            let Some((major, minor)) = numbers.split_once(':') else { continue };
            let (Ok(major), Ok(minor), Ok(value)) = (major.parse(), minor.parse(), value.parse::<u64>())
            else {
                continue;
            };
            let index = match found.iter().position(|one| (one.major, one.minor) == (major, minor)) {
                Some(index) => index,
                None => {
                    found.push(BlockIo { major, minor, ..BlockIo::default() });
                    found.len() - 1
                }
            };
            let Some(one) = found.get_mut(index) else { continue };
            match (what, is_bytes) {
                ("Read", true) => one.read_bytes = value,
                ("Write", true) => one.write_bytes = value,
                ("Read", false) => one.reads = value,
                ("Write", false) => one.writes = value,
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_of_both_versions() {
        let expected =
            vec![BlockIo { major: 8, minor: 16, read_bytes: 4096, write_bytes: 8192, reads: 1, writes: 2 }];
        assert_eq!(block_io_v2("8:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n"), expected);
        let bytes =
            "8:16 Read 4096\n8:16 Write 8192\n8:16 Sync 12288\n8:16 Async 0\n8:16 Total 12288\nTotal 12288\n";
        let operations = "8:16 Read 1\n8:16 Write 2\n8:16 Sync 3\nTotal 3\n";
        assert_eq!(block_io_v1(bytes, operations), expected);
        assert_eq!(block_io_v1("Total 0\n", "Total 0\n"), []);
    }

    #[test]
    fn a_folder_is_on_some_device() {
        assert!(!device(Path::new("/")).is_empty());
        assert!(disk(Path::new("/"), "x").total_bytes > 0);
    }
}
