//! From a plan to a running program: opening what the plan counts on, and asking the monitor.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bowline_launch::Stage;
use bowline_launch_plan::{LaunchPlan, Step};
use bowline_model::container::Exit;
use bowline_monitor_proto::{Answer, Launch, Pids, Request};
use bowline_plan::{Compiled, Descriptor};
use bowline_store::ContainerRecord;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::PodError;
use crate::error::doing;
use crate::monitor::{Monitor, sealed};
use crate::operations::stage;
use crate::shared::{Shared, blocking, now};

/// How long the host's file systems may take to hand out the volumes and the log file.
const OPEN_LIMIT: Duration = Duration::from_secs(100);

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
) -> Result<Started, (Exit, PodError)> {
    let failed = |error: PodError| (exit(&error), error);
    let opening = stage("open volumes and log");
    let opened = {
        let (record, compiled) = (record.clone(), compiled.clone());
        blocking("open the container's volumes", move || open_all(&record, &compiled))
    };
    let opened = match tokio::time::timeout(OPEN_LIMIT, opened).await {
        Ok(opened) => opened.map_err(failed)?,
        Err(_) => {
            let text = format!(
                "opening the volumes of container {} takes more than {OPEN_LIMIT:?}: a file system hangs",
                record.id
            );
            return Err(failed(PodError::Deadline(text)));
        }
    };
    drop(opening);
    let _stage = stage("launch");
    let launch = Launch {
        container: *record.id.as_bytes(),
        slot: record.slot,
        log: opened.log.is_some(),
        stdin: record.spec.stdin,
        pids,
    };
    let mut descriptors: Vec<BorrowedFd<'_>> = vec![opened.plan.as_fd()];
    descriptors.extend(opened.log.iter().map(|log| log.as_fd()));
    descriptors.extend(opened.trees.iter().map(|tree| tree.as_fd()));
    let answer = monitor.call(Request::Launch { launch }, &descriptors).await;
    drop(shared);
    match answer.map_err(doing("launch the container")).map_err(failed)?.0 {
        Answer::Launched { pid, started_at } => Ok(Started { pid, at: started_at }),
        Answer::Failed { stage, detail, errno, text } => {
            Err(failed(launch_error(&compiled.plan, stage, detail, errno, &text)))
        }
        Answer::Refused { why } => {
            Err(failed(PodError::failed("launch the container", format!("the monitor refused: {why:?}"))))
        }
        other => {
            Err(failed(PodError::failed("launch the container", format!("the monitor answered {other:?}"))))
        }
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

struct Opened {
    plan: OwnedFd,
    log: Option<OwnedFd>,
    trees: Vec<OwnedFd>,
}

fn open_all(record: &ContainerRecord, compiled: &Compiled) -> Result<Opened, PodError> {
    let plan = sealed(&compiled.plan.encode()).map_err(doing("seal the launch plan"))?;
    let log = if record.log_path.is_empty() {
        None
    } else {
        let what = format!("open the log {}", record.log_path);
        Some(open_log(Path::new(&record.log_path)).map_err(doing(what))?)
    };
    let trees = compiled.descriptors.iter().map(open_descriptor).collect::<Result<Vec<_>, _>>()?;
    Ok(Opened { plan, log, trees })
}

/// Opens a log to append to; an existing one is never cut short.
pub(crate) fn open_log(path: &Path) -> io::Result<OwnedFd> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Readers on the node run as other users; the kubelet keeps the folder to itself.
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    Ok(file.into())
}

fn open_descriptor(descriptor: &Descriptor) -> Result<OwnedFd, PodError> {
    match descriptor {
        Descriptor::HostTree { path, recursive, follow, idmap, field } => {
            if idmap.is_some() {
                return Err(PodError::Unsupported(format!("{field}: idmapped mounts are not built yet")));
            }
            clone_tree(path, *recursive, *follow).map_err(doing(format!("open {path} ({field})")))
        }
        Descriptor::Namespace { path, .. } => {
            let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            opened.map_err(|errno| doing(format!("open the namespace {path}"))(io::Error::from(errno)))
        }
        Descriptor::Rootfs { path } => {
            clone_tree(path, true, true).map_err(doing(format!("open the root {path}")))
        }
    }
}

/// A detached copy of a mount tree of the host. A source that has vanished since the container was created is made
/// anew as a folder, as at creation.
fn clone_tree(path: &str, recursive: bool, follow: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !follow {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    match open_tree(CWD, path, flags) {
        Err(rustix::io::Errno::NOENT) => {
            fs::create_dir_all(path)?;
            Ok(open_tree(CWD, path, flags)?)
        }
        other => Ok(other?),
    }
}

/// Changes limits, all or nothing: what was written before a failure is written back. Returns the limits in force.
pub(crate) fn update(
    shared: &Shared,
    record: &ContainerRecord,
    change: &bowline_model::spec::Resources,
    running: bool,
) -> Result<bowline_model::spec::Resources, PodError> {
    let old = &record.spec.resources;
    let new = bowline_oci::merged_resources(old, change);
    let linux = |resources| {
        let mut notes = Vec::new();
        bowline_oci::linux_resources(resources, &shared.host.facts, &mut notes)
            .map_err(|error| PodError::Invalid(error.to_string()))
    };
    let (before, after) = (linux(old)?, linux(&new)?);
    let update = bowline_plan::update(&before, &after, &shared.host.layout, &record.cgroup)
        .map_err(|error| PodError::Invalid(error.to_string()))?;
    if running {
        apply(shared, &update)?;
    }
    let mut stored: crate::create::Stored =
        shared.store.read_config(&record.pod, &record.id).map_err(doing("read the container's spec"))?;
    if let Some(resources) = stored.spec.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
        let devices = std::mem::take(&mut resources.devices);
        *resources = bowline_model::runtime_spec::LinuxResources { devices, ..after };
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
