//! Writing containers that run, and go on running.
//!
//! All of a request's containers are frozen before the first is written, and let go after the last, whatever happens in
//! between. criu is never killed half-way while there is hope: what it has put into a process it has to take out again.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline_criu::{Dump, Failure};
use bowline_launch_plan::{LaunchPlan, Step};
use bowline_model::container::Life;
use bowline_model::spec::NamespaceMode;
use bowline_monitor_proto::Request;
use bowline_store::{ContainerRecord, PodRecord};

use super::facts::{self, Own};
use super::freeze::Frozen;
use super::verify::Tree;
use super::{Checkpoints, Criu, Work, archive, make_private, pod, program};
use crate::PodError;
use crate::create::Stored;
use crate::error::doing;
use crate::monitor::Monitor;
use crate::operations::stage;
use crate::shared::{Shared, blocking};

/// After this criu is taken for hung, and killed. A container of 100 GiB is written in minutes.
const HUNG: Duration = Duration::from_secs(3600);
/// Room that must stay on the file system of the daemon's root.
const ROOM: u64 = 64 << 20;

/// What is to be written, and where.
#[derive(Debug)]
pub(crate) enum Order {
    /// One container, into an archive.
    Container {
        /// The archive.
        location: PathBuf,
    },
    /// A pod with all its containers, into a folder that is there and empty.
    Pod {
        /// The folder.
        output: PathBuf,
    },
}

/// A container that runs.
pub(crate) struct Subject {
    pub record: ContainerRecord,
    pub life: Life,
}

/// Writes containers of one pod. They run again when this returns.
pub(crate) async fn checkpoint(
    shared: Arc<Shared>,
    pod: PodRecord,
    monitor: Arc<Monitor>,
    subjects: Vec<Subject>,
    order: Order,
    deadline: Option<Instant>,
) -> Result<(), PodError> {
    let criu = shared.checkpoints.criu(&shared.config.checkpoint).await?;
    for subject in &subjects {
        fits(&pod, &subject.record)?;
    }
    super::restore::knows_criu(&shared, &monitor, &pod.id).await?;
    let _taken = Checkpoints::take(&shared, subjects.iter().map(|subject| subject.record.id.clone()))?;
    let work = {
        let (shared, id) = (shared.clone(), pod.id.clone());
        let groups: Vec<String> = subjects.iter().map(|subject| subject.record.cgroup.clone()).collect();
        blocking("prepare a checkpoint", move || prepare(&shared, &id, &groups)).await?
    };
    let frozen = {
        let _stage = stage("freeze");
        // Nobody else writes this container meanwhile, so the name is free.
        let name = subjects.first().map_or(pod.id.to_string(), |subject| subject.record.id.to_string());
        let shared = shared.clone();
        let groups: Vec<String> = subjects.iter().map(|subject| subject.record.cgroup.clone()).collect();
        blocking("freeze", move || Frozen::new(&shared, &name, groups)).await?
    };
    let written = async {
        for (number, subject) in subjects.iter().enumerate() {
            in_time(deadline)?;
            let folder = work.path().join(number.to_string());
            capture(&shared, &pod, &monitor, &criu, subject, &folder, &frozen).await?;
        }
        Ok(())
    };
    let written: Result<(), PodError> = written.await;
    // They go on, however it went.
    drop(frozen);
    written?;
    in_time(deadline)?;
    let _stage = stage("write the archive");
    blocking("write the archive", move || match order {
        Order::Container { location } => archive::write(&work.path().join("0"), &location),
        Order::Pod { output } => {
            let names: Vec<String> = subjects.into_iter().map(|subject| subject.record.spec.name).collect();
            pod::write(work.path(), &output, &pod, &names, deadline)
        }
    })
    .await
}

fn in_time(deadline: Option<Instant>) -> Result<(), PodError> {
    match deadline {
        Some(deadline) if Instant::now() >= deadline => Err(PodError::Deadline(
            "the checkpoint took longer than the call's deadline; nothing of it is left, and the containers go on".into(),
        )),
        _ => Ok(()),
    }
}

/// What criu, or we with it, cannot do.
pub(super) fn fits(pod: &PodRecord, record: &ContainerRecord) -> Result<(), PodError> {
    let name = &record.spec.name;
    let cannot = |what: &str| {
        Err(PodError::Unsupported(format!(
            "container `{name}` {what}: checkpoint and restore do not work with that yet"
        )))
    };
    if crate::user::of_pod(&pod.spec).is_some() {
        return cannot("has a user namespace");
    }
    if crate::create::pid_mode(&pod.spec, &record.spec) != NamespaceMode::Container {
        return cannot("shares its PID namespace");
    }
    if record.spec.security.privileged {
        return cannot("is privileged");
    }
    Ok(())
}

/// Makes the folders, if there is room for the containers' memory.
fn prepare(shared: &Shared, id: &dyn std::fmt::Display, groups: &[String]) -> Result<Work, PodError> {
    let work = Work::new(shared, id).map_err(doing("make a folder for the checkpoint"))?;
    let memory: u64 = groups.iter().filter_map(|group| memory_of(shared, group)).sum();
    let disk = rustix::fs::statvfs(work.path()).map_err(std::io::Error::from);
    let disk = disk.map_err(doing("look for room for the checkpoint"))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < memory.saturating_add(ROOM) {
        return Err(PodError::Full(format!(
            "the containers use {memory} bytes of memory, and {} has {free} bytes free: no room for a checkpoint",
            shared.config.root.display()
        )));
    }
    Ok(work)
}

fn memory_of(shared: &Shared, group: &str) -> Option<u64> {
    use rustix::fs::{Mode, OFlags};
    let (number, hierarchy) = shared.host.layout.find("memory")?;
    let root = shared.host.roots.get(usize::from(number))?;
    let file = if hierarchy.unified { "memory.current" } else { "memory.usage_in_bytes" };
    let path = format!("{group}/{file}");
    let file = rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    std::io::read_to_string(std::fs::File::from(file)).ok()?.trim().parse().ok()
}

/// Writes one container's part of the archive into a folder.
async fn capture(
    shared: &Arc<Shared>,
    pod: &PodRecord,
    monitor: &Arc<Monitor>,
    criu: &Arc<Criu>,
    subject: &Subject,
    folder: &Path,
    frozen: &Frozen,
) -> Result<(), PodError> {
    let pid = subject.life.pid().ok_or_else(|| PodError::State("the container is not running".into()))?;
    let looked = {
        let (shared, record, spec) = (shared.clone(), subject.record.clone(), pod.spec.clone());
        let (images, version) = (folder.join(facts::IMAGES), criu.version.clone());
        blocking("look at the container", move || {
            make_private(&images).map_err(doing("make a folder for the checkpoint"))?;
            let stored: Stored = shared
                .store
                .read_config(&record.pod, &record.id)
                .map_err(doing("read the container's spec"))?;
            let compiled = crate::create::compile(&shared, &spec, &record, &stored)?;
            look(pid, &compiled.plan, &version).map(|(own, external)| (stored, own, external))
        })
    };
    let (stored, own, external) = looked.await?;
    let freezer = freezer_path(shared, &subject.record)?;
    {
        let _stage = stage("criu");
        let (service, operation, ended) = program::start(monitor, criu, frozen.output()).await?;
        let (images, mounts) = (folder.join(facts::IMAGES), own.mounts.keys().cloned().collect());
        let dumped = blocking("have criu write the container", move || {
            let images = std::fs::File::open(images).map_err(doing("open the folder of the checkpoint"))?;
            let wish = Dump { images: images.as_fd(), pid, freezer, mounts, external };
            Ok(service.dump(&wish, HUNG))
        });
        let dumped = dumped.await?;
        if matches!(dumped, Err(Failure::Late(_))) {
            let _ = monitor.call(Request::KillExec { exec: operation }, &[]).await;
        }
        // It lets the processes go before it ends.
        let _ = ended.await;
        dumped.map_err(|error| {
            let log = last_errors(&folder.join(facts::IMAGES).join("dump.log"));
            PodError::failed(format!("checkpoint container `{}`{log}", subject.record.spec.name), error)
        })?;
    }
    let _stage = stage("changed files");
    let upper = crate::create::upper(shared, &pod.id, &subject.record.id);
    let (folder, record, life) = (folder.to_owned(), subject.record.clone(), subject.life.clone());
    let network = pod.network.as_ref().map_or(String::new(), |network| network.result.clone());
    blocking("write the changed files", move || {
        archive::write_diff(&upper, &folder.join(facts::DIFF)).map_err(doing("write the changed files"))?;
        facts::write(&folder, &record, &stored, &life, &network, &own)
            .map_err(doing("describe the checkpoint"))
    })
    .await
}

/// The container's cgroup as a path for criu.
fn freezer_path(shared: &Shared, record: &ContainerRecord) -> Result<String, PodError> {
    let unified = shared.host.layout.numbered().find(|(_, hierarchy)| hierarchy.unified);
    let folder = unified.map(|(_, hierarchy)| match hierarchy.folder.as_str() {
        "" => "/sys/fs/cgroup".to_owned(),
        folder => format!("/sys/fs/cgroup/{folder}"),
    });
    let path = folder.map(|folder| format!("{folder}/{}", record.cgroup));
    path.filter(|path| Path::new(path).join("cgroup.freeze").exists()).ok_or_else(|| {
        PodError::Unsupported(
            "checkpoints need cgroup v2 mounted below /sys/fs/cgroup, for criu to hold processes still"
                .into(),
        )
    })
}

/// Mount points of a plan, as paths of the request.
pub(super) fn targets(plan: &LaunchPlan) -> impl Iterator<Item = &std::ffi::CStr> {
    let steps = plan.steps.iter().filter_map(|step| match step {
        Step::Mount { target: path, .. }
        | Step::Mask { path }
        | Step::ReadOnly { path }
        | Step::Keep { path } => Some(path.as_c_str()),
        _ => None,
    });
    // A terminal is shown there.
    steps.chain(plan.terminal.then_some(c"/dev/console"))
}

/// What criu must be told of the container, and what must be known again when it is brought back.
fn look(pid: i32, plan: &LaunchPlan, criu: &str) -> Result<(Own, Vec<String>), PodError> {
    let what = "look at the container's mounts and files";
    let tree = Tree::of(pid).map_err(doing(what))?;
    let mut asked: BTreeMap<String, String> = BTreeMap::new();
    for path in targets(plan) {
        let Some(mount) = tree.mount_at(path).map_err(doing(what))? else { continue };
        asked.entry(mount.point.clone()).or_insert_with(|| path.to_string_lossy().into_owned());
    }
    let mut mounts = BTreeMap::new();
    for mount in tree.mounts().filter(|mount| mount.point != "/" && mount.kind != "proc") {
        let path = asked.remove(&mount.point).ok_or_else(|| {
            PodError::State(format!(
                "the container has a mount at {} that its request does not ask for; it cannot be written",
                mount.point
            ))
        })?;
        mounts.insert(mount.point.clone(), path);
    }
    let mut external = tree.foreign_files().map_err(doing(what))?;
    let stream = |number: i32| tree.stream(number, &external);
    let descriptors = [stream(0), stream(1), stream(2)];
    let terminals = if plan.terminal { tree.terminals().map_err(doing(what))? } else { Vec::new() };
    if plan.terminal && terminals.is_empty() {
        return Err(PodError::State("the container's /dev/console is not its terminal any more".into()));
    }
    external.extend(terminals.iter().cloned());
    Ok((Own::new(criu, descriptors, terminals, mounts), external))
}

/// The last errors in criu's log, for people.
pub(super) fn last_errors(log: &Path) -> String {
    const MAX_LOG: u64 = 64 << 20;
    const LINES: usize = 3;
    if std::fs::metadata(log).map_or(true, |meta| meta.len() > MAX_LOG) {
        return String::new();
    }
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("Error (")).collect();
    let last: Vec<&str> = lines.iter().rev().take(LINES).rev().map(|line| line.trim()).collect();
    if last.is_empty() { String::new() } else { format!(" (criu: {})", last.join("; ")) }
}
