//! Files of the v2 tree, and the check that nothing was asked of a controller that is nowhere.

use bowline_model::runtime_spec::{BlockIo, CpuResources, LinuxResources, MemoryResources};

use super::{Values, convert, page_size};
use crate::PlanError;

const MAX: Option<&str> = Some("max");

pub(super) fn add(limits: &LinuxResources, out: &mut Values<'_>) -> Result<(), PlanError> {
    if let Some(cpu) = &limits.cpu {
        add_cpu(cpu, out)?;
    }
    if let Some(memory) = &limits.memory {
        add_memory(memory, &limits.unified, out)?;
    }
    if let Some(limit) = limits.pids.as_ref().and_then(|pids| pids.limit) {
        if limit > 0 {
            out.demand("pids", "linux.resources.pids.limit")?;
        }
        if let Some((at, _)) = out.find("pids", true) {
            let value = if limit > 0 { limit.to_string() } else { "max".into() };
            out.add(at, "pids.max", value, MAX);
        }
    }
    for limit in &limits.hugepage_limits {
        let size = page_size(&limit.page_size)?;
        if limit.limit > 0 {
            out.demand("hugetlb", "linux.resources.hugepageLimits")?;
        }
        if let Some((at, _)) = out.find("hugetlb", true) {
            let file = format!("hugetlb.{size}.max");
            // The kubelet names every size, with 0; on a hybrid host the tree may list a controller that it does not
            // hand down, and then there is nothing to limit.
            if limit.limit > 0 {
                out.add(at, file, limit.limit, MAX);
            } else {
                out.add_optional(at, file, limit.limit, MAX);
            }
        }
    }
    if let Some(block) = &limits.block_io {
        add_block_io(block, out)?;
    }
    for (device, limit) in &limits.rdma {
        out.demand("rdma", "linux.resources.rdma")?;
        if let Some((at, _)) = out.layout.find("rdma") {
            let number = |value: Option<u32>| value.map_or("max".to_owned(), |value| value.to_string());
            let line = format!(
                "{device} hca_handle={} hca_object={}",
                number(limit.hca_handles),
                number(limit.hca_objects)
            );
            out.add(at, "rdma.max", line, None);
        }
    }
    add_unified(limits, out)
}

/// The last of all: what is said by file name counts before what is said by number.
fn add_unified(limits: &LinuxResources, out: &mut Values<'_>) -> Result<(), PlanError> {
    for (file, value) in &limits.unified {
        let field = format!("linux.resources.unified.{file}");
        let Some(at) = out.layout.unified() else {
            return Err(PlanError::invalid(field, "is a file of cgroup v2, which this host does not have"));
        };
        let named = file.split('.').all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        });
        // cgroup.procs and its like move processes and controllers; they are no limits.
        if !named || !file.contains('.') || file.starts_with("cgroup.") {
            return Err(PlanError::invalid(field, "is no file of a controller"));
        }
        out.list.retain(|there| there.hierarchy != at || there.file != *file);
        for line in value.lines() {
            out.add(at, file, line, None);
        }
    }
    Ok(())
}

fn add_cpu(cpu: &CpuResources, out: &mut Values<'_>) -> Result<(), PlanError> {
    if cpu.shares.is_some() || cpu.quota.is_some() || cpu.period.is_some() || cpu.burst.is_some() {
        out.demand("cpu", "linux.resources.cpu")?;
    }
    if !cpu.cpus.is_empty() || !cpu.mems.is_empty() {
        out.demand("cpuset", "linux.resources.cpu.cpus")?;
    }
    if let Some((at, _)) = out.find("cpu", true) {
        if cpu.realtime_runtime.is_some_and(|value| value != 0)
            || cpu.realtime_period.is_some_and(|value| value != 0)
        {
            return Err(PlanError::unsupported("linux.resources.cpu.realtimeRuntime on cgroup v2"));
        }
        if let Some(idle) = cpu.idle {
            out.add(at, "cpu.idle", idle, Some("0"));
        }
        // An idle group has no weight to set: the kernel answers EINVAL.
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && cpu.idle != Some(1)) {
            out.add(at, "cpu.weight", convert::cpu_weight(shares), Some("100"));
        }
        // A period without a quota keeps the quota that is there; in a fresh cgroup that is none.
        let quota = cpu.quota.map(|quota| if quota > 0 { quota.to_string() } else { "max".into() });
        match (quota, cpu.period.filter(|period| *period != 0)) {
            (None, None) => {}
            (Some(quota), None) => out.add(at, "cpu.max", quota, Some("max 100000")),
            (quota, Some(period)) => {
                let quota = quota.unwrap_or_else(|| "max".into());
                out.add(at, "cpu.max", format!("{quota} {period}"), Some("max 100000"));
            }
        }
        if let Some(burst) = cpu.burst {
            out.add(at, "cpu.max.burst", burst, Some("0"));
        }
    }
    if let Some((at, _)) = out.find("cpuset", true) {
        // An empty line means "as the parent".
        if !cpu.cpus.is_empty() {
            out.add(at, "cpuset.cpus", &cpu.cpus, Some("\n"));
        }
        if !cpu.mems.is_empty() {
            out.add(at, "cpuset.mems", &cpu.mems, Some("\n"));
        }
    }
    Ok(())
}

fn add_memory(
    memory: &MemoryResources,
    unified: &std::collections::BTreeMap<String, String>,
    out: &mut Values<'_>,
) -> Result<(), PlanError> {
    let limit = memory.limit.filter(|limit| *limit != 0);
    if limit.is_some() {
        out.demand("memory", "linux.resources.memory.limit")?;
    }
    let Some((at, _)) = out.find("memory", true) else { return Ok(()) };
    let number = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if !unified.contains_key("memory.swap.max") {
        let swap = convert::swap_max(limit, memory.swap)
            .map_err(|reason| PlanError::invalid("linux.resources.memory.swap", reason))?;
        // The file is missing where the kernel does not count swap; then "none" and "all" are no loss.
        match swap {
            Some(swap) if swap == "0" || swap == "max" => out.add_optional(at, "memory.swap.max", swap, MAX),
            Some(swap) => out.add(at, "memory.swap.max", swap, MAX),
            None => {}
        }
    }
    if let Some(limit) = limit {
        out.add(at, "memory.max", number(limit), MAX);
    }
    if let Some(reservation) = memory.reservation.filter(|value| *value != 0) {
        out.add(at, "memory.low", number(reservation), Some("0"));
    }
    Ok(())
}

fn add_block_io(block: &BlockIo, out: &mut Values<'_>) -> Result<(), PlanError> {
    let asked = block.weight.is_some() || !block.weight_device.is_empty();
    let throttles = [
        ("rbps", &block.throttle_read_bps_device),
        ("wbps", &block.throttle_write_bps_device),
        ("riops", &block.throttle_read_iops_device),
        ("wiops", &block.throttle_write_iops_device),
    ];
    let Some((at, _)) = out.find("io", true) else {
        if asked || throttles.iter().any(|(_, list)| !list.is_empty()) {
            out.demand("blkio", "linux.resources.blockIO")?;
        }
        return Ok(());
    };
    // Which of the two exists depends on the scheduler; they have different scales.
    if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
        out.add_optional(at, "io.bfq.weight", weight, Some("100"));
        out.add_optional(
            at,
            "io.weight",
            format!("default {}", convert::io_weight(weight)),
            Some("default 100"),
        );
    }
    for device in &block.weight_device {
        if let Some(weight) = device.weight {
            out.add_optional(
                at,
                "io.bfq.weight",
                format!("{}:{} {weight}", device.major, device.minor),
                None,
            );
        }
    }
    for (key, list) in throttles {
        for device in list {
            out.add(at, "io.max", format!("{}:{} {key}={}", device.major, device.minor, device.rate), None);
        }
    }
    Ok(())
}
