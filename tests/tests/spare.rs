//! What a daemon makes in advance for the next pod: used, replaced when it is lost, gone with the daemon.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use bowline_tests::{Client, Daemon, Inventory, container, pod, wait_for};

const LIMIT: Duration = Duration::from_secs(30);

/// Monitors that are children of the daemon and whose pod has no record: by their sandbox.
fn waiting(daemon: &Daemon) -> BTreeMap<String, i32> {
    let parent = format!("PPid:\t{}", daemon.pid().unwrap());
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let mut words = line.split('\0');
        let is_monitor = words.next() == Some("bowline-monitor") && status.lines().any(|line| line == parent);
        if let Some(sandbox) = words.next().filter(|_| is_monitor)
            && !daemon.folder().join("root/pods").join(sandbox).exists()
        {
            all.insert(sandbox.to_owned(), entry.file_name().to_str().unwrap().parse().unwrap());
        }
    }
    all
}

/// Links that are named after this sandbox.
fn links(sandbox: &str) -> usize {
    let links = fs::read_dir("/sys/class/net").unwrap().flatten();
    links
        .filter(|link| fs::read_to_string(link.path().join("ifalias")).unwrap_or_default().contains(sandbox))
        .count()
}

/// The one that waits, once its links are there too.
fn ready(daemon: &Daemon) -> (String, i32) {
    let mut found = None;
    wait_for("a set for the next pod", LIMIT, || {
        found = waiting(daemon).into_iter().find(|(sandbox, _)| links(sandbox) == 1);
        found.is_some()
    });
    assert_eq!(waiting(daemon).len(), 1, "one set at a time");
    found.unwrap()
}

fn kill(pid: i32) {
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn the_next_pod_is_made_of_it_and_it_goes_with_the_daemon() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::start();
    let mut client = runtime.block_on(Client::connect(&daemon));
    runtime.block_on(client.pull(&daemon));
    let clean = Inventory::take(daemon.folder());
    let logs = daemon.folder().join("logs");
    let up = |client: &mut Client, name: &str| {
        runtime.block_on(async {
            let sandbox = client.run(pod(name, &logs)).await.unwrap();
            let id = client.start(&sandbox, container(client, name, "sleep 1000")).await.unwrap();
            let said = client.exec(&id, &["ip", "-o", "addr", "show", "eth0"]).await.unwrap().stdout;
            assert!(String::from_utf8_lossy(&said).contains("inet 10."), "{said:?}");
            sandbox
        })
    };
    let first = up(&mut client, "first");
    let (sandbox, monitor) = ready(&daemon);
    let second = up(&mut client, "second");
    assert_eq!(second, sandbox, "the pod has the id, and so the links, that were ready");
    let owner = fs::read_to_string(format!("/proc/{monitor}/cmdline")).unwrap();
    assert!(owner.contains(&second), "the process that waited is its monitor");
    assert_eq!(links(&second), 1, "no other pair was made");

    let (sandbox, monitor) = ready(&daemon);
    kill(monitor);
    let third = up(&mut client, "third");
    assert_eq!(third, sandbox, "a monitor that died waiting is replaced");

    let (sandbox, monitor) = ready(&daemon);
    daemon.kill();
    wait_for("the process ends without its daemon", LIMIT, || {
        bowline_tests::reap();
        !fs::read_to_string(format!("/proc/{monitor}/cmdline")).unwrap_or_default().contains(&sandbox)
    });
    wait_for("the links go with the namespace", LIMIT, || links(&sandbox) == 0);
    daemon.restart();
    let mut client = runtime.block_on(Client::connect(&daemon));
    for pod in [first, second, third] {
        runtime.block_on(client.remove(&pod)).unwrap();
    }
    clean.wait_equal(daemon.folder());
}
