//! Scheduling policy, I/O priority, NUMA policy and execution domain.

use bowline_launch_plan::{MemoryPolicy, SchedAttr, Scheduling};
use bowline_model::runtime_spec::{
    IoPriority, Linux, LinuxMemoryPolicy, LinuxPersonality, Process, Scheduler,
};

use crate::PlanError;

/// Numbers of linux/sched.h, by the names that the spec has. `SCHED_ISO` is reserved there and has never been built.
const POLICIES: [(&str, u32); 6] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];
const SCHED_FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];
/// linux/ioprio.h.
const IO_CLASSES: [(&str, u16); 3] =
    [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
/// linux/mempolicy.h.
const MODES: [(&str, u32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];
const MODE_FLAGS: [(&str, u32); 3] = [
    ("MPOL_F_STATIC_NODES", 1 << 15),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
];
/// The most nodes that any configuration of the kernel has (`CONFIG_NODES_SHIFT` 10).
const MAX_NODES: usize = 1024;

/// All four of a spec.
pub(crate) fn scheduling(process: &Process, linux: &Linux) -> Result<Scheduling, PlanError> {
    Ok(Scheduling {
        scheduler: process.scheduler.as_ref().map(scheduler).transpose()?,
        io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
        memory_policy: linux.memory_policy.as_ref().map(memory_policy).transpose()?,
        personality: linux.personality.as_ref().map(personality).transpose()?,
    })
}

fn number<T: Copy>(field: &str, table: &[(&str, T)], name: &str) -> Result<T, PlanError> {
    let found = table.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    found.ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|(known, _)| *known).collect();
        PlanError::invalid(field, format!("{name:?} is none of {}", names.join(", ")))
    })
}

fn scheduler(wish: &Scheduler) -> Result<SchedAttr, PlanError> {
    let field = |name: &str| format!("process.scheduler.{name}");
    let policy = number(&field("policy"), &POLICIES, &wish.policy)?;
    let mut flags = 0;
    for name in &wish.flags {
        flags |= number(&field("flags"), &SCHED_FLAGS, name)?;
    }
    let real_time = matches!(wish.policy.as_str(), "SCHED_FIFO" | "SCHED_RR");
    let fits = if real_time { (1..=99).contains(&wish.priority) } else { wish.priority == 0 };
    let priority = u32::try_from(wish.priority).ok().filter(|_| fits).ok_or_else(|| {
        let reason = "is 1 to 99 with SCHED_FIFO and SCHED_RR, and 0 with the others";
        PlanError::invalid(field("priority"), reason)
    })?;
    if !(-20..=19).contains(&wish.nice) {
        return Err(PlanError::invalid(field("nice"), "goes from -20 to 19"));
    }
    let times = [wish.runtime, wish.deadline, wish.period];
    match wish.policy == "SCHED_DEADLINE" {
        false if times != [0; 3] => {
            let reason = "makes sense with SCHED_DEADLINE only, as do deadline and period";
            return Err(PlanError::invalid(field("runtime"), reason));
        }
        true if wish.runtime == 0 || wish.runtime > wish.deadline => {
            let reason = "is more than 0 with SCHED_DEADLINE, and not more than the deadline";
            return Err(PlanError::invalid(field("runtime"), reason));
        }
        _ => {}
    }
    let [runtime, deadline, period] = times;
    Ok(SchedAttr { policy, flags, nice: wish.nice, priority, runtime, deadline, period })
}

fn io_priority(wish: &IoPriority) -> Result<u16, PlanError> {
    let class = number("process.ioPriority.class", &IO_CLASSES, &wish.class)?;
    let level = u16::try_from(wish.priority).ok().filter(|level| *level < 8);
    let level = level.ok_or_else(|| PlanError::invalid("process.ioPriority.priority", "goes from 0 to 7"))?;
    Ok(class << 13 | level)
}

fn memory_policy(wish: &LinuxMemoryPolicy) -> Result<MemoryPolicy, PlanError> {
    let field = |name: &str| format!("linux.memoryPolicy.{name}");
    let mut mode = number(&field("mode"), &MODES, &wish.mode)?;
    for name in &wish.flags {
        mode |= number(&field("flags"), &MODE_FLAGS, name)?;
    }
    let nodes = nodes(&wish.nodes).map_err(|reason| PlanError::invalid(field("nodes"), reason))?;
    let without = matches!(wish.mode.as_str(), "MPOL_DEFAULT" | "MPOL_LOCAL");
    if without && !nodes.is_empty() {
        return Err(PlanError::invalid(field("nodes"), format!("is empty with {}", wish.mode)));
    }
    if !without && wish.mode != "MPOL_PREFERRED" && nodes.is_empty() {
        return Err(PlanError::invalid(field("nodes"), format!("names some with {}", wish.mode)));
    }
    Ok(MemoryPolicy { mode, nodes })
}

/// `0-3,7` as a mask.
fn nodes(list: &str) -> Result<Vec<u64>, String> {
    let mut mask = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let bounds = first.parse::<usize>().ok().zip(last.parse::<usize>().ok());
        let bounds = bounds.filter(|(first, last)| first <= last && *last < MAX_NODES);
        let (first, last) = bounds
            .ok_or_else(|| format!("`{part}` is no node below {MAX_NODES}, nor a range such as 0-3"))?;
        for node in first..=last {
            if mask.len() <= node / 64 {
                mask.resize(node / 64 + 1, 0u64);
            }
            if let Some(word) = mask.get_mut(node / 64) {
                *word |= 1 << (node % 64);
            }
        }
    }
    Ok(mask)
}

fn personality(wish: &LinuxPersonality) -> Result<u32, PlanError> {
    if !wish.flags.is_empty() {
        return Err(PlanError::unsupported("linux.personality.flags"));
    }
    // `PER_LINUX` and `PER_LINUX32` of linux/personality.h.
    number("linux.personality.domain", &[("LINUX", 0), ("LINUX32", 8)], &wish.domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nodes_become_masks() {
        assert_eq!(nodes(""), Ok(vec![]));
        assert_eq!(nodes("0"), Ok(vec![1]));
        assert_eq!(nodes("0-3,7"), Ok(vec![0b1000_1111]));
        assert_eq!(nodes("1, 64-65"), Ok(vec![2, 3]));
        for bad in ["x", "3-1", "1024", "-1", "0-99999999999"] {
            assert!(nodes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wishes_become_the_kernels_numbers() {
        let wish = Scheduler { policy: "SCHED_BATCH".into(), nice: 5, ..Scheduler::default() };
        assert_eq!(scheduler(&wish).unwrap(), SchedAttr { policy: 3, nice: 5, ..SchedAttr::default() });
        let wish = Scheduler {
            policy: "SCHED_RR".into(),
            priority: 42,
            flags: vec!["SCHED_FLAG_RESET_ON_FORK".into()],
            ..Scheduler::default()
        };
        let expected = SchedAttr { policy: 2, priority: 42, flags: 1, ..SchedAttr::default() };
        assert_eq!(scheduler(&wish).unwrap(), expected);
        let wish = IoPriority { class: "IOPRIO_CLASS_BE".into(), priority: 4 };
        assert_eq!(io_priority(&wish).unwrap(), 0x4004);
        let wish = LinuxMemoryPolicy {
            mode: "MPOL_BIND".into(),
            nodes: "0".into(),
            flags: vec!["MPOL_F_STATIC_NODES".into()],
        };
        assert_eq!(memory_policy(&wish).unwrap(), MemoryPolicy { mode: 2 | 1 << 15, nodes: vec![1] });
        let wish = LinuxPersonality { domain: "LINUX32".into(), flags: vec![] };
        assert_eq!(personality(&wish).unwrap(), 8);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_field() {
        let policy = |policy: &str| Scheduler { policy: policy.into(), ..Scheduler::default() };
        for (wish, field) in [
            (policy("SCHED_ISO"), "policy"),
            (policy("SCHED_FIFO"), "priority"),
            (Scheduler { priority: 1, ..policy("SCHED_OTHER") }, "priority"),
            (Scheduler { nice: 20, ..policy("SCHED_OTHER") }, "nice"),
            (Scheduler { runtime: 1, ..policy("SCHED_OTHER") }, "runtime"),
            (Scheduler { runtime: 2, deadline: 1, ..policy("SCHED_DEADLINE") }, "runtime"),
            (Scheduler { flags: vec!["SCHED_FLAG_X".into()], ..policy("SCHED_OTHER") }, "flags"),
        ] {
            let error = scheduler(&wish).unwrap_err().to_string();
            assert!(error.starts_with(&format!("process.scheduler.{field}")), "{error}");
        }
        for (class, priority) in [("IOPRIO_CLASS_NONE", 0), ("IOPRIO_CLASS_BE", 8), ("IOPRIO_CLASS_BE", -1)] {
            assert!(io_priority(&IoPriority { class: class.into(), priority }).is_err());
        }
        for (mode, nodes) in
            [("MPOL_BIND", ""), ("MPOL_DEFAULT", "0"), ("MPOL_NONE", "0"), ("MPOL_BIND", "9999")]
        {
            let wish = LinuxMemoryPolicy { mode: mode.into(), nodes: nodes.into(), flags: vec![] };
            assert!(memory_policy(&wish).is_err(), "{mode} {nodes}");
        }
    }
}
