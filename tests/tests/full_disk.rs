//! Full disks: what needs room is refused and leaves nothing, what frees room works, and no exit is lost.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_testkit::{Compression, ImageBuilder, Layer};
use bowline_tests::{Client, Daemon, Inventory, container, pod, wait_for};
use rustix::mount::{MountFlags, UnmountFlags};
use tonic::Code;

/// A tmpfs of a size of its own, away when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, size: &str) -> Small {
        std::fs::create_dir_all(&at).unwrap();
        let options = std::ffi::CString::new(format!("size={size},mode=0755")).unwrap();
        rustix::mount::mount("small", &at, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        Small(at)
    }

    /// Writes a file until there is no room, not for one byte more.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        let file = std::fs::File::create(&filler).unwrap();
        for chunk in [vec![1u8; 1 << 20], vec![1u8; 1]] {
            while rustix::io::write(&file, &chunk).is_ok() {}
        }
        filler
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

async fn exit_of(client: &mut Client, id: &str) -> v1::ContainerStatus {
    let mut last = v1::ContainerStatus::default();
    let now = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        wait_for("it ends", Duration::from_secs(30), || {
            last = now.block_on(client.status(id)).expect("its status");
            last.state() == v1::ContainerState::ContainerExited
        });
    });
    last
}

/// Root and state on one full file system.
#[test]
fn with_a_full_root_pods_end_and_go_and_none_comes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::prepared("", &[]);
    let folder = daemon.folder().to_owned();
    let root = Small::mount(folder.join("root"), "48m");
    let state = Small::mount(folder.join("state"), "8m");
    daemon.restart();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = folder.join("logs");
        let clean = Inventory::take(&folder);

        too_large(&mut client, &daemon).await;
        clean.wait_equal(&folder);

        let before = client.run(pod("before", &logs)).await.unwrap();
        let waits =
            container(&client, "waits", "trap 'exit 5' TERM; echo up; while :; do sleep 1 & wait; done");
        let waits = client.start(&before, waits).await.unwrap();
        let log = logs.join("waits.log");
        wait_for("it runs", Duration::from_secs(20), || {
            std::fs::read_to_string(&log).is_ok_and(|l| l.contains("up"))
        });
        let fillers = [root.fill(), state.fill()];
        let held = Inventory::take(&folder);

        let refused = client.run(pod("refused", &logs)).await.expect_err("there is no room for a record");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert!(refused.message().contains("space"), "{refused:?}");
        held.wait_equal(&folder);

        let second = container(&client, "second", "true");
        let refused = client.create(&before, second).await.expect_err("there is no room for a container");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        held.wait_equal(&folder);

        let stop = v1::StopContainerRequest { container_id: waits.clone(), timeout: 10 };
        client.runtime.stop_container(stop).await.expect("a stop needs no room");
        assert_eq!(exit_of(&mut client, &waits).await.exit_code, 5);
        // No room for the exit's record: the next daemon knows it nevertheless.
        daemon.kill();
        daemon.restart();
        client = Client::connect(&daemon).await;
        assert_eq!(exit_of(&mut client, &waits).await.exit_code, 5);
        client.remove(&before).await.expect("removal needs no room");

        for filler in fillers {
            std::fs::remove_file(filler).unwrap();
        }
        clean.wait_equal(&folder);
        let after = client.run(pod("after", &logs)).await.expect("there is room again");
        let says = container(&client, "says", "exit 3");
        let says = client.start(&after, says).await.unwrap();
        assert_eq!(exit_of(&mut client, &says).await.exit_code, 3);
        client.remove(&after).await.unwrap();
        clean.wait_equal(&folder);
    });
    drop((root, state));
}

async fn too_large(client: &mut Client, daemon: &Daemon) {
    let mut noise = 1u64;
    let bytes = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (noise >> 33) as u8
    });
    let content: Vec<u8> = bytes.take(40 << 20).collect();
    let layer = Layer::new().file("big", 0o644, content);
    let image = ImageBuilder::new().layer_as(layer, Compression::Plain).build();
    daemon.registry.push("big", "1", &image);
    let spec = v1::ImageSpec { image: format!("{}/big:1", daemon.registry.host()), ..Default::default() };
    let pull = v1::PullImageRequest { image: Some(spec), ..Default::default() };
    let refused = client.images.pull_image(pull).await.expect_err("the image is larger than the disk");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("space"), "{refused:?}");
}

/// Logs on a full file system: the container waits, as it would for a slow disk, and nothing is lost once there is room.
#[test]
fn a_full_log_disk_holds_output_and_loses_none() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    let folder = daemon.folder().to_owned();
    let logs = Small::mount(folder.join("logs"), "1m");
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let clean = Inventory::take(&folder);
        let id = client.run(pod("talks", &logs.0)).await.unwrap();
        let talks = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exit 9";
        let quiet = container(&client, "quiet", "echo first; sleep 600");
        let quiet = client.start(&id, quiet).await.unwrap();
        wait_for("its first line", Duration::from_secs(20), || {
            text(&logs.0.join("quiet.log")).contains("first")
        });
        let filler = logs.fill();

        let talks = container(&client, "talks", talks);
        let talks = client.start(&id, talks).await.unwrap();
        // What does not depend on the disk goes on.
        let answer = client.exec(&quiet, &["echo", "here"]).await.unwrap();
        assert_eq!((answer.exit_code, answer.stdout.as_slice()), (0, &b"here\n"[..]));
        std::fs::remove_file(filler).unwrap();
        assert_eq!(exit_of(&mut client, &talks).await.exit_code, 9);
        let written = text(&logs.0.join("talks.log"));
        let lines: Vec<_> = written.lines().filter_map(|line| line.split(" F ").nth(1)).collect();
        let expected: Vec<_> = (0..2000).map(|number| format!("line {number}")).collect();
        assert_eq!(lines, expected);

        // An exit is known although its log cannot be finished.
        let filler = logs.fill();
        let ends = container(&client, "ends", "echo never written; exit 6");
        let ends = client.start(&id, ends).await.unwrap();
        assert_eq!(exit_of(&mut client, &ends).await.exit_code, 6);
        client.remove(&id).await.unwrap();
        std::fs::remove_file(filler).unwrap();
        for name in ["quiet.log", "talks.log", "ends.log"] {
            let _ = std::fs::remove_file(logs.0.join(name));
        }
        clean.wait_equal(&folder);
    });
    drop(logs);
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
