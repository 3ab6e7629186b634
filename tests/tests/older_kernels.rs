//! The daemon on kernels that lack a newer system call. A seccomp filter answers ENOSYS to one call in turn, for the
//! daemon and for all that it starts. Then a pod's whole life works, or the daemon says at start that it cannot: nothing
//! is left for a pod to find out.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::process::Stdio;
use std::time::Duration;

use bowline_tests::{Client, Daemon, container, pod};

/// What is to happen without a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// The daemon ends, and names what is missing.
    Refuses(&'static str),
    /// Pods work.
    Works,
}
use Then::{Refuses, Works};

/// Name, number (the same on every architecture since 5.1; before that x86-64's), Linux that brought it, and what is to
/// happen.
const CALLS: [(&str, u32, &str, Then); 26] = [
    ("seccomp", 317, "3.17", Refuses("seccomp")),
    ("memfd_create", 319, "3.17", Refuses("memfd seals")),
    ("execveat", 322, "3.19", Works),
    ("copy_file_range", 326, "4.5", Works),
    ("statx", 332, "4.11", Works),
    ("pidfd_send_signal", 424, "5.1", Refuses("pidfd_send_signal")),
    ("io_uring_setup", 425, "5.1", Works),
    ("open_tree", 428, "5.2", Refuses("open_tree")),
    ("move_mount", 429, "5.2", Refuses("move_mount")),
    ("fsopen", 430, "5.2", Refuses("fsopen")),
    ("fsconfig", 431, "5.2", Refuses("fsopen")),
    ("fsmount", 432, "5.2", Refuses("fsopen")),
    ("pidfd_open", 434, "5.3", Refuses("pidfd_open")),
    ("clone3", 435, "5.3", Refuses("clone3")),
    ("close_range", 436, "5.9", Refuses("close_range")),
    ("openat2", 437, "5.6", Refuses("openat2")),
    ("pidfd_getfd", 438, "5.6", Works),
    ("faccessat2", 439, "5.8", Works),
    ("epoll_pwait2", 441, "5.11", Works),
    ("mount_setattr", 442, "5.12", Refuses("mount_setattr")),
    ("landlock_create_ruleset", 444, "5.13", Works),
    ("process_mrelease", 448, "5.15", Works),
    ("cachestat", 451, "6.5", Works),
    ("fchmodat2", 452, "6.6", Works),
    ("statmount", 457, "6.8", Works),
    ("open_tree_attr", 467, "6.15", Works),
];

#[test]
fn every_newer_call_has_a_fallback_or_a_refusal_at_start() {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the numbers of the older calls are x86-64's");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut wrong = Vec::new();
    for (name, number, since, then) in CALLS {
        let outcome = match then {
            Refuses(what) => refuses(number, what),
            Works => works(&runtime, number),
        };
        match outcome {
            Ok(()) => println!("{name} (Linux {since}): {then:?}"),
            Err(problem) => wrong.push(format!("{name} (Linux {since}), {then:?}: {problem}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The daemon ends by itself, with a message that names the feature.
fn refuses(number: u32, what: &str) -> Result<(), String> {
    let daemon = Daemon::prepared("", &without(number));
    // With a log of its own, which is read at the end.
    let mut child =
        daemon.command().stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("start the daemon");
    let mut ended = None;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while ended.is_none() && std::time::Instant::now() < deadline {
        ended = child.try_wait().expect("look for the daemon's end");
        std::thread::sleep(Duration::from_millis(5)); // between looks
    }
    if ended.is_none() {
        let _ = child.kill();
    }
    let output = child.wait_with_output().expect("read what the daemon said");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match ended {
        None => Err(format!("it serves, and says: {said}")),
        Some(status) if status.success() => Err("it ended as if all were well".to_owned()),
        Some(_) if !said.contains(what) => Err(format!("it does not name {what}: {said}")),
        Some(_) => Ok(()),
    }
}

/// A pod's whole life.
fn works(runtime: &tokio::runtime::Runtime, number: u32) -> Result<(), String> {
    let mut daemon = Daemon::prepared("", &without(number));
    daemon.try_restart()?;
    let lived = runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let id = client.run(pod("older", &daemon.folder().join("logs"))).await?;
        let config = container(&client, "main", "echo out; sleep 1000");
        let container = client.start(&id, config).await?;
        let said = client.exec(&container, &["echo", "here"]).await?.stdout;
        client.remove(&id).await?;
        Ok::<_, tonic::Status>(said)
    });
    daemon.kill();
    match lived {
        Ok(said) if said == b"here\n" => Ok(()),
        Ok(said) => Err(format!("exec said {:?}", String::from_utf8_lossy(&said))),
        Err(status) => Err(format!("{status}; the daemon's log: {}", daemon.log())),
    }
}

fn without(number: u32) -> Vec<String> {
    let program = bowline_tests::own_program("without-syscall");
    vec![program.display().to_string(), number.to_string()]
}
