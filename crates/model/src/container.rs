//! The life of a container, as pure transitions.
//!
//! ```text
//!   Created --Start--> Starting --Started--> Running --Ended--> Exited
//!      |                  |                     |                  ^
//!      |                  +--StartFailed--------|------------------+
//!      |                                        +--Stop--> Stopping+
//!      +--(removal; nothing ever ran)
//! ```

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exit {
    /// Exit code, or 128 and the number of the signal.
    pub code: i32,
    /// The kernel killed one of its processes for want of memory.
    pub oom: bool,
    /// When, nanoseconds since the epoch.
    pub finished_at: i64,
    /// What to say instead of what the code says: `StartError`, `MonitorLost`, ...
    pub reason: Option<&'static str>,
    /// More for people.
    pub message: String,
}

impl Exit {
    /// The reason that CRI reports. The kubelet acts on `OOMKilled`, letter by letter.
    pub fn reason(&self) -> &'static str {
        match self.reason {
            Some(reason) => reason,
            None if self.oom && self.code == 137 => "OOMKilled",
            None if self.code == 0 => "Completed",
            None => "Error",
        }
    }
}

/// Where a container is in its life, with the facts that hold only there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Nothing runs yet.
    Created,
    /// The launch is under way. A stop that came meanwhile is remembered.
    Starting {
        /// Kill it by then, once it runs; nanoseconds since the epoch.
        stop_by: Option<i64>,
    },
    /// The program runs.
    Running {
        /// Its process, in the host's numbering.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It was asked to end.
    Stopping {
        /// Its process.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
        /// When patience ends, nanoseconds since the epoch.
        kill_at: i64,
        /// It did: everything was killed.
        killed: bool,
    },
    /// It ended.
    Exited {
        /// Nanoseconds since the epoch; 0: it never ran.
        started_at: i64,
        /// How.
        exit: Exit,
    },
}

/// What can happen to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it to run.
    Start,
    /// The program runs.
    Started {
        /// Its process.
        pid: i32,
        /// Nanoseconds since the epoch.
        at: i64,
    },
    /// It does not.
    StartFailed {
        /// Why, as an end.
        exit: Exit,
    },
    /// Somebody wants it to end.
    Stop {
        /// When patience ends, nanoseconds since the epoch.
        kill_at: i64,
    },
    /// Time has passed.
    Tick {
        /// Nanoseconds since the epoch.
        now: i64,
    },
    /// It ended.
    Ended {
        /// When it had started, nanoseconds since the epoch: its start may not have been heard of yet.
        started_at: i64,
        /// How.
        exit: Exit,
    },
}

/// What to do about it, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the record: a crash after what follows must find the decision on disk.
    Record,
    /// Have the monitor launch it.
    Launch,
    /// Send the stop signal.
    Signal,
    /// Kill everything in it.
    Kill,
    /// Come back with a [`Event::Tick`].
    WakeAt(i64),
}

/// An event that makes no sense in a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The state, as CRI names it.
    pub state: &'static str,
}

impl Life {
    /// The name of the state, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Life::Created => "created",
            Life::Starting { .. } => "starting",
            Life::Running { .. } => "running",
            Life::Stopping { .. } => "stopping",
            Life::Exited { .. } => "exited",
        }
    }

    /// Whether a process may exist.
    pub fn is_live(&self) -> bool {
        matches!(self, Life::Starting { .. } | Life::Running { .. } | Life::Stopping { .. })
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<i32> {
        match self {
            Life::Running { pid, .. } | Life::Stopping { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// The one place where a life moves on. The actor performs the effects, in order, and feeds what came of them
    /// back in as events.
    pub fn on(&self, event: Event) -> Result<(Life, Vec<Effect>), Refused> {
        use Effect::{Kill, Launch, Record, Signal, WakeAt};
        match (self.clone(), event) {
            (Life::Created, Event::Start) => Ok((Life::Starting { stop_by: None }, vec![Record, Launch])),
            (Life::Starting { stop_by: None }, Event::Started { pid, at }) => {
                Ok((Life::Running { pid, started_at: at }, vec![Record]))
            }
            (Life::Starting { stop_by: Some(kill_at) }, Event::Started { pid, at }) => {
                let life = Life::Stopping { pid, started_at: at, kill_at, killed: false };
                Ok((life, vec![Record, Signal, WakeAt(kill_at)]))
            }
            (Life::Starting { .. }, Event::StartFailed { exit }) => {
                Ok((Life::Exited { started_at: 0, exit }, vec![Record]))
            }
            (Life::Starting { stop_by }, Event::Stop { kill_at }) => {
                let stop_by = Some(stop_by.map_or(kill_at, |earlier| earlier.min(kill_at)));
                Ok((Life::Starting { stop_by }, vec![]))
            }
            (Life::Running { pid, started_at }, Event::Stop { kill_at }) => {
                let life = Life::Stopping { pid, started_at, kill_at, killed: false };
                Ok((life, vec![Signal, WakeAt(kill_at)]))
            }
            // Asked again while stopping: the earlier deadline wins.
            (Life::Stopping { pid, started_at, kill_at, killed }, Event::Stop { kill_at: asked }) => {
                let kill_at = kill_at.min(asked);
                Ok((Life::Stopping { pid, started_at, kill_at, killed }, vec![WakeAt(kill_at)]))
            }
            (Life::Stopping { pid, started_at, kill_at, killed: false }, Event::Tick { now })
                if now >= kill_at =>
            {
                Ok((Life::Stopping { pid, started_at, kill_at, killed: true }, vec![Kill]))
            }
            (
                Life::Running { started_at, .. } | Life::Stopping { started_at, .. },
                Event::Ended { exit, .. },
            ) => Ok((Life::Exited { started_at, exit }, vec![Record])),
            // The daemon may hear of the end before it hears of the start.
            (Life::Starting { .. }, Event::Ended { started_at, exit }) => {
                Ok((Life::Exited { started_at, exit }, vec![Record]))
            }
            // The kubelet stops containers that are already gone, or never ran; CRI wants a yes.
            (life @ (Life::Exited { .. } | Life::Created), Event::Stop { .. }) => Ok((life, vec![])),
            (life, Event::Tick { .. }) => Ok((life, vec![])),
            // A late or repeated report changes nothing.
            (
                life @ Life::Exited { .. },
                Event::Ended { .. } | Event::Started { .. } | Event::StartFailed { .. },
            ) => Ok((life, vec![])),
            (life @ (Life::Running { .. } | Life::Stopping { .. }), Event::Started { .. }) => {
                Ok((life, vec![]))
            }
            (life, _) => Err(Refused { state: life.name() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives() -> Vec<Life> {
        vec![
            Life::Created,
            Life::Starting { stop_by: None },
            Life::Starting { stop_by: Some(50) },
            Life::Running { pid: 7, started_at: 1 },
            Life::Stopping { pid: 7, started_at: 1, kill_at: 50, killed: false },
            Life::Stopping { pid: 7, started_at: 1, kill_at: 50, killed: true },
            Life::Exited { started_at: 1, exit: Exit::default() },
        ]
    }

    fn events() -> Vec<Event> {
        let exit = || Exit { code: 3, finished_at: 9, ..Exit::default() };
        vec![
            Event::Start,
            Event::Started { pid: 7, at: 1 },
            Event::StartFailed { exit: exit() },
            Event::Stop { kill_at: 10 },
            Event::Stop { kill_at: 90 },
            Event::Tick { now: 49 },
            Event::Tick { now: 60 },
            Event::Ended { started_at: 2, exit: exit() },
        ]
    }

    /// Every (state, event) pair: a change of policy shows as a change of this table.
    #[test]
    fn the_whole_table() {
        let mut table = String::new();
        for life in lives() {
            for event in events() {
                let short = |life: &Life| match life {
                    Life::Starting { stop_by } => format!("starting(stop by {stop_by:?})"),
                    Life::Stopping { kill_at, killed, .. } => format!("stopping({kill_at}, killed {killed})"),
                    Life::Exited { started_at, exit } => format!("exited({started_at}, {})", exit.code),
                    other => other.name().to_owned(),
                };
                let name = format!("{event:?}");
                let name = name.split(" exit").next().unwrap();
                let outcome = match life.on(event) {
                    Ok((next, effects)) => format!("{} {effects:?}", short(&next)),
                    Err(refused) => format!("refused while {}", refused.state),
                };
                table.push_str(&format!("{} + {name} => {outcome}\n", short(&life)));
            }
        }
        let golden = include_str!("container_life.txt");
        assert_eq!(
            table, golden,
            "the policy changed; if that is meant, update container_life.txt:\n{table}"
        );
    }

    #[test]
    fn nothing_leaves_exited() {
        let exited = Life::Exited { started_at: 1, exit: Exit::default() };
        for event in events() {
            if let Ok((next, _)) = exited.on(event) {
                assert_eq!(next, exited);
            }
        }
    }

    #[test]
    fn reasons_are_what_the_kubelet_reads() {
        let exit = |code, oom| Exit { code, oom, ..Exit::default() };
        assert_eq!(exit(0, false).reason(), "Completed");
        assert_eq!(exit(1, false).reason(), "Error");
        assert_eq!(exit(137, true).reason(), "OOMKilled");
        assert_eq!(exit(0, true).reason(), "Completed");
        assert_eq!(Exit { reason: Some("StartError"), ..exit(128, false) }.reason(), "StartError");
    }
}
