//! The daemon as a service of systemd, with our unit files, and pods as scopes. Needs systemd as the init and cgroup v2,
//! as in the guest of `cargo xtask vm --systemd systemd`; elsewhere the tests say that they were not tried.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_tests::{Client, Daemon, container, pod, wait_for};
use tokio::runtime::Runtime;
use tonic::Code;

const SERVICE: &str = include_str!("../../packaging/systemd/bowline.service");
const SOCKET: &str = include_str!("../../packaging/systemd/bowline.socket");
/// In emulation everything takes seconds.
const PATIENCE: Duration = Duration::from_secs(90);
const UNITS: &str = "/run/systemd/system";
const CGROUPS: &str = "/sys/fs/cgroup";
/// Lives until it is ended.
const SLEEPER: &str = "trap 'exit 0' TERM; while true; do sleep 1; done";
const MIB: i64 = 1 << 20;

/// There is one service.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A daemon that systemd runs.
struct Service {
    daemon: Daemon,
    runtime: Runtime,
    image: String,
    _alone: MutexGuard<'static, ()>,
}

impl Service {
    /// Installed with our units, not started. `None` where there is no systemd. `lines` are of the daemon's
    /// configuration, `drop_in` of the unit.
    fn installed(test: &str, lines: &str, drop_in: &str) -> Option<Service> {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if !Path::new("/run/systemd/system").is_dir()
            || !Path::new(CGROUPS).join("cgroup.controllers").exists()
        {
            println!("NOT TESTED: {test}: systemd is not this machine's init, or cgroups are not v2");
            return None;
        }
        let daemon = Daemon::prepared(lines, &[]);
        let command = daemon.command();
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        install(
            "bowline.service",
            SERVICE,
            &format!("[Service]\nExecStart=\nExecStart={}\n{drop_in}", words.join(" ")),
        );
        let listen = format!("[Socket]\nListenStream=\nListenStream={}\n", daemon.socket().display());
        install("bowline.socket", SOCKET, &listen);
        systemctl(&["daemon-reload"]);
        let image = format!("{}/busybox:1", daemon.registry.host());
        Some(Service { daemon, runtime: Runtime::new().unwrap(), image, _alone: alone })
    }

    /// The same, serving, and with an image.
    fn started(test: &str, lines: &str, drop_in: &str) -> Option<Service> {
        let service = Service::installed(test, lines, drop_in)?;
        systemctl(&["start", "bowline.service"]);
        service.pull();
        Some(service)
    }

    fn pull(&self) {
        self.runtime.block_on(async { Client::connect(&self.daemon).await.pull(&self.daemon).await });
    }

    fn client(&self) -> Client {
        let reach = Client::reach(self.daemon.socket(), self.image.clone());
        self.runtime.block_on(reach).expect("the daemon answers")
    }

    fn pod(&self, name: &str, parent: &str) -> v1::PodSandboxConfig {
        let mut config = pod(name, &self.daemon.folder().join(format!("logs-{name}")));
        config.linux.get_or_insert_default().cgroup_parent = parent.into();
        config
    }

    fn run(&self, name: &str, parent: &str) -> String {
        let config = self.pod(name, parent);
        self.runtime.block_on(async { self.client_async().await.run(config).await }).expect("run a pod")
    }

    async fn client_async(&self) -> Client {
        Client::reach(self.daemon.socket(), self.image.clone()).await.expect("the daemon answers")
    }

    /// A container that lives, and its first process.
    fn start(&self, pod: &str, name: &str) -> (String, i32) {
        self.start_with(pod, name, SLEEPER, v1::LinuxContainerResources::default())
    }

    fn start_with(
        &self,
        pod: &str,
        name: &str,
        script: &str,
        resources: v1::LinuxContainerResources,
    ) -> (String, i32) {
        self.runtime.block_on(async {
            let mut client = self.client_async().await;
            let mut config = container(&client, name, script);
            config.linux.get_or_insert_default().resources = Some(resources);
            let id = client.start(pod, config).await.expect("start a container");
            let request = v1::ContainerStatusRequest { container_id: id.clone(), verbose: true };
            let answer = client.runtime.container_status(request).await.unwrap().into_inner();
            let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
            (id, info["pid"].as_i64().unwrap_or_default() as i32)
        })
    }

    fn state(&self, container: &str) -> v1::ContainerStatus {
        let status = async { self.client_async().await.status(container).await };
        self.runtime.block_on(status).expect("a container's status")
    }

    fn answers(&self, container: &str) {
        let exec = async { self.client_async().await.exec(container, &["echo", "here"]).await };
        let answer = self.runtime.block_on(exec).expect("run a command");
        assert_eq!(String::from_utf8_lossy(&answer.stdout), "here\n", "{answer:?}");
    }

    fn remove(&self, pod: &str) {
        let remove = async { self.client_async().await.remove(pod).await };
        self.runtime.block_on(remove).expect("remove a pod");
    }

    fn main_pid(&self) -> i32 {
        show("bowline.service", "MainPID").parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for args in
                [&["status", "bowline.service", "bowline.socket"][..], &["list-units", "--all", "bowline-*"]]
            {
                let output = Command::new("systemctl").arg("--no-pager").args(args).output();
                eprintln!(
                    "{}",
                    String::from_utf8_lossy(&output.map(|output| output.stdout).unwrap_or_default())
                );
            }
            let journal =
                Command::new("journalctl").args(["--no-pager", "-n", "60", "-o", "short-precise"]).output();
            eprintln!(
                "{}",
                String::from_utf8_lossy(&journal.map(|output| output.stdout).unwrap_or_default())
            );
        }
        for unit in ["bowline.socket", "bowline.service"] {
            let _ = Command::new("systemctl").args(["stop", unit]).status();
            let _ = Command::new("systemctl").args(["reset-failed", unit]).output();
        }
        for scope in scopes() {
            let _ = Command::new("systemctl").args(["kill", "-s", "KILL", &scope]).status();
        }
    }
}

fn install(name: &str, text: &str, drop_in: &str) {
    let folder = PathBuf::from(UNITS).join(format!("{name}.d"));
    fs::create_dir_all(&folder).unwrap();
    fs::write(Path::new(UNITS).join(name), text).unwrap();
    fs::write(folder.join("test.conf"), drop_in).unwrap();
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[track_caller]
fn systemctl(args: &[&str]) -> String {
    output("systemctl", args)
}

fn show(unit: &str, property: &str) -> String {
    systemctl(&["show", "--value", "-p", property, unit])
}

fn scope_of(pod: &str) -> String {
    format!("bowline-{pod}.scope")
}

/// All scopes of pods that systemd knows, dead ones too.
fn scopes() -> Vec<String> {
    let text = systemctl(&["list-units", "--all", "--plain", "--no-legend", "bowline-*.scope"]);
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn group(path: &str) -> PathBuf {
    Path::new(CGROUPS).join(path.trim_start_matches('/'))
}

fn pids(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn cgroup_of(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn read(group: &Path, file: &str) -> String {
    fs::read_to_string(group.join(file)).unwrap_or_default().trim().to_owned()
}

#[test]
fn a_pod_is_a_scope() {
    let Some(service) = Service::started("a pod is a scope", "", "") else { return };
    let mut client = service.client();
    let (driver, info) = service.runtime.block_on(async {
        let driver = client.runtime.runtime_config(v1::RuntimeConfigRequest {}).await.unwrap().into_inner();
        let info =
            client.runtime.status(v1::StatusRequest { verbose: true }).await.unwrap().into_inner().info;
        (driver.linux.unwrap().cgroup_driver(), info)
    });
    assert_eq!(driver, v1::CgroupDriver::Systemd);
    assert!(info["cgroupDriver"].starts_with("systemd: "), "{info:?}");
    let doctor = Command::new(bowline_tests::programs().join("bowline"));
    let mut doctor = doctor;
    let said = doctor.arg("--endpoint").arg(service.daemon.endpoint()).arg("doctor").output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.lines().any(|line| line.contains("cgroup driver") && line.contains("systemd")), "{said}");

    let pod = service.run("scope", "/bwtest-pod1.slice");
    let resources = v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        ..Default::default()
    };
    let (main, pid) = service.start_with(&pod, "main", SLEEPER, resources.clone());
    let scope = scope_of(&pod);
    let path = format!("/bwtest.slice/bwtest-pod1.slice/{scope}");
    for (property, expected) in [
        ("ActiveState", "active"),
        ("Slice", "bwtest-pod1.slice"),
        ("ControlGroup", path.as_str()),
        ("Delegate", "yes"),
        ("DefaultDependencies", "no"),
        ("CollectMode", "inactive-or-failed"),
        ("TasksMax", "infinity"),
    ] {
        assert_eq!(show(&scope, property), expected, "{property}");
    }
    let description = show(&scope, "Description");
    assert!(description.ends_with(": pod tests/scope"), "{description}");
    let folder = group(&path);
    assert_eq!(pids(&folder), Vec::<i32>::new(), "a group with groups below it has no processes of its own");
    let monitors = pids(&folder.join("monitor"));
    let comm = fs::read_to_string(format!("/proc/{}/comm", monitors[0])).unwrap();
    assert_eq!(comm.trim(), "bowline-monitor");
    assert_eq!(cgroup_of(pid), format!("{path}/{main}"));

    let leaf = folder.join(&main);
    assert_eq!(read(&leaf, "memory.max"), (64 * MIB).to_string());
    assert_eq!(read(&leaf, "cpu.max"), "50000 100000");
    service.runtime.block_on(async {
        let linux = v1::LinuxContainerResources { memory_limit_in_bytes: 96 * MIB, ..resources };
        let request = v1::UpdateContainerResourcesRequest {
            container_id: main.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        client.runtime.update_container_resources(request).await.expect("change limits");
        let stats = v1::ContainerStatsRequest { container_id: main.clone() };
        let stats = client.runtime.container_stats(stats).await.unwrap().into_inner().stats.unwrap();
        assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);
    });
    assert_eq!(read(&leaf, "memory.max"), (96 * MIB).to_string());
    // Not systemd's business, so a reload leaves it as it is.
    systemctl(&["daemon-reload"]);
    assert_eq!(read(&leaf, "memory.max"), (96 * MIB).to_string());
    assert_eq!(cgroup_of(pid), format!("{path}/{main}"));
    service.answers(&main);

    let small = v1::LinuxContainerResources { memory_limit_in_bytes: 16 * MIB, ..Default::default() };
    let (eater, _) = service.start_with(&pod, "eater", "tail /dev/zero", small);
    wait_for("the eater is killed", PATIENCE, || service.state(&eater).reason == "OOMKilled");
    assert_eq!(show(&scope, "ActiveState"), "active", "one container's end is not the pod's");
    service.answers(&main);

    service.remove(&pod);
    assert_eq!(scopes(), Vec::<String>::new());
    assert!(!folder.exists() && !group("bwtest.slice").exists(), "the slices were made for the pod");
    assert_eq!(show("bwtest-pod1.slice", "ActiveState"), "inactive");
    assert!(pids(&group("/system.slice/bowline.service")).contains(&service.main_pid()));
}

#[test]
fn parents_are_slices() {
    let Some(service) = Service::started("parents are slices", "", "") else { return };
    let pod = service.run("none", "");
    assert_eq!(show(&scope_of(&pod), "Slice"), "system.slice");
    service.remove(&pod);
    // The kubelet makes the slice and sends its whole path, as `CgroupName.ToSystemd` writes it.
    output(
        "systemd-run",
        &["--slice=bwkube-burstable-pod1.slice", "--unit=bwholder", "--quiet", "sleep", "600"],
    );
    let path = "/bwkube.slice/bwkube-burstable.slice/bwkube-burstable-pod1.slice";
    let pod = service.run("path", path);
    assert_eq!(show(&scope_of(&pod), "Slice"), "bwkube-burstable-pod1.slice");
    service.remove(&pod);
    assert_eq!(show("bwholder.service", "ActiveState"), "active", "what is not ours goes on");
    systemctl(&["stop", "bwholder.service"]);
    for (parent, part) in [
        ("/kubepods/pod1", "is no slice"),
        ("a--b.slice", "between dashes"),
        ("/x.slice/a-b.slice", "give the name alone"),
    ] {
        let config = service.pod("bad", parent);
        let refused = service.runtime.block_on(async { service.client_async().await.run(config).await });
        let status = refused.expect_err(parent);
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let message = status.message();
        assert!(message.contains("config.linux.cgroup_parent") && message.contains(part), "{message}");
    }
    assert_eq!(scopes(), Vec::<String>::new());
}

#[test]
fn pods_outlive_daemon_and_systemd() {
    let Some(service) = Service::started("pods outlive daemon and systemd", "", "") else { return };
    let pod = service.run("old", "bwlife.slice");
    let (main, pid) = service.start(&pod, "main");
    let before = service.main_pid();
    systemctl(&["restart", "bowline.service"]);
    assert_ne!(service.main_pid(), before);
    assert_eq!(service.state(&main).state(), v1::ContainerState::ContainerRunning);
    assert!(cgroup_of(pid).ends_with(&main), "the same process");
    service.answers(&main);

    // systemd is away for a moment while each of these comes and goes.
    for (round, how) in
        ["daemon-reload", "daemon-reexec", "daemon-reexec", "daemon-reload"].iter().enumerate()
    {
        let mut away = Command::new("systemctl").arg(how).spawn().unwrap();
        let pod = service.run(&format!("meanwhile{round}"), "bwlife.slice");
        let (main, _) = service.start(&pod, "main");
        service.answers(&main);
        let mut again = Command::new("systemctl").arg(how).spawn().unwrap();
        service.remove(&pod);
        away.wait().unwrap();
        again.wait().unwrap();
    }
    assert_eq!(scopes(), [scope_of(&pod)]);
    service.answers(&main);

    let monitor = pids(&group(&show(&scope_of(&pod), "ControlGroup")).join("monitor"))[0];
    signal(monitor, rustix::process::Signal::KILL);
    wait_for("the container is lost", PATIENCE, || service.state(&main).reason == "MonitorLost");
    wait_for("the scope is empty, and gone", PATIENCE, || scopes().is_empty());
    service.remove(&pod);
    assert!(!group("bwlife.slice").exists());
}

#[test]
fn a_scope_without_a_pod_is_ended() {
    let Some(service) = Service::started("a scope without a pod is ended", "", "") else { return };
    let pod = service.run("orphan", "");
    service.start(&pod, "main");
    let path = group(&show(&scope_of(&pod), "ControlGroup"));
    // Somebody else's of the same name, and one of another daemon: both are left alone.
    let other = format!("bowline-{}.scope", "0".repeat(64));
    let unit = format!("--unit={other}");
    let mut holder = Command::new("systemd-run")
        .args(["--scope", "--quiet", &unit, "--description=bowline 00000000: pod a/b", "sleep", "600"])
        .spawn()
        .unwrap();
    wait_for("the other scope is there", PATIENCE, || scopes().contains(&other));
    systemctl(&["stop", "bowline.service"]);
    fs::remove_dir_all(service.daemon.folder().join("root/pods").join(&pod)).unwrap();
    systemctl(&["start", "bowline.service"]);
    assert_eq!(scopes(), std::slice::from_ref(&other));
    assert!(!path.exists());
    systemctl(&["kill", "-s", "KILL", &other]);
    holder.wait().unwrap();
}

#[test]
fn the_other_driver_s_pods_are_kept() {
    let lines = "cgroup_driver = \"cgroupfs\"";
    let Some(service) = Service::started("the other driver's pods are kept", lines, "") else { return };
    let pod = service.run("cgroupfs", "/bwplain/pod1");
    let (main, pid) = service.start(&pod, "main");
    assert_eq!(cgroup_of(pid), format!("/bwplain/pod1/{main}"));
    let config = service.pod("slice", "kubepods.slice");
    let refused = service.runtime.block_on(async { service.client_async().await.run(config).await });
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    // Its monitor is in none of systemd's units, so that nothing that systemd does to one touches it.
    systemctl(&["restart", "bowline.service"]);
    systemctl(&["daemon-reload"]);
    service.answers(&main);
    let file = service.daemon.folder().join("config.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace(lines, "cgroup_driver = \"systemd\"")).unwrap();
    systemctl(&["restart", "bowline.service"]);
    service.answers(&main);
    let scope = service.run("scope", "");
    assert_eq!(scopes(), [scope_of(&scope)]);
    systemctl(&["stop", "bowline.service"]);
    fs::write(&file, text).unwrap();
    systemctl(&["start", "bowline.service"]);
    service.remove(&scope);
    service.remove(&pod);
    assert_eq!(scopes(), Vec::<String>::new());
    assert!(!group("bwplain").exists());
}

#[test]
fn a_hung_daemon_is_started_anew() {
    // Shorter than ours, and long enough for a slow machine.
    let Some(service) = Service::started("a hung daemon is started anew", "", "WatchdogSec=8s\n") else {
        return;
    };
    let pod = service.run("watched", "");
    let (main, _) = service.start(&pod, "main");
    let before = service.main_pid();
    let text = show("bowline.service", "StatusText");
    assert!(text.starts_with("Serving"), "{text}");
    signal(before, rustix::process::Signal::STOP);
    wait_for("systemd has started another daemon", PATIENCE, || {
        show("bowline.service", "NRestarts") == "1" && show("bowline.service", "ActiveState") == "active"
    });
    assert_ne!(service.main_pid(), before);
    service.answers(&main);
    service.remove(&pod);
}

#[test]
fn a_healthy_daemon_is_left_alone() {
    let drop_in = "WatchdogSec=4s\n";
    let Some(service) = Service::started("a healthy daemon is left alone", "", drop_in) else { return };
    let before = service.main_pid();
    let stamp = || show("bowline.service", "WatchdogTimestampMonotonic").parse::<u64>().unwrap();
    let first = stamp();
    // Six pings take three times as long as it may be silent.
    wait_for("it pings", PATIENCE, || stamp() > first + 12_000_000);
    systemctl(&["reload", "bowline.service"]);
    wait_for("it has reloaded", PATIENCE, || show("bowline.service", "ActiveState") == "active");
    assert_eq!((service.main_pid(), show("bowline.service", "NRestarts").as_str()), (before, "0"));
    let journal = output("journalctl", &["-u", "bowline.service", "-o", "json", "--no-pager"]);
    let lines = journal.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let pid = before.to_string();
    let ours: Vec<_> = lines.filter(|line| line["_PID"] == pid).collect();
    let serving =
        ours.iter().find(|line| line["MESSAGE"].as_str().is_some_and(|text| text.contains("serving")));
    let serving = serving.expect("the journal has our lines");
    assert_eq!(serving["PRIORITY"], "6");
    let message = serving["MESSAGE"].as_str().unwrap().trim_start();
    assert!(message.starts_with("INFO "), "neither time nor prefix: {message}");
}

#[test]
fn systemd_s_socket_is_used_and_kept() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(service) = Service::installed("systemd's socket is used and kept", "", "") else { return };
    systemctl(&["start", "bowline.socket"]);
    assert_eq!(show("bowline.service", "ActiveState"), "inactive");
    let inode = || fs::metadata(service.daemon.socket()).unwrap().ino();
    let before = inode();
    // The first client starts the daemon.
    service.pull();
    assert_eq!(show("bowline.service", "ActiveState"), "active");
    let pod = service.run("activated", "");
    let (main, _) = service.start(&pod, "main");
    systemctl(&["restart", "bowline.service"]);
    service.answers(&main);
    assert_eq!(inode(), before, "nobody was turned away meanwhile");
    service.remove(&pod);
    systemctl(&["stop", "bowline.service"]);
    assert!(service.daemon.socket().exists());
    systemctl(&["stop", "bowline.socket"]);
    // At another place than the daemon is told.
    let elsewhere = service.daemon.folder().join("other.sock");
    install(
        "bowline.socket",
        SOCKET,
        &format!("[Socket]\nListenStream=\nListenStream={}\n", elsewhere.display()),
    );
    systemctl(&["daemon-reload"]);
    systemctl(&["start", "bowline.socket"]);
    let refused = Command::new("systemctl").args(["start", "bowline.service"]).output().unwrap();
    assert!(!refused.status.success());
    let journal = output("journalctl", &["-u", "bowline.service", "-o", "cat", "--no-pager"]);
    assert!(journal.contains("other.sock") && journal.contains("`listen`"), "{journal}");
}
