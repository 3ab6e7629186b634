//! The real daemon, as its users meet it: started, killed, started again, and looked at from outside.
//!
//! Each [`Daemon`] has folders, a socket, a bridge and a subnet of its own, so that many run side by side. Whatever a
//! test made is gone when it ends: [`Inventory`] compares what the machine holds before and after.

mod daemon;
mod inventory;
mod limit;
mod pods;

pub use daemon::{Daemon, go_program, own_program, programs};
pub use inventory::Inventory;
pub use pods::{Client, Runtime, container, pod};

use std::time::{Duration, Instant};

/// Waits for a condition; panics with `what` when it does not come true in time. Looks again every few milliseconds,
/// and takes in orphans that have become ours meanwhile.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        reap();
        let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        let _ = rustix::event::poll(&mut [], Some(&pause));
    }
}

/// Makes orphans of what we start our children, so that [`reap`] sees to them. The machine's process 1 may be slow.
pub fn adopt_orphans() {
    bowline_linux::process::become_subreaper().expect("PR_SET_CHILD_SUBREAPER works everywhere");
}

/// Takes ended orphans: monitors that were a killed daemon's. Only those: children that a `Child` stands for are
/// waited for by it, so this looks at processes by name.
pub fn reap() {
    for pid in children_named("bowline-monitor") {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
    }
}

fn children_named(name: &str) -> Vec<i32> {
    let own = std::process::id();
    let path = format!("/proc/self/task/{own}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let children = text.split_whitespace().filter_map(|pid| pid.parse().ok());
    children
        .filter(|pid: &i32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .collect()
}
