//! What is under way: every operation with its stages, for whoever asks why something takes long.
//!
//! An operation is entered when it begins and leaves when it ends, however it ends; a stage likewise. Stages may run side
//! by side. Entering costs a lock that is held for a moment. What operations and stages took is added up for metrics.
//!
//! Each is a span as well, under [`SPANS`], below the span of whoever began it; without somebody who collects spans that
//! costs nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Span;

/// Upper bounds of the ranges that durations are counted in, milliseconds. Above the last one is one more range.
pub const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 250, 500, 1000, 5000, 30_000];

/// The target of spans that are collected for traces, and never shown in the log.
pub const SPANS: &str = "bowline::spans";

tokio::task_local! {
    static CURRENT: Arc<Guard>;
}

/// An operation under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Counts operations of this daemon.
    pub number: u64,
    /// What it is, by the name of the call.
    pub kind: &'static str,
    /// The id of what it is done to.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// How long it has been going on.
    pub age: Duration,
    /// What it is at, and for how long.
    pub stages: Vec<(&'static str, Duration)>,
}

/// How long operations of a kind, or their stages, took.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timing {
    /// How many there were in each range of [`BOUNDS_MS`], and above.
    pub counts: [u64; BOUNDS_MS.len() + 1],
    /// What they took together.
    pub total: Duration,
}

impl Timing {
    /// Counts one that took so long.
    pub fn add(&mut self, took: Duration) {
        let millis = took.as_secs_f64() * 1000.0;
        let range = BOUNDS_MS.iter().position(|bound| millis <= *bound as f64).unwrap_or(BOUNDS_MS.len());
        if let Some(count) = self.counts.get_mut(range) {
            *count += 1;
        }
        self.total += took;
    }
}

/// All operations of this daemon. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Operations(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    last: u64,
    running: BTreeMap<u64, Running>,
    /// By kind and stage; the empty stage is the whole operation.
    timings: BTreeMap<(&'static str, &'static str), Timing>,
}

struct Running {
    kind: &'static str,
    id: String,
    name: String,
    since: Instant,
    stages: Vec<(u64, &'static str, Instant)>,
}

impl Operations {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters an operation; it leaves when the guard goes.
    pub fn begin(&self, kind: &'static str, id: &dyn ToString, name: &str) -> Guard {
        let running = Running {
            kind,
            id: id.to_string(),
            name: name.to_owned(),
            since: Instant::now(),
            stages: Vec::new(),
        };
        let span = tracing::info_span!(target: SPANS, "operation", otel.name = kind, id = %running.id, name);
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.running.insert(number, running);
        Guard { operations: self.clone(), number, span }
    }

    /// Does something as an operation; [`stage`] in it means this one.
    pub fn run<T>(
        &self,
        kind: &'static str,
        id: &dyn ToString,
        name: &str,
        work: impl Future<Output = T>,
    ) -> impl Future<Output = T> {
        CURRENT.scope(Arc::new(self.begin(kind, id, name)), work)
    }

    /// Those under way, the oldest first.
    pub fn list(&self) -> Vec<Operation> {
        let now = Instant::now();
        let of = |(number, running): (&u64, &Running)| Operation {
            number: *number,
            kind: running.kind,
            id: running.id.clone(),
            name: running.name.clone(),
            age: now - running.since,
            stages: running.stages.iter().map(|(_, stage, since)| (*stage, now - *since)).collect(),
        };
        self.state().running.iter().map(of).collect()
    }

    /// What they took so far, by kind and stage; the empty stage is the whole operation.
    pub fn timings(&self) -> Vec<(&'static str, &'static str, Timing)> {
        let state = self.state();
        state.timings.iter().map(|((kind, stage), timing)| (*kind, *stage, timing.clone())).collect()
    }
}

/// An operation that was entered.
pub(crate) struct Guard {
    operations: Operations,
    number: u64,
    span: Span,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.operations.state();
        if let Some(running) = state.running.remove(&self.number) {
            state.timings.entry((running.kind, "")).or_default().add(running.since.elapsed());
        }
    }
}

/// A stage that was entered.
pub(crate) struct Stage(Option<(Arc<Guard>, u64, Span)>);

/// Enters a stage of the operation that this task runs as; without one it does nothing. It ends when what is returned
/// goes.
pub(crate) fn stage(name: &'static str) -> Stage {
    let Ok(guard) = CURRENT.try_with(Arc::clone) else { return Stage(None) };
    let span = tracing::info_span!(target: SPANS, parent: &guard.span, "stage", otel.name = name);
    let mut state = guard.operations.state();
    state.last += 1;
    let number = state.last;
    if let Some(running) = state.running.get_mut(&guard.number) {
        running.stages.push((number, name, Instant::now()));
    }
    drop(state);
    Stage(Some((guard, number, span)))
}

impl Drop for Stage {
    fn drop(&mut self) {
        let Some((guard, number, _)) = &self.0 else { return };
        let mut state = guard.operations.state();
        let Some(running) = state.running.get_mut(&guard.number) else { return };
        let Some(at) = running.stages.iter().position(|(known, _, _)| known == number) else { return };
        let (_, name, since) = running.stages.remove(at);
        let kind = running.kind;
        state.timings.entry((kind, name)).or_default().add(since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stages_come_and_go_with_their_operation() {
        let operations = Operations::default();
        let inside = operations.clone();
        let _outside = stage("of nothing");
        let work = async move {
            let one = stage("one");
            let _two = stage("two");
            let seen: Vec<_> = inside.list()[0].stages.iter().map(|(name, _)| *name).collect();
            assert_eq!(seen, ["one", "two"]);
            drop(one);
            assert_eq!(inside.list()[0].stages.len(), 1);
        };
        operations.run("Start", &"id", "name", work).await;
        assert_eq!(operations.list(), []);
        let told: Vec<_> = operations.timings().into_iter().map(|(kind, stage, _)| (kind, stage)).collect();
        assert_eq!(told, [("Start", ""), ("Start", "one"), ("Start", "two")]);
        assert_eq!(operations.timings()[0].2.counts.iter().sum::<u64>(), 1);
    }

    #[test]
    fn durations_are_counted_in_ranges() {
        let mut timing = Timing::default();
        for millis in [1, 2, 3, 40_000] {
            timing.add(Duration::from_millis(millis));
        }
        assert_eq!((timing.counts[0], timing.counts[1], timing.counts[2]), (1, 1, 1));
        assert_eq!(timing.counts[BOUNDS_MS.len()], 1);
    }
}
