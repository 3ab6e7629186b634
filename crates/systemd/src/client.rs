//! The calls to systemd.
//!
//! ```text
//!   start_scope, stop --> a connection, made when it is needed --> StartTransientUnit, StopUnit --> path of a job
//!        ^                        |
//!        +---- by unit name ------+-- a task that hears JobRemoved
//! ```
//!
//! The connection goes to the system bus, and is closed when nobody has needed it for a while: while somebody listens,
//! systemd tells the bus of every change of every unit. systemd's own socket would need no bus, but what it
//! sends there has a sender that zbus (6.2) refuses: its name, where the specification wants that of a connection.
//!
//! A call whose connection is lost may or may not have been heard, so each is one that may be repeated: starting a scope
//! that is active already is success, and so is stopping one that is gone. A signal may be lost too: the state of the
//! unit is looked at every second besides.

mod bus;

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use zbus::{OwnedObjectPath, Variant, fdo};

use self::bus::{Bus, connect};

/// Where the system bus listens.
const BUS: &str = "/run/dbus/system_bus_socket";
/// There while systemd is the machine's init (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
const DESTINATION: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const SCOPE: &str = "org.freedesktop.systemd1.Scope";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// How long one thing may take altogether. A busy systemd has been seen to need 3 to 5 seconds for a scope.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries while systemd is away: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Between two looks at a unit whose job has not been said to have ended.
const LOOK: Duration = Duration::from_secs(1);
/// A connection that nobody has used for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// Ends of jobs of one unit that wait to be heard; one thing is done to a unit at a time.
const ENDS: usize = 8;

/// Whether systemd is this machine's init.
pub fn booted() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Whether scopes can be asked for on this machine; if not, why.
pub fn available() -> Result<(), &'static str> {
    if !booted() {
        return Err("systemd is not this machine's init (there is no /run/systemd/system)");
    }
    match Path::new(BUS).exists() {
        true => Ok(()),
        false => Err("there is no D-Bus system bus (no /run/dbus/system_bus_socket)"),
    }
}

/// Why systemd did not do something.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// It said no.
    #[error("systemd does not {doing} {unit}")]
    Refused {
        /// What was asked for.
        doing: &'static str,
        /// Of which unit.
        unit: String,
        /// What it said.
        source: Box<zbus::Error>,
    },
    /// It tried.
    #[error("systemd could not {doing} {unit}: its job ended as `{result}`; see `systemctl status {unit}`")]
    Failed {
        /// What was asked for.
        doing: &'static str,
        /// Of which unit.
        unit: String,
        /// How the job ended, in systemd's words.
        result: String,
    },
    /// It did not answer in time.
    #[error("systemd did not {doing} {unit} within {} s{}", PATIENCE.as_secs(), said(last))]
    Late {
        /// What was asked for.
        doing: &'static str,
        /// Of which unit.
        unit: String,
        /// What was heard last, if anything.
        last: Option<String>,
    },
    /// There is none.
    #[error("could not {doing} {unit}: systemd is not this machine's init (there is no {BOOTED})")]
    Absent {
        /// What was asked for.
        doing: &'static str,
        /// Of which unit.
        unit: String,
    },
}

fn said(last: &Option<String>) -> String {
    last.as_ref().map(|last| format!("; the last that was heard: {last}")).unwrap_or_default()
}

/// A scope to be made.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    /// Its name, with `.scope` at its end.
    pub name: &'a str,
    /// The slice's name.
    pub slice: &'a str,
    /// For people, and for whoever looks for scopes of theirs.
    pub description: &'a str,
    /// The process that it begins with.
    pub pid: u32,
}

/// A unit as systemd lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// What was given as its description.
    pub description: String,
    /// `active`, `inactive`, `failed`, ..
    pub state: String,
    /// Its object.
    path: OwnedObjectPath,
}

/// systemd. Cheap; connects when something is asked of it.
#[derive(Debug, Default)]
pub struct Systemd(Arc<Kept>);

/// The connection while it is there.
#[derive(Debug, Default)]
struct Kept(tokio::sync::Mutex<Option<(Arc<Bus>, Instant)>>);

/// What an attempt came to.
enum Trouble {
    /// systemd was away: to be tried again.
    Passing(String),
    /// It is not going to work.
    Final(SystemdError),
}

impl Systemd {
    /// Makes a scope with a process in it, delegated, and waits until it is there: the process is in its cgroup then.
    /// One of this name that is active already is taken for the one that was asked for, so names must be unique.
    pub async fn start_scope(&self, scope: &Scope<'_>) -> Result<(), SystemdError> {
        let mut tries = Tries::new("start", scope.name)?;
        loop {
            let outcome = timeout_at(tries.deadline, self.try_start(scope, tries.number)).await;
            if let Some(done) = tries.settle(outcome).await {
                return done;
            }
        }
    }

    /// Stops a unit and forgets that it ever failed. One that is unknown is fine. Whatever is in it gets SIGTERM, and is
    /// waited for: kill it before.
    pub async fn stop(&self, unit: &str) -> Result<(), SystemdError> {
        self.stop_by(unit, "replace").await
    }

    /// Forgets a slice that has nothing in it any more. What begins in it at this moment goes on.
    pub async fn stop_slice(&self, slice: &str) -> Result<(), SystemdError> {
        self.stop_by(slice, "ignore-dependencies").await
    }

    async fn stop_by(&self, unit: &str, mode: &str) -> Result<(), SystemdError> {
        let mut tries = Tries::new("stop", unit)?;
        loop {
            let outcome = timeout_at(tries.deadline, self.try_stop(unit, mode)).await;
            if let Some(done) = tries.settle(outcome).await {
                return done;
            }
        }
    }

    /// All units whose names match, such as `bowline-*.scope`.
    pub async fn units(&self, pattern: &str) -> Result<Vec<Unit>, SystemdError> {
        let mut tries = Tries::new("list", pattern)?;
        loop {
            let list = async {
                let bus = self.bus().await?;
                bus.list("ListUnitsByPatterns", &(Vec::<&str>::new(), vec![pattern])).await
            };
            let outcome = timeout_at(tries.deadline, list).await;
            if let Some(done) = tries.settle(outcome).await {
                return done;
            }
        }
    }

    /// Where a scope's cgroup is, with a slash before it; empty if it has none (any more).
    pub async fn cgroup(&self, scope: &Unit) -> Result<String, SystemdError> {
        let mut tries = Tries::new("tell the cgroup of", &scope.name)?;
        loop {
            let ask = async {
                let bus = self.bus().await?;
                let body = (SCOPE, "ControlGroup");
                let answer = bus.property(&scope.path, &body).await;
                answer.map_err(|error| trouble("tell the cgroup of", &scope.name, error))
            };
            match timeout_at(tries.deadline, ask).await {
                // Gone since it was listed.
                Ok(Err(Trouble::Final(_))) => return Ok(String::new()),
                outcome => {
                    if let Some(done) = tries.settle(outcome).await {
                        return done;
                    }
                }
            }
        }
    }

    async fn try_start(&self, scope: &Scope<'_>, number: u32) -> Result<(), Trouble> {
        let bus = self.bus().await?;
        if number > 0 && bus.is_up(scope.name).await? {
            return Ok(());
        }
        let mut ends = bus.jobs.of(scope.name);
        let properties = vec![
            ("Description", Variant::from(scope.description)),
            ("Slice", Variant::from(scope.slice)),
            ("PIDs", Variant::from(vec![scope.pid])),
            ("Delegate", Variant::from(true)),
            // Otherwise it would be stopped at the beginning of a shutdown, before whoever drains the node.
            ("DefaultDependencies", Variant::from(false)),
            ("CollectMode", Variant::from("inactive-or-failed")),
            ("TasksMax", Variant::from(u64::MAX)),
        ];
        let nothing: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let answer = bus.call("StartTransientUnit", &(scope.name, "fail", properties, nothing)).await;
        let answer = match answer {
            Err(error) if is(&error, "org.freedesktop.systemd1.UnitExists") => {
                if bus.is_up(scope.name).await? {
                    return Ok(());
                }
                bus.reset_failed(scope.name).await?;
                return Err(Trouble::Passing("a dead unit of this name is still there".to_owned()));
            }
            other => other.map_err(|error| trouble("start", scope.name, error))?,
        };
        loop {
            match bus.end_of(&mut ends, &answer).await? {
                Some(result) if result == "done" => return Ok(()),
                Some(result) => {
                    let failed = SystemdError::Failed { doing: "start", unit: scope.name.to_owned(), result };
                    return Err(Trouble::Final(failed));
                }
                None if bus.is_up(scope.name).await? => return Ok(()),
                None => {}
            }
        }
    }

    async fn try_stop(&self, unit: &str, mode: &str) -> Result<(), Trouble> {
        let bus = self.bus().await?;
        let mut ends = bus.jobs.of(unit);
        let answer = match bus.call("StopUnit", &(unit, mode)).await {
            Err(error) if is_unknown(&error) => return Ok(()),
            other => other.map_err(|error| trouble("stop", unit, error))?,
        };
        // How the job ended does not matter: what it was to end is looked at.
        while bus.end_of(&mut ends, &answer).await?.is_none() && bus.is_up(unit).await? {}
        bus.reset_failed(unit).await?;
        match bus.is_up(unit).await? {
            false => Ok(()),
            true => Err(Trouble::Passing("it is still there".to_owned())),
        }
    }

    async fn bus(&self) -> Result<Arc<Bus>, Trouble> {
        let mut kept = self.0.0.lock().await;
        if let Some((bus, used)) = kept.as_mut()
            && !*bus.gone.borrow()
        {
            *used = Instant::now();
            return Ok(bus.clone());
        }
        *kept = None;
        let bus = connect().await.map_err(|error| Trouble::Passing(error.to_string()))?;
        let bus = Arc::new(bus);
        *kept = Some((bus.clone(), Instant::now()));
        tokio::spawn(close_when_idle(Arc::downgrade(&self.0)));
        Ok(bus)
    }
}

/// Ends with the connection that it was started for, or with what it was kept in.
async fn close_when_idle(kept: Weak<Kept>) {
    loop {
        sleep(IDLE).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut kept = kept.0.lock().await;
        let idle = |(bus, used): &(Arc<Bus>, Instant)| {
            *bus.gone.borrow() || (Arc::strong_count(bus) == 1 && used.elapsed() >= IDLE)
        };
        if kept.as_ref().is_none_or(idle) {
            *kept = None;
            return;
        }
    }
}

/// The time of one operation.
struct Tries<'a> {
    doing: &'static str,
    unit: &'a str,
    deadline: Instant,
    number: u32,
    pause: Duration,
    last: Option<String>,
}

impl<'a> Tries<'a> {
    fn new(doing: &'static str, unit: &'a str) -> Result<Tries<'a>, SystemdError> {
        if !booted() {
            return Err(SystemdError::Absent { doing, unit: unit.to_owned() });
        }
        Ok(Tries { doing, unit, deadline: Instant::now() + PATIENCE, number: 0, pause: PAUSES.0, last: None })
    }

    /// The result, if there is one; else waits for the moment to try again.
    async fn settle<T>(
        &mut self,
        outcome: Result<Result<T, Trouble>, tokio::time::error::Elapsed>,
    ) -> Option<Result<T, SystemdError>> {
        match outcome {
            Ok(Ok(done)) => return Some(Ok(done)),
            Ok(Err(Trouble::Final(error))) => return Some(Err(error)),
            Ok(Err(Trouble::Passing(error))) => {
                tracing::debug!(error, doing = self.doing, unit = self.unit, "systemd is away; trying again");
                self.last = Some(error);
            }
            Err(_) => return Some(Err(self.late())),
        }
        let again = Instant::now() + self.pause;
        if again >= self.deadline {
            return Some(Err(self.late()));
        }
        tokio::time::sleep_until(again).await;
        self.number += 1;
        self.pause = (self.pause * 2).min(PAUSES.1);
        None
    }

    fn late(&mut self) -> SystemdError {
        SystemdError::Late { doing: self.doing, unit: self.unit.to_owned(), last: self.last.take() }
    }
}

fn is(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(found, ..) if found.as_str() == name)
}

fn is_unknown(error: &zbus::Error) -> bool {
    is(error, "org.freedesktop.systemd1.NoSuchUnit")
}

/// Errors of the connection, and those that a bus or a systemd gives that is going down or coming up.
fn trouble(doing: &'static str, unit: &str, error: zbus::Error) -> Trouble {
    let passing = match &error {
        zbus::Error::InputOutput(_) | zbus::Error::Connection(..) | zbus::Error::Handshake(_) => true,
        zbus::Error::FDO(error) => matches!(
            **error,
            fdo::Error::Disconnected(_)
                | fdo::Error::NoReply(_)
                | fdo::Error::NameHasNoOwner(_)
                | fdo::Error::ServiceUnknown(_)
                | fdo::Error::NoServer(_)
                | fdo::Error::Timeout(_)
                | fdo::Error::TimedOut(_)
                // A bus that tries to start what is away.
                | fdo::Error::SpawnChildExited(_)
                | fdo::Error::SpawnFailed(_)
        ),
        // What sd-bus makes of an errno.
        zbus::Error::MethodError(name, ..) => {
            ["ECONNRESET", "ENOTCONN", "EPIPE", "ESHUTDOWN", "ECONNREFUSED"]
                .iter()
                .any(|errno| name.as_str().strip_prefix("System.Error.") == Some(errno))
        }
        _ => false,
    };
    match passing {
        true => Trouble::Passing(error.to_string()),
        false => {
            let source = Box::new(error);
            Trouble::Final(SystemdError::Refused { doing, unit: unit.to_owned(), source })
        }
    }
}
