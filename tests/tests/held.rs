//! Containers that were created and not started yet: made as far as they can be, and nobody the worse for it.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_tests::{Client, Daemon, Inventory, container, pod, wait_for};

const LIMIT: Duration = Duration::from_secs(30);

/// Processes in the cgroups of a container that have not ended: number and name.
fn processes(id: &str) -> Vec<(i32, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        if groups.lines().any(|line| line.contains(id)) && !status.contains("State:\tZ") {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            all.push((pid, name.trim().to_owned()));
        }
    }
    all
}

/// The process that is held: it sleeps at its gate, and is no longer where its monitor is.
fn held(id: &str) -> i32 {
    let mut found = None;
    wait_for("the container is held", LIMIT, || {
        let all = processes(id);
        let at_gate = |pid: i32| {
            let state = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
            // read(2) of a descriptor above the standard streams: x86-64 0, aarch64 63.
            let mut words = state.split(' ');
            matches!(words.next(), Some("0" | "63"))
                && !matches!(words.next(), Some("0x0" | "0x1" | "0x2") | None)
        };
        found = match &all[..] {
            [(pid, name)] if name == "bowline-monitor" && at_gate(*pid) => Some(*pid),
            _ => None,
        };
        found.is_some()
    });
    found.unwrap()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn parent(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse().unwrap()
}

fn options() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() }
}

/// A pod whose containers have PID namespaces of their own, as the kubelet asks for.
fn apart(name: &str, logs: &Path) -> v1::PodSandboxConfig {
    let security_context =
        v1::LinuxSandboxSecurityContext { namespace_options: Some(options()), ..Default::default() };
    let linux = v1::LinuxPodSandboxConfig { security_context: Some(security_context), ..Default::default() };
    v1::PodSandboxConfig { linux: Some(linux), ..pod(name, logs) }
}

/// A container that runs until it is ended.
fn endless(client: &Client, name: &str) -> v1::ContainerConfig {
    let security_context =
        v1::LinuxContainerSecurityContext { namespace_options: Some(options()), ..Default::default() };
    let linux = v1::LinuxContainerConfig { security_context: Some(security_context), ..Default::default() };
    v1::ContainerConfig { linux: Some(linux), ..container(client, name, "while true; do sleep 1; done") }
}

async fn start(client: &mut Client, id: &str) -> Result<(), tonic::Status> {
    let request = v1::StartContainerRequest { container_id: id.into() };
    client.runtime.start_container(request).await.map(drop)
}

async fn remove(client: &mut Client, id: &str) {
    let request = v1::RemoveContainerRequest { container_id: id.into() };
    client.runtime.remove_container(request).await.unwrap();
}

/// That it runs, and as which process.
async fn runs(client: &mut Client, id: &str) -> i32 {
    let status = client.status(id).await.unwrap();
    assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
    let said = client.exec(id, &["cat", "/proc/1/comm"]).await.unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&said).trim(), "sh", "the program has taken the place");
    let all = processes(id);
    let first = all.iter().find(|(_, name)| name == "sh").unwrap_or_else(|| panic!("{all:?}"));
    first.0
}

#[test]
fn a_created_container_waits_and_its_start_lets_it_go_on() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::start();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let clean = Inventory::take(daemon.folder());
        let sandbox = client.run(apart("held", &daemon.folder().join("logs"))).await.unwrap();
        let id = client.create(&sandbox, endless(&client, "plain")).await.unwrap();
        let waiting = held(&id);
        let status = client.status(&id).await.unwrap();
        assert_eq!(status.state(), v1::ContainerState::ContainerCreated);
        assert!(client.exec(&id, &["true"]).await.is_err(), "nothing can be run in it");
        start(&mut client, &id).await.unwrap();
        assert_eq!(runs(&mut client, &id).await, waiting, "it is the process that waited");

        // Ended while it waits: nobody is told, and the start makes another.
        let id = client.create(&sandbox, endless(&client, "killed")).await.unwrap();
        let waiting = held(&id);
        kill(waiting);
        wait_for("it is gone", LIMIT, || processes(&id).is_empty());
        assert_eq!(client.status(&id).await.unwrap().state(), v1::ContainerState::ContainerCreated);
        start(&mut client, &id).await.unwrap();
        assert_ne!(runs(&mut client, &id).await, waiting);

        // Limits that are changed meanwhile.
        let id = client.create(&sandbox, endless(&client, "limited")).await.unwrap();
        held(&id);
        let linux = v1::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() };
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        client.runtime.update_container_resources(request).await.unwrap();
        start(&mut client, &id).await.unwrap();
        let v1 = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        let script = format!("cat {v1} /sys/fs/cgroup/memory.max 2>/dev/null");
        let said = client.exec(&id, &["sh", "-c", &script]).await.unwrap().stdout;
        assert_eq!(String::from_utf8_lossy(&said).trim(), (96 << 20).to_string());

        // Removed without ever being started.
        let id = client.create(&sandbox, endless(&client, "unused")).await.unwrap();
        held(&id);
        remove(&mut client, &id).await;
        assert!(processes(&id).is_empty());

        // Left to the end of the pod.
        let id = client.create(&sandbox, endless(&client, "left")).await.unwrap();
        held(&id);
        client.remove(&sandbox).await.unwrap();
        assert!(processes(&id).is_empty());
        clean.wait_equal(daemon.folder());
    });
    daemon.stop();
}

#[test]
fn what_is_held_outlives_the_daemon_but_not_its_monitor() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::start();
    let mut client = runtime.block_on(Client::connect(&daemon));
    runtime.block_on(client.pull(&daemon));
    let clean = Inventory::take(daemon.folder());
    let logs = daemon.folder().join("logs");
    let (sandbox, ids, waiting) = runtime.block_on(async {
        let sandbox = client.run(apart("survivor", &logs)).await.unwrap();
        let mut ids = Vec::new();
        for name in ["started", "removed", "orphaned"] {
            ids.push(client.create(&sandbox, endless(&client, name)).await.unwrap());
        }
        let waiting: Vec<i32> = ids.iter().map(|id| held(id)).collect();
        (sandbox, ids, waiting)
    });
    daemon.kill();
    daemon.restart();
    let mut client = runtime.block_on(Client::connect(&daemon));
    runtime.block_on(async {
        for id in &ids {
            assert_eq!(client.status(id).await.unwrap().state(), v1::ContainerState::ContainerCreated);
        }
        start(&mut client, &ids[0]).await.unwrap();
        assert_eq!(runs(&mut client, &ids[0]).await, waiting[0], "the next daemon lets it go on");
        remove(&mut client, &ids[1]).await;
        assert!(processes(&ids[1]).is_empty(), "the next daemon ends it");
    });
    kill(parent(waiting[2]));
    wait_for("nothing outlives the monitor", LIMIT, || {
        bowline_tests::reap();
        ids.iter().all(|id| processes(id).is_empty())
    });
    runtime.block_on(client.remove(&sandbox)).unwrap();
    clean.wait_equal(daemon.folder());
    daemon.stop();
}
