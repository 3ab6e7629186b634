//! Limits: every number has an owner of its own.

use bowline_nri_proto::v1alpha1::{Field, LinuxResources};

use super::MergeError;
use super::owners::Claims;

/// Copies fields that are there, each under its owner, into every target.
macro_rules! copy {
    ($from:expr, $part:ident, $targets:expr, $claims:expr, { $($field:ident: $owner:ident),* $(,)? }) => {
        if let Some(from) = &$from.$part {
            $(if from.$field.is_some() {
                $claims.field(Field::$owner)?;
                for target in $targets.iter_mut() {
                    target.$part.get_or_insert_default().$field.clone_from(&from.$field);
                }
            })*
        }
    };
}

/// Takes what is wanted into all targets; what is absent stays as it was.
pub(crate) fn take(
    wanted: &LinuxResources,
    targets: &mut [&mut LinuxResources],
    claims: &mut Claims<'_>,
) -> Result<(), MergeError> {
    copy!(wanted, memory, targets, claims, {
        limit: MemLimit,
        reservation: MemReservation,
        swap: MemSwapLimit,
        kernel: MemKernelLimit,
        kernel_tcp: MemTcpLimit,
        swappiness: MemSwappiness,
        disable_oom_killer: MemDisableOomKiller,
        use_hierarchy: MemUseHierarchy,
    });
    copy!(wanted, cpu, targets, claims, {
        shares: CpuShares,
        quota: CpuQuota,
        period: CpuPeriod,
        realtime_runtime: CpuRealtimeRuntime,
        realtime_period: CpuRealtimePeriod,
    });
    if let Some(cpu) = &wanted.cpu {
        if !cpu.cpus.is_empty() {
            claims.field(Field::CpuSetCpUs)?;
            for target in targets.iter_mut() {
                target.cpu.get_or_insert_default().cpus.clone_from(&cpu.cpus);
            }
        }
        if !cpu.mems.is_empty() {
            claims.field(Field::CpuSetMems)?;
            for target in targets.iter_mut() {
                target.cpu.get_or_insert_default().mems.clone_from(&cpu.mems);
            }
        }
    }
    for limit in &wanted.hugepage_limits {
        claims.entry(Field::HugepageLimits, &limit.page_size)?;
        for target in targets.iter_mut() {
            target.hugepage_limits.retain(|known| known.page_size != limit.page_size);
            target.hugepage_limits.push(limit.clone());
        }
    }
    for (key, value) in &wanted.unified {
        claims.entry(Field::CgroupsUnified, key)?;
        for target in targets.iter_mut() {
            target.unified.insert(key.clone(), value.clone());
        }
    }
    if wanted.blockio_class.is_some() {
        claims.field(Field::BlockioClass)?;
        for target in targets.iter_mut() {
            target.blockio_class.clone_from(&wanted.blockio_class);
        }
    }
    if wanted.rdt_class.is_some() {
        claims.field(Field::RdtClass)?;
        for target in targets.iter_mut() {
            target.rdt_class.clone_from(&wanted.rdt_class);
        }
    }
    if wanted.pids.is_some() {
        claims.field(Field::PidsLimit)?;
        for target in targets.iter_mut() {
            target.pids = wanted.pids;
        }
    }
    // Rules are read in order and add up; nobody owns them.
    for target in targets.iter_mut() {
        target.devices.extend(wanted.devices.iter().cloned());
    }
    Ok(())
}
