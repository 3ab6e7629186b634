//! `bowline-monitor`: one per pod, the parent of the pod's processes.
//!
//! ```text
//!   daemon -- channel (fd 0) --> control thread -- clone3 --> containers, execs
//!                                  |  ^                          | stdout, stderr
//!                        commands  v  | done                     v
//!                                log thread  <-------------------+   writes the log files
//! ```
//!
//! The control thread waits in one epoll for requests, for ended children, for launches under way and for the log
//! thread. It touches no file system that can stall: cgroups, procfs, a tmpfs. The log thread may wait for a disk;
//! then the pipes fill and that pod's containers wait, nobody else.
//!
//! The monitor needs no daemon: it holds the pod's namespaces and its children, records each exit in a slot that was
//! allocated beforehand, and answers whoever connects to its socket. Only before `Commit` does it end with its
//! daemon's channel. Its own end takes its containers along (PDEATHSIG).
//!
//! Called `bowline-paths`, the program opens paths of the host for the daemon instead ([`paths`]).
//!
//! No async runtime, no JSON: this is the part of Bowline that costs memory for every pod.

mod attach;
mod children;
mod control;
mod exits;
mod init;
mod log;
mod paths;
mod peers;
mod record;
mod relabel;
mod setup;
mod user;

use std::process::ExitCode;

use bowline_monitor_proto::paths::PATHS_NAME;

fn main() -> ExitCode {
    // What the daemon's own starter left open is none of ours, and would live as long as the pod.
    bowline_linux::process::close_inherited();
    if std::env::args_os().next().is_some_and(|name| name == PATHS_NAME) {
        return paths::serve();
    }
    bowline_linux::process::set_name(c"bowline-monitor");
    // Never readable for the pod's processes, and so neither is a child before its exec (CVE-2016-9962).
    if bowline_linux::process::set_not_dumpable().is_err()
        || bowline_linux::process::become_subreaper().is_err()
    {
        return ExitCode::FAILURE;
    }
    match control::Control::new().and_then(control::Control::run) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads our output; the daemon sees the end of the channel and says which monitor it was.
        Err(_) => ExitCode::FAILURE,
    }
}
