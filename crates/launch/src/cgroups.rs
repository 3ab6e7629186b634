//! cgroups of a process: made and limited before the clone, joined at birth, killed and removed at the end.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bowline_launch_plan::{CgroupStep, LaunchPlan};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::{LaunchError, Launcher};

/// What a child needs to join its cgroups.
pub(crate) struct Prepared {
    /// cgroup v2: to be born in.
    pub unified: Option<OwnedFd>,
    /// cgroup v1: `tasks` files to write `0` to. A lone thread that writes its own number this way does not wait for
    /// RCU, as a pid written to `cgroup.procs` does (9 ms after a pause, measured on 6.18).
    pub tasks: Vec<OwnedFd>,
}

/// Makes a cgroup folder with its parents.
pub fn make_folder(root: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    make(root, path).map(drop)
}

/// The same for one that is to have groups below it and never a process: these get all of its controllers.
pub fn make_parent_folder(root: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    hand_down_controllers(make(root, path)?.as_fd());
    Ok(())
}

/// Writes values to the files of a cgroup that exists, one write each.
pub fn apply(root: BorrowedFd<'_>, step: &CgroupStep) -> Result<(), LaunchError> {
    let folder = open(root, &step.path).map_err(|error| named(step, error))?;
    write_all(folder.as_fd(), step)
}

/// Makes and limits the groups of a plan.
pub(crate) fn prepare(launcher: &Launcher<'_>, plan: &LaunchPlan) -> Result<Prepared, LaunchError> {
    let mut prepared = prepare_unified(launcher, plan)?;
    for step in version_1(launcher, plan) {
        // What joins groups that are there and changes nothing in them, a command in a container, needs no folder.
        if step.create || !step.writes.is_empty() {
            make_step(launcher, step)?;
        }
        let root = hierarchy(launcher, step)?;
        let tasks =
            rustix::fs::openat(root, tasks_path(step)?, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        prepared.tasks.push(tasks.map_err(|errno| named(step, errno.into()))?);
    }
    Ok(prepared)
}

/// Only the group of cgroup v2, which a process must be born in.
pub(crate) fn prepare_unified(launcher: &Launcher<'_>, plan: &LaunchPlan) -> Result<Prepared, LaunchError> {
    let mut prepared = Prepared { unified: None, tasks: Vec::new() };
    for step in plan.cgroups.iter().filter(|step| launcher.unified == Some(step.hierarchy)) {
        let folder = make_step(launcher, step)?;
        if let Some(filter) = plan.device_filter.as_ref().filter(|_| step.create) {
            let load = || -> io::Result<()> {
                let program = bowline_linux::bpf::load_device_filter(&filter.0)?;
                bowline_linux::bpf::attach_device_filter(folder.as_fd(), program.as_fd())
            };
            load().map_err(|error| named(step, error))?;
        }
        prepared.unified = Some(folder);
    }
    Ok(prepared)
}

/// Only the groups of cgroup v1, which a process joins later.
pub(crate) fn prepare_version_1(launcher: &Launcher<'_>, plan: &LaunchPlan) -> Result<(), LaunchError> {
    version_1(launcher, plan).try_for_each(|step| make_step(launcher, step).map(drop))
}

/// The `tasks` files of the cgroup v1 groups: hierarchy, and path below its root.
pub(crate) fn tasks_paths(
    launcher: &Launcher<'_>,
    plan: &LaunchPlan,
) -> Result<Vec<(u8, CString)>, LaunchError> {
    version_1(launcher, plan).map(|step| Ok((step.hierarchy, tasks_path(step)?))).collect()
}

fn tasks_path(step: &CgroupStep) -> Result<CString, LaunchError> {
    let name: &[u8] = if step.path.is_empty() { b"tasks" } else { b"/tasks" };
    CString::new([step.path.as_bytes(), name].concat())
        .map_err(|_| LaunchError::BadPlan("a cgroup has a NUL inside"))
}

fn hierarchy<'a>(launcher: &Launcher<'a>, step: &CgroupStep) -> Result<BorrowedFd<'a>, LaunchError> {
    let root = launcher.hierarchies.get(usize::from(step.hierarchy));
    root.map(|root| root.as_fd()).ok_or(LaunchError::BadPlan("a cgroup hierarchy is missing"))
}

fn version_1<'a>(
    launcher: &Launcher<'_>,
    plan: &'a LaunchPlan,
) -> impl Iterator<Item = &'a CgroupStep> + use<'a> {
    let unified = launcher.unified;
    plan.cgroups.iter().filter(move |step| unified != Some(step.hierarchy))
}

fn make_step(launcher: &Launcher<'_>, step: &CgroupStep) -> Result<OwnedFd, LaunchError> {
    let root = hierarchy(launcher, step)?;
    let folder = if step.create { make(root, &step.path) } else { open(root, &step.path) };
    let folder = folder.map_err(|error| named(step, error))?;
    write_all(folder.as_fd(), step)?;
    Ok(folder)
}

fn named(step: &CgroupStep, error: io::Error) -> LaunchError {
    LaunchError::Cgroup(step.path.to_string_lossy().into_owned(), error)
}

/// Writes the step's values, in order.
pub(crate) fn write_all(folder: BorrowedFd<'_>, step: &CgroupStep) -> Result<(), LaunchError> {
    for write in &step.writes {
        match write_file(folder, &write.file, &write.value.0) {
            Err(error) if write.optional && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let value = String::from_utf8_lossy(&write.value.0);
                let what =
                    format!("{}/{} = {value}", step.path.to_string_lossy(), write.file.to_string_lossy());
                return Err(LaunchError::Cgroup(what, error));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

fn write_file(folder: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let file = rustix::fs::openat(folder, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value)?;
    Ok(())
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);

fn open(root: BorrowedFd<'_>, path: &CStr) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { c"." } else { path };
    Ok(rustix::fs::openat(root, path, FOLDER, Mode::empty())?)
}

/// Opens the folder, making it and missing parents. A new cpuset group of v1 has no CPUs and takes no process, so
/// each one made here gets its parent's; a new group of v2 has the controllers that its parents hand down.
fn make(root: BorrowedFd<'_>, path: &CStr) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(root, path, Mode::from_raw_mode(0o755)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return open(root, path).and_then(with_cpus),
        // Parents are looked at only where one is missing: most of the time they are there.
        Err(Errno::NOENT) => {
            let parent = parent(path).ok_or(Errno::NOENT)?;
            make(root, &parent)?;
            match rustix::fs::mkdirat(root, path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    let folder = open(root, path)?;
    if lacks_controllers(root, folder.as_fd()) {
        hand_down_to(root, path);
    }
    with_cpus(folder)
}

/// The folder above; `None` for the topmost.
fn parent(path: &CStr) -> Option<CString> {
    let bytes = path.to_bytes();
    let bytes = &bytes[..bytes.iter().rposition(|byte| *byte != b'/')? + 1];
    let end = bytes.iter().rposition(|byte| *byte == b'/')?;
    CString::new(&bytes[..end]).ok().filter(|parent| !parent.is_empty())
}

fn with_cpus(folder: OwnedFd) -> io::Result<OwnedFd> {
    inherit_cpuset(folder.as_fd())?;
    Ok(folder)
}

/// Whether a group of v2 has fewer controllers than the hierarchy. Its parent may be somebody else's who enabled
/// none: the kubelet does so for its own groups down to the pod's, and leaves the pod's to us.
fn lacks_controllers(root: BorrowedFd<'_>, folder: BorrowedFd<'_>) -> bool {
    let (mut all, mut own) = ([0u8; 1024], [0u8; 1024]);
    // cgroup v1 has no such file.
    let Ok(own_len) = read_file(folder, c"cgroup.controllers", &mut own) else { return false };
    let Ok(all_len) = read_file(root, c"cgroup.controllers", &mut all) else { return false };
    all[..all_len] != own[..own_len]
}

/// Enables in every group above `path`, from the top, whatever that group itself has. A controller that cannot be
/// handed down (its group has processes, say) shows as a missing file when a limit is written, and is reported then.
fn hand_down_to(root: BorrowedFd<'_>, path: &CStr) {
    if let Some(parent) = parent(path) {
        hand_down_to(root, &parent);
        let _ = open(root, &parent).map(|folder| hand_down_controllers(folder.as_fd()));
    } else {
        hand_down_controllers(root);
    }
}

fn hand_down_controllers(folder: BorrowedFd<'_>) {
    let (mut names, mut there) = ([0u8; 1024], [0u8; 1024]);
    let Ok(len) = read_file(folder, c"cgroup.controllers", &mut names) else { return };
    let there_len = read_file(folder, c"cgroup.subtree_control", &mut there).unwrap_or(0);
    for name in names[..len].split(|byte| byte.is_ascii_whitespace()).filter(|name| !name.is_empty()) {
        let is_there = there[..there_len].split(|byte| byte.is_ascii_whitespace()).any(|other| other == name);
        // The kernel takes its locks for a write that changes nothing too.
        if !is_there {
            let _ = write_file(folder, c"cgroup.subtree_control", &[b"+", name].concat());
        }
    }
}

fn inherit_cpuset(folder: BorrowedFd<'_>) -> io::Result<()> {
    for file in [c"cpuset.cpus", c"cpuset.mems"] {
        let mut value = [0u8; 4096];
        let own = match read_file(folder, file, &mut value) {
            Ok(len) => len,
            // Not a cpuset hierarchy.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        // cgroup v2 has these files too, where empty means "the parent's".
        if value[..own].iter().any(|byte| byte.is_ascii_digit()) || is_unified(folder) {
            continue;
        }
        let parent = rustix::fs::openat(folder, c"..", FOLDER, Mode::empty())?;
        let mut len = read_file(parent.as_fd(), file, &mut value)?;
        // Somebody made it and left it without, or is about to give it some. The root has all, so this ends there.
        if !value[..len].iter().any(|byte| byte.is_ascii_digit()) {
            inherit_cpuset(parent.as_fd())?;
            len = read_file(parent.as_fd(), file, &mut value)?;
        }
        write_file(folder, file, &value[..len])?;
        // Groups made below this one get theirs at birth, which spares the kernel two rebuilds of its scheduling domains.
        write_file(folder, c"cgroup.clone_children", b"1")?;
    }
    Ok(())
}

fn is_unified(folder: BorrowedFd<'_>) -> bool {
    rustix::fs::accessat(folder, c"cgroup.controllers", rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
}

fn read_file(folder: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> Result<usize, Errno> {
    let file = rustix::fs::openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::read(&file, buffer)
}

/// Kills every process of a cgroup v2 folder and of those below it (`cgroup.kill`, Linux 5.14). A missing one is fine.
pub fn kill_all(root: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    match open(root, path) {
        Ok(folder) => write_file(folder.as_fd(), c"cgroup.kill", b"1"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the folders of `path` and below, deepest first. Missing ones are fine; a busy one is an error.
pub fn remove(root: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(root, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // A folder with groups below it says EBUSY, as does one with processes.
        Err(Errno::BUSY) => remove_below(root, path, 0),
        Err(errno) => Err(errno.into()),
    }
}

/// cgroups may be nested by the workload; deeper than this nobody goes.
const MAX_DEPTH: u32 = 32;

fn remove_below(root: BorrowedFd<'_>, path: &CStr, depth: u32) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::BUSY.into());
    }
    let folder = match open(root, path) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == rustix::fs::FileType::Directory && name != c"." && name != c".." {
            remove_below(folder.as_fd(), name, depth + 1)?;
        }
    }
    match rustix::fs::unlinkat(root, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
