//! From a launch plan to a running process.
//!
//! ```text
//!   launch()                      child
//!   --------                      -----
//!   make the v2 cgroup
//!   lay out argv, paths, data
//!   clone3 ---------------------> namespaces
//!   make v1 cgroups, limits       assemble the root: overlay, mount program, masks
//!   open the gate --------------> join v1 cgroups: before the first mount of one
//!   <------------- Console(fd) -- terminal, if there is one
//!   <------------- Waiting ------ gate, createContainer hooks, if there are hooks
//!                                 pivot_root
//!   <------------- Held --------- hold, if asked; startContainer hooks
//!                                 limits, credentials, seccomp
//!   <---- Failed(stage) or EOF -- execve
//! ```
//!
//! Everything that allocates happens before `clone3`; the child only walks what was laid out. The parent learns of
//! success by the end of the sync socket, which `execve` closes, and of failure by one message that names the step.
//!
//! Absent here: JSON, async, the log, the records. Paths inside a root are only resolved by descriptor (`root`).

mod cgroups;
mod child;
mod credentials;
mod hooks;
mod lend;
mod report;
mod root;
mod scheduling;
mod terminal;
mod user;
mod volume;

pub use cgroups::{
    apply as apply_cgroup, kill_all, make_folder as make_cgroup, make_parent_folder as make_parent_cgroup,
    remove as remove_cgroups,
};
pub use hooks::{Hooks, Surroundings};
pub use report::{Failure, HookEnd, Report, Stage, receive};

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bowline_launch_plan::{LaunchPlan, Rootfs};
use bowline_linux::clone::{self, Cloned, ns};
use bowline_linux::exec::StringArray;

/// What the launcher brings along for every process.
pub struct Launcher<'a> {
    /// A procfs of the launcher's PID namespace.
    pub procfs: BorrowedFd<'a>,
    /// Root folders of the cgroup hierarchies, in the order that plans count on.
    pub hierarchies: &'a [OwnedFd],
    /// The cgroup v2 hierarchy among them.
    pub unified: Option<u8>,
    /// An empty folder in the launcher's mount namespace, on which roots are assembled.
    pub mount_point: &'a CStr,
    /// The launcher's mounts are shared with others, so that the child must cut itself off first.
    pub shared_mounts: bool,
    /// The process dies with the launcher. Untied, it outlives it: whoever ends its hold later takes the launcher's end
    /// of the sync socket from the child, which keeps a copy under the same number until `execve` (`pidfd_getfd`).
    pub tie_to_launcher: bool,
    /// The user namespace that its processes belong to, if it is not the launcher's own.
    pub user: Option<UserSpace<'a>>,
}

/// A user namespace below the launcher's.
#[derive(Clone, Copy)]
pub struct UserSpace<'a> {
    /// The namespace.
    pub namespace: BorrowedFd<'a>,
    /// What its uid 0 is for the launcher; the ids behind it follow.
    pub first_uid: u32,
}

/// One process to launch.
pub struct Request<'a> {
    /// What to do.
    pub plan: &'a LaunchPlan,
    /// The descriptors that the plan counts on.
    pub descriptors: &'a [OwnedFd],
    /// Standard streams; unused with a terminal.
    pub streams: [BorrowedFd<'a>; 3],
    /// PID namespace (or a process in it) to be born in.
    pub pid_namespace: Option<BorrowedFd<'a>>,
    /// Run another program instead of the plan's, which brings processes back into the root that was assembled.
    pub restorer: Option<Restorer<'a>>,
    /// Programs to run on the way; only with a root.
    pub hooks: Option<Hooks<'a>>,
}

/// A program of the host's that gets a container's root, its cgroups and its streams, and has its own credentials.
///
/// It runs in a copy of a mount namespace of the host's. In that, at `place`, lies a file system of our own: `root` is the
/// container's root without the mounts in it, and `0`, `1` and so on are what is at `parts`, each by itself. So the
/// program reaches all by paths in which nothing of the container's has a say.
#[derive(Clone, Copy)]
pub struct Restorer<'a> {
    /// Program (an absolute path) and arguments.
    pub argv: &'a [CString],
    /// The mount namespace.
    pub mounts: BorrowedFd<'a>,
    /// A folder in it.
    pub place: &'a CStr,
    /// Paths in the container's root; at most [`MAX_PARTS`].
    pub parts: &'a [CString],
    /// Its standard input.
    pub service: BorrowedFd<'a>,
    /// Its standard output and error. The container's streams are left open, under the numbers that they have here. Where the
    /// plan wants a terminal it is made, and has the numbers of those for standard output and error.
    pub output: BorrowedFd<'a>,
}

/// The most mounts of a container that is restored.
pub const MAX_PARTS: usize = 512;

/// A process on its way to `execve`.
#[derive(Debug)]
pub struct Launched {
    /// The process. With a user namespace it is one that prepares what only the launcher's own may do; another takes
    /// its place, which [`Report::Became`] tells of.
    pub process: Cloned,
    /// Where its reports arrive: see [`report::receive`].
    pub sync: OwnedFd,
}

impl Launched {
    /// The next report; blocks unless the socket was made non-blocking.
    pub fn report(&self) -> io::Result<Report> {
        report::receive(self.sync.as_fd())
    }
}

/// Why a launch did not come as far as a process.
#[derive(Debug)]
pub enum LaunchError {
    /// The plan and its descriptors do not fit together.
    BadPlan(&'static str),
    /// A cgroup could not be made or limited: path or file, and why.
    Cgroup(String, io::Error),
    /// No process could be made.
    Clone(io::Error),
}

impl std::fmt::Display for LaunchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LaunchError::BadPlan(what) => write!(f, "the launch plan is not usable: {what}"),
            LaunchError::Cgroup(what, error) => write!(f, "cgroup {what}: {error}"),
            LaunchError::Clone(error) => write!(f, "could not make a process: {error}"),
        }
    }
}

impl std::error::Error for LaunchError {}

impl LaunchError {
    /// The kernel's error number; 0 where the kernel was not asked.
    pub fn errno(&self) -> i32 {
        match self {
            LaunchError::BadPlan(_) => 0,
            LaunchError::Cgroup(_, error) | LaunchError::Clone(error) => error.raw_os_error().unwrap_or(0),
        }
    }
}

/// All that the child reads, laid out before the clone.
pub(crate) struct Prepared<'a> {
    launcher: &'a Launcher<'a>,
    request: &'a Request<'a>,
    argv: StringArray,
    envp: StringArray,
    /// Paths to try, in order.
    programs: Vec<CString>,
    /// Options of the overlay.
    overlay: Option<CString>,
    /// Image volumes, in the order of their steps.
    volumes: Vec<volume::Volume>,
    /// The root and the image volumes, where they are mounted before a user namespace is entered.
    outside: Outside,
    /// Argv of the program that restores, and places for the trees that it gets.
    lent: Option<lend::Lent>,
    /// Arguments and environments of hooks.
    hooks: hooks::Laid,
    /// `tasks` files of cgroup v1 folders to join at once.
    tasks: Vec<OwnedFd>,
    /// Or such folders to join when they are there.
    late: Option<LateCgroups>,
    sync: BorrowedFd<'a>,
    /// Ourselves, where the child is to die with us.
    launcher_process: Option<OwnedFd>,
}

/// Trees that are made outside the user namespace of a container. The places are there before the clone.
#[derive(Default)]
pub(crate) struct Outside {
    root: std::cell::OnceCell<OwnedFd>,
    volumes: Vec<std::cell::OnceCell<OwnedFd>>,
}

/// cgroup v1 folders that the launcher makes while the child assembles its root: nine of them take it about as long.
/// What the child allocates in the kernel before it joins is charged to its launcher.
pub(crate) struct LateCgroups {
    /// An eventfd: readable once all of them are there.
    gate: OwnedFd,
    /// `tasks` files: hierarchy, path.
    tasks: Vec<(u8, CString)>,
    /// The child is in.
    joined: std::cell::Cell<bool>,
}

impl LateCgroups {
    fn new(launcher: &Launcher<'_>, plan: &LaunchPlan) -> Result<Option<LateCgroups>, LaunchError> {
        let tasks = cgroups::tasks_paths(launcher, plan)?;
        // The child waits, so it must die with the launcher; a process that joins a running container has nothing else
        // to do meanwhile.
        if tasks.is_empty() || !launcher.tie_to_launcher || launcher.user.is_some() || plan.rootfs.is_none() {
            return Ok(None);
        }
        let gate = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        let gate = gate.map_err(|errno| LaunchError::Clone(errno.into()))?;
        Ok(Some(LateCgroups { gate, tasks, joined: std::cell::Cell::new(false) }))
    }

    /// The launcher's part.
    fn make(&self, launcher: &Launcher<'_>, plan: &LaunchPlan) -> Result<(), LaunchError> {
        cgroups::prepare_version_1(launcher, plan)?;
        rustix::io::write(&self.gate, &1u64.to_ne_bytes())
            .map_err(|errno| LaunchError::Clone(errno.into()))?;
        Ok(())
    }
}

/// Launches the process of a plan.
pub fn launch(launcher: &Launcher<'_>, request: &Request<'_>) -> Result<Launched, LaunchError> {
    let plan = request.plan;
    check(request)?;
    let late = LateCgroups::new(launcher, plan)?;
    let groups = match late {
        Some(_) => cgroups::prepare_unified(launcher, plan)?,
        None => cgroups::prepare(launcher, plan)?,
    };
    let (ours, theirs) = bowline_linux::message::pair().map_err(LaunchError::Clone)?;
    let volumes = volume::lay_out(plan)?;
    let prepared = Prepared {
        launcher,
        request,
        argv: StringArray::new(plan.argv.clone()),
        envp: StringArray::new(plan.envp.clone()),
        programs: programs(plan),
        overlay: overlay_options(plan)?,
        outside: Outside {
            volumes: volumes.iter().map(|_| Default::default()).collect(),
            ..Outside::default()
        },
        volumes,
        lent: request.restorer.as_ref().map(lend::Lent::new),
        hooks: hooks::Laid::new(request.hooks.as_ref()),
        tasks: groups.tasks,
        late,
        sync: theirs.as_fd(),
        launcher_process: if launcher.tie_to_launcher { Some(ourselves()?) } else { None },
    };
    // A container in a user namespace is born twice: its namespaces must be made from inside.
    let twice = launcher.user.is_some() && plan.rootfs.is_some();
    // Whoever restores makes the PID namespace: its first process is one of those that come back.
    let later = if request.restorer.is_some() { ns::CGROUP | ns::PID } else { ns::CGROUP };
    let namespaces = plan.new_namespaces & !later;
    let home = enter_pid_namespace(request.pid_namespace.filter(|_| !twice))?;
    let options = clone::CloneOptions {
        namespaces: if twice { ns::MOUNT } else { namespaces },
        cgroup: groups.unified.as_ref().map(AsFd::as_fd),
        sibling: false,
    };
    let cloned = clone::clone_process(&options, || match twice {
        true => user::run(&prepared),
        false => child::run(&prepared),
    });
    if let Some(home) = home {
        // Going back to our own PID namespace cannot fail: it is an ancestor-or-self of the one we are in.
        clone::join(home.as_fd(), ns::PID).map_err(LaunchError::Clone)?;
    }
    let process = cloned.map_err(LaunchError::Clone)?;
    if let Some(late) = &prepared.late
        && let Err(error) = late.make(launcher, plan)
    {
        end(&process);
        return Err(error);
    }
    Ok(Launched { process, sync: ours })
}

/// Ends a child that waits for what will not come.
fn end(process: &Cloned) {
    let _ = rustix::process::pidfd_send_signal(&process.pidfd, rustix::process::Signal::KILL);
    let of = rustix::process::WaitId::PidFd(process.pidfd.as_fd());
    let _ = rustix::process::waitid(of, rustix::process::WaitIdOptions::EXITED);
}

fn check(request: &Request<'_>) -> Result<(), LaunchError> {
    let plan = request.plan;
    let count = request.descriptors.len();
    let known = |fd: u16| usize::from(fd) < count;
    if plan.argv.is_empty() {
        return Err(LaunchError::BadPlan("no program"));
    }
    if plan.rootfs.is_some() && plan.new_namespaces & ns::MOUNT == 0 {
        return Err(LaunchError::BadPlan("a root file system needs a mount namespace of its own"));
    }
    if let Some(Rootfs::Tree { fd }) = plan.rootfs
        && !known(fd)
    {
        return Err(LaunchError::BadPlan("the root's descriptor is missing"));
    }
    if let Some(restorer) = &request.restorer
        && (plan.rootfs.is_none() || restorer.argv.is_empty() || restorer.parts.len() > MAX_PARTS)
    {
        return Err(LaunchError::BadPlan("nothing can be restored by it"));
    }
    if request.hooks.is_some() && (plan.rootfs.is_none() || request.restorer.is_some()) {
        return Err(LaunchError::BadPlan("hooks need a root that is assembled and entered"));
    }
    let joins = plan.join_namespaces.iter().all(|join| known(join.fd));
    let trees = plan.steps.iter().all(|step| match step {
        bowline_launch_plan::Step::Mount { source: bowline_launch_plan::Source::Tree { fd }, .. } => {
            known(*fd)
        }
        _ => true,
    });
    if !joins || !trees || plan.hold.is_some_and(|fd| !known(fd)) {
        return Err(LaunchError::BadPlan("a descriptor is missing"));
    }
    Ok(())
}

/// Has the next child born in another PID namespace; returns the way back.
fn enter_pid_namespace(target: Option<BorrowedFd<'_>>) -> Result<Option<OwnedFd>, LaunchError> {
    let Some(target) = target else { return Ok(None) };
    let home = ourselves()?;
    clone::join(target, ns::PID).map_err(LaunchError::Clone)?;
    Ok(Some(home))
}

fn ourselves() -> Result<OwnedFd, LaunchError> {
    rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .map_err(|error| LaunchError::Clone(error.into()))
}

/// Where `execvp` would look, as full paths.
fn programs(plan: &LaunchPlan) -> Vec<CString> {
    let Some(program) = plan.argv.first() else { return Vec::new() };
    if program.as_bytes().contains(&b'/') {
        return vec![program.clone()];
    }
    let path = plan.envp.iter().rev().find_map(|line| line.as_bytes().strip_prefix(b"PATH="));
    let path = path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let candidates = path.split(|byte| *byte == b':').filter(|folder| folder.first() == Some(&b'/'));
    candidates.filter_map(|folder| CString::new([folder, b"/", program.as_bytes()].concat()).ok()).collect()
}

/// The overlay's options as one text. A mount's data is one page; the trailing NUL is part of it.
fn overlay_options(plan: &LaunchPlan) -> Result<Option<CString>, LaunchError> {
    let Some(Rootfs::Overlay { lower, upper, work }) = &plan.rootfs else { return Ok(None) };
    let mut text = lower_directories(lower);
    for (key, value) in [(&b",upperdir="[..], upper), (b",workdir=", work)] {
        text.extend_from_slice(key);
        text.extend_from_slice(value.to_bytes());
    }
    text.extend_from_slice(b",volatile");
    add_context(&mut text, plan.mount_label.as_deref());
    mount_data(text).map(Some)
}

/// The label of all that is in an overlay. In quotes: a label has commas.
fn add_context(text: &mut Vec<u8>, label: Option<&CStr>) {
    if let Some(label) = label {
        text.extend_from_slice(b",context=\"");
        text.extend_from_slice(label.to_bytes());
        text.push(b'"');
    }
}

/// The layers of an overlay, topmost first.
fn lower_directories(lower: &[CString]) -> Vec<u8> {
    let mut text = b"lowerdir=".to_vec();
    for (index, layer) in lower.iter().enumerate() {
        if index > 0 {
            text.push(b':');
        }
        text.extend_from_slice(layer.as_bytes());
    }
    text
}

fn mount_data(text: Vec<u8>) -> Result<CString, LaunchError> {
    if text.len() >= 4096 {
        return Err(LaunchError::BadPlan("the image has too many layers for one overlay mount"));
    }
    CString::new(text).map_err(|_| LaunchError::BadPlan("a layer's name has a NUL inside"))
}
