//! What schedulers and the NUMA allocator are told of the process. The rules of [`crate::child`] hold here too.

use bowline_launch_plan::LaunchPlan;
use bowline_linux::scheduling::{self, SchedAttr};

use crate::child::{Outcome, io_at};
use crate::report::Stage;

/// Applies the plan's wishes, which all that the process starts inherits. After the groups were joined: their limits bound what is
/// allowed here. Before credentials are taken, as most of it wants CAP_SYS_NICE on the host.
pub(crate) fn apply(plan: &LaunchPlan) -> Outcome {
    let wishes = &plan.scheduling;
    if let Some(scheduler) = &wishes.scheduler {
        let attributes = SchedAttr {
            policy: scheduler.policy,
            flags: scheduler.flags,
            nice: scheduler.nice,
            priority: scheduler.priority,
            runtime: scheduler.runtime,
            deadline: scheduler.deadline,
            period: scheduler.period,
        };
        scheduling::set_scheduler(&attributes).map_err(io_at(Stage::Scheduling, 0))?;
    }
    if let Some(value) = wishes.io_priority {
        scheduling::set_io_priority(value).map_err(io_at(Stage::Scheduling, 1))?;
    }
    if let Some(policy) = &wishes.memory_policy {
        let set = scheduling::set_memory_policy(policy.mode, &policy.nodes);
        set.map_err(io_at(Stage::Scheduling, 2))?;
    }
    if let Some(domain) = wishes.personality {
        scheduling::set_personality(domain).map_err(io_at(Stage::Scheduling, 3))?;
    }
    Ok(())
}
