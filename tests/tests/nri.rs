//! Plugins on the official library against the daemon. The program is built from `tests/nri-plugin`, if `go` is there.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_tests::{Client, Daemon, Inventory, container, pod, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

/// The plugin, built in a folder of the user's cache. `None` without `go`.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    if Command::new("go").arg("version").output().is_err() {
        println!("there is no `go` on PATH: plugins on the official library are left out");
        return None;
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(Into::into);
    let home = || std::env::home_dir().map(|home| home.join(".cache"));
    let folder: PathBuf = cache.or_else(home).unwrap_or_else(std::env::temp_dir);
    let folder = folder.join("bowline-tests/nri-plugin");
    fs::create_dir_all(&folder).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("nri-plugin");
    for name in ["main.go", "go.mod", "go.sum"] {
        fs::copy(source.join(name), folder.join(name)).unwrap();
    }
    let built = Command::new("go").args(["build", "-o", "nri-plugin", "."]).current_dir(&folder).output();
    let built = built.unwrap();
    assert!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
    Some(folder.join("nri-plugin"))
}

/// A plugin that connected by itself.
struct Plugin {
    process: Child,
    input: ChildStdin,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Plugin {
    /// Connects; does not wait for Synchronize.
    fn connect(daemon: &Daemon, index: &str, name: &str, wishes: &str) -> Plugin {
        let program = program().expect("looked for before");
        let mut process = Command::new(program)
            .arg(daemon.nri_socket())
            .args([index, name, wishes])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the plugin");
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let into = lines.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                into.lock().unwrap().push(line);
            }
        });
        Plugin { process, input, lines }
    }

    /// Connects, and waits until it is synchronised.
    fn join(daemon: &Daemon, index: &str, name: &str, wishes: &str) -> Plugin {
        let plugin = Plugin::connect(daemon, index, name, wishes);
        plugin.wait_for("Synchronize");
        // The daemon hears of its answer a little later.
        let joined = format!("an NRI plugin has joined plugin=\"{index}-{name}\"");
        wait_for("the plugin joins", PATIENCE, || daemon.log().contains(&joined));
        plugin
    }

    fn say(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    /// What it heard of containers and pods, as `Call name`.
    fn heard(&self) -> Vec<String> {
        calls(&self.lines.lock().unwrap())
    }

    fn wait_for(&self, call: &str) {
        let heard = || self.heard().iter().any(|heard| heard == call);
        wait_for(&format!("{call} in {:?}", self.heard()), PATIENCE, heard);
    }

    /// The line of a call.
    fn line(&self, call: &str) -> String {
        let lines = self.lines.lock().unwrap();
        let found = lines.iter().find(|line| calls(std::slice::from_ref(line)) == [call]);
        found.unwrap_or_else(|| panic!("no {call} in {lines:?}")).clone()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `Call name` of each line; the name is the container's, else the pod's.
fn calls(lines: &[String]) -> Vec<String> {
    let name = |line: &str, of: &str| {
        let rest = line.split_once(&format!("\"{of}\":{{"))?.1;
        // Ids come first, then names.
        let name = rest.split_once("\"name\":\"")?.1;
        Some(name.split_once('"')?.0.to_owned())
    };
    let call = |line: &String| {
        let call = line.split_once("{\"call\":\"")?.1.split_once('"')?.0;
        let about = name(line, "container").or_else(|| name(line, "pod"));
        Some(about.map_or(call.to_owned(), |name| format!("{call} {name}")))
    };
    lines.iter().filter_map(call).collect()
}

struct Node {
    daemon: Daemon,
    client: Client,
    logs: PathBuf,
}

impl Node {
    /// `None` without `go`.
    async fn start(more: &str) -> Option<Node> {
        program()?;
        Some(Node::of(Daemon::start_with(more)).await)
    }

    async fn of(daemon: Daemon) -> Node {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        Node { daemon, client, logs }
    }

    async fn pod(&mut self, name: &str) -> String {
        let config = pod(name, &self.logs.join(name));
        self.client.run(config).await.expect("RunPodSandbox")
    }

    async fn start_container(
        &mut self,
        pod: &str,
        name: &str,
        script: &str,
    ) -> Result<String, tonic::Status> {
        let config = container(&self.client, name, script);
        self.client.start(pod, config).await
    }

    async fn says(&mut self, id: &str, script: &str) -> String {
        let answer = self.client.exec(id, &["sh", "-c", script]).await.expect("ExecSync");
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    }

    async fn shares(&mut self, id: &str) -> i64 {
        let status = self.client.status(id).await.expect("ContainerStatus");
        status.resources.and_then(|limits| limits.linux).map_or(0, |linux| linux.cpu_shares)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life_is_told_in_order() {
    let Some(mut node) = Node::start("").await else { return };
    let before = Inventory::take(node.daemon.folder());
    let plugin = Plugin::join(&node.daemon, "00", "order", "{}");
    let configure = plugin.line("Configure");
    assert!(configure.contains("bowline 0.1.0 v0.12.5 2000"), "{configure}");
    let pod = node.pod("whole").await;
    let id = node.start_container(&pod, "main", "sleep 1000").await.unwrap();
    let resources = v1::LinuxContainerResources { cpu_shares: 333, ..Default::default() };
    let update = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(resources),
        ..Default::default()
    };
    node.client.runtime.update_container_resources(update).await.unwrap();
    let resources = v1::LinuxContainerResources { cpu_shares: 400, ..Default::default() };
    let update = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        resources: Some(resources),
        ..Default::default()
    };
    node.client.runtime.update_pod_sandbox_resources(update).await.unwrap();
    node.client.remove(&pod).await.unwrap();
    let expected = [
        "Configure",
        "Synchronize",
        "RunPodSandbox whole",
        "CreateContainer main",
        "ValidateContainerAdjustment main",
        "PostCreateContainer main",
        "StartContainer main",
        "PostStartContainer main",
        "UpdateContainer main",
        "PostUpdateContainer main",
        "UpdatePodSandbox whole",
        "PostUpdatePodSandbox whole",
        "StopContainer main",
        "StopPodSandbox whole",
        "RemoveContainer main",
        "RemovePodSandbox whole",
    ];
    assert_eq!(plugin.heard(), expected);
    let create = plugin.line("CreateContainer main");
    for fact in [
        "\"args\":[\"/bin/sh\"",
        "\"pod_sandbox_id\":",
        "\"namespaces\":",
        "\"destination\":\"/proc\"",
        "\"uid\":\"whole-uid\"",
    ] {
        assert!(create.contains(fact), "{fact} in {create}");
    }
    drop(plugin);
    before.wait_equal(node.daemon.folder());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_plugins_shape_a_container_and_may_not_collide() {
    let Some(mut node) = Node::start("").await else { return };
    let volume = node.daemon.folder().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "plugged").unwrap();
    let first = format!(
        r#"{{"adjust":{{"env":[{{"key":"ONE","value":"1"}},{{"key":"-GONE","value":""}}],
            "annotations":{{"plugin.example/one":"1"}},
            "mounts":[{{"destination":"/plugged","type":"bind","source":"{}","options":["rbind","ro"]}}],
            "rlimits":[{{"type":"RLIMIT_NOFILE","hard":4321,"soft":4321}}],
            "linux":{{"resources":{{"cpu":{{"shares":{{"value":777}}}},"memory":{{"limit":{{"value":67108864}}}}}},
                "scheduler":{{"policy":4,"nice":7}},"io_priority":{{"class":3}},
                "memory_policy":{{"mode":2,"nodes":"0"}},
                "oom_score_adj":{{"value":321}},"sysctl":{{"net.ipv4.ip_unprivileged_port_start":"77"}}}}}},
            "updateName":"other","updateShares":999,"changeShares":555}}"#,
        volume.display()
    );
    let second = r#"{"adjust":{"env":[{"key":"TWO","value":"2"}],
        "linux":{"devices":[{"path":"/dev/plugged","type":"c","major":1,"minor":3,"file_mode":{"value":438}}]}},
        "events":["all"]}"#;
    let pod = node.pod("shaped").await;
    let other = node.start_container(&pod, "other", "sleep 1000").await.unwrap();
    let one = Plugin::join(&node.daemon, "10", "one", &first);
    assert!(one.line("Synchronize").contains(&other), "{}", one.line("Synchronize"));
    let _two = Plugin::join(&node.daemon, "20", "two", second);
    let mut config = container(&node.client, "main", "sleep 1000");
    config.envs.push(v1::KeyValue { key: "GONE".into(), value: b"x".to_vec() });
    let id = node.client.start(&pod, config).await.unwrap();
    let looks = [
        ("echo $ONE$TWO$GONE", "12"),
        ("cat /plugged/file", "plugged"),
        ("touch /plugged/new 2>/dev/null || echo refused", "refused"),
        ("ulimit -n", "4321"),
        ("cat /proc/1/oom_score_adj /proc/self/oom_score_adj | tail -1", "321"),
        ("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "77"),
        ("cut -d' ' -f19,41 /proc/self/stat", "7 3"),
        ("ionice -p $$", "idle"),
        ("head -1 /proc/self/numa_maps | cut -d' ' -f2", "bind:0"),
        ("echo x >/dev/plugged && stat -c '%t %T' /dev/plugged", "1 3"),
    ];
    for (script, expected) in looks {
        assert_eq!(node.says(&id, script).await, expected, "{script}");
    }
    assert_eq!(node.shares(&id).await, 777);
    assert_eq!(node.shares(&other).await, 999, "another container's limits, asked for at the creation");
    let status = node.client.status(&id).await.unwrap();
    assert_eq!(status.resources.unwrap().linux.unwrap().memory_limit_in_bytes, 64 << 20);
    assert_eq!(status.annotations, Default::default(), "CRI's annotations are the client's");

    // What a client wants later goes by the plugins as well, and leaves alone what they set before.
    let resources = v1::LinuxContainerResources { cpu_shares: 100, ..Default::default() };
    let update = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(resources),
        ..Default::default()
    };
    node.client.runtime.update_container_resources(update).await.unwrap();
    assert_eq!(node.shares(&id).await, 555);
    let status = node.client.status(&id).await.unwrap();
    assert_eq!(status.resources.unwrap().linux.unwrap().memory_limit_in_bytes, 64 << 20);

    let _third =
        Plugin::join(&node.daemon, "30", "three", r#"{"adjust":{"env":[{"key":"ONE","value":"3"}]}}"#);
    let error = node.start_container(&pod, "conflict", "sleep 1000").await.unwrap_err();
    assert!(error.message().contains("10-one and 30-three"), "{error}");
    assert!(error.message().contains("ONE"), "{error}");
    node.client.remove(&pod).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_that_nobody_asked_for() {
    let Some(mut node) = Node::start("").await else { return };
    let pod = node.pod("updates").await;
    let id = node.start_container(&pod, "main", "sleep 1000").await.unwrap();
    let mut plugin = Plugin::join(&node.daemon, "10", "asks", "{}");
    plugin.say(&format!("update {id} 1234"));
    plugin.wait_for("updated");
    assert!(plugin.line("updated").contains("\"0 failed"), "{}", plugin.line("updated"));
    assert_eq!(node.shares(&id).await, 1234);
    let asked: Vec<String> = plugin.heard().into_iter().filter(|call| call.starts_with("Update")).collect();
    assert_eq!(asked, Vec::<String>::new(), "a plugin is not asked about what it wants itself");
    plugin.lines.lock().unwrap().clear();
    plugin.say(&format!("update {} 1", "0".repeat(64)));
    plugin.wait_for("updated");
    assert!(plugin.line("updated").contains("\"1 failed"), "{}", plugin.line("updated"));
    node.client.remove(&pod).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_lost_while_a_plugin_joins() {
    let Some(mut node) = Node::start("").await else { return };
    let pod = node.pod("joining").await;
    node.start_container(&pod, "before", "sleep 1000").await.unwrap();
    let mut plugin = Plugin::connect(&node.daemon, "10", "late", r#"{"hold":["Synchronize"]}"#);
    plugin.wait_for("Synchronize");
    let mut waiting = Vec::new();
    for name in ["a", "b", "c"] {
        let (mut client, pod) = (node.client.clone(), pod.clone());
        let config = container(&client, name, "sleep 1000");
        waiting.push(tokio::spawn(async move { client.start(&pod, config).await }));
    }
    // Lists and statuses ask nobody.
    let listed = node.client.runtime.list_containers(v1::ListContainersRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().containers.len(), 1);
    let create = |operation: &str| operation.contains("CreateContainer");
    wait_for("three that wait", PATIENCE, || {
        let output = node.daemon.cli(&["ops"]).output().expect("bowline ops");
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| create(line)).count() == 3
    });
    assert_eq!(plugin.heard(), ["Configure", "Synchronize"]);
    plugin.say("release");
    for task in waiting {
        task.await.unwrap().expect("made once Synchronize is over");
    }
    for name in ["a", "b", "c"] {
        plugin.wait_for(&format!("CreateContainer {name}"));
    }
    node.client.remove(&pod).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_and_silent_plugins_cost_what_their_policy_says() {
    let Some(mut node) = Node::start("[nri]\nrequest_timeout_seconds = 1\n").await else { return };
    let pod = node.pod("policies").await;
    let silent = Plugin::join(&node.daemon, "10", "silent", r#"{"hold":["CreateContainer"]}"#);
    node.start_container(&pod, "past-silence", "sleep 1000").await.expect("the call goes on");
    silent.wait_for("closed");
    assert_eq!(node.daemon.log().matches("has failed and is dropped").count(), 1);

    let mut killed = Plugin::connect(&node.daemon, "10", "killed", r#"{"hold":["CreateContainer"]}"#);
    killed.wait_for("Synchronize");
    let (mut client, name) = (node.client.clone(), pod.clone());
    let config = container(&client, "past-death", "sleep 1000");
    let made = tokio::spawn(async move { client.start(&name, config).await });
    killed.wait_for("CreateContainer past-death");
    killed.process.kill().unwrap();
    made.await.unwrap().expect("the call goes on");

    let strict = r#"{"hold":["CreateContainer"],"failRequest":true,"keepConnected":true}"#;
    let mut strict = Plugin::join(&node.daemon, "10", "strict", strict);
    let error = node.start_container(&pod, "strict", "sleep 1000").await.unwrap_err();
    assert!(error.message().contains("10-strict"), "{error}");
    // It only holds once, and is still there.
    strict.say("release");
    node.start_container(&pod, "strict", "sleep 1000").await.expect("it answers again");
    assert!(!strict.heard().contains(&"closed".to_owned()));

    let _no = Plugin::join(&node.daemon, "20", "no", r#"{"fail":["StartContainer"]}"#);
    let error = node.start_container(&pod, "refused", "sleep 1000").await.unwrap_err();
    assert!(error.message().contains("StartContainer is not wanted"), "{error}");
    let listed = node.client.runtime.list_containers(v1::ListContainersRequest::default()).await.unwrap();
    let refused = listed
        .into_inner()
        .containers
        .into_iter()
        .find(|known| known.metadata.as_ref().is_some_and(|metadata| metadata.name == "refused"));
    let status = node.client.status(&refused.expect("it is listed").id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    node.client.remove(&pod).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn validators_and_required_plugins() {
    let more = "[nri]\nrequired_plugins = [\"needed\"]\n[nri.default_validator]\nenable = true\n\
                tolerate_missing_plugins_annotation = \"plugins.example/tolerate\"\n";
    let Some(mut node) = Node::start(more).await else { return };
    let held = node.pod("held").await;
    let error = node.start_container(&held, "main", "sleep 1000").await.unwrap_err();
    assert!(error.message().contains("needed"), "{error}");
    let mut config = pod("tolerant", &node.logs.join("tolerant"));
    config.annotations = [("plugins.example/tolerate".to_owned(), "true".to_owned())].into();
    let tolerant = node.client.run(config).await.unwrap();
    node.start_container(&tolerant, "main", "sleep 1000").await.expect("its pod does without");
    let needed = Plugin::join(&node.daemon, "10", "needed", "{}");
    node.start_container(&held, "main", "sleep 1000").await.expect("the plugin is there");
    let _sets = Plugin::join(&node.daemon, "20", "sets", r#"{"adjust":{"env":[{"key":"BAD","value":"1"}]}}"#);
    let _rejects = Plugin::join(&node.daemon, "30", "rejects", r#"{"rejectEnv":"BAD"}"#);
    let error = node.start_container(&held, "bad", "sleep 1000").await.unwrap_err();
    assert!(error.message().contains("30-rejects") && error.message().contains("20-sets"), "{error}");
    drop(needed);
    wait_for("its end is noticed", PATIENCE, || node.daemon.log().contains("a required NRI plugin is gone"));
    assert!(node.start_container(&held, "late", "sleep 1000").await.is_err());
    for pod in [held, tolerant] {
        node.client.remove(&pod).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_are_started_with_the_daemon_and_anew_with_the_next() {
    let Some(program) = program() else { return };
    let mut daemon = Daemon::prepared("", &[]);
    let (plugins, configs) = (daemon.folder().join("plugins"), daemon.folder().join("conf.d.nri"));
    for folder in [&plugins, &configs] {
        fs::create_dir(folder).unwrap();
    }
    let file = daemon.folder().join("heard");
    fs::copy(program, plugins.join("05-ours")).unwrap();
    fs::set_permissions(plugins.join("05-ours"), fs::Permissions::from_mode(0o755)).unwrap();
    let wishes =
        format!(r#"{{"log":"{}","adjust":{{"env":[{{"key":"PLUGGED","value":"yes"}}]}}}}"#, file.display());
    fs::write(configs.join("ours.conf"), wishes).unwrap();
    let config = daemon.folder().join("config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let more = format!(
        "[nri]\nplugin_path = \"{}\"\nplugin_config_path = \"{}\"\n",
        plugins.display(),
        configs.display()
    );
    fs::write(&config, format!("{text}\n{more}")).unwrap();
    daemon.restart();
    let mut node = Node::of(daemon).await;
    let pod = node.pod("launched").await;
    let id = node.start_container(&pod, "main", "sleep 1000").await.unwrap();
    assert_eq!(node.says(&id, "echo $PLUGGED").await, "yes");
    let lines = || -> Vec<String> {
        fs::read_to_string(&file).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let counted = |lines: &[String]| -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for call in calls(lines) {
            *counts.entry(call).or_default() += 1;
        }
        counts
    };
    assert_eq!(counted(&lines())["CreateContainer main"], 1);
    // A container that was made is as its plugin wanted it, whoever starts it; nothing is asked twice.
    let made = node.client.create(&pod, container(&node.client.clone(), "made", "sleep 1000")).await.unwrap();
    node.daemon.kill();
    node.daemon.restart();
    node.client = Client::connect(&node.daemon).await;
    let request = v1::StartContainerRequest { container_id: made.clone() };
    node.client.runtime.start_container(request).await.unwrap();
    assert_eq!(node.says(&made, "echo $PLUGGED").await, "yes");
    let lines = lines();
    assert_eq!(counted(&lines)["CreateContainer made"], 1);
    let synchronized: Vec<&String> = lines.iter().filter(|line| line.contains("\"Synchronize\"")).collect();
    assert_eq!(synchronized.len(), 2);
    assert!(synchronized[1].contains(&id) && synchronized[1].contains(&made), "{synchronized:?}");
    node.client.remove(&pod).await.unwrap();
    node.daemon.stop();
    assert!(!node.daemon.nri_socket().exists(), "the socket goes with the daemon");
}

/// A link of the host's that goes when the test does.
struct HostLink(String);

impl HostLink {
    fn new() -> HostLink {
        let name = format!("bwt{}", std::process::id() % 1_000_000);
        let link = HostLink(name);
        let (one, two) = (link.end(0), link.end(1));
        ip(&["link", "add", &one, "type", "veth", "peer", "name", &two]);
        ip(&["addr", "add", "10.98.7.5/24", "dev", &one]);
        ip(&["link", "set", &one, "up"]);
        link
    }

    fn end(&self, number: u8) -> String {
        format!("{}e{number}", self.0)
    }
}

impl Drop for HostLink {
    fn drop(&mut self) {
        // It goes with its other end, wherever that is.
        let _ = Command::new("ip").args(["link", "del", &self.end(1)]).stderr(Stdio::null()).status();
    }
}

fn ip(words: &[&str]) {
    let done = Command::new("ip").args(words).status().expect("run ip");
    assert!(done.success(), "ip {words:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_and_links_that_a_plugin_adds() {
    let Some(mut node) = Node::start("").await else { return };
    let clean = Inventory::take(node.daemon.folder());
    let log = node.daemon.folder().join("hooks.log");
    let link = HostLink::new();
    let note = |kind: &str| {
        let script = format!("cat >/dev/null; echo {kind} >> {}", log.display());
        serde_json::json!([{"path": "/bin/bash", "args": ["bash", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
    };
    let inside = "cat >/dev/null; echo create_container > rootfs/hooked";
    let wishes = serde_json::json!({"adjust": {
        "hooks": {
            "create_runtime": note("create_runtime"), "poststart": note("poststart"), "poststop": note("poststop"),
            "create_container": [{"path": "/bin/bash", "args": ["bash", "-c", inside]}],
        },
        "linux": {"net_devices": {(link.end(0)): {"name": "data0"}}},
    }});
    let plugin = Plugin::join(&node.daemon, "10", "hooks", &wishes.to_string());
    let pod = node.pod("hooked").await;
    let id = node.start_container(&pod, "main", "sleep 1000").await.unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "create_runtime\npoststart\n");
    assert_eq!(node.says(&id, "cat /hooked").await, "create_container");
    assert_eq!(node.says(&id, "grep -c data0: /proc/net/dev").await, "1");
    assert_eq!(node.says(&id, "ip -o addr show data0 | grep -c 10.98.7.5/24").await, "1", "with its address");
    drop(plugin);
    // One that fails takes the container along, and its words reach the client.
    let fails = serde_json::json!({"adjust": {"hooks": {"create_runtime":
        [{"path": "/bin/bash", "args": ["bash", "-c", "echo too bad >&2; exit 3"]}]}}});
    let failing = Plugin::join(&node.daemon, "20", "fails", &fails.to_string());
    let error = node.start_container(&pod, "fails", "sleep 1000").await.unwrap_err();
    assert!(error.message().contains("too bad"), "{error}");
    drop(failing);
    node.client.remove(&pod).await.unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "create_runtime\npoststart\npoststop\n");
    drop(link);
    clean.wait_equal(node.daemon.folder());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cgroup_that_a_plugin_names() {
    let Some(mut node) = Node::start("").await else { return };
    let clean = Inventory::take(node.daemon.folder());
    let pod = node.pod("grouped").await;
    let looks = Plugin::join(&node.daemon, "10", "looks", "{}");
    node.start_container(&pod, "before", "sleep 1000").await.unwrap();
    let line = looks.line("CreateContainer before");
    // The pod has one as well.
    let of_container = line.split_once("\"container\":{").map_or("", |(_, rest)| rest);
    let path = of_container.split_once("\"cgroups_path\":\"").and_then(|(_, rest)| rest.split_once('"'));
    let path = path.unwrap_or_else(|| panic!("no path in {line}")).0;
    let (parent, _) = path.rsplit_once('/').unwrap();
    drop(looks);
    let wish = |path: &str| serde_json::json!({"adjust": {"linux": {"cgroups_path": path}}}).to_string();
    let names = Plugin::join(&node.daemon, "20", "names", &wish(&format!("{parent}/chosen")));
    let id = node.start_container(&pod, "main", "sleep 1000").await.unwrap();
    let there = format!("{:?}", Inventory::take(node.daemon.folder()));
    assert!(
        there.contains(&format!("{parent}/chosen\"")) && !there.contains(&format!("{parent}/{id}")),
        "{there}"
    );
    let error = node.start_container(&pod, "again", "sleep 1000").await.unwrap_err();
    assert!(error.message().contains("is there already"), "{error}");
    drop(names);
    let _elsewhere = Plugin::join(&node.daemon, "30", "elsewhere", &wish("/elsewhere/x"));
    let error = node.start_container(&pod, "elsewhere", "sleep 1000").await.unwrap_err();
    assert!(error.message().contains("cgroups_path"), "{error}");
    node.client.remove(&pod).await.unwrap();
    clean.wait_equal(node.daemon.folder());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_of_service_where_there_is_no_resctrl() {
    if Path::new("/sys/fs/resctrl/schemata").exists() {
        println!("this machine has resctrl: what is said without it is left out");
        return;
    }
    let Some(mut node) = Node::start("").await else { return };
    let pod = node.pod("classed").await;
    let wish = r#"{"adjust":{"linux":{"rdt":{"clos_id":{"value":"gold"}}}}}"#;
    let _plugin = Plugin::join(&node.daemon, "10", "rdt", wish);
    let error = node.start_container(&pod, "main", "sleep 1000").await.unwrap_err();
    assert!(error.message().contains("resctrl is not mounted"), "{error}");
    node.client.remove(&pod).await.unwrap();
}
