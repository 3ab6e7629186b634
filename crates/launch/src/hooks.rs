//! Hooks of the OCI that run in the container: docs/design/hooks.md.
//!
//! createContainer hooks are the host's programs, and see the host's files around the assembled root. startContainer hooks are the
//! container's own programs; each gets what the container's program gets, and nothing more: the root's content is the image's.
//!
//! The rules of [`crate::child`] hold here too.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use bowline_launch_plan::{HookProgram, HookPrograms};
use bowline_linux::clone::{self, CloneOptions, Cloned};
use bowline_linux::exec::{self, StringArray};
use bowline_linux::mount::attr;
use bowline_linux::process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::time::{ClockId, clock_gettime};

use crate::Prepared;
use crate::child::{Outcome, Words, at, become_program, die_with_launcher, io_at};
use crate::report::{self, Failure, HookEnd, Stage};
use crate::root::{self, Make};

/// Hooks of a container, and what they need.
#[derive(Clone, Copy)]
pub struct Hooks<'a> {
    /// The programs.
    pub programs: &'a HookPrograms,
    /// What createContainer hooks see; `None`: the mounts of the child are the host's already, and the root is mounted where
    /// the bundle says.
    pub surroundings: Option<Surroundings<'a>>,
    /// The bundle's folder as those hooks see it: their working directory.
    pub bundle: &'a CStr,
    /// Before pivot_root the child waits for a byte of this pipe. If it is tied to its launcher, the end of the pipe ends
    /// it, and a hook that is under way.
    pub gate: BorrowedFd<'a>,
    /// Standard input of createContainer hooks: a file.
    pub create_state: BorrowedFd<'a>,
    /// Of startContainer hooks.
    pub start_state: BorrowedFd<'a>,
    /// Standard output and error of all.
    pub output: BorrowedFd<'a>,
}

/// A copy of the host's mounts.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The mounts, attached nowhere.
    pub host: BorrowedFd<'a>,
    /// An empty folder of the launcher's mount namespace, to attach them on.
    pub place: &'a CStr,
    /// A folder in them that is covered with an empty file system. The bundle lies below.
    pub cover: &'a CStr,
    /// The folder of the bundle, attached nowhere, with a folder `rootfs` in it.
    pub bundle: BorrowedFd<'a>,
    /// Where it belongs, below `cover`.
    pub below: &'a CStr,
}

/// Argument lists, made before the clone.
#[derive(Default)]
pub(crate) struct Laid {
    create: Vec<(StringArray, StringArray)>,
    start: Vec<(StringArray, StringArray)>,
}

impl Laid {
    pub(crate) fn new(hooks: Option<&Hooks<'_>>) -> Laid {
        let Some(hooks) = hooks else { return Laid::default() };
        let list = |programs: &[HookProgram]| {
            let arrays = programs.iter().map(|program| {
                (StringArray::new(program.argv.clone()), StringArray::new(program.envp.clone()))
            });
            arrays.collect()
        };
        Laid { create: list(&hooks.programs.create), start: list(&hooks.programs.start) }
    }
}

/// From the assembled root to pivot_root.
pub(crate) fn before_pivot(prepared: &Prepared<'_>, hooks: &Hooks<'_>, root: BorrowedFd<'_>) -> Outcome {
    if let Some(around) = &hooks.surroundings {
        surround(around, root)?;
    }
    // Hooks may take long.
    die_with_launcher(prepared)?;
    report::send_waiting(prepared.sync).map_err(io_at(Stage::Hold, 2))?;
    let mut byte = [0u8; 1];
    match rustix::io::retry_on_intr(|| rustix::io::read(hooks.gate, &mut byte)) {
        Ok(1) => {}
        Ok(_) => return Err(at(Stage::Hold, 3)(Errno::PIPE)),
        Err(errno) => return Err(at(Stage::Hold, 3)(errno)),
    }
    for (index, (program, words)) in hooks.programs.create.iter().zip(&prepared.hooks.create).enumerate() {
        let run = || run_outside(hooks, program, words);
        one(prepared, hooks.gate, hooks.create_state, program.limit, run)
            .map_err(failure(Stage::CreateHook, index))?;
    }
    Ok(())
}

/// From the container's root to the program.
pub(crate) fn before_exec(prepared: &Prepared<'_>, hooks: &Hooks<'_>) -> Outcome {
    for (index, (program, words)) in hooks.programs.start.iter().zip(&prepared.hooks.start).enumerate() {
        let run = || run_inside(prepared, hooks, program, words);
        one(prepared, hooks.gate, hooks.start_state, program.limit, run)
            .map_err(failure(Stage::StartHook, index))?;
    }
    Ok(())
}

fn failure(stage: Stage, index: usize) -> impl Fn(HookEnd) -> Failure {
    move |end| Failure { errno: end.number(), ..at(stage, index)(Errno::IO) }
}

/// Mounts the host's files around the root, and makes them the root for a while.
fn surround(around: &Surroundings<'_>, root: BorrowedFd<'_>) -> Outcome {
    let failed = |detail| at(Stage::Surroundings, detail);
    let from_empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(around.host, c"", CWD, around.place, from_empty).map_err(failed(0))?;
    let cover = root::new_file_system(c"tmpfs", c"bowline", &[], None, attr::NOSUID | attr::NODEV);
    let cover = cover.map_err(failed(1))?;
    let own = Mode::from_raw_mode(0o700);
    rustix::fs::chmodat(&cover, c".", own, rustix::fs::AtFlags::empty()).map_err(failed(2))?;
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = root::open(around.host, around.cover, folder).map_err(failed(3))?;
    root::attach(cover.as_fd(), place.as_fd()).map_err(failed(4))?;
    let place = root::find_or_make(cover.as_fd(), around.below, Make::Dir).map_err(failed(5))?;
    root::attach(around.bundle, place.as_fd()).map_err(failed(6))?;
    let place = root::open(around.bundle, c"/rootfs", folder).map_err(failed(7))?;
    root::attach(root, place.as_fd()).map_err(failed(8))?;
    rustix::process::fchdir(around.host).map_err(failed(9))?;
    rustix::process::pivot_root(c".", c".").map_err(failed(10))?;
    unmount(c".", UnmountFlags::DETACH).map_err(failed(11))?;
    rustix::process::chdir(c"/").map_err(failed(12))
}

/// Runs one hook to its end.
fn one(
    prepared: &Prepared<'_>,
    gate: BorrowedFd<'_>,
    state: BorrowedFd<'_>,
    limit: u32,
    run: impl FnOnce() -> Outcome,
) -> Result<(), HookEnd> {
    let not_run = |errno: Errno| HookEnd::NotRun(errno.raw_os_error());
    // The one before has read it.
    rustix::fs::seek(state, SeekFrom::Start(0)).map_err(not_run)?;
    let (verdict, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(not_run)?;
    let cloned = clone::clone_process(&CloneOptions::default(), || child_of(tell.as_fd(), state, run));
    let cloned = cloned.map_err(|error| not_run(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    drop(tell);
    let watched = prepared.launcher.tie_to_launcher.then_some(gate);
    if let Err(end) = wait(&cloned, watched, limit) {
        let _ = rustix::process::pidfd_send_signal(&cloned.pidfd, Signal::KILL);
        reap(&cloned);
        return Err(end);
    }
    let end = reap(&cloned);
    // Closed by its exec, or by its end: this does not wait.
    let mut errno = [0u8; 4];
    if rustix::io::read(&verdict, &mut errno) == Ok(4) {
        return Err(HookEnd::NotRun(i32::from_ne_bytes(errno)));
    }
    end.map_or(Ok(()), Err)
}

/// The hook's process, up to its exec.
fn child_of(tell: BorrowedFd<'_>, state: BorrowedFd<'_>, run: impl FnOnce() -> Outcome) -> Infallible {
    let prepare = || -> Outcome {
        let failed = || at(Stage::Exec, 0);
        // With its parent, the container's process to be.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed())?;
        // Away from the container's terminal.
        rustix::process::setsid().map_err(failed())?;
        process::place(state, 0).map_err(io_at(Stage::Exec, 0))?;
        run()
    };
    if let Err(failure) = prepare() {
        let _ = rustix::io::write(tell, &failure.errno.to_ne_bytes());
    }
    exec::exit_now(127)
}

fn speak(output: BorrowedFd<'_>) -> Outcome {
    process::place(output, 1).map_err(io_at(Stage::Exec, 0))?;
    process::place(output, 2).map_err(io_at(Stage::Exec, 0))
}

fn run_outside(hooks: &Hooks<'_>, program: &HookProgram, words: &(StringArray, StringArray)) -> Outcome {
    speak(hooks.output)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::chdir(hooks.bundle).map_err(at(Stage::WorkingDirectory, 0))?;
    process::close_on_exec_from(3).map_err(io_at(Stage::Exec, 0))?;
    Err(io_at(Stage::Exec, 0)(exec::execve(&program.path, &words.0, &words.1)))
}

fn run_inside(
    prepared: &Prepared<'_>,
    hooks: &Hooks<'_>,
    program: &HookProgram,
    words: &(StringArray, StringArray),
) -> Outcome {
    speak(hooks.output)?;
    let programs = std::slice::from_ref(&program.path);
    become_program(prepared, &Words { programs, argv: &words.0, envp: &words.1 })
}

/// Waits until the process has ended, for `limit` seconds (0: for ever), and for as long as the gate has another end.
fn wait(process: &Cloned, gate: Option<BorrowedFd<'_>>, limit: u32) -> Result<(), HookEnd> {
    let until = clock_gettime(ClockId::Monotonic).tv_sec + i64::from(limit);
    loop {
        let now = clock_gettime(ClockId::Monotonic);
        let left = until - now.tv_sec;
        if limit != 0 && left <= 0 {
            return Err(HookEnd::TimedOut);
        }
        // Whole seconds: what is left of the first one is waited for as well.
        let time = Timespec { tv_sec: left, tv_nsec: 0 };
        let time = (limit != 0).then_some(&time);
        let own = PollFd::new(&process.pidfd, PollFlags::IN);
        // Its end is reported unasked.
        let ready = match &gate {
            Some(gate) => {
                let mut both = [own, PollFd::new(gate, PollFlags::empty())];
                poll(&mut both, time).map(|_| (!both[0].revents().is_empty(), !both[1].revents().is_empty()))
            }
            None => {
                let mut one = [own];
                poll(&mut one, time).map(|_| (!one[0].revents().is_empty(), false))
            }
        };
        match ready {
            Ok((true, _)) => return Ok(()),
            Ok((false, true)) => return Err(HookEnd::Abandoned),
            Ok((false, false)) | Err(Errno::INTR) => {}
            Err(errno) => return Err(HookEnd::NotRun(errno.raw_os_error())),
        }
    }
}

/// Takes the process; what it ended with, unless that was a success.
fn reap(process: &Cloned) -> Option<HookEnd> {
    let of = WaitId::PidFd(process.pidfd.as_fd());
    let status = rustix::io::retry_on_intr(|| rustix::process::waitid(of.clone(), WaitIdOptions::EXITED));
    let status = match status {
        Ok(Some(status)) => status,
        Ok(None) => return Some(HookEnd::NotRun(Errno::CHILD.raw_os_error())),
        Err(errno) => return Some(HookEnd::NotRun(errno.raw_os_error())),
    };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => None,
        (Some(code), _) => Some(HookEnd::Code(code)),
        (None, signal) => Some(HookEnd::Signal(signal.unwrap_or_default())),
    }
}
