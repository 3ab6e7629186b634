//! From a plan to a running program: opening what the plan counts on, and asking the monitor.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bowline_launch::Stage;
use bowline_launch_plan::{LaunchPlan, Step};
use bowline_model::container::Exit;
use bowline_model::spec::Mount;
use bowline_monitor_proto::paths::Wish;
use bowline_monitor_proto::{Answer, Launch, Pids, Request};
use bowline_plan::{Compiled, Descriptor};
use bowline_store::ContainerRecord;
use rustix::fs::{Mode, OFlags};

use crate::PodError;
use crate::error::doing;
use crate::hold::Hold;
use crate::monitor::{Monitor, sealed};
use crate::nri::{Change, keep, overlay};
use crate::operations::stage;
use crate::shared::{Shared, blocking, now};

/// A container that runs.
pub(crate) struct Started {
    pub pid: i32,
    pub at: i64,
}

/// Launches a container. An error is how it ended: EXITED, 128, StartError.
pub(crate) async fn start(
    shared: Arc<Shared>,
    monitor: Arc<Monitor>,
    record: ContainerRecord,
    compiled: Arc<Compiled>,
    pids: Pids,
    hold: Option<Hold>,
) -> Result<Started, (Exit, PodError)> {
    let failed = |error: PodError| (exit(&error), error);
    if let Some(hold) = hold {
        let _stage = stage("launch");
        if let Some(started) = hold.release(&monitor, &record, &compiled).await.map_err(failed)? {
            return Ok(started);
        }
    }
    let opening = stage("open volumes and log");
    let idmapped =
        |descriptor: &Descriptor| matches!(descriptor, Descriptor::HostTree { idmap: Some(_), .. });
    let user = match compiled.descriptors.iter().any(idmapped) {
        true => {
            let [user, _] = crate::run_pod::namespaces(&monitor).await.map_err(failed)?;
            Some(user)
        }
        false => None,
    };
    let owner = shared.clone();
    let opened = {
        let (record, compiled) = (record.clone(), compiled.clone());
        blocking("open the container's volumes", move || open_all(&shared, &record, &compiled, user.as_ref()))
    };
    let opened = opened.await.map_err(failed)?;
    drop(opening);
    let launching = stage("launch");
    let launch = opened.launch(&record, pids);
    let borrowed = || opened.borrowed();
    if record.restore {
        drop(launching);
        let opened = borrowed();
        let back = crate::checkpoint::bring_back(&owner, &monitor, &record, &compiled, launch, opened);
        return back.await.map_err(failed);
    }
    if !compiled.net_devices.is_empty() {
        crate::net_devices::give(&owner, &monitor, &record, &compiled).await.map_err(failed)?;
    }
    if compiled.hooks.is_some() || compiled.intel_rdt.is_some() {
        drop(launching);
        let hooks = &compiled.hooks.clone().unwrap_or_default();
        // The process joins its class of service while it waits, as it may run hooks of its own.
        if hooks.come_before_the_program() || compiled.intel_rdt.is_some() {
            let on_the_way =
                crate::hooks::launch(&owner, &monitor, &record, &compiled, hooks, launch, borrowed());
            let started = on_the_way.await.map_err(failed)?;
            crate::hooks::poststart(&owner, &record, hooks, started.pid).await;
            return Ok(started);
        }
        crate::hooks::prepare(&owner, &record).await.map_err(failed)?;
        let started = launch_plainly(&monitor, &compiled, launch, borrowed()).await.map_err(failed)?;
        crate::hooks::poststart(&owner, &record, hooks, started.pid).await;
        return Ok(started);
    }
    let _stage = launching;
    launch_plainly(&monitor, &compiled, launch, borrowed()).await.map_err(failed)
}

async fn launch_plainly(
    monitor: &Monitor,
    compiled: &Compiled,
    launch: Launch,
    opened: crate::checkpoint::Opened<'_>,
) -> Result<Started, PodError> {
    let answer = monitor.call(Request::Launch { launch }, &in_order(opened)).await;
    match answer.map_err(doing("launch the container"))?.0 {
        Answer::Launched { pid, started_at } => Ok(Started { pid, at: started_at }),
        other => Err(crate::hold::refused(compiled, other)),
    }
}

fn exit(error: &PodError) -> Exit {
    Exit {
        code: 128,
        oom: false,
        finished_at: now(),
        reason: Some("StartError"),
        message: crate::chain(error),
    }
}

/// What a failed step of a launch means, in words.
pub(crate) fn launch_error(plan: &LaunchPlan, stage: u8, detail: u16, errno: i32, text: &str) -> PodError {
    let cause =
        if errno == 0 { io::Error::other(text.to_owned()) } else { io::Error::from_raw_os_error(errno) };
    let program = plan.argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(stage) = Stage::from_number(stage) else {
        return PodError::failed("launch the container", text.to_owned());
    };
    let what = match stage {
        Stage::Exec => format!("run `{program}`"),
        Stage::Label => {
            // The first is AppArmor's.
            let label = if detail == 0 { plan.apparmor.as_ref() } else { plan.selinux.as_ref() };
            let label = label.map(|label| label.to_string_lossy()).unwrap_or_default();
            format!("start the container: {} {label}", stage.doing())
        }
        Stage::WorkingDirectory => format!("enter the working directory {}", plan.cwd.to_string_lossy()),
        Stage::Step => match plan.steps.get(usize::from(detail)) {
            Some(step) => format!("start the container: {} {}", Stage::Step.doing(), target(step)),
            None => "start the container: mounting".to_owned(),
        },
        other => format!("start the container: {}", other.doing()),
    };
    PodError::failed(what, cause)
}

fn target(step: &Step) -> String {
    let path = match step {
        Step::Mount { target, .. } => target,
        Step::Mknod { path, .. }
        | Step::Symlink { path, .. }
        | Step::Mkdir { path, .. }
        | Step::Mask { path }
        | Step::ReadOnly { path }
        | Step::Keep { path }
        | Step::Attributes { path, .. } => path,
    };
    path.to_string_lossy().into_owned()
}

pub(crate) struct Opened {
    pub plan: OwnedFd,
    pub log: Option<OwnedFd>,
    pub trees: Vec<OwnedFd>,
}

impl Opened {
    /// The launch that it is for.
    pub(crate) fn launch(&self, record: &ContainerRecord, pids: Pids) -> Launch {
        Launch {
            container: *record.id.as_bytes(),
            slot: record.slot,
            log: self.log.is_some(),
            stdin: record.spec.stdin,
            pids,
        }
    }

    pub(crate) fn borrowed(&self) -> crate::checkpoint::Opened<'_> {
        crate::checkpoint::Opened {
            plan: self.plan.as_fd(),
            log: self.log.as_ref().map(|log| log.as_fd()),
            trees: self.trees.iter().map(|tree| tree.as_fd()).collect(),
        }
    }
}

/// The descriptors of a launch, as a monitor takes them.
pub(crate) fn in_order(opened: crate::checkpoint::Opened<'_>) -> Vec<BorrowedFd<'_>> {
    [opened.plan].into_iter().chain(opened.log).chain(opened.trees).collect()
}

/// What a plan counts on, being opened.
pub(crate) struct Opening {
    plan: OwnedFd,
    /// What the worker is asked for, in words.
    names: Vec<String>,
    paths: crate::paths::Opening,
}

/// Opens what a plan counts on; `user` is the pod's user namespace, for what is shown with its owners.
pub(crate) fn open_all(
    shared: &Shared,
    record: &ContainerRecord,
    compiled: &Compiled,
    user: Option<&OwnedFd>,
) -> Result<Opened, PodError> {
    begin_opening(shared, record, compiled)?.finish(shared, record, compiled, user)
}

/// Has a worker begin with it.
pub(crate) fn begin_opening(
    shared: &Shared,
    record: &ContainerRecord,
    compiled: &Compiled,
) -> Result<Opening, PodError> {
    let plan = sealed(&compiled.plan.encode()).map_err(doing("seal the launch plan"))?;
    let (mut wishes, mut names) = (Vec::new(), Vec::new());
    if !record.log_path.is_empty() {
        wishes.push(Wish::Log { path: c_path(&record.log_path)? });
        names.push(format!("open the log {}", record.log_path));
    }
    for descriptor in &compiled.descriptors {
        if let Descriptor::HostTree { path, recursive, follow, field, .. } = descriptor
            && !is_own(shared, path)
        {
            let label = label_of(record, path).map(CString::new).transpose();
            let label = label.map_err(|error| PodError::failed("name a label", error))?;
            wishes.push(Wish::Tree { path: c_path(path)?, recursive: *recursive, follow: *follow, label });
            names.push(format!("open {path} ({field})"));
        }
    }
    let paths = shared.paths.begin(&shared.program, wishes, shared.config.path_patience);
    let paths = paths.map_err(|(at, error)| named(names.get(at), error))?;
    Ok(Opening { plan, names, paths })
}

impl Opening {
    /// Whether what it waits for has come, or comes any moment.
    pub(crate) fn has_begun(&self) -> bool {
        self.paths.has_begun()
    }

    /// Waits for all of it.
    pub(crate) fn finish(
        self,
        shared: &Shared,
        record: &ContainerRecord,
        compiled: &Compiled,
        user: Option<&OwnedFd>,
    ) -> Result<Opened, PodError> {
        let Opening { plan, names, paths } = self;
        let opened = paths.finish(&shared.program).map_err(|(at, error)| named(names.get(at), error))?;
        let mut opened = opened.into_iter();
        let mut next = || {
            let (_, opened) = opened.next().ok_or_else(missing)?;
            opened.ok_or_else(missing)
        };
        let log = if record.log_path.is_empty() { None } else { Some(next()?) };
        let trees = compiled.descriptors.iter().map(|descriptor| match descriptor {
            Descriptor::HostTree { path, idmap, field, recursive, follow } => {
                let tree = match is_own(shared, path) {
                    true => own_tree(path, *recursive, *follow)?,
                    false => next()?,
                };
                // The only mappings that a container's mounts may have are its pod's.
                if let (Some(wish), Some(user)) = (idmap, user) {
                    show_owners(&tree, user, wish.recursive, &format!("{path} ({field})"))?;
                }
                Ok(tree)
            }
            Descriptor::Namespace { path, .. } => {
                let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
                opened.map_err(|errno| doing(format!("open the namespace {path}"))(io::Error::from(errno)))
            }
            // Only bundles have one, and no bundle comes here.
            Descriptor::Rootfs { path } => {
                Err(PodError::failed("open the root", format!("{path} is a root that is no image")))
            }
        });
        let trees = trees.collect::<Result<Vec<_>, _>>()?;
        Ok(Opened { plan, log, trees })
    }
}

/// The SELinux label of a volume that is to have another.
fn label_of<'a>(record: &'a ContainerRecord, path: &str) -> Option<&'a str> {
    let is_it = |mount: &Mount| {
        mount.selinux_relabel && bowline_oci::clean_path(&mount.host_path) == bowline_oci::clean_path(path)
    };
    record.relabel.as_deref().filter(|_| record.spec.mounts.iter().any(is_it))
}

/// The pod's own files lie on the state file system, which is ours: they need no worker.
fn is_own(shared: &Shared, path: &str) -> bool {
    let path = std::path::Path::new(path);
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    path.starts_with(&shared.config.state) && !climbs
}

fn own_tree(path: &str, recursive: bool, follow: bool) -> Result<OwnedFd, PodError> {
    use rustix::mount::OpenTreeFlags;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_SYMLINK_NOFOLLOW, !follow);
    let opened = rustix::mount::open_tree(rustix::fs::CWD, path, flags);
    opened.map_err(|errno| doing(format!("open {path}"))(io::Error::from(errno)))
}

fn c_path(path: &str) -> Result<CString, PodError> {
    CString::new(path).map_err(|error| PodError::failed(format!("open {path:?}"), error))
}

fn missing() -> PodError {
    PodError::failed("open the container's volumes", "a worker left an answer out")
}

/// What was being opened goes before what became of it.
fn named(what: Option<&String>, error: PodError) -> PodError {
    let what = what.map_or("open a path", String::as_str);
    match error {
        PodError::Deadline(text) => PodError::Deadline(format!("could not {what}: {text}")),
        PodError::Full(text) => PodError::Full(format!("could not {what}: {text}")),
        PodError::Failed { source, .. } => PodError::Failed { doing: what.to_owned(), source },
        other => other,
    }
}

/// Opens a log to append to; an existing one is never cut short.
pub(crate) fn open_log(shared: &Shared, path: &str) -> Result<OwnedFd, PodError> {
    let wish = vec![Wish::Log { path: c_path(path)? }];
    let opened = shared.paths.open(&shared.program, wish, shared.config.path_patience);
    let what = format!("open the log {path}");
    let mut opened = opened.map_err(|(_, error)| named(Some(&what), error))?;
    opened.pop().and_then(|(_, log)| log).ok_or_else(missing)
}

/// Makes a folder of the host unless something is there; its path without symlinks.
pub(crate) fn host_folder(shared: &Shared, path: &str, what: &str) -> Result<PathBuf, PodError> {
    let wish = vec![Wish::Folder { path: c_path(path)? }];
    let opened = shared.paths.open(&shared.program, wish, shared.config.path_patience);
    let mut opened = opened.map_err(|(_, error)| named(Some(&what.to_owned()), error))?;
    let (real, _) = opened.pop().ok_or_else(missing)?;
    Ok(PathBuf::from(OsString::from_vec(real)))
}

fn show_owners(tree: &OwnedFd, user: &OwnedFd, recursive: bool, name: &str) -> Result<(), PodError> {
    crate::user::idmap(tree.as_fd(), user.as_fd(), recursive).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(errno) if errno == rustix::io::Errno::INVAL.raw_os_error() => {
                ": its file system takes no idmapped mounts"
            }
            _ => "",
        };
        PodError::failed(format!("show {name} with the pod's owners{hint}"), error)
    })
}

/// Changes limits, all or nothing: what was written before a failure is written back. Returns the limits in force.
pub(crate) fn update(
    shared: &Shared,
    record: &ContainerRecord,
    change: &Change,
    running: bool,
) -> Result<bowline_model::spec::Resources, PodError> {
    let new = bowline_oci::merged_resources(&record.spec.resources, &change.asked);
    let mut stored: crate::create::Stored =
        shared.store.read_config(&record.pod, &record.id).map_err(doing("read the container's spec"))?;
    let limits = stored.spec.linux.as_mut().and_then(|linux| linux.resources.as_mut());
    let before = limits.as_ref().map(|limits| (**limits).clone()).unwrap_or_default();
    let mut after = bowline_oci::linux_resources(&new, &shared.host.facts, &mut Vec::new())
        .map_err(|error| PodError::Invalid(error.to_string()))?;
    keep(&before, &mut after);
    overlay(&change.more, &mut after);
    after.devices.clone_from(&before.devices);
    let update = bowline_plan::update(&before, &after, &shared.host.layout, &record.cgroup)
        .map_err(|error| PodError::Invalid(error.to_string()))?;
    if running {
        apply(shared, &update)?;
    }
    if let Some(limits) = limits {
        *limits = after;
    }
    shared
        .store
        .write_config(&record.pod, &record.id, &stored)
        .map_err(doing("write the container's spec"))?;
    Ok(new)
}

fn apply(shared: &Shared, update: &bowline_plan::Update) -> Result<(), PodError> {
    let write = |step: &bowline_launch_plan::CgroupStep| {
        let root = shared.host.roots.get(usize::from(step.hierarchy));
        let root = root.ok_or(bowline_launch::LaunchError::BadPlan("a cgroup hierarchy is missing"))?;
        bowline_launch::apply_cgroup(root.as_fd(), step)
    };
    for (index, step) in update.apply.iter().enumerate() {
        if let Err(error) = write(step) {
            for back in update.rollback[..index].iter().rev() {
                if let Err(error) = write(back) {
                    tracing::error!(%error, "a limit could not be put back");
                }
            }
            return Err(PodError::failed("change the container's limits; they are as before", error));
        }
    }
    Ok(())
}
