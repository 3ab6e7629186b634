//! A connection to the bus: calls, and ends of jobs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use zbus::{
    Connection, DynamicType, MatchRule, Message, MessageStream, ObjectPath, OwnedObjectPath, Variant,
};

use super::{DESTINATION, ENDS, LOOK, MANAGER, PATH, Trouble, Unit, is_unknown, trouble};

/// One connection.
#[derive(Debug)]
pub(super) struct Bus {
    connection: Connection,
    pub(super) jobs: Arc<Jobs>,
    pub(super) gone: watch::Receiver<bool>,
    listener: JoinHandle<()>,
}

impl Drop for Bus {
    fn drop(&mut self) {
        // It holds the connection too.
        self.listener.abort();
    }
}

/// Who waits for ends of jobs, by the unit.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<HashMap<String, mpsc::Sender<End>>>);

/// The job, and how it ended.
pub(super) type End = (OwnedObjectPath, String);

impl Jobs {
    /// From now on ends of this unit's jobs are heard here. The answer to a call may come after its job has ended.
    pub(super) fn of(&self, unit: &str) -> mpsc::Receiver<End> {
        let (send, receive) = mpsc::channel(ENDS);
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, waits| !waits.is_closed());
        waiting.insert(unit.to_owned(), send);
        receive
    }

    fn ended(&self, unit: &str, end: End) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What is lost for want of room is seen by looking at the unit.
        if waiting.get(unit).is_some_and(|waits| waits.try_send(end).is_err() && waits.is_closed()) {
            waiting.remove(unit);
        }
    }

    fn lose(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

pub(super) async fn connect() -> Result<Bus, zbus::Error> {
    let connection = zbus::connection::Builder::system().build().await?;
    // Anybody may send a signal; the bus looks whose it is.
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender(DESTINATION)
        .interface(MANAGER)
        .member("JobRemoved")
        .build()?;
    let signals = MessageStream::for_match_rule(rule, &connection, None).await?;
    // Else it sends none.
    connection.call_method(Some(DESTINATION), PATH, Some(MANAGER), "Subscribe", &()).await?;
    let jobs = Arc::new(Jobs::default());
    let (end, gone) = watch::channel(false);
    let listener = tokio::spawn(hear(signals, jobs.clone(), end));
    Ok(Bus { connection, jobs, gone, listener })
}

async fn hear(mut signals: MessageStream, jobs: Arc<Jobs>, end: watch::Sender<bool>) {
    while let Some(Ok(signal)) = signals.next().await {
        let body = signal.body();
        // Number and path of the job, its unit, how it ended.
        match body.deserialize::<(u32, ObjectPath<'_>, &str, &str)>() {
            Ok((_, job, unit, result)) => jobs.ended(unit, (job.into(), result.to_owned())),
            Err(error) => tracing::warn!(%error, "systemd's JobRemoved makes no sense"),
        }
    }
    end.send_replace(true);
    jobs.lose();
}

/// systemd.directives(7) has no such list: these are the columns of ListUnitsBy.. (org.freedesktop.systemd1(5)).
type Row = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

impl Bus {
    pub(super) async fn call<B>(&self, method: &str, body: &B) -> Result<Message, zbus::Error>
    where
        B: zbus::export::serde::Serialize + DynamicType,
    {
        self.connection.call_method(Some(DESTINATION), PATH, Some(MANAGER), method, body).await
    }

    /// How the job of an answer ended; `None`: nothing was heard for a while.
    pub(super) async fn end_of(
        &self,
        ends: &mut mpsc::Receiver<End>,
        answer: &Message,
    ) -> Result<Option<String>, Trouble> {
        let body = answer.body();
        let job: ObjectPath<'_> = body
            .deserialize()
            .map_err(|error| Trouble::Passing(format!("an answer without a job: {error}")))?;
        let look = Instant::now() + LOOK;
        loop {
            match timeout_at(look, ends.recv()).await {
                Ok(Some((ended, result))) if *ended == job => return Ok(Some(result)),
                Ok(Some(_)) => {}
                Ok(None) => return Err(Trouble::Passing("the connection was closed".to_owned())),
                Err(_) => return Ok(None),
            }
        }
    }

    pub(super) async fn list<B>(&self, method: &'static str, body: &B) -> Result<Vec<Unit>, Trouble>
    where
        B: zbus::export::serde::Serialize + DynamicType,
    {
        let answer = self.call(method, body).await.map_err(|error| trouble("list", "its units", error))?;
        let rows: Vec<Row> =
            answer.body().deserialize().map_err(|error| trouble("list", "its units", error))?;
        let unit = |row: Row| Unit { name: row.0, description: row.1, state: row.3, path: row.6 };
        Ok(rows.into_iter().map(unit).collect())
    }

    pub(super) async fn property(
        &self,
        path: &OwnedObjectPath,
        which: &(&str, &str),
    ) -> Result<String, zbus::Error> {
        const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
        let answer = self.connection.call_method(Some(DESTINATION), path, Some(PROPERTIES), "Get", which);
        let answer = answer.await?;
        let body = answer.body();
        String::try_from(body.deserialize::<Variant<'_>>()?)
    }

    /// Whether a unit is active, or about to be or not to be.
    pub(super) async fn is_up(&self, unit: &str) -> Result<bool, Trouble> {
        let units = self.list("ListUnitsByNames", &(vec![unit],)).await?;
        Ok(units.iter().any(|unit| !matches!(unit.state.as_str(), "inactive" | "failed")))
    }

    pub(super) async fn reset_failed(&self, unit: &str) -> Result<(), Trouble> {
        match self.call("ResetFailedUnit", &(unit,)).await {
            Err(error) if !is_unknown(&error) => Err(trouble("reset", unit, error)),
            _ => Ok(()),
        }
    }
}
