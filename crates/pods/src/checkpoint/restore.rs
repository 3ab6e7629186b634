//! Archives coming in, and containers coming back.
//!
//! `take_in` runs when a container is made, `bring_back` instead of a launch when it is started. Between them the images lie
//! in the container's folder, so that an archive may go once the container is made.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bowline_criu::images::{Allowed, Judged, Objection, judge};
use bowline_criu::{Notice, Restore, Service};
use bowline_image::LayerName;
use bowline_launch_plan::LaunchPlan;
use bowline_model::ContainerId;
use bowline_model::runtime_spec::Spec;
use bowline_model::spec::ContainerSpec;
use bowline_monitor_proto::{self as proto, Answer, Launch, Refusal, Request};
use bowline_plan::Compiled;
use bowline_store::{ContainerRecord, PodRecord};
use rustix::fs::{Mode, OFlags};

use super::facts::{self, Config, Own, Unpacked};
use super::origin::Origin;
use super::{Criu, Work, dump, foreign, may_restore, program, verify};
use crate::PodError;
use crate::create::Stored;
use crate::error::doing;
use crate::monitor::Monitor;
use crate::operations::stage;
use crate::shared::{Shared, blocking};
use crate::start::Started;

/// Folder of images and of our own file, with the container's other files.
const FOLDER: &str = "restore";
/// The longest archive that is read, in bytes; what it unpacks to has the same limit.
const MAX_ARCHIVE: u64 = 64 << 30;
/// How long criu may take to bring a container back.
const PATIENCE: Duration = Duration::from_secs(600);
/// Capabilities by which a process can become another user or group.
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;

/// An archive, unpacked, on its way to a container.
pub(crate) struct TakenIn {
    work: Work,
    config: Config,
    /// `None`: another runtime wrote it.
    own: Option<Own>,
    /// Of a whole pod: the request has the same image, command and environment.
    strict: bool,
}

/// Takes a checkpoint in. `pod`: it is part of a pod's.
pub(crate) fn take_in(
    shared: &Shared,
    id: &ContainerId,
    origin: &Origin,
    pod: bool,
) -> Result<TakenIn, PodError> {
    may_restore(&shared.config.checkpoint, &format!("{origin} is a checkpoint"))?;
    let work = Work::new(shared, id).map_err(doing("make a folder for the checkpoint"))?;
    let disk = rustix::fs::statvfs(work.path()).map_err(io::Error::from);
    let disk = disk.map_err(doing("look for room for the checkpoint"))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let folder = work.path().join("archive");
    super::make_private(&folder).map_err(doing("make a folder for the checkpoint"))?;
    origin.unpack(shared, id, &folder, free.min(MAX_ARCHIVE))?;
    let config = Unpacked(&folder).read(facts::CONFIG)?;
    let own = Unpacked(&folder).has(facts::OWN)?.then(|| Unpacked(&folder).own()).transpose()?;
    Ok(TakenIn { work, config, own, strict: pod })
}

impl TakenIn {
    /// The image that its container ran, to be found in the store by its id: nothing is pulled for an archive, and no name
    /// in it is believed.
    pub(crate) fn image(&self) -> &str {
        &self.config.rootfs_image_ref
    }

    /// A request that names no program means the one that goes on; its words are only shown, for criu brings them back.
    pub(crate) fn name_program(&self, spec: &mut ContainerSpec) -> Result<(), PodError> {
        if self.strict || !spec.command.is_empty() || !spec.args.is_empty() {
            return Ok(());
        }
        let written: Spec = Unpacked(&self.work.path().join("archive")).read(facts::SPEC)?;
        spec.command = written.process.map(|process| process.args).unwrap_or_default();
        Ok(())
    }

    /// Compares it with the container that was made, and gives that its files.
    pub(crate) fn keep(
        self,
        shared: &Shared,
        pod: &PodRecord,
        record: &ContainerRecord,
        stored: &Stored,
        compiled: &Compiled,
    ) -> Result<(), PodError> {
        dump::fits(pod, record)?;
        let archive = self.work.path().join("archive");
        self.compare(&archive, stored)?;
        let own = match self.own {
            Some(own) => own,
            None => foreign::own(&archive, &compiled.plan)?,
        };
        judged(&archive, &own, &compiled.plan)?;
        let folder = shared.store.container_folder(&record.pod, &record.id);
        if let Some(changed) = foreign::changed_files(&archive)? {
            let layers: Vec<LayerName> =
                record.image.layers.iter().filter_map(|name| LayerName::parse(name)).collect();
            let unpacked = shared.images.unpack_archive(changed, &folder.join("upper"), &layers);
            unpacked.map_err(doing("unpack the changed files of the checkpoint"))?;
        }
        let place = || -> io::Result<()> {
            let to = folder.join(FOLDER);
            super::make_private(&to)?;
            fs::rename(archive.join(facts::IMAGES), to.join(facts::IMAGES))?;
            fs::write(to.join(facts::OWN), serde_json::to_vec(&own)?)
        };
        place().map_err(doing("keep the images of the checkpoint"))
    }

    /// The program's words are criu's to bring back; that they are those of the request is what makes it the same program.
    fn compare(&self, archive: &Path, stored: &Stored) -> Result<(), PodError> {
        let spec: Spec = Unpacked(archive).read(facts::SPEC)?;
        let words =
            |spec: &Spec| spec.process.as_ref().map(|process| process.args.clone()).unwrap_or_default();
        let differs = |what: &str| {
            Err(PodError::State(format!(
                "the checkpoint's {what} is not that of the request; a restored container goes on with what it was"
            )))
        };
        if words(&spec) != words(&stored.spec) {
            return differs("command");
        }
        let environment = |spec: &Spec| -> BTreeSet<Vec<u8>> {
            let lines = spec.process.as_ref().map(|process| process.env.clone()).unwrap_or_default();
            // Ours, from the pod's name.
            let lines =
                lines.iter().map(|line| line.as_bytes()).filter(|line| !line.starts_with(b"HOSTNAME="));
            lines.map(<[u8]>::to_vec).collect()
        };
        if self.strict && environment(&spec) != environment(&stored.spec) {
            return differs("environment");
        }
        Ok(())
    }
}

/// Judges the images in a folder by what a plan allows.
fn judged(folder: &Path, own: &Own, plan: &LaunchPlan) -> Result<Judged, PodError> {
    let wanted: BTreeSet<String> =
        dump::targets(plan).map(|path| path.to_string_lossy().into_owned()).collect();
    if plan.terminal == own.terminals.is_empty() {
        let (has, asks) = if plan.terminal { ("no", "one") } else { ("a", "none") };
        return Err(PodError::State(format!(
            "tty: the checkpoint's container has {has} terminal, and the request asks for {asks}"
        )));
    }
    let mounts = facts::asked_for(own, &wanted)?;
    let credentials = &plan.credentials;
    let changes = !credentials.no_new_privs || credentials.bounding & (SETUID | SETGID) != 0;
    let allowed = Allowed {
        mounts: &mounts,
        capabilities: credentials.bounding,
        ids: (!changes).then_some((credentials.uid, credentials.gid)),
        terminals: &own.terminals,
        filter: plan.seccomp.as_ref().map(|seccomp| seccomp.filter.0.as_slice()),
    };
    let judged = judge(Unpacked(folder).folder(facts::IMAGES)?, &allowed).map_err(objected)?;
    if judged.mounts != mounts {
        return Err(PodError::Invalid(
            "the mounts of the checkpoint are not those that it says it has".into(),
        ));
    }
    Ok(judged)
}

/// The AppArmor profile of a request.
pub(super) fn apparmor(plan: &LaunchPlan) -> Option<String> {
    let profile = plan.apparmor.as_ref()?.to_string_lossy().into_owned();
    (profile != "unconfined").then_some(profile)
}

/// What is wrong with images, for the client.
pub(super) fn objected(objection: Objection) -> PodError {
    match objection {
        Objection::Io { .. } => PodError::failed("read the checkpoint", objection),
        Objection::Damaged { .. } => PodError::Invalid(objection.to_string()),
        Objection::NotAllowed(_) => PodError::State(objection.to_string()),
    }
}

/// Descriptors for the monitor, beside those of the launch.
pub(crate) struct Opened<'a> {
    pub plan: BorrowedFd<'a>,
    pub log: Option<BorrowedFd<'a>>,
    pub trees: Vec<BorrowedFd<'a>>,
}

/// Has criu make the processes of a container that was kept by [`TakenIn::keep`].
pub(crate) async fn bring_back(
    shared: &Arc<Shared>,
    monitor: &Arc<Monitor>,
    record: &ContainerRecord,
    compiled: &Arc<Compiled>,
    launch: Launch,
    opened: Opened<'_>,
) -> Result<Started, PodError> {
    let what = "restore the container";
    let criu = shared.checkpoints.criu(&shared.config.checkpoint).await?;
    may_restore(&shared.config.checkpoint, "this container comes from a checkpoint")?;
    knows_criu(shared, monitor, &record.pod).await?;
    let folder = shared.store.container_folder(&record.pod, &record.id).join(FOLDER);
    let place = shared.config.state.join("restore");
    let prepared = {
        let (folder, place, compiled) = (folder.clone(), place.clone(), compiled.clone());
        blocking("look at the checkpoint", move || {
            let own = Unpacked(&folder).own()?;
            judged(&folder, &own, &compiled.plan)?;
            super::make_private(&place).map_err(doing(what))?;
            let output = File::create(folder.join("criu.out")).map_err(doing(what))?;
            Ok((own, output))
        })
    };
    let (own, output) = prepared.await?;
    let mounts = program::mounts().map_err(doing(what))?;
    let (ours, theirs) = bowline_linux::message::pair().map_err(doing(what))?;
    let mut descriptors = vec![opened.plan];
    descriptors.extend(opened.log);
    descriptors.extend([mounts.as_fd(), theirs.as_fd(), output.as_fd()]);
    descriptors.extend(opened.trees);
    let request = request(&criu, launch, &place, &own)?;
    let (answer, _) =
        monitor.call(Request::Restore { restore: request }, &descriptors).await.map_err(doing(what))?;
    let (restorer, numbers) = match answer {
        Answer::Restoring { pid, stdin, stdout, stderr } => (pid, [stdin, stdout, stderr]),
        Answer::Failed { stage, detail, errno, text } => {
            return Err(crate::start::launch_error(&compiled.plan, stage, detail, errno, &text));
        }
        Answer::Refused { why: Refusal::Malformed } if compiled.plan.terminal => {
            return Err(PodError::State(
                "the pod's monitor is older than checkpoints of terminals; the pod must be made anew for that".into(),
            ));
        }
        other => return Err(PodError::failed(what, format!("the monitor answered {other:?}"))),
    };
    drop(theirs);
    let _stage = stage("criu");
    let restoring = Restoring {
        shared: shared.clone(),
        monitor: monitor.clone(),
        record: record.clone(),
        compiled: compiled.clone(),
        restorer,
        started: None,
        objection: None,
    };
    let handle = tokio::runtime::Handle::current();
    blocking(what, move || restoring.run(&handle, Service::new(ours), &folder, &place, &own, numbers)).await
}

fn request(criu: &Criu, launch: Launch, place: &Path, own: &Own) -> Result<proto::Restore, PodError> {
    let text = |bytes: &[u8]| std::ffi::CString::new(bytes).map_err(doing("name a mount"));
    Ok(proto::Restore {
        launch,
        criu: program::argv(criu)?,
        place: text(place.as_os_str().as_bytes())?,
        parts: own.mounts.values().map(|path| text(path.as_bytes())).collect::<Result<_, _>>()?,
    })
}

/// A monitor that was started by an older daemon takes a request that it does not know for rubbish, and hangs up.
pub(super) async fn knows_criu(
    shared: &Shared,
    monitor: &Monitor,
    pod: &bowline_model::SandboxId,
) -> Result<(), PodError> {
    let knows = monitor.knows_criu(|| crate::files::connect(&shared.config.state, pod)).await;
    match knows.map_err(doing("ask the pod's monitor"))? {
        true => Ok(()),
        false => Err(PodError::State(
            "the pod's monitor is older than checkpoints; the pod must be made anew for that".into(),
        )),
    }
}

/// A container while criu makes it.
struct Restoring {
    shared: Arc<Shared>,
    monitor: Arc<Monitor>,
    record: ContainerRecord,
    compiled: Arc<Compiled>,
    /// criu's process, which is in the container's cgroup as well.
    restorer: i32,
    started: Option<Started>,
    /// Why it is not let go.
    objection: Option<String>,
}

impl Restoring {
    fn run(
        mut self,
        handle: &tokio::runtime::Handle,
        service: Service,
        folder: &Path,
        place: &Path,
        own: &Own,
        numbers: [i32; 3],
    ) -> Result<Started, PodError> {
        let what = "restore the container";
        let images = File::open(folder.join(facts::IMAGES)).map_err(doing(what))?;
        let work = File::open(folder).map_err(doing(what))?;
        let at = |name: String| place.join(name).to_string_lossy().into_owned();
        let wish = Restore {
            images: images.as_fd(),
            work: work.as_fd(),
            root: at("root".into()),
            mounts: own
                .mounts
                .keys()
                .enumerate()
                .map(|(index, point)| (point.clone(), at(index.to_string())))
                .collect(),
            apparmor: apparmor(&self.compiled.plan),
            descriptors: descriptors(own, numbers),
        };
        let result = service.restore(&wish, PATIENCE, |notice| self.hear(handle, notice));
        match (result, self.objection.take(), self.started.take()) {
            (Ok(_), None, Some(started)) => {
                // Memory of the container; nothing reads it again.
                if let Err(error) = fs::remove_dir_all(folder.join(facts::IMAGES)) {
                    tracing::warn!(container = %self.record.id, %error, "the images of a checkpoint could not be removed");
                }
                Ok(started)
            }
            (_, Some(objection), _) => Err(PodError::State(format!(
                "what the checkpoint restores is not what was asked for: {objection}"
            ))),
            (result, None, _) => {
                self.kill();
                let log = dump::last_errors(&folder.join("restore.log"));
                let error = match result {
                    Err(error) => PodError::failed(format!("{what}{log}"), error),
                    Ok(_) => PodError::failed(what, "criu restored nothing"),
                };
                Err(error)
            }
        }
    }

    fn hear(&mut self, handle: &tokio::runtime::Handle, notice: Notice) -> bool {
        let heard = match notice {
            Notice::Restored(pid) => self.tell(handle, pid),
            // Said twice, it tells the monitor that it may outlive us.
            Notice::Resuming => self.look().and_then(|pid| self.tell(handle, pid)),
            Notice::Other => Ok(()),
        };
        match heard {
            Ok(()) => true,
            Err(why) => {
                // At the end criu does not ask whether it may let them go.
                self.kill();
                self.objection = Some(why);
                false
            }
        }
    }

    /// From here on the monitor knows whose exit it is.
    fn tell(&mut self, handle: &tokio::runtime::Handle, pid: i32) -> Result<(), String> {
        let request = Request::Restored { container: *self.record.id.as_bytes(), pid };
        match handle.block_on(self.monitor.call(request, &[])) {
            Ok((Answer::Launched { pid, started_at }, _)) => {
                self.started = Some(Started { pid, at: started_at });
                Ok(())
            }
            Ok((other, _)) => Err(format!("the monitor does not take its process: {other:?}")),
            Err(error) => Err(crate::chain(&error)),
        }
    }

    fn look(&self) -> Result<i32, String> {
        let first = self.started.as_ref().ok_or("its first process was not told of")?.pid;
        let pids = self.pids().map_err(|error| format!("its cgroup cannot be read: {error}"))?;
        let monitor = parent(first).ok_or("its first process is gone")?;
        verify::check(first, &pids, monitor, &self.compiled.plan)?;
        if let Some(score) = self.compiled.plan.oom_score_adj {
            for pid in pids {
                fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
                    .map_err(|error| format!("its oom_score_adj cannot be set: {error}"))?;
            }
        }
        Ok(first)
    }

    fn pids(&self) -> io::Result<Vec<i32>> {
        let number = self.shared.host.layout.unified().map(usize::from);
        let root = number.and_then(|number| self.shared.host.roots.get(number));
        let root = root.ok_or_else(|| io::Error::other("this host has no cgroup v2"))?;
        let path = format!("{}/cgroup.procs", self.record.cgroup);
        let file = rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let text = io::read_to_string(File::from(file))?;
        let pids = text.lines().filter_map(|line| line.trim().parse().ok());
        Ok(pids.filter(|pid| *pid != self.restorer).collect())
    }

    /// All of it, criu too.
    fn kill(&self) {
        let number = self.shared.host.layout.unified().map(usize::from);
        let root = number.and_then(|number| self.shared.host.roots.get(number));
        let path = std::ffi::CString::new(self.record.cgroup.as_str());
        if let (Some(root), Ok(path)) = (root, path) {
            let _ = bowline_launch::kill_all(root.as_fd(), &path);
        }
    }
}

/// Which descriptor of criu's stands for what the images name. A name that stands twice is the same thing.
fn descriptors(own: &Own, numbers: [i32; 3]) -> Vec<(String, i32)> {
    let mut found: Vec<(String, i32)> = Vec::new();
    for (key, number) in own.descriptors.iter().zip(numbers) {
        if !key.is_empty() && !found.iter().any(|(known, _)| known == key) {
            found.push((key.clone(), number));
        }
    }
    // The launcher puts it there, twice: of each criu takes one and closes it.
    found.extend(own.terminals.iter().cloned().zip([numbers[1], numbers[2]]));
    found
}

fn parent(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}
