//! Hooks of containers: docs/design/hooks.md.
//!
//! Those of the host run on a thread of ours, which waits for each; those of the container are the launcher's, which waits at a gate until
//! ours are done. The gate's other end is here and nowhere else: with us it goes.

mod host;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bowline_launch::{HookEnd, Stage};
use bowline_launch_plan::wire::encode;
use bowline_linux::mount::{Change, attr, change, propagation};
use bowline_model::ContainerId;
use bowline_model::runtime_spec::{Hook, Hooks, IntelRdt};
use bowline_model::spec::PodSpec;
use bowline_monitor_proto::{Answer, Hooked, Launch, Surroundings};
use bowline_plan::{Compiled, hook_programs};
use bowline_store::ContainerRecord;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use tokio::net::unix::pipe::Receiver;

use self::host::{Place, state_file};
use crate::PodError;
use crate::checkpoint::Opened;
use crate::create::Stored;
use crate::error::doing;
use crate::monitor::{Monitor, MonitorError, sealed};
use crate::mount_table;
use crate::operations::stage;
use crate::shared::{Shared, blocking};
use crate::start::{Started, launch_error};

/// Seconds that a hook has which names no timeout.
const LIMIT: u32 = 30;
/// How much of what a hook says is kept, in bytes: the end.
const KEPT: usize = 4 << 10;
/// Folder of bundles below the state folder.
pub(crate) const BUNDLES: &str = "bundles";

/// What hooks are told of a container.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'a str,
    id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a Path,
    annotations: &'a BTreeMap<String, String>,
}

/// A bundle of a container with hooks.
struct Bundle {
    path: PathBuf,
    id: ContainerId,
    stored: Stored,
}

impl Bundle {
    fn state(&self, status: &'static str, pid: Option<i32>) -> io::Result<Vec<u8>> {
        let (id, spec) = (self.id.to_string(), &self.stored.spec);
        let annotations = &spec.annotations;
        let state =
            State { oci_version: &spec.oci_version, id, status, pid, bundle: &self.path, annotations };
        Ok(serde_json::to_vec(&state)?)
    }

    /// That of a container which was started.
    fn of(shared: &Shared, record: &ContainerRecord) -> Result<Bundle, PodError> {
        let stored =
            shared.store.read_config(&record.pod, &record.id).map_err(doing("read the container's spec"))?;
        Ok(Bundle { path: folder(shared, &record.id), id: record.id.clone(), stored })
    }

    /// Makes the folder, anew if it is there.
    fn make(shared: &Shared, pod: &PodSpec, record: &ContainerRecord) -> Result<Bundle, PodError> {
        let bundle = Bundle::of(shared, record)?;
        bundle.write(pod).map_err(doing("make the bundle for the container's hooks"))?;
        Ok(bundle)
    }

    fn write(&self, pod: &PodSpec) -> io::Result<()> {
        remove_folder(&self.path)?;
        let folder = |path: &Path| DirBuilder::new().mode(0o700).recursive(true).create(path);
        let (rootfs, config) = (self.path.join("rootfs"), self.path.join("config.json"));
        folder(&rootfs)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&config)?;
        file.write_all(&self.stored.spec.to_json()?)?;
        // createContainer hooks are its root, who is nobody on the host.
        if let Some(user) = crate::user::of_pod(pod) {
            let (uid, gid) = (crate::user::outside(&user.uids, 0), crate::user::outside(&user.gids, 0));
            for path in [&self.path, &rootfs, &config] {
                chown(path, Some(uid), Some(gid))?;
            }
        }
        Ok(())
    }
}

fn folder(shared: &Shared, id: &ContainerId) -> PathBuf {
    shared.config.state.join(BUNDLES).join(id.to_string())
}

/// Removes a bundle. Hooks of the host may have mounted something in it, and that is not ours to remove files from.
fn remove_folder(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    mount_table::clear(path)?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The cgroup, of the v2 tree alone, of hooks that run on the host: beside the container's, so that its limits are not theirs.
pub(crate) fn group(cgroup: &str) -> String {
    format!("{cgroup}-hooks")
}

fn unified(shared: &Shared) -> Option<&OwnedFd> {
    shared.host.layout.unified().and_then(|index| shared.host.roots.get(usize::from(index)))
}

fn make_group(shared: &Shared, cgroup: &str) -> io::Result<Option<OwnedFd>> {
    let Some(root) = unified(shared) else { return Ok(None) };
    let path = CString::new(group(cgroup))?;
    bowline_launch::make_cgroup(root.as_fd(), &path)?;
    let open = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    Ok(Some(rustix::fs::openat(root, &path, open, Mode::empty())?))
}

/// Launches a container whose hooks come before its program.
pub(crate) async fn launch(
    shared: &Arc<Shared>,
    monitor: &Arc<Monitor>,
    record: &ContainerRecord,
    compiled: &Compiled,
    hooks: &Hooks,
    launch: Launch,
    opened: Opened<'_>,
) -> Result<Started, PodError> {
    let what = "launch the container";
    let stay = stage("hooks");
    let knows = monitor.knows_hooks(|| crate::files::connect(&shared.config.state, &record.pod)).await;
    if !knows.map_err(doing("ask the pod's monitor"))? {
        let text = "the pod's monitor is older than hooks; the pod must be made anew for that";
        return Err(PodError::State(text.into()));
    }
    let launching = {
        let (shared, record, hooks) = (shared.clone(), record.clone(), hooks.clone());
        let rdt = compiled.intel_rdt.clone();
        let prepare = move || Launching::prepare(&shared, &record, hooks, rdt);
        blocking("prepare the container's hooks", prepare).await?
    };
    let (gate, opener) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(doing(what))?;
    let (said, output) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(doing(what))?;
    let said = Listener::start(said).map_err(doing(what))?;
    let request = launching.request(shared, record, launch)?;
    let mut descriptors = vec![opened.plan];
    descriptors.extend(opened.log);
    descriptors.extend([launching.programs.as_fd(), gate.as_fd()]);
    descriptors.extend(launching.states.iter().map(|state| state.as_fd()));
    descriptors.push(output.as_fd());
    descriptors.extend(launching.around.iter().flatten().map(|tree| tree.as_fd()));
    descriptors.extend(opened.trees);
    let (mut reply, waiting) = monitor.launch_hooked(request, &descriptors).map_err(doing(what))?;
    drop((gate, output));

    // Both may be there: then it has ended already.
    let pid = tokio::select! {
        biased;
        Ok(pid) = waiting => Ok(pid),
        answer = &mut reply => Err(answer),
    };
    let answer = match pid {
        Ok(pid) => {
            let ours = blocking("run the container's hooks", move || launching.run(pid)).await;
            if let Err(error) = ours {
                // The child hears of it, and ends.
                drop(opener);
                let _ = reply.await;
                kill_group(shared, &record.cgroup);
                return Err(error);
            }
            let _ = rustix::io::write(&opener, b"1");
            reply.await
        }
        Err(answer) => answer,
    };
    drop(stay);
    let Ok((answer, _)) = answer else {
        // The child has died with its monitor, what it had started has not.
        crate::actor::kill_leftovers(shared, &record.cgroup);
        kill_group(shared, &record.cgroup);
        return Err(doing(what)(MonitorError::Lost));
    };
    match answer {
        Answer::Launched { pid, started_at } => Ok(Started { pid, at: started_at }),
        Answer::Failed { stage, detail, errno, text } => {
            kill_group(shared, &record.cgroup);
            Err(match hook_of(hooks, stage, detail) {
                Some((kind, index, hook)) => {
                    named(kind, index, &hook.path, HookEnd::from_number(errno), &said.finish())
                }
                None => launch_error(&compiled.plan, stage, detail, errno, &text),
            })
        }
        other => Err(PodError::failed(what, format!("the monitor answered {other:?}"))),
    }
}

/// All that a launch with hooks needs, made before it is asked for.
struct Launching {
    bundle: Bundle,
    hooks: Hooks,
    rdt: Option<IntelRdt>,
    group: Option<OwnedFd>,
    programs: OwnedFd,
    /// For createContainer and startContainer hooks.
    states: [fs::File; 2],
    /// The host's mounts and the bundle's folder, for createContainer hooks.
    around: Option<[OwnedFd; 2]>,
}

impl Launching {
    fn prepare(
        shared: &Shared,
        record: &ContainerRecord,
        hooks: Hooks,
        rdt: Option<IntelRdt>,
    ) -> Result<Launching, PodError> {
        let what = "prepare the container's hooks";
        let pod = shared.views.pod(&record.pod.to_string())?;
        let bundle = Bundle::make(shared, &pod.spec, record)?;
        let programs = hook_programs(&hooks, LIMIT).map_err(|error| PodError::Invalid(error.to_string()))?;
        // Those of the host may join its mount namespace, and expect the host there.
        let outside = [&hooks.prestart, &hooks.create_runtime, &hooks.create_container];
        let around = match outside.iter().any(|list| !list.is_empty()) {
            true => {
                let host = host_tree().map_err(doing("copy the host's mounts for the container's hooks"))?;
                Some([host, bundle_tree(&bundle.path).map_err(doing(what))?])
            }
            false => None,
        };
        let here = [&hooks.prestart, &hooks.create_runtime].iter().any(|list| !list.is_empty());
        Ok(Launching {
            group: if here { make_group(shared, &record.cgroup).map_err(doing(what))? } else { None },
            programs: sealed(&encode(&programs)).map_err(doing(what))?,
            states: [state_file(b"").map_err(doing(what))?, state_file(b"").map_err(doing(what))?],
            around,
            bundle,
            hooks,
            rdt,
        })
    }

    fn request(&self, shared: &Shared, record: &ContainerRecord, launch: Launch) -> Result<Hooked, PodError> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(doing("name the bundle"));
        let below = Path::new("/").join(BUNDLES).join(record.id.to_string());
        let surroundings = match &self.around {
            Some(_) => Some(Surroundings { cover: text(&shared.config.state)?, below: text(&below)? }),
            None => None,
        };
        let group = text(Path::new(&group(&record.cgroup)))?;
        Ok(Hooked { launch, bundle: text(&self.bundle.path)?, surroundings, group })
    }

    /// Our part while the child waits: its class of service, the states, and the hooks of the host.
    fn run(mut self, pid: i32) -> Result<(), PodError> {
        if let Some(rdt) = &self.rdt {
            bowline_resctrl::apply(Path::new(bowline_resctrl::ROOT), &self.bundle.id.to_string(), rdt, pid)?;
        }
        let mut told = || -> io::Result<Vec<u8>> {
            let inside = Some(number_inside(pid)?);
            for (file, status) in self.states.iter_mut().zip(["creating", "created"]) {
                file.write_all(&self.bundle.state(status, inside)?)?;
            }
            self.bundle.state("creating", Some(pid))
        };
        let state = told().map_err(doing("tell the hooks of the container"))?;
        let place = Place { bundle: &self.bundle.path, group: self.group.as_ref() };
        place.run("prestart", &self.hooks.prestart, &state)?;
        place.run("createRuntime", &self.hooks.create_runtime, &state)
    }
}

/// A private, read-only copy of all mounts that we see.
fn host_tree() -> io::Result<OwnedFd> {
    let tree = clone_tree(Path::new("/"), true)?;
    let wanted =
        Change { set: attr::RDONLY, propagation: propagation::PRIVATE, recursive: true, ..Change::default() };
    change(tree.as_fd(), &wanted)?;
    Ok(tree)
}

/// The bundle's folder as a mount of its own. Private: what is mounted in it would be mounted on the host as well where the host's
/// mounts are shared, as systemd makes them, and no shared mount can hold a root to be.
fn bundle_tree(path: &Path) -> io::Result<OwnedFd> {
    let tree = clone_tree(path, false)?;
    change(tree.as_fd(), &Change { propagation: propagation::PRIVATE, ..Change::default() })?;
    Ok(tree)
}

fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(open_tree(CWD, path, flags)?)
}

/// The number of a process in its own PID namespace: the last of those that it has.
fn number_inside(pid: i32) -> io::Result<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let last = line.and_then(|line| line.split_whitespace().last()).and_then(|number| number.parse().ok());
    last.ok_or_else(|| io::Error::other(format!("/proc/{pid}/status has no NSpid")))
}

/// The container runs; what its hooks make of that changes nothing.
pub(crate) async fn poststart(shared: &Arc<Shared>, record: &ContainerRecord, hooks: &Hooks, pid: i32) {
    if hooks.poststart.is_empty() {
        return;
    }
    let _stage = stage("poststart hooks");
    let (shared, record, hooks) = (shared.clone(), record.clone(), hooks.clone());
    let ran = blocking("run the container's poststart hooks", move || {
        let bundle = Bundle::of(&shared, &record)?;
        let what = "tell the hooks of the container";
        let state = bundle.state("running", Some(pid)).map_err(doing(what))?;
        let group = make_group(&shared, &record.cgroup).map_err(doing("make a cgroup for hooks"))?;
        let place = Place { bundle: &bundle.path, group: group.as_ref() };
        place.run_all("poststart", &hooks.poststart, &state, &record.id.to_string());
        Ok(())
    });
    if let Err(error) = ran.await {
        tracing::warn!(error = %crate::chain(&error), "poststart hooks were not run");
    }
}

/// The container is being removed, and its cgroup is gone. Only one that was started has a bundle.
pub(crate) fn poststop(shared: &Shared, record: &ContainerRecord) -> Result<(), PodError> {
    let path = folder(shared, &record.id);
    if !path.exists() {
        return Ok(());
    }
    let ran = Bundle::of(shared, record).and_then(|bundle| {
        let hooks = bundle.stored.spec.hooks.clone().unwrap_or_default();
        let state = bundle.state("stopped", None).map_err(doing("tell the hooks of the container"))?;
        let place = Place { bundle: &bundle.path, group: None };
        place.run_all("poststop", &hooks.poststop, &state, &record.id.to_string());
        if let Some(rdt) = bundle.stored.spec.linux.as_ref().and_then(|linux| linux.intel_rdt.as_ref()) {
            bowline_resctrl::remove(Path::new(bowline_resctrl::ROOT), &record.id.to_string(), rdt)
                .map_err(doing("remove the container's class of service"))?;
        }
        Ok(())
    });
    if let Err(error) = ran {
        tracing::warn!(container = %record.id, error = %crate::chain(&error), "not all was done after the container");
    }
    remove_folder(&path).map_err(doing("remove the bundle of the container's hooks"))
}

/// Makes the bundle of a container whose hooks all come after its program's start.
pub(crate) async fn prepare(shared: &Arc<Shared>, record: &ContainerRecord) -> Result<(), PodError> {
    let (shared, record) = (shared.clone(), record.clone());
    blocking("prepare the container's hooks", move || {
        let pod = shared.views.pod(&record.pod.to_string())?;
        Bundle::make(&shared, &pod.spec, &record).map(drop)
    })
    .await
}

/// Kills what hooks have left running on the host for a container in this cgroup.
pub(crate) fn kill_group(shared: &Shared, cgroup: &str) {
    crate::actor::kill_leftovers(shared, &group(cgroup));
}

/// Bundles without a container.
pub(crate) fn sweep(shared: &Shared) {
    for entry in fs::read_dir(shared.config.state.join(BUNDLES)).into_iter().flatten().flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        if shared.views.container(&id).is_err()
            && let Err(error) = remove_folder(&entry.path())
        {
            tracing::warn!(container = id, %error, "a bundle without a container could not be removed");
        }
    }
}

/// The hook that a step of a launch was about.
fn hook_of(hooks: &Hooks, stage: u8, at: u16) -> Option<(&'static str, usize, &Hook)> {
    let (kind, list) = match Stage::from_number(stage)? {
        Stage::CreateHook => ("createContainer", &hooks.create_container),
        Stage::StartHook => ("startContainer", &hooks.start_container),
        _ => return None,
    };
    let index = usize::from(at);
    list.get(index).map(|hook| (kind, index, hook))
}

fn named(kind: &str, index: usize, path: &str, end: HookEnd, said: &Tail) -> PodError {
    let text = String::from_utf8_lossy(&said.0);
    let text = match text.trim_end() {
        "" => String::new(),
        text => format!("; it wrote: {text}"),
    };
    PodError::failed(format!("run hooks.{kind}[{index}] ({path})"), format!("it {end}{text}"))
}

/// The end of what was said.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let over = self.0.len().saturating_sub(KEPT);
        self.0.drain(..over);
    }

    /// Takes what a pipe that does not block has; false at its end.
    fn take(&mut self, pipe: &OwnedFd) -> bool {
        let mut chunk = [0u8; 4096];
        loop {
            match rustix::io::read(pipe, &mut chunk) {
                Ok(0) => return false,
                Ok(len) => self.add(&chunk[..len]),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return errno == rustix::io::Errno::AGAIN,
            }
        }
    }
}

/// Takes what the hooks of a child say, until it is dropped: what they leave running may hold the pipe for ever.
struct Listener {
    pipe: OwnedFd,
    said: Arc<Mutex<Tail>>,
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    fn start(pipe: OwnedFd) -> io::Result<Listener> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let receiver = Receiver::from_owned_fd(pipe.try_clone()?)?;
        let said = Arc::<Mutex<Tail>>::default();
        let into = said.clone();
        let task = tokio::spawn(async move {
            while receiver.readable().await.is_ok() {
                let mut chunk = [0u8; 4096];
                match receiver.try_read(&mut chunk) {
                    Ok(0) => return,
                    Ok(len) => into.lock().unwrap_or_else(PoisonError::into_inner).add(&chunk[..len]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
        Ok(Listener { pipe, said, task })
    }

    /// What was said, to the last word of those who have ended.
    fn finish(self) -> Tail {
        self.task.abort();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.take(&self.pipe);
        std::mem::take(&mut *said)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}
