//! A further process in a running container, with exactly its identity.

use std::ffi::CString;

use bowline_launch_plan::{CgroupStep, Credentials, FdIndex, JoinNamespace, LaunchPlan};

use crate::PlanError;

/// Where the launcher finds the pidfd of the container's first process: it joins that process' namespaces and root.
pub const EXEC_PIDFD: FdIndex = 0;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<CString>,
    /// `NAME=value` lines; they replace the container's lines of the same name.
    pub env: Vec<CString>,
    /// With a terminal.
    pub terminal: bool,
    /// Its size at start: rows, columns.
    pub window: (u16, u16),
    /// Somebody else than the container's user.
    pub user: Option<ExecUser>,
    /// Another working directory, absolute.
    pub cwd: Option<CString>,
}

/// Somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecUser {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplemental groups.
    pub groups: Vec<u32>,
}

/// The plan of an exec, from the plan of its container: the same user, groups, capability sets, filter,
/// no_new_privs, environment, working directory, limits and labels, in the same namespaces and cgroups.
pub fn exec_plan(container: &LaunchPlan, request: &ExecRequest) -> Result<LaunchPlan, PlanError> {
    if request.argv.first().is_none_or(|program| program.is_empty()) {
        return Err(PlanError::invalid("cmd", "names no program"));
    }
    let mut plan = LaunchPlan::new(request.argv.clone());
    plan.envp = environment(&container.envp, &request.env, request.terminal);
    plan.cwd = match &request.cwd {
        Some(cwd) if cwd.as_bytes().starts_with(b"/") => cwd.clone(),
        Some(cwd) => return Err(PlanError::invalid("cwd", format!("{cwd:?} is not an absolute path"))),
        None => container.cwd.clone(),
    };
    plan.terminal = request.terminal;
    plan.window = request.window;
    let joined = container.join_namespaces.iter().fold(0, |flags, namespace| flags | namespace.flags);
    let flags = container.new_namespaces | joined;
    plan.join_namespaces = vec![JoinNamespace { fd: EXEC_PIDFD, flags }];
    plan.cgroups = container
        .cgroups
        .iter()
        .map(|step| CgroupStep { create: false, writes: Vec::new(), ..step.clone() })
        .collect();
    plan.rlimits = container.rlimits.clone();
    plan.oom_score_adj = container.oom_score_adj;
    plan.scheduling = container.scheduling.clone();
    plan.credentials = credentials(&container.credentials, request.user.as_ref());
    plan.seccomp = container.seccomp.clone();
    plan.apparmor = container.apparmor.clone();
    plan.selinux = container.selinux.clone();
    Ok(plan)
}

/// Somebody else keeps the bounding set and, unless it is root, loses what only the container's user was given.
fn credentials(container: &Credentials, user: Option<&ExecUser>) -> Credentials {
    let Some(user) = user else { return container.clone() };
    let mut credentials =
        Credentials { uid: user.uid, gid: user.gid, groups: user.groups.clone(), ..container.clone() };
    if user.uid != 0 && user.uid != container.uid {
        credentials.permitted = container.ambient;
        credentials.effective = container.ambient;
    }
    credentials
}

fn environment(container: &[CString], more: &[CString], terminal: bool) -> Vec<CString> {
    let name = |line: &CString| line.as_bytes().split(|b| *b == b'=').next().map(<[u8]>::to_vec);
    let mut env: Vec<CString> = container.to_vec();
    if terminal && !env.iter().any(|line| line.as_bytes().starts_with(b"TERM=")) {
        env.push(c"TERM=xterm".into());
    }
    for line in more {
        match env.iter_mut().find(|there| name(there) == name(line)) {
            Some(there) => there.clone_from(line),
            None => env.push(line.clone()),
        }
    }
    env
}
