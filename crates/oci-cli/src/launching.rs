//! Launches, and what their failures mean in words.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Error, Result, anyhow};
use bowline_launch::{Failure, HookEnd, Hooks, Launched, Launcher, Request, Stage, launch};
use bowline_launch_plan::{LaunchPlan, Step};
use rustix::fs::{Mode, OFlags};

use crate::hierarchies::Hierarchies;
use crate::store::Folder;

/// Launches a process with our own standard streams, which outlives us. `hooks`: the folder of the root, and what runs on
/// the way.
pub(crate) fn start(
    folder: &Folder,
    hierarchies: &Hierarchies,
    plan: &LaunchPlan,
    descriptors: &[OwnedFd],
    pid_namespace: Option<BorrowedFd<'_>>,
    hooks: Option<(&Path, Hooks<'_>)>,
) -> Result<Launched> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let procfs = rustix::fs::open("/proc", flags, Mode::empty()).context("open /proc")?;
    // Where hooks look for it: the spec's `root.path`.
    let mount_point = hooks.map_or_else(|| folder.mount_point(), |(rootfs, _)| rootfs.to_owned());
    let hooks = hooks.map(|(_, hooks)| hooks);
    let launcher = Launcher {
        procfs: procfs.as_fd(),
        hierarchies: &hierarchies.roots,
        unified: hierarchies.layout.unified(),
        mount_point: &CString::new(mount_point.as_os_str().as_bytes())?,
        shared_mounts: true,
        tie_to_launcher: false,
        user: None,
    };
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let request = Request { plan, descriptors, streams, pid_namespace, restorer: None, hooks };
    Ok(launch(&launcher, &request)?)
}

/// A failed step of a child, with the field of the spec or the path that it was about.
pub(crate) fn failed(plan: &LaunchPlan, failure: Failure) -> Error {
    let at = usize::from(failure.detail);
    let what = match failure.stage {
        Stage::Exec => format!("process.args: run {:?}", plan.argv.first().cloned().unwrap_or_default()),
        Stage::WorkingDirectory => format!("process.cwd: enter {:?}", plan.cwd),
        Stage::Step => match plan.steps.get(at) {
            Some(step) => format!("mounts: {:?}", target(step)),
            None => "mounts".to_owned(),
        },
        Stage::Sysctl => match plan.sysctls.get(at) {
            Some((path, value)) => format!("linux.sysctl: write {value:?} to {path:?}"),
            None => "linux.sysctl".to_owned(),
        },
        Stage::CreateHook => return hook_failed("createContainer", failure),
        Stage::StartHook => return hook_failed("startContainer", failure),
        other => format!("the process failed at {}", other.doing()),
    };
    Error::new(io::Error::from_raw_os_error(failure.errno)).context(what)
}

fn hook_failed(kind: &str, failure: Failure) -> Error {
    anyhow!("hooks.{kind}[{}] {}", failure.detail, HookEnd::from_number(failure.errno))
}

/// A child that ended without a word.
pub(crate) fn vanished() -> Error {
    anyhow!("the process ended before it was ready; was it killed?")
}

fn target(step: &Step) -> &CString {
    match step {
        Step::Mount { target, .. } => target,
        Step::Mknod { path, .. }
        | Step::Symlink { path, .. }
        | Step::Mkdir { path, .. }
        | Step::Mask { path }
        | Step::Keep { path }
        | Step::ReadOnly { path }
        | Step::Attributes { path, .. } => path,
    }
}
