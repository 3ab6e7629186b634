//! What a child tells its launcher before `execve`: one message at most of each kind, then the end of the socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The steps of a child that can fail, in order. The numbers travel; append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Joining a cgroup.
    Cgroup = 0,
    /// Joining a namespace of the plan.
    Namespace = 1,
    /// Making mounts private.
    Propagation = 2,
    /// Mounting the root.
    Root = 3,
    /// A step of the mount program; the detail is its position.
    Step = 4,
    /// pivot_root.
    Pivot = 5,
    /// Terminal.
    Terminal = 6,
    /// Working directory.
    WorkingDirectory = 7,
    /// Hostname or domain name.
    Hostname = 8,
    /// A kernel parameter; the detail is its position.
    Sysctl = 9,
    /// A limit; the detail is its position.
    Limit = 10,
    /// User, groups, capabilities.
    Credentials = 11,
    /// AppArmor or SELinux.
    Label = 12,
    /// Loading the filter.
    Seccomp = 13,
    /// Waiting at the hold point.
    Hold = 14,
    /// execve: the program is missing or not executable.
    Exec = 15,
    /// The launcher is gone.
    Orphaned = 16,
    /// Handing the root to the program that restores.
    Lend = 17,
    /// Scheduling policy (detail 0), I/O priority (1), NUMA policy (2), execution domain (3).
    Scheduling = 18,
    /// Showing createContainer hooks the host around the root.
    Surroundings = 19,
    /// A createContainer hook; the detail is its position, the rest is read by [`Failure::hook_end`].
    CreateHook = 20,
    /// The same for a startContainer hook.
    StartHook = 21,
}

impl Stage {
    const ALL: [Stage; 22] = [
        Stage::Cgroup,
        Stage::Namespace,
        Stage::Propagation,
        Stage::Root,
        Stage::Step,
        Stage::Pivot,
        Stage::Terminal,
        Stage::WorkingDirectory,
        Stage::Hostname,
        Stage::Sysctl,
        Stage::Limit,
        Stage::Credentials,
        Stage::Label,
        Stage::Seccomp,
        Stage::Hold,
        Stage::Exec,
        Stage::Orphaned,
        Stage::Lend,
        Stage::Scheduling,
        Stage::Surroundings,
        Stage::CreateHook,
        Stage::StartHook,
    ];

    /// The stage of this number.
    pub fn from_number(number: u8) -> Option<Stage> {
        Stage::ALL.get(usize::from(number)).copied()
    }

    /// What was being done, for people.
    pub fn doing(self) -> &'static str {
        match self {
            Stage::Cgroup => "joining its cgroup",
            Stage::Namespace => "joining its namespaces",
            Stage::Propagation => "separating its mounts from the host's",
            Stage::Root => "mounting its root file system",
            Stage::Step => "mounting",
            Stage::Pivot => "entering its root file system",
            Stage::Terminal => "opening its terminal",
            Stage::WorkingDirectory => "entering its working directory",
            Stage::Hostname => "setting its hostname",
            Stage::Sysctl => "setting a kernel parameter",
            Stage::Limit => "setting a resource limit",
            Stage::Credentials => "taking its user, groups and capabilities",
            Stage::Label => "taking its security label",
            Stage::Seccomp => "loading its seccomp filter",
            Stage::Hold => "waiting to be started",
            Stage::Exec => "running the program",
            Stage::Orphaned => "finding its monitor alive",
            Stage::Lend => "handing its root to criu",
            Stage::Surroundings => "showing its hooks the host",
            Stage::CreateHook => "running a createContainer hook",
            Stage::StartHook => "running a startContainer hook",
            Stage::Scheduling => {
                "setting its scheduling policy, I/O priority, NUMA policy or execution domain"
            }
        }
    }
}

/// A step that failed in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub stage: Stage,
    /// Position in the plan's list, where there is one.
    pub detail: u16,
    /// Error number.
    pub errno: i32,
}

/// How a hook ended that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookEnd {
    /// It could not be run: error number.
    NotRun(i32),
    /// It was killed at the end of its time.
    TimedOut,
    /// It was killed because whoever launches has let go.
    Abandoned,
    /// Exit code.
    Code(i32),
    /// Signal.
    Signal(i32),
}

const TIMED_OUT: i32 = -1000;
const ABANDONED: i32 = -1001;

impl HookEnd {
    pub(crate) fn number(self) -> i32 {
        match self {
            HookEnd::NotRun(errno) => errno,
            HookEnd::TimedOut => TIMED_OUT,
            HookEnd::Abandoned => ABANDONED,
            HookEnd::Code(code) => -code,
            HookEnd::Signal(signal) => -256 - signal,
        }
    }

    /// What the error number of a failure at [`Stage::CreateHook`] or [`Stage::StartHook`] means.
    pub fn from_number(number: i32) -> HookEnd {
        match number {
            TIMED_OUT => HookEnd::TimedOut,
            ABANDONED => HookEnd::Abandoned,
            -255..=-1 => HookEnd::Code(-number),
            0.. => HookEnd::NotRun(number),
            _ => HookEnd::Signal(-256 - number),
        }
    }
}

impl std::fmt::Display for HookEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HookEnd::NotRun(errno) => {
                write!(f, "could not be run: {}", io::Error::from_raw_os_error(*errno))
            }
            HookEnd::TimedOut => f.write_str("was killed at the end of its time"),
            HookEnd::Abandoned => f.write_str("was killed with the start that it belonged to"),
            HookEnd::Code(code) => write!(f, "ended with exit code {code}"),
            HookEnd::Signal(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

/// What arrived from a child.
#[derive(Debug)]
pub enum Report {
    /// The program runs.
    Running,
    /// The controlling end of its terminal.
    Console(OwnedFd),
    /// Another process has taken its place: number and process.
    Became(i32, OwnedFd),
    /// Its root is assembled; it waits for the hooks that others run.
    Waiting,
    /// It waits at the hold point of its plan.
    Held,
    /// It will end, for this reason.
    Failed(Failure),
}

const FAILED: u8 = 1;
const CONSOLE: u8 = 2;
const HELD: u8 = 3;
const BECAME: u8 = 4;
const WAITING: u8 = 5;

/// Tells of a failure. There is nobody left to tell if this fails too.
pub(crate) fn send_failure(sync: BorrowedFd<'_>, failure: Failure) {
    let mut bytes = [FAILED, failure.stage as u8, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&failure.detail.to_le_bytes());
    bytes[4..8].copy_from_slice(&failure.errno.to_le_bytes());
    let _ = bowline_linux::message::send(sync, &bytes, &[]);
}

/// Hands over the controlling end of the terminal.
pub(crate) fn send_console(sync: BorrowedFd<'_>, master: BorrowedFd<'_>) -> io::Result<()> {
    bowline_linux::message::send(sync, &[CONSOLE], &[master.as_fd()])
}

/// Tells that everything up to the hold point is done.
pub(crate) fn send_held(sync: BorrowedFd<'_>) -> io::Result<()> {
    bowline_linux::message::send(sync, &[HELD], &[])
}

/// Tells that the root is assembled and the gate is waited at.
pub(crate) fn send_waiting(sync: BorrowedFd<'_>) -> io::Result<()> {
    bowline_linux::message::send(sync, &[WAITING], &[])
}

/// Tells which process goes on in our place.
pub(crate) fn send_became(sync: BorrowedFd<'_>, pid: i32, process: BorrowedFd<'_>) -> io::Result<()> {
    let mut bytes = [BECAME, 0, 0, 0, 0];
    bytes[1..].copy_from_slice(&pid.to_le_bytes());
    bowline_linux::message::send(sync, &bytes, &[process])
}

/// Takes the next report.
pub fn receive(sync: BorrowedFd<'_>) -> io::Result<Report> {
    let mut bytes = [0u8; 8];
    let (len, mut descriptors) = bowline_linux::message::receive(sync, &mut bytes)?;
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "a report that makes no sense");
    match (len, bytes[0]) {
        (0, _) => Ok(Report::Running),
        (1, CONSOLE) => descriptors.pop().map(Report::Console).ok_or_else(strange),
        (1, HELD) => Ok(Report::Held),
        (1, WAITING) => Ok(Report::Waiting),
        (5, BECAME) => {
            let pid = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
            descriptors.pop().map(|process| Report::Became(pid, process)).ok_or_else(strange)
        }
        (8, FAILED) => {
            let stage = Stage::from_number(bytes[1]).ok_or_else(strange)?;
            let detail = u16::from_le_bytes([bytes[2], bytes[3]]);
            let errno = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            Ok(Report::Failed(Failure { stage, detail, errno }))
        }
        _ => Err(strange()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_hooks_travel_as_numbers() {
        let ends = [
            HookEnd::NotRun(2),
            HookEnd::TimedOut,
            HookEnd::Abandoned,
            HookEnd::Code(1),
            HookEnd::Code(255),
            HookEnd::Signal(1),
            HookEnd::Signal(64),
        ];
        for end in ends {
            assert_eq!(HookEnd::from_number(end.number()), end);
        }
    }

    #[test]
    fn stages_are_found_by_their_numbers() {
        for (number, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, number);
        }
    }
}
