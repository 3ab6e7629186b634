//! Pulls under way: equal ones are one, and one lives as long as somebody waits for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::digest::ImageId;
use crate::error::PullError;
use crate::images::Inner;
use crate::reference::Reference;
use crate::registry::Auth;

type Outcome = Option<Result<ImageId, PullError>>;
type Key = (Reference, Option<Auth>);

/// How far a running pull is.
#[derive(Clone, Debug)]
pub struct PullProgress {
    /// What is being pulled, in full.
    pub reference: String,
    /// Compressed layer bytes received.
    pub bytes_done: u64,
    /// Compressed layer bytes to receive; 0 until the manifest is known.
    pub bytes_total: u64,
    /// Layers in place.
    pub layers_done: usize,
    /// Layers of the image; 0 until the manifest is known.
    pub layers_total: usize,
    /// What it is doing.
    pub stage: Stage,
    /// Since when it runs.
    pub age: Duration,
}

/// What a pull is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Asking the registry what the name stands for.
    Resolve = 0,
    /// Fetching and unpacking layers.
    Layers = 1,
    /// Making it durable and giving it its name.
    Commit = 2,
}

/// The counters behind [`PullProgress`].
pub(crate) struct Progress {
    reference: String,
    started: Instant,
    pub(crate) bytes_done: AtomicU64,
    pub(crate) bytes_total: AtomicU64,
    pub(crate) layers_done: AtomicUsize,
    pub(crate) layers_total: AtomicUsize,
    stage: AtomicU8,
}

impl Progress {
    pub(crate) fn new(reference: String) -> Progress {
        Progress {
            reference,
            started: Instant::now(),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            layers_done: AtomicUsize::new(0),
            layers_total: AtomicUsize::new(0),
            stage: AtomicU8::new(Stage::Resolve as u8),
        }
    }

    pub(crate) fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Relaxed);
    }

    fn show(&self) -> PullProgress {
        PullProgress {
            reference: self.reference.clone(),
            bytes_done: self.bytes_done.load(Relaxed),
            bytes_total: self.bytes_total.load(Relaxed),
            layers_done: self.layers_done.load(Relaxed),
            layers_total: self.layers_total.load(Relaxed),
            stage: match self.stage.load(Relaxed) {
                0 => Stage::Resolve,
                1 => Stage::Layers,
                _ => Stage::Commit,
            },
            age: self.started.elapsed(),
        }
    }
}

struct Flight {
    number: u64,
    waiters: usize,
    outcome: watch::Receiver<Outcome>,
    task: tokio::task::AbortHandle,
    progress: Arc<Progress>,
}

/// All running pulls.
#[derive(Default)]
pub(crate) struct Flights {
    running: Mutex<HashMap<Key, Flight>>,
    numbers: AtomicU64,
}

impl Flights {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Flight>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn progress(&self) -> Vec<PullProgress> {
        let mut all: Vec<_> = self.lock().values().map(|flight| flight.progress.show()).collect();
        all.sort_by_key(|progress| std::cmp::Reverse(progress.age));
        all
    }
}

/// Joins the pull of `reference` with `auth`, or starts it.
pub(crate) async fn join(
    inner: &Arc<Inner>,
    reference: Reference,
    auth: Option<Auth>,
) -> Result<ImageId, PullError> {
    let key: Key = (reference, auth);
    let (mut outcome, waiter) = {
        let mut running = inner.flights.lock();
        let flight = running.entry(key.clone()).or_insert_with(|| start(inner, &key));
        flight.waiters += 1;
        let waiter = Waiter { inner: inner.clone(), key, number: flight.number };
        (flight.outcome.clone(), waiter)
    };
    let result = match outcome.wait_for(Option::is_some).await {
        Ok(value) => value.clone(),
        Err(_) => None,
    };
    drop(waiter);
    result.unwrap_or_else(|| Err(PullError::Internal("the pull ended without an outcome".to_owned())))
}

fn start(inner: &Arc<Inner>, key: &Key) -> Flight {
    let (tell, outcome) = watch::channel(None);
    let progress = Arc::new(Progress::new(key.0.to_string()));
    let number = inner.flights.numbers.fetch_add(1, Relaxed);
    let (inner, key, counters) = (inner.clone(), key.clone(), progress.clone());
    let task = tokio::spawn(async move {
        let mut cleanup = Cleanup(Some(inner.clone()));
        let result = crate::pull::pull(&inner, &key.0, key.1.as_ref(), &counters).await;
        // What a failed pull committed before it failed goes at once; after an aborted one the guard's drop sees to it.
        cleanup.0 = None;
        if result.is_err() {
            inner.sweep().await;
        }
        let mut running = inner.flights.lock();
        if running.get(&key).is_some_and(|flight| flight.number == number) {
            running.remove(&key);
        }
        tell.send_replace(Some(result));
    });
    Flight { number, waiters: 0, outcome, task: task.abort_handle(), progress }
}

/// Sweeps after an aborted pull.
struct Cleanup(Option<Arc<Inner>>);

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let (Some(inner), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { inner.sweep().await });
        }
    }
}

/// One caller's interest in a pull.
struct Waiter {
    inner: Arc<Inner>,
    key: Key,
    number: u64,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut running = self.inner.flights.lock();
        // Another pull of the same name may have started since this one ended.
        let Some(flight) = running.get_mut(&self.key).filter(|flight| flight.number == self.number) else {
            return;
        };
        flight.waiters -= 1;
        if flight.waiters == 0 {
            flight.task.abort();
            running.remove(&self.key);
        }
    }
}
