//! OCI hooks from a CDI file against the daemon: their order and what they see, what fails, and a daemon that dies in the middle.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_tests::{Client, Daemon, Inventory, container, pod, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A dynamic program of the host.
const SHELL: &str = "/bin/bash";

struct Node {
    daemon: Daemon,
    client: Client,
    folder: tempfile::TempDir,
}

impl Node {
    async fn start() -> Node {
        Node::started_by(&[]).await
    }

    /// The daemon is started by a command line that takes another one.
    async fn started_by(wrapper: &[&str]) -> Node {
        let folder = tempfile::Builder::new().prefix("bowline-hooks-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let cdi = format!("[cdi]\nspec_dirs = [\"{}\"]", folder.path().display());
        let wrapper: Vec<String> = wrapper.iter().map(|word| (*word).to_owned()).collect();
        let mut daemon = Daemon::prepared(&cdi, &wrapper);
        daemon.restart();
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        Node { daemon, client, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Announces one device with these hooks.
    fn announce(&self, hooks: &[Value]) {
        let device = json!({"name": "one", "containerEdits": {"hooks": hooks}});
        let file = json!({"cdiVersion": "0.5.0", "kind": "hooks.test/device", "devices": [device]});
        fs::write(self.path("hooks.json"), file.to_string()).unwrap();
    }

    async fn pod(&mut self, config: v1::PodSandboxConfig) -> String {
        self.client.run(config).await.expect("RunPodSandbox")
    }

    /// Makes a container with the device.
    async fn create(&mut self, pod: &str, name: &str, script: &str) -> String {
        let mut config = container(&self.client, name, script);
        config.cdi_devices.push(v1::CdiDevice { name: "hooks.test/device=one".into() });
        self.client.create(pod, config).await.expect("CreateContainer")
    }

    async fn launch(&mut self, id: &str) -> Result<(), tonic::Status> {
        let request = v1::StartContainerRequest { container_id: id.into() };
        self.client.runtime.start_container(request).await.map(drop)
    }

    async fn said(&mut self, id: &str, command: &str) -> String {
        let answer = self.client.exec(id, &["sh", "-c", command]).await.expect("ExecSync");
        String::from_utf8(answer.stdout).unwrap()
    }
}

fn hook(kind: &str, script: &str) -> Value {
    json!({"hookName": kind, "path": SHELL, "args": ["bash", "-c", script], "env": ["PATH=/usr/bin:/bin", "GIVEN=yes"]})
}

/// A hook of the host that notes its kind, its state's status and whether the state has a number.
fn note(kind: &str, log: &Path) -> Value {
    let script = format!(
        "S=$(</dev/stdin); T=${{S#*\\\"status\\\":\\\"}}; P=none; [[ $S == *'\"pid\":'* ]] && P=pid; \
         [[ $GIVEN == yes && -z $HOME && $PWD == */bundles/* && -f config.json ]] || exit 9; \
         echo {kind} ${{T%%\\\"*}} $P >> {}",
        log.display()
    );
    hook(kind, &script)
}

fn marked(marker: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.into_iter().any(|line| line.split('\0').any(|word| word == marker))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_has_its_moment_and_its_view() {
    let mut node = Node::start().await;
    let clean = Inventory::take(node.daemon.folder());
    let log = node.path("log");
    let outside = format!(
        "S=$(</dev/stdin); [[ $S == *'\"status\":\"creating\"'* && $S == *'\"pid\":'[12],* ]] || exit 2
         B=${{S#*\\\"bundle\\\":\\\"}}; [[ $PWD == ${{B%%\\\"*}} ]] || exit 3
         [[ $(<config.json) == *'\"path\":\"rootfs\"'* ]] || exit 4
         [[ -e rootfs/proc/1/status && -c rootfs/dev/null && -s rootfs/etc/hosts ]] || exit 5
         [[ $(<{log}) == $'prestart creating pid\\ncreateRuntime creating pid' ]] || exit 6
         (echo x >> {log}) 2>/dev/null && exit 7
         [[ -e {socket} ]] && exit 8
         echo createContainer $(id -u) > rootfs/order
         mkdir rootfs/hooked && mount -t tmpfs hook rootfs/hooked && echo there > rootfs/hooked/file",
        log = log.display(),
        socket = node.daemon.socket().display(),
    );
    let inside = "S=$(cat); case $S in *'\"status\":\"created\"'*'\"pid\":'[12],*) ;; *) exit 2;; esac; \
                  echo startContainer $(grep CapEff /proc/self/status) >> /order";
    let inside = json!({"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", inside], "env": ["PATH=/bin"]});
    node.announce(&[
        note("poststop", &log),
        note("poststart", &log),
        inside,
        hook("createContainer", &outside),
        note("createRuntime", &log),
        note("prestart", &log),
    ]);
    let logs = node.daemon.folder().join("logs");
    let sandbox = node.pod(pod("hooks", &logs)).await;
    let id = node.create(&sandbox, "main", "sleep 1000").await;
    assert!(!log.exists(), "nothing runs before the start");
    node.launch(&id).await.expect("StartContainer");

    let before = "prestart creating pid\ncreateRuntime creating pid\npoststart running pid\n";
    assert_eq!(fs::read_to_string(&log).unwrap(), before);
    let own = node.said(&id, "grep CapEff /proc/self/status").await;
    let order = node.said(&id, "cat /order").await;
    assert_eq!(order, format!("createContainer 0\nstartContainer {}", own.replace('\t', " ")));
    assert_eq!(node.said(&id, "cat /hooked/file").await, "there\n");
    // Nothing of the host is left around the root.
    let mounts = node.said(&id, "cat /proc/self/mountinfo").await;
    assert!(!mounts.contains("bundles") && mounts.lines().count() < 60, "{mounts}");
    let bundles = node.daemon.folder().join("state/bundles");
    assert_eq!(fs::read_dir(bundles.join(&id).join("rootfs")).unwrap().count(), 0, "the host sees no root");

    node.client.remove(&sandbox).await.unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("{before}poststop stopped none\n"));
    assert_eq!(fs::read_dir(&bundles).unwrap().count(), 0);
    clean.wait_equal(node.daemon.folder());
}

/// systemd makes the mounts of a host shared: what is mounted in a copy of such a mount is mounted on the host too, and whoever
/// removes a folder there removes what a container's volumes hold.
#[tokio::test(flavor = "multi_thread")]
async fn on_shared_mounts_the_host_sees_no_root_either() {
    let mut node = Node::started_by(&["unshare", "-m", "--propagation", "shared"]).await;
    let clean = Inventory::take(node.daemon.folder());
    let volume = node.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("word"), "kept").unwrap();
    let table = PathBuf::from(format!("/proc/{}/mountinfo", node.daemon.pid().unwrap()));
    let root = fs::read_to_string(&table)
        .unwrap()
        .lines()
        .any(|line| line.contains(" / / ") && line.contains("shared:"));
    assert!(root, "the daemon's mounts are shared");
    let sandbox = node.pod(pod("shared", &node.daemon.folder().join("logs"))).await;
    for (name, script, works) in [("works", "echo here > rootfs/hooked", true), ("fails", "exit 3", false)] {
        node.announce(&[hook("createContainer", script)]);
        let mut config = container(&node.client, name, "sleep 1000");
        config.cdi_devices.push(v1::CdiDevice { name: "hooks.test/device=one".into() });
        config.mounts.push(v1::Mount {
            host_path: volume.display().to_string(),
            container_path: "/volume".into(),
            ..Default::default()
        });
        let id = node.client.create(&sandbox, config).await.expect("CreateContainer");
        let launched = node.launch(&id).await;
        assert_eq!(launched.is_ok(), works, "{launched:?}");
        if works {
            assert_eq!(node.said(&id, "cat /hooked /volume/word").await, "here\nkept");
        }
        let mounts = fs::read_to_string(&table).unwrap();
        assert!(!mounts.contains("/bundles/"), "{mounts}");
    }
    node.client.remove(&sandbox).await.unwrap();
    assert_eq!(fs::read_to_string(volume.join("word")).unwrap(), "kept");
    clean.wait_equal(node.daemon.folder());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_fails_the_start_and_leaves_nothing() {
    let mut node = Node::start().await;
    let clean = Inventory::take(node.daemon.folder());
    let logs = node.daemon.folder().join("logs");
    let sandbox = node.pod(pod("failing", &logs)).await;
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer"] {
        let marker = format!("{}7{}", std::process::id(), kind.len());
        let (shell, stopped) = (if kind == "startContainer" { "/bin/sh" } else { SHELL }, node.path(kind));
        let script = format!("sleep {marker} & echo what was wrong >&2; exit 3");
        let bad = json!({"hookName": kind, "path": shell, "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]});
        node.announce(&[bad, hook("poststop", &format!("touch {}", stopped.display()))]);
        let id = node.create(&sandbox, kind, "echo ran; sleep 1000").await;
        let status = node.launch(&id).await.expect_err(kind);
        let wanted =
            format!("hooks.{kind}[0] ({shell}): it ended with exit code 3; it wrote: what was wrong");
        assert!(status.message().contains(&wanted), "{kind}: {}", status.message());
        wait_for("what the hook left behind is gone", PATIENCE, || !marked(&marker));
        let ended = node.client.status(&id).await.unwrap();
        assert_eq!((ended.state(), ended.exit_code), (v1::ContainerState::ContainerExited, 128), "{ended:?}");
        assert_eq!(ended.reason, "StartError");
        assert!(ended.message.contains(&wanted), "{ended:?}");
        let log = fs::read_to_string(logs.join(format!("{kind}.log"))).unwrap_or_default();
        assert!(!log.contains("ran"), "{log}");
        assert!(!stopped.exists(), "the container is still there");
        let request = v1::RemoveContainerRequest { container_id: id.clone() };
        node.client.runtime.remove_container(request).await.unwrap();
        assert!(stopped.exists(), "poststop comes with the removal");
    }
    // After the program runs nothing fails.
    node.announce(&[hook("poststart", "exit 1"), hook("poststop", "exit 1")]);
    let id = node.create(&sandbox, "late", "sleep 1000").await;
    node.launch(&id).await.expect("a poststart hook fails no start");
    assert!(node.daemon.log().contains("hooks.poststart[0]"), "{}", node.daemon.log());
    node.client.remove(&sandbox).await.unwrap();
    assert!(node.daemon.log().contains("hooks.poststop[0]"), "{}", node.daemon.log());
    clean.wait_equal(node.daemon.folder());
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_have_a_limit_of_time_and_make_sense() {
    let mut node = Node::start().await;
    let clean = Inventory::take(node.daemon.folder());
    let sandbox = node.pod(pod("limits", &node.daemon.folder().join("logs"))).await;
    for kind in ["createRuntime", "createContainer"] {
        let slow = json!({"hookName": kind, "path": SHELL, "args": ["bash", "-c", "exec sleep 1000"],
            "env": ["PATH=/usr/bin:/bin"], "timeout": 1});
        node.announce(&[slow]);
        let id = node.create(&sandbox, kind, "sleep 1000").await;
        let status = node.launch(&id).await.expect_err(kind);
        assert!(status.message().contains("at the end of its time"), "{}", status.message());
    }
    let refused = [
        (json!({"hookName": "createContainer", "path": "bin/x"}), "absolute"),
        (json!({"hookName": "sometimes", "path": "/bin/x"}), "sometimes"),
        (json!({"hookName": "poststop", "path": "/bin/x", "timeout": -1}), "hooks.poststop[0].timeout"),
        (json!({"hookName": "poststop", "path": "/bin/x", "env": ["x"]}), "hooks.poststop[0].env"),
    ];
    for (bad, word) in refused {
        node.announce(&[bad]);
        let mut config = container(&node.client, "refused", "true");
        config.cdi_devices.push(v1::CdiDevice { name: "hooks.test/device=one".into() });
        let status = node.client.create(&sandbox, config).await.expect_err(word);
        assert!(status.message().contains(word), "{word}: {}", status.message());
    }
    node.client.remove(&sandbox).await.unwrap();
    clean.wait_equal(node.daemon.folder());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_during_a_hook_leaves_nothing_running() {
    let mut node = Node::start().await;
    let clean = Inventory::take(node.daemon.folder());
    let logs = node.daemon.folder().join("logs");
    for kind in ["createRuntime", "createContainer", "startContainer"] {
        let marker = format!("{}8{}", std::process::id(), kind.len());
        let shell = if kind == "startContainer" { "/bin/sh" } else { SHELL };
        // With a process of its own, which does not die with the one that we know of.
        let script = format!("sleep {marker} & sleep 1000");
        node.announce(&[
            json!({"hookName": kind, "path": shell, "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}),
        ]);
        let sandbox = node.pod(pod(&format!("dies-{kind}"), &logs)).await;
        let id = node.create(&sandbox, "main", "sleep 1000").await;
        let starting = {
            let (mut client, id) = (node.client.clone(), id.clone());
            tokio::spawn(async move {
                client.runtime.start_container(v1::StartContainerRequest { container_id: id }).await
            })
        };
        wait_for("the hook runs", PATIENCE, || marked(&marker));
        node.daemon.kill();
        starting.await.unwrap().expect_err("its daemon is dead");
        wait_for("the hook's processes are gone without any daemon", PATIENCE, || !marked(&marker));
        node.daemon.restart();
        node.client = Client::connect(&node.daemon).await;
        // The monitor may tell of the end a moment later.
        let mut ended = node.client.status(&id).await.unwrap();
        while ended.state() != v1::ContainerState::ContainerExited {
            tokio::task::yield_now().await;
            ended = node.client.status(&id).await.unwrap();
        }
        assert_eq!((ended.exit_code, ended.reason.as_str()), (128, "StartError"), "{kind}: {ended:?}");
        // The pod is as good as before.
        node.announce(&[]);
        let other = node.create(&sandbox, "other", "sleep 1000").await;
        node.launch(&other).await.expect("StartContainer");
        node.client.remove(&sandbox).await.unwrap();
    }
    clean.wait_equal(node.daemon.folder());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_own_users_and_numbers_are_those_of_its_hooks() {
    let mut node = Node::start().await;
    // The user of the pod finds the bundle by its path.
    fs::set_permissions(node.daemon.folder(), fs::Permissions::from_mode(0o711)).unwrap();
    let clean = Inventory::take(node.daemon.folder());
    let script = "S=$(</dev/stdin); P=${S#*\\\"pid\\\":}; [[ -s config.json ]] || exit 2; \
                  echo $(id -u) $(</proc/self/uid_map) > rootfs/made; echo ${P%%,*} >> rootfs/made";
    node.announce(&[hook("createContainer", script)]);
    let mappings = vec![v1::IdMapping { host_id: 700_000, container_id: 0, length: 65_536 }];
    let users =
        v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: mappings.clone(), gids: mappings };
    for (name, users, uid_map) in
        [("shared", None, "0 0 0 4294967295"), ("mapped", Some(users), "0 0 700000 65536")]
    {
        let logs = node.daemon.folder().join("logs");
        let pid = v1::NamespaceMode::Pod as i32;
        let options = v1::NamespaceOption { pid, userns_options: users, ..Default::default() };
        let security =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux = v1::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
        let config = v1::PodSandboxConfig { linux: Some(linux), ..pod(name, &logs) };
        let sandbox = node.pod(config).await;
        let id = node.create(&sandbox, "main", "echo $$ > /own; sleep 1000").await;
        node.launch(&id).await.expect("StartContainer");
        let said = node.said(&id, "cat /made /own").await;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 3, "{name}: {said}");
        assert_eq!(lines[0], uid_map, "{name}");
        assert_eq!(lines[1], lines[2], "{name}: the number in the pod's PID namespace");
        assert_ne!(lines[1], "1", "{name}");
        node.client.remove(&sandbox).await.unwrap();
    }
    clean.wait_equal(node.daemon.folder());
}
