//! Starts a daemon and runs `bowline check` against it, restarts included. Arguments go to `bowline check`. Passes when that
//! passes and the machine then holds what it held before.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};

use bowline_tests::{Daemon, Inventory, programs};

fn main() -> ExitCode {
    let daemon = Daemon::start_with("[checkpoint]\nrestore = true\n").without_limit();
    let clean = Inventory::take(daemon.folder());
    let folder = daemon.folder().display();
    let bowline = programs().join("bowline");
    let bowline = bowline.display();
    let pid = daemon.pid().unwrap_or_default();
    let script = format!(
        // The next daemon itself waits a moment for the locks of the one that was just killed.
        "#!/bin/sh\nkill -9 \"$(cat {folder}/pid)\"\n\
         setsid {bowline} serve --config {folder}/config.toml >>{folder}/daemon.log 2>&1 </dev/null &\n\
         echo $! >{folder}/pid\n"
    );
    let restart = daemon.folder().join("restart");
    let written = fs::write(daemon.folder().join("pid"), pid.to_string())
        .and_then(|()| fs::write(&restart, script))
        .and_then(|()| fs::set_permissions(&restart, fs::Permissions::from_mode(0o755)));
    if let Err(error) = written {
        eprintln!("could not write the restart script: {error}");
        return ExitCode::from(2);
    }
    let status = Command::new(programs().join("bowline"))
        // What only we promise counts as well here.
        .args(["check", "--strict", "--endpoint", &daemon.endpoint(), "--restart-cmd"])
        .arg(&restart)
        .arg("--nri-socket")
        .arg(daemon.nri_socket())
        .args(std::env::args().skip(1))
        .status();
    // Says itself what was left behind.
    let is_clean = catch_unwind(AssertUnwindSafe(|| clean.wait_equal(daemon.folder()))).is_ok();
    let last = fs::read_to_string(daemon.folder().join("pid")).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = last.and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    match status {
        Ok(status) if status.success() && is_clean => {
            println!("nothing was left behind");
            ExitCode::SUCCESS
        }
        Ok(_) => {
            eprintln!("--- the daemon's log ---\n{}", daemon.log());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("could not run bowline check: {error}");
            ExitCode::from(2)
        }
    }
}
