//! Files of v1 hierarchies.

use bowline_model::runtime_spec::{BlockIo, CpuResources, LinuxResources, MemoryResources, ThrottleDevice};

use super::{Values, page_size};
use crate::PlanError;

/// What undoes a limit in bytes.
const NONE: Option<&str> = Some("-1");

pub(super) fn add(limits: &LinuxResources, out: &mut Values<'_>) -> Result<(), PlanError> {
    if let Some(cpu) = &limits.cpu {
        add_cpu(cpu, out);
        add_cpuset(cpu, out);
    }
    if let Some(memory) = &limits.memory {
        add_memory(memory, out);
    }
    if let Some(limit) = limits.pids.as_ref().and_then(|pids| pids.limit)
        && let Some((at, _)) = out.find("pids", false)
    {
        let value = if limit > 0 { limit.to_string() } else { "max".into() };
        out.add(at, "pids.max", value, Some("max"));
    }
    if let Some((at, _)) = out.find("hugetlb", false) {
        for limit in &limits.hugepage_limits {
            let size = page_size(&limit.page_size)?;
            out.add(at, format!("hugetlb.{size}.limit_in_bytes"), limit.limit, NONE);
        }
    }
    if let Some(block) = &limits.block_io {
        add_block_io(block, out);
    }
    if let Some(network) = &limits.network {
        if let (Some(class), Some((at, _))) = (network.class_id, out.find("net_cls", false)) {
            out.add(at, "net_cls.classid", class, Some("0"));
        }
        if let Some((at, _)) = out.find("net_prio", false) {
            for priority in &network.priorities {
                out.add(at, "net_prio.ifpriomap", format!("{} {}", priority.name, priority.priority), None);
            }
        }
    }
    Ok(())
}

fn add_cpu(cpu: &CpuResources, out: &mut Values<'_>) {
    let Some((at, _)) = out.find("cpu", false) else { return };
    if let Some(shares) = cpu.shares {
        out.add(at, "cpu.shares", shares, Some("1024"));
    }
    if let Some(period) = cpu.period {
        out.add(at, "cpu.cfs_period_us", period, Some("100000"));
    }
    if let Some(quota) = cpu.quota {
        out.add(at, "cpu.cfs_quota_us", quota, NONE);
    }
    if let Some(burst) = cpu.burst {
        out.add(at, "cpu.cfs_burst_us", burst, Some("0"));
    }
    if let Some(period) = cpu.realtime_period {
        out.add(at, "cpu.rt_period_us", period, None);
    }
    if let Some(runtime) = cpu.realtime_runtime {
        out.add(at, "cpu.rt_runtime_us", runtime, Some("0"));
    }
    if let Some(idle) = cpu.idle {
        out.add(at, "cpu.idle", idle, Some("0"));
    }
}

fn add_cpuset(cpu: &CpuResources, out: &mut Values<'_>) {
    let Some((at, _)) = out.find("cpuset", false) else { return };
    if !cpu.cpus.is_empty() {
        out.add(at, "cpuset.cpus", &cpu.cpus, None);
    }
    if !cpu.mems.is_empty() {
        out.add(at, "cpuset.mems", &cpu.mems, None);
    }
}

/// The limit first: a fresh cgroup has no limit of memory and swap, which must never be below that of memory.
/// `memsw` is missing where the kernel does not count swap; a limit of swap that equals the memory's (none beyond
/// it) is then no loss, another one fails.
fn add_memory(memory: &MemoryResources, out: &mut Values<'_>) {
    let Some((at, _)) = out.find("memory", false) else { return };
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        out.add(at, "memory.limit_in_bytes", limit.max(-1), NONE);
    }
    let swap = match (memory.limit, memory.swap.filter(|swap| *swap != 0)) {
        // Without a limit of memory there can be none of swap.
        (Some(limit), None) if limit < 0 => Some(-1),
        (_, swap) => swap,
    };
    if let Some(swap) = swap {
        if swap < 0 || memory.limit == Some(swap) {
            out.add_optional(at, "memory.memsw.limit_in_bytes", swap.max(-1));
        } else {
            out.add(at, "memory.memsw.limit_in_bytes", swap, NONE);
        }
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        out.add(at, "memory.soft_limit_in_bytes", reservation.max(-1), NONE);
    }
    // memory.kernel: without effect since 5.16 and refused by runc since 1.0.0-rc94 as well.
    if let Some(tcp) = memory.kernel_tcp.filter(|tcp| *tcp != 0) {
        out.add(at, "memory.kmem.tcp.limit_in_bytes", tcp, NONE);
    }
    if memory.disable_oom_killer == Some(true) {
        out.add(at, "memory.oom_control", 1, Some("0"));
    }
    if let Some(swappiness) = memory.swappiness {
        out.add(at, "memory.swappiness", swappiness, Some("60"));
    }
}

fn add_block_io(block: &BlockIo, out: &mut Values<'_>) {
    let Some((at, _)) = out.find("blkio", false) else { return };
    // The file is named after the scheduler that offers weights; there is at most one.
    if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
        out.add_optional(at, "blkio.bfq.weight", weight);
        out.add_optional(at, "blkio.weight", weight);
    }
    for device in &block.weight_device {
        if let Some(weight) = device.weight {
            let line = format!("{}:{} {weight}", device.major, device.minor);
            out.add_optional(at, "blkio.bfq.weight_device", &line);
            out.add_optional(at, "blkio.weight_device", &line);
        }
    }
    let throttles = [
        ("blkio.throttle.read_bps_device", &block.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &block.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &block.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &block.throttle_write_iops_device),
    ];
    for (file, list) in throttles {
        for ThrottleDevice { major, minor, rate } in list {
            out.add(at, file, format!("{major}:{minor} {rate}"), None);
        }
    }
}
