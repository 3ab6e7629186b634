//! Limits, to and fro. What CRI has a figure for goes by CRI's figures, so that they tell what is in force; the rest
//! lives in the stored spec.

use bowline_model::runtime_spec::{
    CpuResources, DeviceRule, HugepageLimit, LinuxResources, MemoryResources, PidsResources,
};
use bowline_model::spec::Resources;
use bowline_nri::api;

use crate::PodError;

/// A change of limits.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Change {
    /// What CRI has a figure for; zero and empty: as before.
    pub asked: Resources,
    /// What it has none for; absent: as before.
    pub more: LinuxResources,
}

/// What a plugin wants.
pub(super) fn change(from: &api::LinuxResources) -> Result<Change, PodError> {
    for (field, asked) in [("blockio_class", &from.blockio_class), ("rdt_class", &from.rdt_class)] {
        if asked.as_ref().is_some_and(|class| !class.value.is_empty()) {
            return Err(PodError::Unsupported(format!(
                "an NRI plugin sets {field}, and there are no such classes here; configure it not to"
            )));
        }
    }
    let mut change = Change::default();
    let asked = &mut change.asked;
    let signed = |value: u64, field: &str| {
        i64::try_from(value)
            .map_err(|_| PodError::Invalid(format!("{field} of an NRI plugin: {value} is too large")))
    };
    if let Some(cpu) = &from.cpu {
        if let Some(shares) = cpu.shares {
            asked.cpu_shares = signed(shares.value, "cpu.shares")?;
        }
        if let Some(quota) = cpu.quota {
            asked.cpu_quota = quota.value;
        }
        if let Some(period) = cpu.period {
            asked.cpu_period = signed(period.value, "cpu.period")?;
        }
        asked.cpuset_cpus.clone_from(&cpu.cpus);
        asked.cpuset_mems.clone_from(&cpu.mems);
        let realtime = CpuResources {
            realtime_runtime: cpu.realtime_runtime.map(|runtime| runtime.value),
            realtime_period: cpu.realtime_period.map(|period| period.value),
            ..CpuResources::default()
        };
        change.more.cpu = Some(realtime).filter(|cpu| *cpu != CpuResources::default());
    }
    if let Some(memory) = &from.memory {
        if let Some(limit) = memory.limit {
            asked.memory_limit = limit.value;
            // As without plugins: a limit of memory alone leaves no swap.
            asked.memory_swap_limit = limit.value;
        }
        if let Some(swap) = memory.swap {
            asked.memory_swap_limit = swap.value;
        }
        let rest = MemoryResources {
            reservation: memory.reservation.map(|bytes| bytes.value),
            kernel: memory.kernel.map(|bytes| bytes.value),
            kernel_tcp: memory.kernel_tcp.map(|bytes| bytes.value),
            swappiness: memory.swappiness.map(|value| value.value),
            disable_oom_killer: memory.disable_oom_killer.map(|value| value.value),
            use_hierarchy: memory.use_hierarchy.map(|value| value.value),
            ..MemoryResources::default()
        };
        change.more.memory = Some(rest).filter(|memory| *memory != MemoryResources::default());
    }
    asked.hugepage_limits =
        from.hugepage_limits.iter().map(|limit| (limit.page_size.clone(), limit.limit)).collect();
    asked.unified.clone_from(&from.unified);
    change.more.pids = from.pids.map(|pids| PidsResources { limit: Some(pids.limit) });
    change.more.devices = from.devices.iter().map(rule).collect();
    Ok(change)
}

fn rule(from: &api::LinuxDeviceCgroup) -> DeviceRule {
    DeviceRule {
        allow: from.allow,
        kind: from.r#type.clone(),
        major: from.major.map(|number| number.value),
        minor: from.minor.map(|number| number.value),
        access: from.access.clone(),
    }
}

/// What CRI has no figure for stays as it was.
pub(crate) fn keep(before: &LinuxResources, after: &mut LinuxResources) {
    let rest = LinuxResources {
        memory: before.memory.as_ref().map(|memory| MemoryResources {
            limit: None,
            swap: None,
            ..memory.clone()
        }),
        cpu: before.cpu.as_ref().map(|cpu| CpuResources {
            shares: None,
            quota: None,
            period: None,
            cpus: String::new(),
            mems: String::new(),
            ..cpu.clone()
        }),
        pids: before.pids.clone(),
        ..LinuxResources::default()
    };
    overlay(&rest, after);
    after.block_io.clone_from(&before.block_io);
    after.network.clone_from(&before.network);
    after.rdma.clone_from(&before.rdma);
    after.extra.clone_from(&before.extra);
}

/// Writes what CRI has no figure for over what is there.
pub(crate) fn overlay(more: &LinuxResources, into: &mut LinuxResources) {
    /// Takes fields that are there.
    macro_rules! take {
        ($part:ident: $($field:ident),*) => {
            if let Some(from) = &more.$part {
                let target = into.$part.get_or_insert_default();
                $(if from.$field.is_some() {
                    target.$field = from.$field;
                })*
            }
        };
    }
    take!(memory: reservation, kernel, kernel_tcp, swappiness, disable_oom_killer, use_hierarchy, check_before_update);
    take!(cpu: burst, realtime_runtime, realtime_period, idle);
    if more.pids.is_some() {
        into.pids.clone_from(&more.pids);
    }
    into.devices.extend(more.devices.iter().cloned());
    // A part of which nothing is said is none.
    into.memory = into.memory.take().filter(|memory| *memory != MemoryResources::default());
    into.cpu = into.cpu.take().filter(|cpu| *cpu != CpuResources::default());
}

/// Limits as plugins see them.
pub(super) fn message(from: &LinuxResources) -> api::LinuxResources {
    let int64 = |value: Option<i64>| value.map(|value| api::OptionalInt64 { value });
    let uint64 = |value: Option<u64>| value.map(|value| api::OptionalUInt64 { value });
    let boolean = |value: Option<bool>| value.map(|value| api::OptionalBool { value });
    let hugepage =
        |limit: &HugepageLimit| api::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit };
    api::LinuxResources {
        memory: from.memory.as_ref().map(|memory| api::LinuxMemory {
            limit: int64(memory.limit),
            reservation: int64(memory.reservation),
            swap: int64(memory.swap),
            kernel: int64(memory.kernel),
            kernel_tcp: int64(memory.kernel_tcp),
            swappiness: uint64(memory.swappiness),
            disable_oom_killer: boolean(memory.disable_oom_killer),
            use_hierarchy: boolean(memory.use_hierarchy),
        }),
        cpu: from.cpu.as_ref().map(|cpu| api::LinuxCpu {
            shares: uint64(cpu.shares),
            quota: int64(cpu.quota),
            period: uint64(cpu.period),
            realtime_runtime: int64(cpu.realtime_runtime),
            realtime_period: uint64(cpu.realtime_period),
            cpus: cpu.cpus.clone(),
            mems: cpu.mems.clone(),
        }),
        hugepage_limits: from.hugepage_limits.iter().map(hugepage).collect(),
        blockio_class: None,
        rdt_class: None,
        unified: from.unified.clone(),
        devices: from
            .devices
            .iter()
            .map(|rule| api::LinuxDeviceCgroup {
                allow: rule.allow,
                r#type: rule.kind.clone(),
                major: int64(rule.major),
                minor: int64(rule.minor),
                access: rule.access.clone(),
            })
            .collect(),
        pids: from.pids.as_ref().and_then(|pids| pids.limit).map(|limit| api::LinuxPids { limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> api::LinuxResources {
        let int64 = |value| Some(api::OptionalInt64 { value });
        api::LinuxResources {
            memory: Some(api::LinuxMemory {
                limit: int64(64 << 20),
                reservation: int64(32 << 20),
                ..api::LinuxMemory::default()
            }),
            cpu: Some(api::LinuxCpu {
                shares: Some(api::OptionalUInt64 { value: 512 }),
                cpus: "0-1".into(),
                ..api::LinuxCpu::default()
            }),
            pids: Some(api::LinuxPids { limit: 99 }),
            ..api::LinuxResources::default()
        }
    }

    #[test]
    fn what_cri_knows_goes_by_cri_and_the_rest_by_the_spec() {
        let change = change(&wanted()).unwrap();
        assert_eq!((change.asked.memory_limit, change.asked.memory_swap_limit), (64 << 20, 64 << 20));
        assert_eq!((change.asked.cpu_shares, change.asked.cpuset_cpus.as_str()), (512, "0-1"));
        assert_eq!(change.asked.cpu_quota, 0);
        assert_eq!(change.more.memory.unwrap().reservation, Some(32 << 20));
        assert_eq!(change.more.cpu, None);
        assert_eq!(change.more.pids.unwrap().limit, Some(99));
    }

    #[test]
    fn what_cri_does_not_know_outlives_its_updates() {
        let mut before = LinuxResources::default();
        overlay(&change(&wanted()).unwrap().more, &mut before);
        before.cpu =
            Some(CpuResources { shares: Some(2), realtime_period: Some(7), ..CpuResources::default() });
        let mut after = LinuxResources {
            cpu: Some(CpuResources { shares: Some(3), ..CpuResources::default() }),
            ..LinuxResources::default()
        };
        keep(&before, &mut after);
        let cpu = after.cpu.unwrap();
        assert_eq!((cpu.shares, cpu.realtime_period), (Some(3), Some(7)));
        assert_eq!(after.memory.unwrap().reservation, Some(32 << 20));
        assert_eq!(after.pids.unwrap().limit, Some(99));
    }

    #[test]
    fn classes_are_refused_by_name() {
        let class = Some(api::OptionalString { value: "gold".into() });
        let error = change(&api::LinuxResources { rdt_class: class, ..wanted() }).unwrap_err();
        assert!(matches!(&error, PodError::Unsupported(text) if text.contains("rdt_class")), "{error}");
    }

    #[test]
    fn limits_survive_the_way_to_a_plugin_and_back() {
        let mut shown = message(&LinuxResources {
            cpu: Some(CpuResources { quota: Some(-1), period: Some(100_000), ..CpuResources::default() }),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 5 }],
            ..LinuxResources::default()
        });
        let back = change(&shown).unwrap().asked;
        assert_eq!((back.cpu_quota, back.cpu_period), (-1, 100_000));
        assert_eq!(back.hugepage_limits, [("2MB".to_owned(), 5)]);
        shown.cpu = None;
        assert_eq!(change(&shown).unwrap().asked.cpu_period, 0);
    }
}
