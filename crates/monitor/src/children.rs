//! Containers and execs: the monitor's children and what is known of each.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use bowline_monitor_proto::{ContainerState, Exit, Id};

use crate::peers::PeerId;

/// The most containers of a pod at once, those that have ended included.
pub const MAX_CONTAINERS: usize = 512;
/// The most execs at once in a pod.
pub const MAX_EXECS: usize = 512;

/// Who waits for the result of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    /// The connection.
    pub peer: PeerId,
    /// The operation.
    pub operation: u64,
}

/// Where a container is.
#[derive(Debug)]
pub enum Life {
    /// The child is on its way to exec.
    Launching {
        /// Its reports.
        sync: OwnedFd,
        /// Everybody who asked for it.
        waiting: Vec<Waiting>,
        /// It is held, or on its way there.
        gate: Option<Gate>,
    },
    /// criu runs, and makes its processes; the container's process is criu until then.
    Restoring {
        /// Who asked for it.
        peer: PeerId,
    },
    /// The program runs.
    Running,
    /// It ended; the log thread reads what is left.
    Draining {
        /// How it ended.
        exit: Exit,
    },
    /// It ended and its log is complete.
    Exited {
        /// How it ended.
        exit: Exit,
    },
}

/// What holds a container before its program.
#[derive(Debug)]
pub struct Gate {
    /// A byte written here lets it go on.
    pub end: OwnedFd,
    /// Who asked for it, until it waits there.
    pub asker: Option<Waiting>,
    /// A folder that hinders a second mount of its overlay.
    pub marked: Option<CString>,
}

/// A container.
pub struct Container {
    /// Which.
    pub id: Id,
    /// Its slot.
    pub slot: u16,
    /// Its process.
    pub pid: i32,
    /// The process itself.
    pub pidfd: OwnedFd,
    /// Where it is.
    pub life: Life,
    /// When it started, nanoseconds since the epoch; 0 until it runs.
    pub started_at: i64,
    /// Its cgroups: hierarchy and path.
    pub cgroups: Vec<(u8, CString)>,
    /// Log file until a terminal appears to be logged.
    pub log: Option<OwnedFd>,
    /// Our end of its standard input, kept so that it does not end.
    pub stdin: Option<OwnedFd>,
    /// The attachment that has its standard input to itself, and with which that ends.
    pub input_of: Option<crate::attach::Number>,
    /// Our end of its terminal, for its size.
    pub terminal: Option<OwnedFd>,
    /// criu brings it back: the numbers under which that has its standard streams.
    pub restored_with: Option<[i32; 3]>,
    /// The cgroup v2 folder of hooks that the daemon runs for it, until its program runs.
    pub hooks: Option<CString>,
    /// criu has brought it back, and the daemon on this connection has not looked at it yet. It ends with that connection:
    /// criu lets it go whether anybody looks or not.
    pub unseen: Option<PeerId>,
}

/// Who waits for an attachment.
pub struct Attaching {
    /// Its number.
    pub number: crate::attach::Number,
    /// In which container.
    pub container: Id,
    /// It wants the input.
    pub stdin: bool,
    /// Who asked.
    pub waiting: Waiting,
}

impl Container {
    /// How it ended, once that may be told.
    pub fn told_exit(&self) -> Option<Exit> {
        match self.life {
            Life::Exited { exit } => Some(exit),
            _ => None,
        }
    }

    /// Whether its program may run.
    pub fn is_live(&self) -> bool {
        matches!(self.life, Life::Launching { .. } | Life::Restoring { .. } | Life::Running)
    }

    /// Whether it waits for its start, or is on its way to do so.
    pub fn is_held(&self) -> bool {
        matches!(self.life, Life::Launching { gate: Some(_), .. })
    }

    /// What a daemon hears of it.
    pub fn state(&self) -> ContainerState {
        ContainerState {
            container: self.id,
            slot: self.slot,
            pid: self.pid,
            started_at: self.started_at,
            exit: self.told_exit(),
        }
    }

    /// Its path in a hierarchy.
    pub fn cgroup(&self, hierarchy: Option<u8>) -> Option<&CString> {
        self.cgroups.iter().find(|(index, _)| Some(*index) == hierarchy).map(|(_, path)| path)
    }
}

/// A process that runs in a container beside its main one.
pub struct Exec {
    /// The operation that started it, which names it.
    pub operation: u64,
    /// The connection that started it.
    pub peer: PeerId,
    /// In which container.
    pub container: Id,
    /// Its process.
    pub pid: i32,
    /// The process itself.
    pub pidfd: OwnedFd,
    /// Its reports, until it runs.
    pub sync: Option<OwnedFd>,
    /// The end of its terminal that the daemon gets.
    pub terminal: Option<OwnedFd>,
}
