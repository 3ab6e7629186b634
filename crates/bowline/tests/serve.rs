//! The daemon as its clients see it: the real program, its socket, a real kernel.
//!
//! Needs what the tests of `pods` need: root, a busybox, and `bowline-monitor` beside `bowline`.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bowline_cri_proto::v1;
use bowline_cri_proto::v1::image_service_client::ImageServiceClient;
use bowline_cri_proto::v1::runtime_service_client::RuntimeServiceClient;
use bowline_testkit::{Registry, busybox};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

struct Daemon {
    process: Child,
    folder: tempfile::TempDir,
    bridge: String,
}

impl Daemon {
    async fn start(number: u8) -> (Daemon, RuntimeServiceClient<Channel>, ImageServiceClient<Channel>) {
        let folder = tempfile::tempdir().unwrap();
        let bridge = format!("bwd{:x}{number}", std::process::id() & 0xffff);
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "root = \"{}\"\nstate = \"{}\"\nlisten = \"unix://{}\"\n\
             [default_network]\nenable = true\nsubnet = \"10.{}.{number}.0/24\"\nbridge = \"{bridge}\"\n\
             [cni]\nconf_dirs = [\"{}\"]\n",
            at("root"),
            at("state"),
            at("state/cri.sock"),
            220 + std::process::id() % 20,
            at("no-conflists"),
        );
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        let process = Self::command(folder.path()).spawn().unwrap();
        let mut daemon = Daemon { process, folder, bridge };
        let channel = daemon.connect().await;
        (daemon, RuntimeServiceClient::new(channel.clone()), ImageServiceClient::new(channel))
    }

    fn command(folder: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bowline"));
        command.arg("serve").arg("--config").arg(folder.join("config.toml")).stderr(Stdio::inherit());
        command
    }

    async fn connect(&mut self) -> Channel {
        let socket = format!("unix://{}", self.folder.path().join("state/cri.sock").display());
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(channel) = Endpoint::try_from(socket.clone()).unwrap().connect().await {
                return channel;
            }
            assert_eq!(self.process.try_wait().unwrap(), None, "the daemon ended");
            assert!(Instant::now() < deadline, "the daemon does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await; // between looks
        }
    }

    /// SIGTERM; the exit status. Polls, so that clients of this thread may close their connections meanwhile.
    async fn stop(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            tokio::time::sleep(Duration::from_millis(10)).await; // between looks
        }
    }
}

impl Drop for Daemon {
    /// Takes away what a daemon rightly leaves for the next one on its root.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let run = |program: &str, args: &[&str]| {
            let _ = Command::new(program).args(args).stderr(Stdio::null()).status();
        };
        let tag = bowline_cni::InstanceTag::of_root(&self.folder.path().join("root"));
        run("ip", &["link", "del", &self.bridge]);
        run("nft", &["delete", "table", "inet", &format!("bowline-{}", tag.as_str())]);
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        // What waited in it to be a monitor ends when it finds its daemon gone.
        let deadline = Instant::now() + Duration::from_secs(5);
        for folder in hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
            let group = folder.join("bowline").join(tag.as_str());
            while group.is_dir() && Instant::now() < deadline {
                let _ = std::fs::remove_dir(group.join("monitors"));
                let _ = std::fs::remove_dir(&group);
                std::thread::yield_now();
            }
        }
    }
}

fn pod_config() -> v1::PodSandboxConfig {
    let metadata =
        v1::PodSandboxMetadata { name: "web".into(), uid: "u".into(), namespace: "n".into(), attempt: 0 };
    v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
}

fn container_config(image: &str) -> v1::ContainerConfig {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    // As the kubelet asks, unless the pod shares its processes.
    let pid = v1::NamespaceMode::Container.into();
    let namespace_options = Some(v1::NamespaceOption { pid, ..Default::default() });
    let security_context =
        Some(v1::LinuxContainerSecurityContext { namespace_options, ..Default::default() });
    v1::ContainerConfig {
        linux: Some(v1::LinuxContainerConfig { security_context, ..Default::default() }),
        metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image.into(), ..Default::default() }),
        command: words(&["/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done"]),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_pod_from_pull_to_removal() {
    let registry = Registry::start();
    registry.push("busybox", "1", &busybox().expect("busybox-static is installed").build());
    let image = format!("{}/busybox:1", registry.host());
    let (mut daemon, mut runtime, mut images) = Daemon::start(1).await;

    let spec = Some(v1::ImageSpec { image: image.clone(), ..Default::default() });
    let pull = v1::PullImageRequest { image: spec.clone(), ..Default::default() };
    let image_ref = images.pull_image(pull).await.unwrap().into_inner().image_ref;
    let status = v1::ImageStatusRequest { image: spec, verbose: false };
    assert_eq!(images.image_status(status).await.unwrap().into_inner().image.unwrap().id, image_ref);

    let run = v1::RunPodSandboxRequest { config: Some(pod_config()), ..Default::default() };
    let pod = runtime.run_pod_sandbox(run.clone()).await.unwrap().into_inner().pod_sandbox_id;
    assert_eq!(runtime.run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id, pod, "joined");

    let create = v1::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(container_config(&image)),
        sandbox_config: None,
    };
    let id = runtime.create_container(create).await.unwrap().into_inner().container_id;
    runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await.unwrap();

    let exec = |cmd: &[&str]| v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        timeout: 5,
    };
    let output =
        runtime.exec_sync(exec(&["/bin/sh", "-c", "echo hello; exit 4"])).await.unwrap().into_inner();
    assert_eq!((output.stdout.as_slice(), output.exit_code), (&b"hello\n"[..], 4));
    assert_eq!(runtime.exec_sync(exec(&[])).await.unwrap_err().code(), Code::InvalidArgument);

    // By a beginning of its id, with everything that crictl prints.
    let status = v1::ContainerStatusRequest { container_id: id[..13].to_owned(), verbose: true };
    let answer = runtime.container_status(status.clone()).await.unwrap().into_inner();
    let shown = answer.status.unwrap();
    assert_eq!(shown.state, v1::ContainerState::ContainerRunning as i32);
    assert_eq!((shown.id.as_str(), shown.image_id.as_str()), (id.as_str(), image_ref.as_str()));
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    assert!(info["pid"].as_i64().unwrap() > 1 && info["runtimeSpec"].is_object());
    let stats = v1::ListContainerStatsRequest::default();
    let stats = runtime.list_container_stats(stats).await.unwrap().into_inner().stats;
    assert_eq!(stats.len(), 1);

    // A daemon that ends leaves pods running, and finds them again.
    drop((runtime, images));
    assert_eq!(daemon.stop().await, Some(0));
    daemon.process = Daemon::command(daemon.folder.path()).spawn().unwrap();
    let mut runtime = RuntimeServiceClient::new(daemon.connect().await);
    let shown = runtime.container_status(status.clone()).await.unwrap().into_inner().status.unwrap();
    assert_eq!(shown.state, v1::ContainerState::ContainerRunning as i32);

    let stop = v1::StopContainerRequest { container_id: id.clone(), timeout: 10 };
    runtime.stop_container(stop).await.unwrap();
    let shown = runtime.container_status(status).await.unwrap().into_inner().status.unwrap();
    assert_eq!((shown.exit_code, shown.reason.as_str()), (3, "Error"));
    for _ in 0..2 {
        runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() }).await.unwrap();
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
        runtime.remove_pod_sandbox(remove).await.unwrap();
    }
    let gone = v1::PodSandboxStatusRequest { pod_sandbox_id: pod, verbose: false };
    assert_eq!(runtime.pod_sandbox_status(gone).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_second_daemon_ends_before_it_touches_anything() {
    let (mut daemon, _runtime, _images) = Daemon::start(2).await;
    let second = Daemon::command(daemon.folder.path()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(second.status.code(), Some(3));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another daemon uses") && said.contains("--root"), "{said}");
    assert!(daemon.folder.path().join("state/cri.sock").exists());
    assert_eq!(daemon.stop().await, Some(0));
}
