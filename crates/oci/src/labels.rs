//! SELinux labels: which one a pod and its containers get, from the policy's defaults and what was asked for.
//!
//! A label is `user:role:type:level`. The defaults are the policy's own (`lxc_contexts`, a file of `name = "label"` lines, which
//! container runtimes share). The level holds a pair of categories that no other pod has; whoever may read a pod's files must have
//! both. `docs/design/security-modules.md` says who gets what.

use std::fmt;

use bowline_model::spec::{NamespaceMode, PodSpec, SelinuxOptions};

use crate::{SelinuxLabels, SpecError};

/// The type of what is privileged: the policy confines it to nothing.
const PRIVILEGED_TYPE: &str = "spc_t";
/// The longest part of a label that is taken.
const MAX_PART: usize = 255;
/// One more than the highest category that the kernel's policies have.
const CATEGORIES: u16 = 1024;

/// A label in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// SELinux user.
    pub user: String,
    /// Role; `object_r` for files.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Sensitivity and categories; `None`: the policy has no levels.
    pub level: Option<String>,
}

impl Label {
    /// Reads a label; `None` if it has not three or four parts of plain letters.
    pub fn parse(text: &str) -> Option<Label> {
        let mut parts = text.splitn(4, ':');
        let mut next = || parts.next().filter(|part| is_word(part)).map(str::to_owned);
        let (user, role, kind) = (next()?, next()?, next()?);
        let level = parts.next().map(str::to_owned);
        if level.as_deref().is_some_and(|level| !is_level(level)) {
            return None;
        }
        Some(Label { user, role, kind, level })
    }

    fn with_level(&self, level: &str) -> Label {
        Label { level: (!level.is_empty()).then(|| level.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        self.level.iter().try_for_each(|level| write!(f, ":{level}"))
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_PART
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// Whether this is a level or a range of two: `s0`, `s0:c1,c2`, `s0:c0.c1023`, `s0-s0:c3`.
fn is_level(text: &str) -> bool {
    let mut ends = text.splitn(2, '-');
    text.len() <= MAX_PART && ends.all(is_single_level)
}

fn is_single_level(text: &str) -> bool {
    let (sensitivity, categories) = match text.split_once(':') {
        Some((sensitivity, categories)) => (sensitivity, Some(categories)),
        None => (text, None),
    };
    number(sensitivity, 's').is_some_and(|number| number < 16)
        && categories.is_none_or(|list| list.split(',').all(is_category_span))
}

fn is_category_span(text: &str) -> bool {
    let category = |text| number(text, 'c').filter(|number| *number < CATEGORIES);
    match text.split_once('.') {
        Some((first, last)) => category(first).zip(category(last)).is_some_and(|(first, last)| first <= last),
        None => category(text).is_some(),
    }
}

fn number(text: &str, letter: char) -> Option<u16> {
    let digits = text.strip_prefix(letter)?;
    let plain = !digits.is_empty() && digits.len() <= 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// The pair of categories of a level, if it is just that: `s0:c1,c2` is (1, 2).
pub fn category_pair(level: &str) -> Option<(u16, u16)> {
    let (_, categories) = level.split_once(':')?;
    let (first, second) = categories.split_once(',')?;
    let (first, second) = (number(first, 'c')?, number(second, 'c')?);
    (first != second).then(|| (first.min(second), first.max(second)))
}

/// What the policy says about containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerContexts {
    /// Label of processes.
    pub process: Label,
    /// Label of files that containers write.
    pub file: Label,
    /// Label of files that they only read.
    pub read_only_file: Label,
}

impl ContainerContexts {
    /// Reads the policy's file. Lines that are neither of ours nor a comment are somebody else's and passed over.
    pub fn parse(text: &str) -> Result<ContainerContexts, String> {
        let find = |wanted: &str| {
            let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
            let mut named = lines.filter_map(|line| line.split_once('='));
            let (_, value) = named.find(|(name, _)| name.trim() == wanted)?;
            Some(value.trim().trim_matches('"'))
        };
        let label = |name: &str| match find(name) {
            Some(text) => {
                Label::parse(text).map(Some).ok_or_else(|| format!("`{name}`: {text:?} is no label"))
            }
            None => Ok(None),
        };
        let missing = |name: &str| format!("it has no line `{name} = ..`");
        let process = label("process")?.ok_or_else(|| missing("process"))?;
        let file = label("file")?.ok_or_else(|| missing("file"))?;
        let read_only_file = label("ro_file")?.unwrap_or_else(|| file.clone());
        Ok(ContainerContexts { process, file, read_only_file })
    }

    /// The level without categories; empty: the policy has no levels.
    fn base_level(&self) -> &str {
        let level = self.process.level.as_deref().unwrap_or_default();
        level.split(['-', ':']).next().unwrap_or_default()
    }

    /// The level with a pair of categories; `None`: the policy has no levels.
    pub fn level_with(&self, (first, second): (u16, u16)) -> Option<String> {
        let base = self.base_level();
        (!base.is_empty()).then(|| format!("{base}:c{first},c{second}"))
    }

    /// The label of files that all containers may use, whatever their categories.
    pub fn shared_file(&self) -> Label {
        self.file.with_level(self.base_level())
    }
}

/// Refuses what can be part of no label, with the field's name.
pub fn check_selinux_options(field: &str, options: &SelinuxOptions) -> Result<(), SpecError> {
    for (name, part) in [("user", &options.user), ("role", &options.role), ("type", &options.r#type)] {
        if !part.is_empty() && !is_word(part) {
            let reason =
                format!("{part:?} is no {name} of a label; letters, digits, `_`, `-` and `.` are possible");
            return Err(SpecError::invalid(format!("{field}.{name}"), reason));
        }
    }
    if !options.level.is_empty() && !is_level(&options.level) {
        let reason = format!("{:?} is no level; try one such as s0:c1,c2", options.level);
        return Err(SpecError::invalid(format!("{field}.level"), reason));
    }
    Ok(())
}

/// Whether nothing is asked for.
pub fn is_empty(options: &SelinuxOptions) -> bool {
    [&options.user, &options.role, &options.r#type, &options.level].iter().all(|part| part.is_empty())
}

/// The labels of a pod whose level is `level`: those of a container in it that asks for nothing.
pub fn pod_labels(contexts: &ContainerContexts, pod: &PodSpec, level: &str) -> SelinuxLabels {
    let none = SelinuxOptions::default();
    let asked = Asked {
        options: pod.security.selinux.as_ref().unwrap_or(&none),
        privileged: pod.security.privileged,
        host: sees_host(pod, pod.security.namespaces.pid),
    };
    labels(contexts, &asked, level)
}

/// The labels of a container. What it asks for itself stands for all that its pod asks for, but the level, which is the
/// pod's unless it names another.
pub fn container_labels(
    contexts: &ContainerContexts,
    pod: &PodSpec,
    (container, pids): (&bowline_model::spec::ContainerSecurity, NamespaceMode),
    level: &str,
) -> SelinuxLabels {
    let none = SelinuxOptions::default();
    let own = container.selinux.as_ref().filter(|options| !is_empty(options));
    let options = own.or(pod.security.selinux.as_ref()).unwrap_or(&none);
    labels(contexts, &Asked { options, privileged: container.privileged, host: sees_host(pod, pids) }, level)
}

/// The host's processes or its IPC are there: categories would keep the container from what it was given.
fn sees_host(pod: &PodSpec, pids: NamespaceMode) -> bool {
    pids == NamespaceMode::Node || pod.security.namespaces.ipc == NamespaceMode::Node
}

struct Asked<'a> {
    options: &'a SelinuxOptions,
    privileged: bool,
    host: bool,
}

fn labels(contexts: &ContainerContexts, asked: &Asked<'_>, pod_level: &str) -> SelinuxLabels {
    let options = asked.options;
    let or = |part: &String, default: &str| if part.is_empty() { default.to_owned() } else { part.clone() };
    let level = or(&options.level, pod_level);
    let default = &contexts.process;
    let process = Label {
        user: or(&options.user, &default.user),
        role: or(&options.role, &default.role),
        kind: or(&options.r#type, if asked.privileged { PRIVILEGED_TYPE } else { &default.kind }),
        level: None,
    };
    // A level that was asked for holds for what is privileged too; the pod's own would only hinder it.
    let process_level =
        if asked.privileged { or(&options.level, contexts.base_level()) } else { level.clone() };
    // Neither own nor default: the policy says what becomes of children of the daemon.
    let unlabelled = asked.host && !asked.privileged && options.r#type.is_empty();
    let mount = Label { user: or(&options.user, &contexts.file.user), ..contexts.file.clone() };
    SelinuxLabels {
        process: if unlabelled { String::new() } else { process.with_level(&process_level).to_string() },
        mount: mount.with_level(&level).to_string(),
    }
}

#[cfg(test)]
mod tests;
