//! The end of tests that do not end by themselves.

use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// How long a test may have its daemon. The longest takes half a minute, in a guest without hardware support some more.
const LIMIT: Duration = Duration::from_secs(600);
/// How long the test may take to fail once its daemon is gone.
const GRACE: Duration = Duration::from_secs(60);

/// While it lives, somebody watches the clock: a daemon that is older than [`LIMIT`] is killed, so that whatever the test
/// waits for fails, with a panic that says where; a test that waits on even then takes its whole program with it.
#[derive(Default)]
pub struct Limit {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// 0: none runs.
    daemon: AtomicI32,
    over: Mutex<bool>,
    end: Condvar,
}

impl Limit {
    /// Begins to watch; `what` is named when the time is up.
    pub fn start(what: String) -> Limit {
        Limit::of(what, LIMIT, 0)
    }

    fn of(what: String, time: Duration, pid: u32) -> Limit {
        let limit = Limit::default();
        limit.daemon_is(pid);
        let shared = limit.shared.clone();
        std::thread::spawn(move || {
            if shared.ends_within(time) {
                return;
            }
            eprintln!("{what}: not done after {time:?}; its daemon is killed");
            if let Some(pid) = Pid::from_raw(shared.daemon.load(Ordering::SeqCst)) {
                let _ = kill_process(pid, Signal::KILL);
            }
            if !shared.ends_within(GRACE) {
                eprintln!("{what}: waits on without its daemon; this program ends here");
                std::process::abort();
            }
        });
        limit
    }

    /// Which process to kill; 0 for none. Told before the process is waited for, so that no other one is meant.
    pub fn daemon_is(&self, pid: u32) {
        self.shared.daemon.store(pid as i32, Ordering::SeqCst);
    }

    /// There is no limit after all.
    pub fn lift(&self) {
        *self.shared.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.end.notify_all();
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.lift();
    }
}

impl Shared {
    fn ends_within(&self, time: Duration) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.end.wait_timeout_while(over, time, |over| !*over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn what_takes_too_long_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let limit = Limit::default();
        limit.daemon_is(child.id());
        drop(limit);
        assert!(child.try_wait().unwrap().is_none(), "what ends in time kills nobody");
        let _limit = Limit::of("a test of the limit".into(), Duration::from_millis(10), child.id());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
