//! A file system that hangs costs the containers that need it, and nobody else.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_tests::{Client, Daemon, Inventory, container, pod, wait_for};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tonic::Code;

/// A file system whose server never answers: nobody reads the other end of its channel.
struct Hung {
    place: PathBuf,
    _channel: OwnedFd,
}

impl Hung {
    fn at(place: PathBuf) -> Hung {
        fs::create_dir_all(&place).unwrap();
        let channel = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let channel = channel.expect("this kernel has FUSE");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", channel.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        mount("hung", &place, "fuse.hung", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Hung { place, _channel: channel }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = unmount(&self.place, UnmountFlags::DETACH);
    }
}

/// Workers of the daemon that are there.
fn workers(daemon: &Daemon) -> Vec<u32> {
    let parent = daemon.pid().expect("it runs");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let text = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let stat = text("stat");
        let ours = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if ours == Some(parent) && text("cmdline").starts_with("bowline-paths") {
            found.push(pid);
        }
    }
    found
}

fn volume(mut config: v1::ContainerConfig, host: &Path) -> v1::ContainerConfig {
    config.mounts.push(v1::Mount {
        host_path: host.display().to_string(),
        container_path: "/vol".into(),
        ..Default::default()
    });
    config
}

#[test]
fn a_hung_file_system_costs_only_those_that_need_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with("[paths]\ntimeout_seconds = 2\n");
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        wait_for("a worker is kept", Duration::from_secs(10), || !workers(&daemon).is_empty());
        let clean = Inventory::take(daemon.folder());
        let hung = Hung::at(daemon.folder().join("hung"));
        let below = hung.place.join("volume");
        let sandbox = client.run(pod("hung", &daemon.folder().join("logs"))).await.unwrap();

        // One that hangs at creation, and meanwhile one that does not.
        let mut other = client.clone();
        let stuck = volume(container(&client, "stuck", "true"), &below);
        let fine = container(&client, "fine", "sleep 1000");
        let (stuck, fine) = tokio::join!(client.create(&sandbox, stuck), other.start(&sandbox, fine));
        let fine = fine.expect("a neighbour starts");
        let status = stuck.expect_err("it hangs");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(status.message().contains(below.to_str().unwrap()), "{}", status.message());
        assert!(status.message().contains("hangs"), "{}", status.message());

        // One that hangs only when it starts.
        let way = daemon.folder().join("way");
        fs::create_dir(daemon.folder().join("good")).unwrap();
        std::os::unix::fs::symlink(daemon.folder().join("good"), &way).unwrap();
        let late = client.create(&sandbox, volume(container(&client, "late", "true"), &way)).await.unwrap();
        fs::remove_file(&way).unwrap();
        std::os::unix::fs::symlink(&below, &way).unwrap();
        let start = v1::StartContainerRequest { container_id: late.clone() };
        let status = client.runtime.start_container(start).await.expect_err("it hangs");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(status.message().contains(way.to_str().unwrap()), "{}", status.message());
        let seen = client.status(&late).await.unwrap();
        assert_eq!(seen.reason, "StartError");
        assert_eq!(seen.exit_code, 128);

        // As many as there may be at once: the daemon goes on, and none of their workers is left.
        let mut stuck = tokio::task::JoinSet::new();
        for number in 0..20 {
            let mut client = client.clone();
            let (sandbox, below) = (sandbox.clone(), below.clone());
            stuck.spawn(async move {
                let config = volume(container(&client, &format!("many-{number}"), "true"), &below);
                client.create(&sandbox, config).await.expect_err("it hangs").code()
            });
        }
        let answer = client.exec(&fine, &["echo", "on"]).await.expect("the daemon goes on");
        assert_eq!(answer.stdout, b"on\n");
        let after = client.start(&sandbox, container(&client, "after", "sleep 1000")).await;
        after.expect("containers start meanwhile");
        while let Some(code) = stuck.join_next().await {
            assert_eq!(code.unwrap(), Code::DeadlineExceeded);
        }
        wait_for("no worker hangs", Duration::from_secs(10), || workers(&daemon).len() <= 8);
        client.remove(&sandbox).await.unwrap();
        drop(hung);
        clean.wait_equal(daemon.folder());
    });
}

#[test]
fn a_worker_that_was_killed_is_replaced() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        wait_for("a worker is kept", Duration::from_secs(10), || !workers(&daemon).is_empty());
        let sandbox = client.run(pod("killed", &daemon.folder().join("logs"))).await.unwrap();
        for worker in workers(&daemon) {
            let pid = rustix::process::Pid::from_raw(worker as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        let config = volume(container(&client, "main", "sleep 1000"), &daemon.folder().join("volume"));
        client.start(&sandbox, config).await.expect("another worker does it");
        client.remove(&sandbox).await.unwrap();
    });
}
