//! Bad input gets a clear error that names what is wrong, and the daemon goes on.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use bowline_cri_proto::v1;
use bowline_testkit::{Fault, ImageBuilder, Layer};
use bowline_tests::{Client, Daemon, Inventory, container, pod};
use tonic::{Code, Status};

fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, word: &str) {
    let status = result.expect_err("it must be refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(word), "`{word}` is not named: {}", status.message());
}

#[test]
fn each_kind_of_bad_input_gets_its_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with("[images]\nstall_timeout_seconds = 1");
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let clean = Inventory::take(daemon.folder());
        let logs = daemon.folder().join("logs");
        pods(&mut client, &logs).await;
        containers(&mut client, &logs).await;
        images(&mut client, &daemon).await;
        junk(&daemon);
        let id = client.run(pod("after", &logs)).await.expect("the daemon goes on");
        client.remove(&id).await.unwrap();
        clean.wait_equal(daemon.folder());
    });
}

async fn pods(client: &mut Client, logs: &std::path::Path) {
    let mut nameless = pod("", logs);
    refused(client.run(nameless.clone()).await, Code::InvalidArgument, "name");
    nameless.metadata = None;
    refused(client.run(nameless).await, Code::InvalidArgument, "metadata");
    let mut relative = pod("relative", logs);
    relative.log_directory = "logs".into();
    refused(client.run(relative).await, Code::InvalidArgument, "log_directory");
    let mut sysctl = pod("sysctl", logs);
    let linux = v1::LinuxPodSandboxConfig {
        sysctls: [("kernel.panic".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    sysctl.linux = Some(linux);
    refused(client.run(sysctl).await, Code::InvalidArgument, "kernel.panic");
    let mut port = pod("port", logs);
    port.port_mappings =
        vec![v1::PortMapping { host_port: 70_000, container_port: 80, ..Default::default() }];
    refused(client.run(port).await, Code::InvalidArgument, "port");
    let handler = v1::RunPodSandboxRequest {
        config: Some(pod("handler", logs)),
        runtime_handler: "nothing-like-it".into(),
    };
    let answer = client.runtime.run_pod_sandbox(handler).await;
    assert!(answer.expect_err("no such handler").message().contains("nothing-like-it"));
}

async fn containers(client: &mut Client, logs: &std::path::Path) {
    refused(client.status(&"0".repeat(64)).await, Code::NotFound, "container");
    refused(client.status("no id at all").await, Code::NotFound, "container");
    let id = client.run(pod("strict", logs)).await.unwrap();
    let plain = container(client, "c", "true");
    let mut bad = plain.clone();
    bad.image = Some(v1::ImageSpec { image: "Not A Name".into(), ..Default::default() });
    let answer = client.create(&id, bad).await;
    assert!(answer.expect_err("no such image").message().contains("Not A Name"));
    let mut bad = plain.clone();
    bad.mounts =
        vec![v1::Mount { container_path: "relative".into(), host_path: "/tmp".into(), ..Default::default() }];
    refused(client.create(&id, bad).await, Code::InvalidArgument, "container_path");
    let mut bad = plain.clone();
    bad.log_path = "../../outside.log".into();
    refused(client.create(&id, bad).await, Code::InvalidArgument, "log_path");
    let limits = |resources| v1::LinuxContainerConfig { resources: Some(resources), ..Default::default() };
    let mut bad = plain.clone();
    bad.linux = Some(limits(v1::LinuxContainerResources { oom_score_adj: 5000, ..Default::default() }));
    refused(client.create(&id, bad).await, Code::InvalidArgument, "oom_score_adj");
    let mut bad = plain.clone();
    let capabilities = v1::Capability { add_capabilities: vec!["CAP_MAGIC".into()], ..Default::default() };
    let security =
        v1::LinuxContainerSecurityContext { capabilities: Some(capabilities), ..Default::default() };
    bad.linux = Some(v1::LinuxContainerConfig { security_context: Some(security), ..Default::default() });
    refused(client.create(&id, bad).await, Code::InvalidArgument, "MAGIC");
    // Nobody is there to answer what such a filter would ask.
    let profile = logs.join("notify.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}"#;
    std::fs::create_dir_all(logs).unwrap();
    std::fs::write(&profile, text).unwrap();
    let mut bad = plain.clone();
    let seccomp = v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Localhost as i32,
        localhost_ref: profile.display().to_string(),
    };
    let security = v1::LinuxContainerSecurityContext { seccomp: Some(seccomp), ..Default::default() };
    bad.linux = Some(v1::LinuxContainerConfig { security_context: Some(security), ..Default::default() });
    refused(client.create(&id, bad).await, Code::InvalidArgument, "SCMP_ACT_NOTIFY");
    let mut bad = plain.clone();
    bad.mounts = vec![v1::Mount {
        container_path: "/vol".into(),
        host_path: logs.display().to_string(),
        mount_options: vec!["nosuid".into(), "suid".into()],
        ..Default::default()
    }];
    refused(client.create(&id, bad).await, Code::InvalidArgument, "mount_options");
    let mut bad = plain.clone();
    bad.cdi_devices = vec![v1::CdiDevice { name: "nobody.example/thing=0".into() }];
    refused(client.create(&id, bad).await, Code::InvalidArgument, "/etc/cdi");
    let mut bad = plain.clone();
    bad.command = vec!["/no/such/program".into()];
    let ctr = client.create(&id, bad).await.unwrap();
    let answer =
        client.runtime.start_container(v1::StartContainerRequest { container_id: ctr.clone() }).await;
    assert!(answer.expect_err("no such program").message().contains("/no/such/program"));
    let status = client.status(&ctr).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    client.remove(&id).await.unwrap();
}

async fn images(client: &mut Client, daemon: &Daemon) {
    let host = daemon.registry.host();
    let mut pull = async |name: &str| {
        let spec = v1::ImageSpec { image: name.into(), ..Default::default() };
        client.images.pull_image(v1::PullImageRequest { image: Some(spec), ..Default::default() }).await
    };
    for name in ["", "docker.io/library/CASE", "a b", ":tag"] {
        refused(pull(name).await, Code::InvalidArgument, "");
    }
    let answer = pull(&format!("{host}/missing:1")).await.expect_err("no such image");
    assert!(answer.message().contains("missing"), "{answer:?}");
    let image = ImageBuilder::new().layer(Layer::new().file("f", 0o644, vec![7u8; 100_000])).build();
    daemon.registry.push("broken", "1", &image);
    daemon.registry.fault("blobs", Fault::Corrupt);
    let answer = pull(&format!("{host}/broken:1")).await.expect_err("a corrupt layer");
    assert!(!answer.message().is_empty(), "{answer:?}");
    daemon.registry.heal();
    daemon.registry.fault("manifests", Fault::Status(500, 1000));
    let answer = pull(&format!("{host}/broken:1")).await.expect_err("a registry that fails");
    assert_eq!(answer.code(), Code::Unknown, "{answer:?}");
    assert!(answer.message().starts_with("RegistryUnavailable"), "{answer:?}");
    daemon.registry.heal();
    for (part, fault) in [
        ("manifests", Fault::Delay(std::time::Duration::from_secs(600))),
        ("manifests", Fault::HangAfter(10, 1000)),
        ("blobs", Fault::HangAfter(10, 1000)),
    ] {
        daemon.registry.fault(part, fault);
        let answer = pull(&format!("{host}/broken:1")).await.expect_err("a registry that hangs");
        assert_eq!(answer.code(), Code::Unknown, "{answer:?}");
        assert!(answer.message().starts_with("RegistryUnavailable"), "{answer:?}");
        daemon.registry.heal();
    }
    pull(&format!("{host}/broken:1")).await.expect("healed");
    let spec = v1::ImageSpec { image: format!("{host}/broken:1"), ..Default::default() };
    client.images.remove_image(v1::RemoveImageRequest { image: Some(spec) }).await.unwrap();
}

fn junk(daemon: &Daemon) {
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff",
    ] {
        let mut socket = UnixStream::connect(daemon.socket()).unwrap();
        // The daemon may hang up before it has read all.
        let _ = socket.write_all(bytes);
    }
}

#[test]
fn a_second_daemon_on_the_same_root_is_refused() {
    let daemon = Daemon::start();
    let output = std::process::Command::new(bowline_tests::programs().join("bowline"))
        .args(["serve", "--config"])
        .arg(daemon.folder().join("config.toml"))
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("root"), "{said}");
}

#[test]
fn a_container_that_cannot_be_removed_is_an_answer_and_no_loop() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let clean = Inventory::take(daemon.folder());
        let id = client.run(pod("busy", &daemon.folder().join("logs"))).await.unwrap();
        let config = container(&client, "main", "sleep 1000");
        let main = client.start(&id, config).await.unwrap();
        // A folder that something is mounted on does not move.
        let folder = daemon.folder().join(format!("root/pods/{id}/containers/{main}"));
        rustix::mount::mount_bind(&folder, &folder).unwrap();
        for _ in 0..2 {
            refused(client.remove(&id).await, Code::Internal, "remove the container's files");
        }
        rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::DETACH).unwrap();
        client.remove(&id).await.expect("the next call tries again");
        clean.wait_equal(daemon.folder());
    });
    let told = daemon.log().matches("a container could not be removed yet").count();
    assert_eq!(told, 2, "once for each call: {}", daemon.log());
}
