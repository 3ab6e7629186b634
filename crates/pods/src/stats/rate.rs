//! Cores in use: the CPU time between two readings. There is no clock that reads by itself: a reader gets the rate since
//! the reading before it, whoever that was for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Two readings closer than this make no rate: a tick of the scheduler would show as half a core. The rate before is
/// given again.
const SHORTEST: i64 = 1_000_000_000;
/// Nor do two that are further apart: that would be history, not use.
const LONGEST: i64 = 120_000_000_000;

/// The last reading of each cgroup.
#[derive(Default)]
pub(crate) struct Rates(Mutex<HashMap<Arc<str>, Reading>>);

#[derive(Clone, Copy)]
struct Reading {
    at: i64,
    usage_ns: u64,
    rate: Option<u64>,
}

impl Rates {
    /// Takes a reading in and gives the rate, in billionths of a core.
    pub fn of(&self, cgroup: &Arc<str>, at: i64, usage_ns: u64) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Reading { at, usage_ns, rate: None };
        let last = all.entry(cgroup.clone()).or_insert(new);
        let passed = at - last.at;
        if (0..SHORTEST).contains(&passed) {
            return last.rate;
        }
        let fits = passed <= LONGEST && usage_ns >= last.usage_ns && passed > 0;
        let used = u128::from(usage_ns.saturating_sub(last.usage_ns)) * 1_000_000_000;
        let rate = fits.then(|| u64::try_from(used / passed.unsigned_abs() as u128).unwrap_or(u64::MAX));
        *last = Reading { rate, ..new };
        rate
    }

    /// A cgroup that is gone.
    pub fn forget(&self, cgroup: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(cgroup);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings() {
        let second = 1_000_000_000;
        let (rates, group) = (Rates::default(), Arc::from("a"));
        assert_eq!(rates.of(&group, 10 * second, 5), None);
        assert_eq!(rates.of(&group, 12 * second, 1_000_000_005), Some(500_000_000));
        assert_eq!(
            rates.of(&group, 12 * second + 1, 1_000_000_006),
            Some(500_000_000),
            "too close: as before"
        );
        assert_eq!(rates.of(&group, 500 * second, 9_000_000_000), None, "too far apart");
        assert_eq!(rates.of(&group, 501 * second, 1), None, "a counter that began anew");
        assert_eq!(rates.of(&group, 503 * second, 1), Some(0));
        rates.forget("a");
        assert_eq!(rates.of(&group, 505 * second, 1), None);
    }
}
