//! Limits: from CRI's flat numbers, where zero means "not set", to the spec's.

use bowline_model::cgroup::CgroupMode;
use bowline_model::runtime_spec::{CpuResources, HugepageLimit, LinuxResources, MemoryResources};
use bowline_model::spec::Resources;

use crate::{NodeFacts, Note, SpecError};

/// The limits of a container, without devices. Also what an update starts from.
pub fn linux_resources(
    asked: &Resources,
    node: &NodeFacts,
    notes: &mut Vec<Note>,
) -> Result<LinuxResources, SpecError> {
    if node.cgroup_mode != CgroupMode::V2
        && let Some(key) = asked.unified.keys().next()
    {
        let reason = format!("{key} is a file of cgroup v2, and this host has its controllers in v1");
        return Err(SpecError::invalid("linux.resources.unified", reason));
    }
    Ok(LinuxResources {
        memory: memory(asked, node)?,
        cpu: cpu(asked)?,
        hugepage_limits: hugepages(asked, node, notes)?,
        unified: asked.unified.clone(),
        ..LinuxResources::default()
    })
}

/// The limits after an update: what the change leaves at zero or empty stays as it was (UpdateContainerResources has no
/// other way to say "unchanged"). Huge pages and unified keys are merged one by one.
pub fn merged_resources(old: &Resources, change: &Resources) -> Resources {
    fn number(old: i64, new: i64) -> i64 {
        if new == 0 { old } else { new }
    }
    fn text(old: &str, new: &str) -> String {
        if new.is_empty() { old.to_owned() } else { new.to_owned() }
    }
    let mut merged = Resources {
        cpu_period: number(old.cpu_period, change.cpu_period),
        cpu_quota: number(old.cpu_quota, change.cpu_quota),
        cpu_shares: number(old.cpu_shares, change.cpu_shares),
        memory_limit: number(old.memory_limit, change.memory_limit),
        memory_swap_limit: number(old.memory_swap_limit, change.memory_swap_limit),
        // Set on a process when it starts, as in the peers: what is told stays what is in force.
        oom_score_adj: old.oom_score_adj,
        cpuset_cpus: text(&old.cpuset_cpus, &change.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &change.cpuset_mems),
        hugepage_limits: old.hugepage_limits.clone(),
        unified: old.unified.clone(),
    };
    for (size, limit) in &change.hugepage_limits {
        match merged.hugepage_limits.iter_mut().find(|(there, _)| there == size) {
            Some((_, there)) => *there = *limit,
            None => merged.hugepage_limits.push((size.clone(), *limit)),
        }
    }
    merged.unified.extend(change.unified.clone());
    merged
}

fn cpu(asked: &Resources) -> Result<Option<CpuResources>, SpecError> {
    let cpu = CpuResources {
        shares: positive("linux.resources.cpu_shares", asked.cpu_shares)?,
        quota: Some(asked.cpu_quota).filter(|quota| *quota != 0),
        period: positive("linux.resources.cpu_period", asked.cpu_period)?,
        cpus: asked.cpuset_cpus.clone(),
        mems: asked.cpuset_mems.clone(),
        ..CpuResources::default()
    };
    Ok((cpu != CpuResources::default()).then_some(cpu))
}

/// Memory and swap. Without a word about swap it is limited to none, as in containerd; `memory.swap.max` among the
/// unified keys, which is how the kubelet says it on v2, counts before the number here.
fn memory(asked: &Resources, node: &NodeFacts) -> Result<Option<MemoryResources>, SpecError> {
    let limit = Some(asked.memory_limit).filter(|limit| *limit != 0);
    let in_unified = asked.unified.contains_key("memory.swap.max");
    let swap = match asked.memory_swap_limit {
        _ if in_unified || !node.swap => None,
        0 => limit,
        swap => Some(swap),
    };
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap >= 0
        && swap < limit
    {
        let reason =
            format!("{swap} counts memory and swap together and is below memory_limit_in_bytes, {limit}");
        return Err(SpecError::invalid("linux.resources.memory_swap_limit_in_bytes", reason));
    }
    let memory = MemoryResources { limit, swap, ..MemoryResources::default() };
    Ok((memory != MemoryResources::default()).then_some(memory))
}

/// The kubelet sends every page size of the node, most with limit 0; a size that cannot be limited is then no loss.
fn hugepages(
    asked: &Resources,
    node: &NodeFacts,
    notes: &mut Vec<Note>,
) -> Result<Vec<HugepageLimit>, SpecError> {
    let field = "linux.resources.hugepage_limits";
    let mut limits = Vec::new();
    for (size, limit) in &asked.hugepage_limits {
        if node.hugetlb_sizes.contains(size) {
            limits.push(HugepageLimit { page_size: size.clone(), limit: *limit });
        } else if *limit == 0 {
            notes.push(Note::new(field, format!("limit 0 for {size} left out: this host cannot limit them")));
        } else {
            let reason =
                format!("this host cannot limit huge pages of {size}; it has {:?}", node.hugetlb_sizes);
            return Err(SpecError::invalid(field, reason));
        }
    }
    Ok(limits)
}

fn positive(field: &str, value: i64) -> Result<Option<u64>, SpecError> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(SpecError::invalid(field, format!("{value} is negative"))),
    }
}
