//! Changing the limits of a running container: only what differs, in an order that never passes through a state
//! which the kernel refuses, with the way back.

use bowline_launch_plan::CgroupStep;
use bowline_model::cgroup::CgroupLayout;
use bowline_model::runtime_spec::LinuxResources;

use crate::PlanError;
use crate::bytes::{c_string, parts};
use crate::resources::{Value, values};

/// The writes of an update, and those that take it back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Update {
    /// In the order in which they are made; one write per step.
    pub apply: Vec<CgroupStep>,
    /// The way back from each of them: when step n fails, steps n-1 down to 0 of this list are made. A step without
    /// writes has no way back: the file had no value of ours, and has none that means "unset".
    pub rollback: Vec<CgroupStep>,
}

/// What takes a container's cgroups from the old limits to the new ones. Devices are not part of it. The new limits
/// are complete (the old ones with the changes merged in), not only what changes.
pub fn update(
    old: &LinuxResources,
    new: &LinuxResources,
    layout: &CgroupLayout,
    cgroup_path: &str,
) -> Result<Update, PlanError> {
    let field = "linux.cgroupsPath";
    let path = c_string(field, parts(cgroup_path).join("/"))?;
    if path.is_empty() {
        return Err(PlanError::invalid(field, "is the root cgroup"));
    }
    let before = values(old, layout)?;
    let after = values(new, layout)?;
    let mut changes = changes(&before, &after);
    order(&mut changes, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", limit_first);
    order(&mut changes, "cpu.cfs_period_us", "cpu.cfs_quota_us", period_first);

    let mut update = Update::default();
    for change in changes {
        let step = |value: &Value| {
            Ok::<CgroupStep, PlanError>(CgroupStep {
                hierarchy: value.hierarchy,
                path: path.clone(),
                create: false,
                writes: vec![value.write()?],
            })
        };
        update.apply.push(step(&change.to)?);
        update.rollback.push(match &change.from {
            Some(from) => step(from)?,
            None => CgroupStep {
                hierarchy: change.to.hierarchy,
                path: path.clone(),
                create: false,
                writes: Vec::new(),
            },
        });
    }
    Ok(update)
}

#[derive(Debug, Clone)]
struct Change {
    from: Option<Value>,
    to: Value,
}

fn changes(before: &[Value], after: &[Value]) -> Vec<Change> {
    let same = |a: &Value, b: &Value| a.hierarchy == b.hierarchy && a.file == b.file && key(a) == key(b);
    let unset = |value: &Value| value.unset.map(|unset| Value { value: unset.to_owned(), ..value.clone() });
    let mut list: Vec<Change> = after
        .iter()
        .filter(|to| !before.contains(to))
        .map(|to| Change {
            from: before.iter().find(|from| same(from, to)).cloned().or_else(|| unset(to)),
            to: to.clone(),
        })
        .collect();
    // A limit that is gone.
    for from in before.iter().filter(|from| !after.iter().any(|to| same(from, to))) {
        if let Some(to) = unset(from) {
            list.push(Change { from: Some(from.clone()), to });
        }
    }
    list
}

/// Files with a line per device keep them apart by it.
fn key(value: &Value) -> Option<&str> {
    value.value.split_once(' ').map(|(first, _)| first).filter(|first| first.contains(':'))
}

/// Puts two files of one pair into the order that a rule wants. The rule says whether the first one is written first;
/// both changes keep the place of the earlier one.
fn order(changes: &mut [Change], first: &str, second: &str, rule: fn(&Change, &Change) -> bool) {
    let at = |file: &str| changes.iter().position(|change| change.to.file == file);
    let (Some(a), Some(b)) = (at(first), at(second)) else { return };
    let first_wanted = match (changes.get(a), changes.get(b)) {
        (Some(one), Some(two)) => rule(one, two),
        _ => return,
    };
    if (a < b) != first_wanted {
        changes.swap(a, b);
    }
}

fn number(value: &Value) -> i64 {
    // Unlimited is above every number.
    value.value.parse().ok().filter(|number| *number >= 0).unwrap_or(i64::MAX)
}

/// v1 demands memory <= memory and swap at every moment: a limit that rises above the old sum must wait for the sum.
fn limit_first(limit: &Change, sum: &Change) -> bool {
    sum.from.as_ref().is_none_or(|from| number(&limit.to) <= number(from))
}

/// The share of a period must not rise above old and new at any moment, or the parent's limit refuses it: a longer
/// period goes first, a shorter one last.
fn period_first(period: &Change, _quota: &Change) -> bool {
    period.from.as_ref().is_some_and(|from| number(&period.to) > number(from))
}
