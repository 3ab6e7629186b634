//! Programs, units and package on a machine with systemd: installed, used, replaced under a pod, removed, and nothing is left.
//!
//! It changes the machine that it runs on, so it runs only in a guest: `cargo xtask vm --systemd --with
//! target/deb/bowline_0.1.0_amd64.deb installing` (the package from `cargo xtask deb`).
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bowline_testkit::Registry;
use bowline_tests::{programs, wait_for};

/// Guests are slow.
const SOON: Duration = Duration::from_secs(120);

/// There is one machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Whether the machine may be changed, by nobody else meanwhile; says why not.
fn may_run(test: &str) -> Option<MutexGuard<'static, ()>> {
    let in_guest = fs::read_to_string("/proc/cmdline").unwrap_or_default().contains("guest_init=");
    let why = match (in_guest, Path::new("/run/systemd/system").is_dir()) {
        (true, true) => return Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)),
        (true, false) => "the guest has no systemd (cargo xtask vm --systemd)",
        (false, _) => "it changes the machine; run it in a guest (cargo xtask vm --systemd)",
    };
    println!("NOT TESTED: {test}: {why}");
    None
}

#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("$ {program} {}\n{text}", args.join(" "));
    assert!(output.status.success(), "{program} {args:?} failed: {text}");
    text
}

#[track_caller]
fn fails(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("$ {program} {}\n{text}", args.join(" "));
    assert!(!output.status.success(), "{program} {args:?} worked: {text}");
    text
}

fn is_active() -> bool {
    Command::new("systemctl").args(["is-active", "--quiet", "bowline"]).status().unwrap().success()
}

/// What the daemon said, should it not run.
#[track_caller]
fn must_be_active() {
    if !is_active() {
        panic!(
            "the daemon does not run: {}",
            run("journalctl", &["-u", "bowline", "--no-pager", "-n", "30"])
        );
    }
}

fn main_pid() -> String {
    run("systemctl", &["show", "--property=MainPID", "--value", "bowline"]).trim().to_owned()
}

/// Everything of the machine that has our name: files, units, cgroups, mounts, links, tables, processes.
fn inventory() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for top in ["/etc", "/usr", "/run", "/var", "/opt", "/tmp"] {
        walk(Path::new(top), &mut |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The package manager's log of what was there is its own.
            let is_noise = path.starts_with("/var/log") || path.starts_with("/var/cache/apparmor");
            if (name.contains("bowline") || name == "crictl.yaml") && !is_noise {
                found.insert(format!("file {}", path.display()));
            }
        });
    }
    walk(Path::new("/sys/fs/cgroup"), &mut |path| {
        if path.to_string_lossy().contains("bowline") && path.is_dir() {
            found.insert(format!("cgroup {}", path.display()));
        }
    });
    let lines = |path: &str| fs::read_to_string(path).unwrap_or_default();
    found.extend(
        lines("/proc/self/mountinfo")
            .lines()
            .filter(|line| line.contains("bowline"))
            .map(|line| format!("mount {line}")),
    );
    for link in fs::read_dir("/sys/class/net").unwrap().flatten() {
        found.insert(format!("link {}", link.file_name().to_string_lossy()));
    }
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if comm.starts_with("bowline") {
            found.insert(format!("process {}", comm.trim()));
        }
    }
    found
}

fn walk(folder: &Path, see: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        see(&entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), see);
        }
    }
}

#[track_caller]
fn assert_as_before(before: &BTreeSet<String>) {
    let mut last = BTreeSet::new();
    let same = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("the machine is as before", SOON, || {
            last = inventory();
            last == *before
        });
    }));
    let left: Vec<_> = last.difference(before).collect();
    let gone: Vec<_> = before.difference(&last).collect();
    assert!(same.is_ok(), "left behind: {left:#?}\nmissing: {gone:#?}");
}

/// A network, and an image for pods.
struct Node {
    registry: Registry,
    image: String,
}

impl Node {
    fn new() -> Node {
        let registry = Registry::start();
        let image = bowline_testkit::busybox().expect("a static busybox").build();
        let image = registry.push("busybox", "1", &image);
        Node { registry, image }
    }

    /// A pod of one container, whose first process is given.
    fn pod(&self, bowline: &str, name: &str) -> Pod {
        wait_for("the daemon serves", SOON, || {
            Command::new(bowline).arg("version").output().unwrap().status.success()
        });
        assert!(self.registry.log().len() < 1000);
        run(bowline, &["pull", &self.image]);
        run(bowline, &["run", "-d", "--name", name, &self.image, "sleep", "100000"]);
        let text = run(bowline, &["inspect", "-o", "json", name]);
        // There is a namespace mode of that name as well.
        let numbers = text
            .split("\"pid\":")
            .skip(1)
            .map(|rest| rest.trim_start().chars().take_while(char::is_ascii_digit));
        let pid =
            numbers.map(String::from_iter).find(|pid| !pid.is_empty()).expect("a pid in what inspect says");
        Pod { pid: PathBuf::from("/proc").join(pid), name: name.to_owned() }
    }
}

struct Pod {
    pid: PathBuf,
    name: String,
}

impl Pod {
    #[track_caller]
    fn must_live(&self) {
        let comm = fs::read_to_string(self.pid.join("comm")).unwrap_or_default();
        assert_eq!(comm.trim(), "sleep", "the container of {}", self.name);
    }
}

/// Before the daemon's first start, so that there is a network for pods.
fn configure_network() {
    fs::create_dir_all("/etc/bowline/conf.d").unwrap();
    fs::write("/etc/bowline/conf.d/network.toml", "[default_network]\nenable = true\n").unwrap();
}

#[test]
fn a_package_comes_and_goes_around_a_pod() {
    let Some(_alone) = may_run("a_package_comes_and_goes_around_a_pod") else { return };
    let mut files = fs::read_dir(programs()).unwrap().flatten().map(|entry| entry.path());
    let Some(package) = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"))
    else {
        println!("NOT TESTED: a_package_comes_and_goes_around_a_pod: no package was given by --with");
        return;
    };
    let package = package.to_str().unwrap();
    let before = inventory();
    configure_network();
    run("dpkg", &["-i", package]);
    must_be_active();
    run("systemctl", &["is-enabled", "bowline"]);
    let node = Node::new();
    let pod = node.pod("/usr/bin/bowline", "one");

    // An upgrade: another daemon, the same pod.
    let first = main_pid();
    run("dpkg", &["-i", package]);
    must_be_active();
    assert_ne!(main_pid(), first, "an upgrade starts the daemon anew");
    pod.must_live();
    wait_for("the pod is known", SOON, || run("/usr/bin/bowline", &["ps", "-q"]).trim().len() > 10);

    // Removed with a pod: the pod goes on, and a new installation finds it.
    let told = run("dpkg", &["-r", "bowline"]);
    assert!(told.contains("pods are left in /run/bowline/pods (1)"), "{told}");
    assert!(!is_active());
    pod.must_live();
    assert!(Path::new("/etc/bowline/config.toml").exists());
    run("dpkg", &["-i", package]);
    wait_for("the daemon runs", SOON, is_active);
    pod.must_live();
    run("/usr/bin/bowline", &["rmp", "--all", "--force"]);
    assert!(!pod.pid.exists());

    run("dpkg", &["--purge", "bowline"]);
    assert_as_before(&before);
}

#[test]
fn an_installation_by_hand_comes_and_goes() {
    let Some(_alone) = may_run("an_installation_by_hand_comes_and_goes") else { return };
    let before = inventory();
    configure_network();
    let program = programs().join("bowline");
    let program = program.to_str().unwrap();
    run(program, &["install", "--enable", "--start"]);
    let installed = "/usr/local/bin/bowline";
    wait_for("the daemon runs", SOON, is_active);
    let node = Node::new();
    let pod = node.pod(installed, "two");
    let refused = fails(installed, &["uninstall"]);
    assert!(refused.contains("pods run (1)") && refused.contains("try: "), "{refused}");
    let first = main_pid();
    run(program, &["install", "--start"]);
    assert_ne!(main_pid(), first);
    pod.must_live();
    run(installed, &["uninstall", "--purge"]);
    assert!(!pod.pid.exists());
    assert_as_before(&before);
}
