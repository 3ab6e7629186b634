//! The child's way from `clone3` to `execve`.
//!
//! Rules for everything called from here: no allocation, no lock, no output. Paths are `&CStr`, since `rustix` copies
//! other texts; what must be joined is joined in arrays on the stack.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::AsFd;

use bowline_launch_plan::LaunchPlan;
use bowline_linux::clone;
use bowline_linux::{exec, process};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::report::{self, Failure, Stage};
use crate::{Prepared, credentials, root, terminal};

/// How a step ends that cannot go on.
pub(crate) type Outcome = Result<(), Failure>;

/// Turns an errno into a failure of `stage`.
pub(crate) fn at(stage: Stage, detail: usize) -> impl Fn(Errno) -> Failure {
    move |errno| Failure {
        stage,
        detail: detail.min(usize::from(u16::MAX)) as u16,
        errno: errno.raw_os_error(),
    }
}

/// The same for errors of `std`.
pub(crate) fn io_at(stage: Stage, detail: usize) -> impl Fn(std::io::Error) -> Failure {
    move |error| at(stage, detail)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Runs the whole way; comes back only by ending the process.
pub(crate) fn run(prepared: &Prepared<'_>) -> Infallible {
    if let Err(failure) = walk(prepared) {
        report::send_failure(prepared.sync, failure);
    }
    exec::exit_now(127)
}

/// The same for one that is in its user, mount, PID and cgroup namespace already.
pub(crate) fn run_inside(prepared: &Prepared<'_>) -> Infallible {
    rustix::process::umask(Mode::empty());
    let walked = process::become_root().map_err(io_at(Stage::Credentials, 7)).and_then(|()| go_on(prepared));
    if let Err(failure) = walked {
        report::send_failure(prepared.sync, failure);
    }
    exec::exit_now(127)
}

fn walk(prepared: &Prepared<'_>) -> Outcome {
    let plan = prepared.request.plan;
    process::reset_signals();
    // What is made on the way has the modes that the plan says; the container's own umask comes with its credentials.
    rustix::process::umask(Mode::empty());
    if prepared.late.is_some() {
        // Already here, since it is going to wait for its launcher.
        die_with_launcher(prepared)?;
        write_oom_score(prepared)?;
    } else {
        join_cgroups(prepared)?;
        make_cgroup_namespace(plan)?;
    }
    crate::user::before_entering(prepared)?;
    go_on(prepared)
}

/// The oom score and the cgroups of v1.
pub(crate) fn join_cgroups(prepared: &Prepared<'_>) -> Outcome {
    write_oom_score(prepared)?;
    for (index, tasks) in prepared.tasks.iter().enumerate() {
        rustix::io::write(tasks, b"0").map_err(at(Stage::Cgroup, index))?;
    }
    Ok(())
}

/// After the groups were joined: the namespace shows as its root whatever the process is in when it is made. `clone3` would
/// make it before.
fn make_cgroup_namespace(plan: &LaunchPlan) -> Outcome {
    if plan.new_namespaces & clone::ns::CGROUP == 0 {
        return Ok(());
    }
    clone::unshare(clone::ns::CGROUP).map_err(io_at(Stage::Namespace, 0))
}

/// Waits until the launcher has made the cgroup v1 folders, and joins them; once.
pub(crate) fn join_late_cgroups(prepared: &Prepared<'_>) -> Outcome {
    let Some(late) = prepared.late.as_ref().filter(|late| !late.joined.get()) else { return Ok(()) };
    let mut count = [0u8; 8];
    rustix::io::retry_on_intr(|| rustix::io::read(&late.gate, &mut count)).map_err(at(Stage::Cgroup, 0))?;
    for (index, (hierarchy, path)) in late.tasks.iter().enumerate() {
        let root = prepared.launcher.hierarchies.get(usize::from(*hierarchy));
        let root = root.ok_or(Errno::BADF).map_err(at(Stage::Cgroup, index))?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let tasks = rustix::fs::openat(root, path.as_c_str(), flags, Mode::empty());
        let tasks = tasks.map_err(at(Stage::Cgroup, index))?;
        rustix::io::write(&tasks, b"0").map_err(at(Stage::Cgroup, index))?;
    }
    late.joined.set(true);
    make_cgroup_namespace(prepared.request.plan)
}

fn go_on(prepared: &Prepared<'_>) -> Outcome {
    let plan = prepared.request.plan;
    enter_namespaces(prepared)?;
    name_host(prepared)?;
    let assembled = match &plan.rootfs {
        Some(_) => Some(root::assemble(prepared)?),
        None => None,
    };
    rustix::process::setsid().map_err(at(Stage::Terminal, 0))?;
    if let (Some(restorer), Some(root)) = (&prepared.request.restorer, &assembled) {
        return crate::lend::hand_over(prepared, restorer, root.as_fd());
    }
    let place = assembled.as_ref().map(|root| root.as_fd());
    if plan.terminal {
        terminal::open(prepared, place)?;
    } else {
        for (number, stream) in prepared.request.streams.iter().enumerate() {
            process::place(*stream, number as i32).map_err(io_at(Stage::Terminal, number))?;
        }
    }
    write_sysctls(prepared)?;
    if let Some(root) = &assembled {
        if let Some(hooks) = &prepared.request.hooks {
            crate::hooks::before_pivot(prepared, hooks, root.as_fd())?;
        }
        root::enter(root.as_fd(), prepared)?;
    }
    finish(prepared)
}

/// From inside the root to the program.
fn finish(prepared: &Prepared<'_>) -> Outcome {
    let plan = prepared.request.plan;
    own_streams(plan.credentials.uid);
    // In a user namespace they were set before it was entered.
    let limits = if prepared.launcher.user.is_some() { &[][..] } else { &plan.rlimits };
    for (index, limit) in limits.iter().enumerate() {
        process::set_limit(limit.resource, limit.soft, limit.hard).map_err(io_at(Stage::Limit, index))?;
    }
    if prepared.launcher.user.is_none() {
        crate::scheduling::apply(plan)?;
    }
    hold(prepared)?;
    if let Some(hooks) = &prepared.request.hooks {
        crate::hooks::before_exec(prepared, hooks)?;
    }
    let words = Words { programs: &prepared.programs, argv: &prepared.argv, envp: &prepared.envp };
    become_program(prepared, &words)
}

/// A program with its arguments and environment.
pub(crate) struct Words<'a> {
    /// Paths to try, in order.
    pub(crate) programs: &'a [std::ffi::CString],
    pub(crate) argv: &'a exec::StringArray,
    pub(crate) envp: &'a exec::StringArray,
}

/// Takes what the plan says of privileges, and runs the program. Comes back only if that fails.
pub(crate) fn become_program(prepared: &Prepared<'_>, words: &Words<'_>) -> Outcome {
    let plan = prepared.request.plan;
    credentials::label(prepared)?;
    // With no_new_privs a filter may be loaded by anyone, so it comes last and need not allow what comes before it.
    // Without, loading takes CAP_SYS_ADMIN, which is about to go.
    let early = plan.seccomp.as_ref().filter(|_| !plan.credentials.no_new_privs);
    if let Some(filter) = early {
        bowline_linux::seccomp::load(&filter.filter.0, filter.flags).map_err(io_at(Stage::Seccomp, 0))?;
    }
    // As root first, since the folder may be closed to the user; where root is the one locked out (NFS), as the user.
    let entered = work_in(&plan.cwd);
    credentials::take(plan)?;
    let entered = if entered == Err(Errno::ACCESS) { work_in(&plan.cwd) } else { entered };
    entered.map_err(at(Stage::WorkingDirectory, 0))?;
    die_with_launcher(prepared)?;
    let late = plan.seccomp.as_ref().filter(|_| plan.credentials.no_new_privs);
    process::close_on_exec_from(3).map_err(io_at(Stage::Exec, 0))?;
    if let Some(filter) = late {
        bowline_linux::seccomp::load(&filter.filter.0, filter.flags).map_err(io_at(Stage::Seccomp, 0))?;
    }
    Err(exec_first(words))
}

/// Tries the program's places as `execvp` does: a missing one is passed over, a forbidden one remembered.
fn exec_first(words: &Words<'_>) -> Failure {
    let mut verdict = Errno::NOENT;
    for program in words.programs {
        let error = exec::execve(program, words.argv, words.envp);
        match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => verdict = Errno::ACCESS,
            other => return at(Stage::Exec, 0)(other),
        }
    }
    at(Stage::Exec, 0)(verdict)
}

/// Before any user namespace is entered: afterwards the value could not go below what the launcher had.
fn write_oom_score(prepared: &Prepared<'_>) -> Outcome {
    let Some(score) = prepared.request.plan.oom_score_adj else { return Ok(()) };
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let open = rustix::fs::openat(prepared.launcher.procfs, c"self/oom_score_adj", flags, Mode::empty());
    let file = open.map_err(at(Stage::Limit, 0))?;
    let mut digits = [0u8; 12];
    match rustix::io::write(&file, decimal(score, &mut digits)) {
        // Without CAP_SYS_RESOURCE the score cannot be lowered; the planner has said so already.
        Ok(_) | Err(Errno::ACCESS) => Ok(()),
        Err(errno) => Err(at(Stage::Limit, 0)(errno)),
    }
}

fn decimal(value: i32, digits: &mut [u8; 12]) -> &[u8] {
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    &digits[at..]
}

fn enter_namespaces(prepared: &Prepared<'_>) -> Outcome {
    let plan = prepared.request.plan;
    // A process that joins a container enters its user namespace with the others, in one call.
    let user = if prepared.launcher.user.is_some() && plan.rootfs.is_none() { clone::ns::USER } else { 0 };
    for (index, join) in plan.join_namespaces.iter().enumerate() {
        let of = &prepared.request.descriptors[usize::from(join.fd)];
        clone::join(of.as_fd(), join.flags | user).map_err(io_at(Stage::Namespace, index))?;
    }
    if user != 0 {
        process::become_root().map_err(io_at(Stage::Credentials, 7))?;
    }
    Ok(())
}

fn name_host(prepared: &Prepared<'_>) -> Outcome {
    let plan = prepared.request.plan;
    if let Some(name) = &plan.hostname {
        process::set_hostname(name.as_bytes()).map_err(io_at(Stage::Hostname, 0))?;
    }
    if let Some(name) = &plan.domainname {
        process::set_domainname(name.as_bytes()).map_err(io_at(Stage::Hostname, 1))?;
    }
    Ok(())
}

fn write_sysctls(prepared: &Prepared<'_>) -> Outcome {
    for (index, (path, value)) in prepared.request.plan.sysctls.iter().enumerate() {
        write_sysctl(prepared.launcher.procfs, path, value.as_bytes()).map_err(at(Stage::Sysctl, index))?;
    }
    Ok(())
}

/// Writes a kernel parameter through a procfs that no container has touched.
fn write_sysctl(procfs: std::os::fd::BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Result<(), Errno> {
    let sys = rustix::fs::openat(procfs, c"sys", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let file = rustix::fs::openat(&sys, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value).map(drop)
}

/// Gives pipes and terminals to the user, so that it can open /dev/stdout anew. Never touches a device such as
/// /dev/null, which is everybody's.
fn own_streams(uid: u32) {
    if uid == 0 {
        return;
    }
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for stream in streams {
        let Ok(stat) = rustix::fs::fstat(stream) else { continue };
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if kind == rustix::fs::FileType::Fifo || rustix::termios::isatty(stream) {
            // Not being allowed to is no reason not to run.
            let _ = rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
    }
}

/// Enters the working directory and makes sure that it is inside the root: a directory of the host, reached through
/// a leaked descriptor, has no path from here (CVE-2024-21626).
fn work_in(path: &CStr) -> Result<(), Errno> {
    rustix::process::chdir(path)?;
    let mut buffer = [0u8; 4096];
    // The kernel's own call, since libc's would allocate; it answers "(unreachable)/.." for a place outside.
    let path = process::current_dir(&mut buffer)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    if path.first() == Some(&b'/') { Ok(()) } else { Err(Errno::XDEV) }
}

fn hold(prepared: &Prepared<'_>) -> Outcome {
    let Some(fd) = prepared.request.plan.hold else { return Ok(()) };
    // It may be long.
    die_with_launcher(prepared)?;
    report::send_held(prepared.sync).map_err(io_at(Stage::Hold, 1))?;
    let mut byte = [0u8; 1];
    let gate = &prepared.request.descriptors[usize::from(fd)];
    match rustix::io::read(gate, &mut byte) {
        Ok(1) => Ok(()),
        Ok(_) => Err(at(Stage::Hold, 0)(Errno::PIPE)),
        Err(errno) => Err(at(Stage::Hold, 0)(errno)),
    }
}

/// The launcher's death ends the container. A change of user clears the wish, so it comes after it; whether the
/// launcher died before that shows on its pidfd. (The sync socket would not tell: the child has both its ends.)
pub(crate) fn die_with_launcher(prepared: &Prepared<'_>) -> Outcome {
    let Some(launcher) = &prepared.launcher_process else { return Ok(()) };
    let kill = rustix::process::Signal::KILL;
    rustix::process::set_parent_process_death_signal(Some(kill)).map_err(at(Stage::Orphaned, 0))?;
    let mut poll = [rustix::event::PollFd::new(launcher, rustix::event::PollFlags::IN)];
    let ready = rustix::event::poll(&mut poll, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
    match ready {
        Ok(0) => Ok(()),
        Ok(_) => Err(at(Stage::Orphaned, 0)(Errno::PIPE)),
        Err(errno) => Err(at(Stage::Orphaned, 0)(errno)),
    }
}
