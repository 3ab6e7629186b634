//! A pod's life on the real kernel: images from a real registry over HTTP, a real bridge, real cgroups.
//!
//! Needs root, a busybox (Debian's busybox-static) and the built `bowline-monitor` beside the test's own folder;
//! `cargo xtask test` sees to all three.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::ffi::CString;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline_cni::{Cni, CniConfig, DefaultNetwork};
use bowline_image::{Images, ImagesConfig, Unpacker};
use bowline_model::ContainerId;
use bowline_model::container::Life;
use bowline_model::spec::{ContainerSpec, ImageRef, NamespaceMode, PodMetadata, PodSpec};
use bowline_pods::{Pods, PodsConfig};
use bowline_store::Store;
use bowline_testkit::{Registry, busybox};

struct Node {
    pods: Pods,
    image: String,
    folder: tempfile::TempDir,
    _registry: Registry,
}

impl Node {
    async fn new(number: u8) -> Node {
        let registry = Registry::start();
        let image = busybox().expect("busybox-static is installed").build();
        registry.push("busybox", "1", &image);
        let folder = tempfile::tempdir().unwrap();
        let bridge = format!("bwp{:x}{number}", std::process::id() & 0xffff);
        let pods = open(&folder, &bridge, number).await;
        let image = format!("{}/busybox:1", registry.host());
        pods.images().pull(&image, None).await.unwrap();
        Node { pods, image, folder, _registry: registry }
    }

    fn pod(&self, name: &str) -> PodSpec {
        PodSpec {
            metadata: PodMetadata {
                name: name.into(),
                uid: format!("{name}-uid"),
                namespace: "test".into(),
                attempt: 0,
            },
            log_directory: self.folder.path().join("logs").to_string_lossy().into_owned(),
            ..PodSpec::default()
        }
    }

    fn container(&self, name: &str, script: &str) -> ContainerSpec {
        let mut spec = ContainerSpec {
            name: name.into(),
            image: ImageRef { image: self.image.clone(), ..ImageRef::default() },
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: format!("{name}.log"),
            ..ContainerSpec::default()
        };
        spec.security.namespaces.pid = NamespaceMode::Container;
        spec
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join("logs").join(format!("{name}.log")))
            .unwrap_or_default()
    }

    fn life(&self, id: &ContainerId) -> Life {
        self.pods.views().container(&id.to_string()).unwrap().life.clone()
    }

    async fn ended(&self, id: &ContainerId) -> Life {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let life = self.life(id);
            if matches!(life, Life::Exited { .. }) {
                return life;
            }
            assert!(Instant::now() < deadline, "still {life:?}");
            tokio::task::yield_now().await;
        }
    }

    /// Ends as a daemon does, and takes away the cgroups that a daemon keeps for its next life.
    async fn end(self) {
        self.pods.shutdown().await;
        let instance = CniConfig::below(&self.folder.path().join("root")).instance;
        let group = CString::new(format!("bowline/{}", instance.as_str())).unwrap();
        let (_, roots) = bowline_pods::cgroups().unwrap();
        // The monitor that was kept for the next pod leaves its group a little after it was killed.
        let deadline = Instant::now() + Duration::from_secs(20);
        for root in roots {
            while let Err(error) = bowline_launch::remove_cgroups(root.as_fd(), &group) {
                assert!(Instant::now() < deadline, "{group:?}: {error}");
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let cni = self.pods.cni().clone();
        let _ = cni.reap();
        let _ = cni.remove_networks();
    }
}

async fn open(folder: &tempfile::TempDir, bridge: &str, number: u8) -> Pods {
    let root = folder.path().join("root");
    let state = folder.path().join("state");
    let monitor = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("bowline-monitor");
    assert!(monitor.exists(), "build it first: cargo build -p bowline-monitor");
    let store = Store::open(&root).unwrap();
    let images = Images::open(ImagesConfig::new(root.join("images"), Unpacker::InProcess)).await.unwrap();
    let subnet = format!("10.231.{}.0/24", 100 + number).parse().unwrap();
    let network =
        DefaultNetwork { subnet, subnet_v6: None, bridge: bridge.into(), data_dir: root.join("networks") };
    let config = CniConfig {
        conf_dirs: vec![PathBuf::from("/nonexistent")],
        default_network: Some(network),
        ..CniConfig::below(&root)
    };
    let cni = Arc::new(Cni::new(config).unwrap());
    Pods::open(PodsConfig::new(root, state, monitor), store, images, cni).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_comes_up_runs_and_goes() {
    let node = Node::new(1).await;
    let pod = node.pods.run_pod(node.pod("web")).await.unwrap();
    let view = node.pods.views().pod(&pod.to_string()).unwrap();
    assert!(view.ready);
    assert!(view.ips[0].parse::<Ipv4Addr>().is_ok(), "{:?}", view.ips);

    let id = node
        .pods
        .create_container(&pod, node.container("main", "echo out; echo err >&2; exit 3"))
        .await
        .unwrap();
    assert_eq!(node.life(&id), Life::Created);
    node.pods.start_container(&id).await.unwrap();
    let Life::Exited { exit, started_at } = node.ended(&id).await else { unreachable!() };
    assert_eq!((exit.code, exit.reason()), (3, "Error"));
    assert!(started_at > 0 && exit.finished_at >= started_at);
    let log = node.log("main");
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");

    node.pods.stop_pod(&pod).await.unwrap();
    assert!(!node.pods.views().pod(&pod.to_string()).unwrap().ready);
    node.pods.remove_pod(&pod).await.unwrap();
    assert!(node.pods.views().pod(&pod.to_string()).is_err());
    node.pods.remove_pod(&pod).await.unwrap();
    node.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_in_a_container() {
    let node = Node::new(2).await;
    let pod = node.pods.run_pod(node.pod("exec")).await.unwrap();
    let id = node.pods.create_container(&pod, node.container("main", "sleep 1000")).await.unwrap();
    node.pods.start_container(&id).await.unwrap();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let out =
        node.pods.exec_sync(&id, words(&["sh", "-c", "echo hi; echo no >&2; exit 7"]), None).await.unwrap();
    assert_eq!((out.stdout.as_slice(), out.stderr.as_slice(), out.code), (&b"hi\n"[..], &b"no\n"[..], 7));
    let late = node.pods.exec_sync(&id, words(&["sleep", "100"]), Some(Duration::from_millis(200))).await;
    assert!(matches!(late, Err(bowline_pods::PodError::Deadline(_))), "{late:?}");
    let ps = node.pods.exec_sync(&id, words(&["ps"]), None).await.unwrap();
    let ps = String::from_utf8(ps.stdout).unwrap();
    assert!(!ps.contains("sleep 100\n"), "{ps}");
    let missing = node.pods.exec_sync(&id, words(&["nothing-like-it"]), None).await;
    assert!(missing.is_err());
    let begin = Instant::now();
    node.pods.stop_container(&id, Duration::from_secs(1)).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10));
    let Life::Exited { exit, .. } = node.life(&id) else { panic!("{:?}", node.life(&id)) };
    assert!(exit.code == 137 || exit.code == 143, "{exit:?}");
    node.pods.remove_pod(&pod).await.unwrap();
    node.end().await;
}
