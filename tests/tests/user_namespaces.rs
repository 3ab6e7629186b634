//! Pods whose root is nobody on the node, over the death of the daemon.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_tests::{Client, Daemon, Inventory, container, pod};

const FIRST: u32 = 700_000;

fn mapping() -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { host_id: FIRST, container_id: 0, length: 65_536 }]
}

fn mapped_pod(name: &str, logs: &std::path::Path, pid: v1::NamespaceMode) -> v1::PodSandboxConfig {
    let users = v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: mapping(), gids: mapping() };
    let options = v1::NamespaceOption { pid: pid as i32, userns_options: Some(users), ..Default::default() };
    let security = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = v1::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
    v1::PodSandboxConfig { linux: Some(linux), ..pod(name, logs) }
}

fn in_mode(mut config: v1::ContainerConfig, pid: v1::NamespaceMode) -> v1::ContainerConfig {
    let options = v1::NamespaceOption { pid: pid as i32, ..Default::default() };
    let security =
        v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
    config.linux = Some(v1::LinuxContainerConfig { security_context: Some(security), ..Default::default() });
    config
}

#[test]
fn a_mapped_pod_goes_on_with_the_next_daemon() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::start();
    let client = runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        client
    });
    let clean = Inventory::take(daemon.folder());
    let logs = daemon.folder().join("logs");
    let volume = daemon.folder().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("theirs"), "x").unwrap();
    chown(volume.join("theirs"), Some(5), Some(6)).unwrap();
    for pid in [v1::NamespaceMode::Container, v1::NamespaceMode::Pod] {
        let name = format!("mapped-{}", pid as i32);
        let (sandbox, first) = runtime.block_on(async {
            let mut client = Client::reach(daemon.socket(), client.image.clone()).await.unwrap();
            let sandbox = client.run(mapped_pod(&name, &logs, pid)).await.unwrap();
            let config = in_mode(container(&client, "first", "sleep 1000"), pid);
            let first = client.start(&sandbox, config).await.unwrap();
            (sandbox, first)
        });
        daemon.kill();
        daemon.restart();
        runtime.block_on(async {
            let mut client = Client::reach(daemon.socket(), client.image.clone()).await.unwrap();
            let answer = client.exec(&first, &["sh", "-c", "cat /proc/self/uid_map; id -u"]).await.unwrap();
            let text = String::from_utf8(answer.stdout).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            assert_eq!(words, ["0", "700000", "65536", "0"]);
            // The daemon asks the monitor for the namespace that it shows the volume through.
            let script = "stat -c %u:%g /vol/theirs && echo new >/vol/new && exec sleep 1000";
            let mut config = in_mode(container(&client, "second", script), pid);
            config.mounts.push(v1::Mount {
                host_path: volume.display().to_string(),
                container_path: "/vol".into(),
                uid_mappings: mapping(),
                gid_mappings: mapping(),
                ..Default::default()
            });
            let second = client.start(&sandbox, config).await.unwrap();
            let answer = client.exec(&second, &["stat", "-c", "%u:%g", "/vol/theirs"]).await.unwrap();
            assert_eq!(answer.stdout, b"5:6\n");
            bowline_tests::wait_for("the script writes", std::time::Duration::from_secs(10), || {
                volume.join("new").exists()
            });
            assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 0, "on the host");
            fs::remove_file(volume.join("new")).unwrap();
            client.remove(&sandbox).await.unwrap();
        });
    }
    clean.wait_equal(daemon.folder());
}

#[test]
fn the_writable_layer_and_processes_are_nobodys_on_the_host() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let container_mode = v1::NamespaceMode::Container;
        let sandbox = client.run(mapped_pod("owners", &logs, container_mode)).await.unwrap();
        let script = "echo x >/made && chmod 777 /bin/busybox && exec sleep 1000";
        let config = in_mode(container(&client, "main", script), container_mode);
        let id = client.start(&sandbox, config).await.unwrap();
        let folder = format!("root/pods/{sandbox}/containers/{id}/upper");
        let upper = daemon.folder().join(folder);
        bowline_tests::wait_for("the script writes", std::time::Duration::from_secs(10), || {
            upper.join("bin/busybox").exists()
        });
        for path in [upper.clone(), upper.join("made"), upper.join("bin/busybox")] {
            let data = fs::metadata(&path).unwrap();
            assert_eq!((data.uid(), data.gid()), (FIRST, FIRST), "{}", path.display());
        }
        // Mount points, terminals and what hides /proc were made by the pod's root too.
        let answer = client.exec(&id, &["sh", "-c", "cat /proc/kcore; ls -ld /dev/pts; id"]).await.unwrap();
        assert!(String::from_utf8_lossy(&answer.stdout).contains("uid=0"), "{answer:?}");
        client.remove(&sandbox).await.unwrap();
    });
}

/// A helper that is kept from the processor right after it has made the container's process: that one must not be heard
/// of before its number is.
#[test]
fn an_exit_counts_however_late_its_number_is_told() {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        println!("NOT TESTED: an_exit_counts_however_late_its_number_is_told: strace is not installed");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    let mut client = runtime.block_on(Client::connect(&daemon));
    runtime.block_on(client.pull(&daemon));
    let clean = Inventory::take(daemon.folder());
    let logs = daemon.folder().join("logs");
    let mode = v1::NamespaceMode::Container;
    let sandbox = runtime.block_on(client.run(mapped_pod("late", &logs, mode))).unwrap();
    let config = in_mode(container(&client, "first", "exec sleep 1000"), mode);
    let first = runtime.block_on(client.start(&sandbox, config)).unwrap();
    let mut strace = hold_helpers(monitor_of(&sandbox), &daemon.folder().join("strace"));
    // The monitor is held once itself; what it clones after that is not its first.
    runtime.block_on(client.exec(&first, &["true"])).unwrap();

    let config = in_mode(container(&client, "short", "exit 7"), mode);
    let short = runtime.block_on(client.start(&sandbox, config)).unwrap();
    let mut status = v1::ContainerStatus::default();
    bowline_tests::wait_for("the exit", Duration::from_secs(30), || {
        status = runtime.block_on(client.status(&short)).unwrap();
        status.state == v1::ContainerState::ContainerExited as i32
    });
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    // TERM lets go of what it holds.
    let pid = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    strace.wait().unwrap();
    runtime.block_on(client.remove(&sandbox)).unwrap();
    clean.wait_equal(daemon.folder());
}

/// Keeps each process that the monitor makes for two seconds in the first `clone3` of its own.
fn hold_helpers(monitor: u32, log: &Path) -> Child {
    let mut command = Command::new("strace");
    command.args(["-f", "-q", "-e", "trace=clone3", "-e", "inject=clone3:delay_exit=2000000:when=1"]);
    let strace = command.arg("-o").arg(log).args(["-p", &monitor.to_string()]).spawn().unwrap();
    let traced = || {
        let status = fs::read_to_string(format!("/proc/{monitor}/status")).unwrap();
        !status.lines().any(|line| line.split_whitespace().eq(["TracerPid:", "0"]))
    };
    bowline_tests::wait_for("strace to be there", Duration::from_secs(10), traced);
    strace
}

fn monitor_of(sandbox: &str) -> u32 {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_it = |pid: &u32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').take(2).eq(["bowline-monitor", sandbox])
    };
    pids.find(is_it).expect("the pod has a monitor")
}
