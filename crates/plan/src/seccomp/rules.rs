//! A profile as intervals of call numbers, and the search among them.

use std::collections::BTreeMap;

use bowline_model::runtime_spec::{Seccomp, SeccompAction, SeccompSyscall};

use super::arch::X32_BIT;
use super::assemble::{Assembler, IF_AT_LEAST, IF_EQUAL, LOAD, Label};
use super::conditions::Condition;
use super::{Arch, SeccompError};

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const MAX_ERRNO: u32 = 4095;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;

/// Conditions that must all hold, and what happens then.
type Alternative = (Vec<Condition>, u32);

/// What happens with a call: rules with conditions in order, and what holds if none does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Verdict {
    rules: Vec<Alternative>,
    otherwise: u32,
}

/// A profile that makes sense.
pub(super) struct Profile {
    /// By audit number: what happens from a call number on, up to the next one.
    machines: Vec<(u32, bool, BTreeMap<u32, Verdict>)>,
}

impl Profile {
    pub(super) fn read(profile: &Seccomp, native: Arch) -> Result<Profile, SeccompError> {
        let default = action("defaultAction", &profile.default_action, profile.default_errno_ret)?;
        if !profile.listener_path.is_empty() {
            return Err(SeccompError::Notify { field: "listenerPath".into() });
        }
        let mut arches = vec![native];
        for word in &profile.architectures {
            let arch = Arch::parse(word)?;
            if !arches.contains(&arch) {
                arches.push(arch);
            }
        }
        let rules = read_rules(profile, default)?;
        let stub = matches!(
            profile.default_action,
            SeccompAction::Errno
                | SeccompAction::Kill
                | SeccompAction::KillThread
                | SeccompAction::KillProcess
                | SeccompAction::Trap
        ) && default != ERRNO | ENOSYS;

        let mut machines: Vec<(u32, bool, BTreeMap<u32, Verdict>)> = Vec::new();
        for arch in arches {
            let own = intervals(arch, &rules, default, stub);
            match machines.iter_mut().find(|(audit, ..)| *audit == arch.audit()) {
                Some((_, _, there)) => there.extend(own),
                None => {
                    let mut table = BTreeMap::from([(0, plain(KILL_PROCESS))]);
                    if arch.audit() == Arch::X86_64.audit() {
                        table.insert(X32_BIT, plain(KILL_PROCESS));
                        // What a tracer writes to skip a call; no machine type of its own.
                        table.insert(u32::MAX, plain(default));
                    }
                    table.extend(own);
                    machines.push((arch.audit(), arch.narrow(), table));
                }
            }
        }
        for (.., table) in &mut machines {
            merge(table);
        }
        Ok(Profile { machines })
    }

    /// The whole filter: which machine, then which call.
    pub(super) fn emit(&self, out: &mut Assembler) {
        let mut next = out.ret(KILL_PROCESS);
        for (audit, narrow, table) in self.machines.iter().rev() {
            let entries: Vec<(u32, &Verdict)> =
                table.iter().map(|(number, verdict)| (*number, verdict)).collect();
            let start = Machine { narrow: *narrow, blocks: Vec::new() }.emit(&entries, out);
            // The load below runs on into what is written last.
            out.go(start);
            let load = out.before(LOAD, NR);
            next = out.branch(IF_EQUAL, *audit, load, next);
        }
        out.go(next);
        out.before(LOAD, ARCH);
    }
}

fn plain(value: u32) -> Verdict {
    Verdict { rules: Vec::new(), otherwise: value }
}

/// A rule with its names, conditions and value.
struct Rule<'a> {
    names: &'a [String],
    alternatives: Vec<Vec<Condition>>,
    value: u32,
}

fn read_rules(profile: &Seccomp, default: u32) -> Result<Vec<Rule<'_>>, SeccompError> {
    let mut rules = Vec::new();
    for (index, syscall) in profile.syscalls.iter().enumerate() {
        let field = format!("syscalls[{index}]");
        let value = action(&format!("{field}.action"), &syscall.action, syscall.errno_ret)?;
        let alternatives = alternatives(&field, syscall)?;
        if value != default {
            rules.push(Rule { names: &syscall.names, alternatives, value });
        }
    }
    Ok(rules)
}

fn alternatives(field: &str, syscall: &SeccompSyscall) -> Result<Vec<Vec<Condition>>, SeccompError> {
    let mut conditions = Vec::new();
    for (index, arg) in syscall.args.iter().enumerate() {
        conditions.push(Condition::read(&format!("{field}.args[{index}]"), arg)?);
    }
    let twice = conditions
        .iter()
        .enumerate()
        .any(|(at, one)| conditions.iter().skip(at + 1).any(|other| other.index == one.index));
    Ok(if twice { conditions.into_iter().map(|one| vec![one]).collect() } else { vec![conditions] })
}

fn action(field: &str, action: &SeccompAction, errno: Option<u32>) -> Result<u32, SeccompError> {
    let data = || match errno.unwrap_or(EPERM) {
        value @ 0..=MAX_ERRNO => Ok(value),
        value => Err(SeccompError::Range {
            field: format!("{field} (errnoRet)"),
            value: value.into(),
            max: MAX_ERRNO.into(),
        }),
    };
    Ok(match action {
        SeccompAction::Kill | SeccompAction::KillThread => KILL_THREAD,
        SeccompAction::KillProcess => KILL_PROCESS,
        SeccompAction::Trap => TRAP,
        SeccompAction::Errno => ERRNO | data()?,
        SeccompAction::Trace => TRACE | data()?,
        SeccompAction::Allow => ALLOW,
        SeccompAction::Log => LOG,
        SeccompAction::Notify => return Err(SeccompError::Notify { field: field.to_owned() }),
        SeccompAction::Other(word) => {
            return Err(SeccompError::Unknown { field: field.to_owned(), word: word.clone() });
        }
    })
}

/// What happens with the calls of one machine type, as the starts of intervals.
fn intervals(arch: Arch, rules: &[Rule<'_>], default: u32, stub: bool) -> BTreeMap<u32, Verdict> {
    let mut calls: BTreeMap<u32, (Vec<Alternative>, Option<u32>)> = BTreeMap::new();
    for rule in rules {
        for number in rule.names.iter().filter_map(|name| arch.number(name)) {
            let (conditional, always) = calls.entry(number).or_default();
            for conditions in &rule.alternatives {
                if conditions.is_empty() {
                    always.get_or_insert(rule.value);
                } else {
                    conditional.push((conditions.clone(), rule.value));
                }
            }
        }
    }
    let first = if arch == Arch::X32 { X32_BIT } else { 0 };
    let newer = if stub && !calls.is_empty() { ERRNO | ENOSYS } else { default };
    let last = calls.keys().next_back().copied();
    let mut table = BTreeMap::from([(first, plain(default))]);
    for (number, (conditional, always)) in calls {
        let verdict = match always {
            Some(value) => plain(value),
            None => Verdict { rules: conditional, otherwise: default },
        };
        table.insert(number, verdict);
        let behind = plain(if Some(number) == last { newer } else { default });
        table.entry(number.saturating_add(1)).or_insert(behind);
    }
    table
}

/// Neighbours that say the same become one.
fn merge(table: &mut BTreeMap<u32, Verdict>) {
    let mut before: Option<Verdict> = None;
    table.retain(|_, verdict| {
        if before.as_ref() == Some(verdict) {
            return false;
        }
        before = Some(verdict.clone());
        true
    });
}

/// The code of one machine type.
struct Machine {
    narrow: bool,
    /// Where the code of a verdict with conditions stands.
    blocks: Vec<(Verdict, Label)>,
}

impl Machine {
    /// A balanced search by number; intervals in the upper half are written first, as code grows backwards.
    fn emit(&mut self, entries: &[(u32, &Verdict)], out: &mut Assembler) -> Label {
        match entries {
            [] => out.ret(KILL_PROCESS),
            [(_, verdict)] => self.verdict(verdict, out),
            many => {
                let (lower, upper) = many.split_at(many.len() / 2);
                let from = upper.first().map_or(0, |(number, _)| *number);
                let then = self.emit(upper, out);
                let otherwise = self.emit(lower, out);
                out.branch(IF_AT_LEAST, from, then, otherwise)
            }
        }
    }

    fn verdict(&mut self, verdict: &Verdict, out: &mut Assembler) -> Label {
        if verdict.rules.is_empty() {
            return out.ret(verdict.otherwise);
        }
        if let Some((_, label)) = self.blocks.iter().find(|(there, _)| there == verdict) {
            return *label;
        }
        let mut next = out.ret(verdict.otherwise);
        for (conditions, value) in verdict.rules.iter().rev() {
            let mut then = out.ret(*value);
            for condition in conditions.iter().rev() {
                then = condition.emit(out, self.narrow, then, next);
            }
            next = then;
        }
        self.blocks.push((verdict.clone(), next));
        next
    }
}
