//! How often each call was answered with which code, and how long that took.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bowline_pods::Timing;
use tonic::Code;

/// By call and code. One table per process, as there is one daemon per process: the calls have no other place in common.
static ANSWERED: Mutex<BTreeMap<(&'static str, i32), Timing>> = Mutex::new(BTreeMap::new());

fn answered() -> MutexGuard<'static, BTreeMap<(&'static str, i32), Timing>> {
    ANSWERED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts one answer.
pub(crate) fn count(call: &'static str, code: Code, took: Duration) {
    answered().entry((call, code.into())).or_default().add(took);
}

/// All that was counted.
pub(crate) fn counted() -> Vec<(&'static str, Code, Timing)> {
    answered().iter().map(|((call, code), timing)| (*call, Code::from(*code), timing.clone())).collect()
}
