//! Commands that may take so long and no longer.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, ExitStatus};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Runs a command to its end; after `limit` it is killed with everything below it, and that is an error.
pub fn status(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let what = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("run {what}"))?;
    let pid = child.id();
    let (ended, end) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let late = end.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            end_all(pid);
        }
        late
    });
    let status = child.wait();
    drop(ended);
    if watch.join().unwrap_or(false) {
        bail!("{what} was not done after {} minutes and was killed", limit.as_secs() / 60);
    }
    status.with_context(|| format!("wait for {what}"))
}

/// Kills a process and its descendants, and says which they were: that shows what hung.
fn end_all(root: u32) {
    let mut found = BTreeSet::from([root]);
    let mut queue = vec![root];
    while let Some(pid) = queue.pop() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
            queue.extend(children.filter(|pid| found.insert(*pid)));
        }
    }
    for pid in found {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        eprintln!("xtask: killed {pid}: {}", String::from_utf8_lossy(&line).replace('\0', " "));
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_goes_with_all_that_it_started() {
        let quick = status(&mut Command::new("true"), Duration::from_secs(60)).unwrap();
        assert!(quick.success());
        // The shell would wait for its child for ever; both hold the pipe whose end is waited for here.
        let (mut read, write) = std::io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & wait"]).stdout(write);
        let late = status(&mut command, Duration::from_millis(300));
        assert!(late.unwrap_err().to_string().contains("killed"));
        drop(command);
        assert_eq!(std::io::Read::read(&mut read, &mut [0]).unwrap(), 0, "nobody has the other end");
    }
}
