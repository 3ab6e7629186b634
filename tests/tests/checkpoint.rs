//! Containers and pods written by criu and brought back. The real runs need a criu that works on this kernel, as in the
//! guest of `cargo xtask vm checkpoint`; elsewhere they say that they were not tried.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_streaming::client::{self as streaming, Transport, Wanted};
use bowline_testkit::{BuiltImage, ImageBuilder, Layer};
use bowline_tests::{Client, Daemon, wait_for};
use tonic::{Code, Status};

/// Restoring is a choice.
const RESTORE: &str = "[checkpoint]\nrestore = true\n";
/// In emulation criu takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// Counts in memory, and says so.
const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo count $i; sleep 0.2; done";

/// As the kubelet asks: each container has a PID namespace of its own.
fn namespaces() -> Option<v1::NamespaceOption> {
    Some(v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() })
}

fn pod(name: &str, logs: &Path) -> v1::PodSandboxConfig {
    let mut config = bowline_tests::pod(name, logs);
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = namespaces();
    config
}

fn container(client: &Client, name: &str, script: &str) -> v1::ContainerConfig {
    let mut config = bowline_tests::container(client, name, script);
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = namespaces();
    config
}

/// Whether this machine's criu works on its kernel; if not, the test is over.
fn criu_works(test: &str) -> bool {
    let check = Command::new("criu").arg("check").stdin(Stdio::null()).output();
    let why = match check {
        Ok(output) if output.status.success() => return true,
        Ok(output) => format!("`criu check` failed ({})", output.status),
        Err(error) => format!("there is no criu ({error})"),
    };
    println!("NOT TESTED: {test}: {why}");
    false
}

/// The last number of a log of [`COUNTER`]; 0 before the first.
fn count(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find_map(|line| line.split_once("count ")?.1.trim().parse().ok());
    last.unwrap_or(0)
}

fn first_count(log: &Path) -> Option<u64> {
    let text = fs::read_to_string(log).ok()?;
    text.lines().find_map(|line| line.split_once("count ")?.1.trim().parse().ok())
}

fn counts_beyond(log: &Path, number: u64) {
    wait_for(&format!("{} counts beyond {number}", log.display()), PATIENCE, || count(log) > number);
}

async fn checkpoint(client: &mut Client, id: &str, location: &Path) -> Result<(), Status> {
    let location = location.display().to_string();
    let request = v1::CheckpointContainerRequest { container_id: id.into(), location, timeout: 0 };
    client.runtime.checkpoint_container(request).await.map(drop)
}

async fn start(client: &mut Client, id: &str) -> Result<(), Status> {
    client.runtime.start_container(v1::StartContainerRequest { container_id: id.into() }).await.map(drop)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, part: &str) {
    let status = answer.expect_err("it was accepted");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(part), "{status:?}");
}

fn from_archive(client: &Client, name: &str, archive: &Path) -> v1::ContainerConfig {
    let mut config = container(client, name, COUNTER);
    config.image = Some(v1::ImageSpec { image: archive.display().to_string(), ..Default::default() });
    config
}

/// Nothing of a checkpoint that is over is left in the daemon's folders.
fn no_work_left(daemon: &Daemon) {
    for folder in ["root/checkpoints", "state/checkpoints"] {
        let folder = daemon.folder().join(folder);
        wait_for(&format!("{} is empty", folder.display()), PATIENCE, || {
            fs::read_dir(&folder).map_or(true, |mut entries| entries.next().is_none())
        });
    }
}

#[test]
fn without_a_criu_that_works_every_call_says_why() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with("[checkpoint]\ncriu = \"/nowhere/criu\"\nrestore = true\n");
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let sandbox = client.run(pod("pod", &logs)).await.unwrap();
        let config = container(&client, "main", COUNTER);
        let id = client.start(&sandbox, config).await.unwrap();
        let why = "/nowhere/criu";
        let archive = daemon.folder().join("archive.tar");
        refused(checkpoint(&mut client, &id, &archive).await, Code::Unimplemented, why);
        assert!(!archive.exists());
        let output = daemon.folder().join("out");
        fs::create_dir(&output).unwrap();
        let whole = v1::CheckpointPodRequest {
            pod_sandbox_id: sandbox.clone(),
            output_path: output.display().to_string(),
            container_ids: vec![id.clone()],
            ..Default::default()
        };
        refused(client.runtime.checkpoint_pod(whole).await, Code::Unimplemented, why);
        let back = v1::RestorePodRequest {
            checkpoint_path: output.display().to_string(),
            config: Some(pod("again", &logs)),
            container_configs: vec![container(&client, "main", COUNTER)],
            ..Default::default()
        };
        refused(client.runtime.restore_pod(back).await, Code::Unimplemented, why);
        let status = client.runtime.status(v1::StatusRequest { verbose: true }).await.unwrap().into_inner();
        assert!(status.info["checkpoint"].contains(why), "{:?}", status.info["checkpoint"]);
        client.remove(&sandbox).await.unwrap();
    });
}

#[test]
fn a_request_that_makes_no_sense_is_refused_for_that() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let sandbox = client.run(pod("pod", &logs)).await.unwrap();
        let config = container(&client, "main", COUNTER);
        let id = client.create(&sandbox, config).await.unwrap();
        let archive = daemon.folder().join("archive.tar");
        let ask = |container_id: &str, location: &str, timeout| v1::CheckpointContainerRequest {
            container_id: container_id.into(),
            location: location.into(),
            timeout,
        };
        let unknown = "3".repeat(64);
        for (request, code, part) in [
            (ask(&id, "/x.tar", -1), Code::InvalidArgument, "timeout"),
            (ask(&id, "x.tar", 0), Code::InvalidArgument, "location"),
            (ask(&unknown, "/x.tar", 0), Code::NotFound, "333"),
        ] {
            refused(client.runtime.checkpoint_container(request).await, code, part);
        }
        refused(checkpoint(&mut client, &id, &archive).await, Code::FailedPrecondition, "not running");

        let whole = |change: fn(&mut v1::CheckpointPodRequest)| {
            let mut request = v1::CheckpointPodRequest {
                pod_sandbox_id: sandbox.clone(),
                output_path: "/nowhere/at/all".into(),
                container_ids: vec![id.clone()],
                ..Default::default()
            };
            change(&mut request);
            request
        };
        let option = |request: &mut v1::CheckpointPodRequest| {
            request.options.insert("lazy".into(), "yes".into());
        };
        type Change = fn(&mut v1::CheckpointPodRequest);
        let table: [(Change, &str); 5] = [
            (|request| request.output_path = "here".into(), "output_path"),
            (|_| {}, "output_path"),
            (|request| request.container_ids.clear(), "container_ids"),
            (|request| request.container_ids.push(request.container_ids[0].clone()), "twice"),
            (option, "lazy"),
        ];
        for (change, part) in table {
            refused(client.runtime.checkpoint_pod(whole(change)).await, Code::InvalidArgument, part);
        }

        // A path is an archive, and archives are code.
        let config = from_archive(&client, "back", &archive);
        refused(client.create(&sandbox, config).await, Code::Unimplemented, "[checkpoint]");
        client.remove(&sandbox).await.unwrap();
    });
}

#[test]
fn an_archive_that_is_none_makes_no_container() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let sandbox = client.run(pod("pod", &daemon.folder().join("logs"))).await.unwrap();
        let folder = daemon.folder().join("archives");
        fs::create_dir(&folder).unwrap();
        let archive = |name: &str, fill: &dyn Fn(&mut tar::Builder<fs::File>)| -> PathBuf {
            let path = folder.join(name);
            let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
            fill(&mut builder);
            builder.into_inner().unwrap();
            path
        };
        let file = |builder: &mut tar::Builder<fs::File>, name: &str, text: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        };
        let link = |builder: &mut tar::Builder<fs::File>, name: &str, target: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, name, target).unwrap();
        };
        let text = folder.join("text");
        fs::write(&text, "no archive at all, but long enough for one block. ".repeat(30)).unwrap();
        let config = r#"{"id":"a","name":"b","createdTime":"","checkpointedTime":"","restoredTime":"","restored":false}"#;
        let table = [
            (folder.join("missing"), Code::NotFound, "missing"),
            (folder.clone(), Code::InvalidArgument, "is no file"),
            (PathBuf::from("/dev/zero"), Code::InvalidArgument, "is no file"),
            (text, Code::InvalidArgument, "damaged"),
            (archive("climbing", &|builder| link(builder, "config.dump", "/etc/passwd")), Code::InvalidArgument, "no plain file"),
            (archive("foreign", &|builder| file(builder, "config.dump", config)), Code::NotFound, "pull it first"),
            (
                archive("newer", &|builder| {
                    file(builder, "config.dump", config);
                    file(builder, "bowline.dump", r#"{"version":9,"criu":"","kernel":"","descriptors":["","",""],"mounts":{}}"#);
                }),
                Code::InvalidArgument,
                "version 9",
            ),
            (
                archive("no-image", &|builder| {
                    file(builder, "config.dump", config);
                    file(builder, "bowline.dump", r#"{"version":1,"criu":"","kernel":"","descriptors":["","",""],"mounts":{}}"#);
                }),
                Code::NotFound,
                "image",
            ),
        ];
        for (path, code, part) in table {
            let config = from_archive(&client, "back", &path);
            refused(client.create(&sandbox, config).await, code, part);
        }
        no_work_left(&daemon);
        client.remove(&sandbox).await.unwrap();
    });
}

/// Serves an image and pulls it; its name.
async fn pull_built(client: &mut Client, daemon: &Daemon, name: &str, image: &BuiltImage) -> String {
    let image = daemon.registry.push(name, "1", image);
    let spec = v1::ImageSpec { image: image.clone(), ..Default::default() };
    let request = v1::PullImageRequest { image: Some(spec), ..Default::default() };
    client.images.pull_image(request).await.expect("pull the image");
    image
}

fn from_image(client: &Client, name: &str, image: &str) -> v1::ContainerConfig {
    let mut config = container(client, name, COUNTER);
    config.image = Some(v1::ImageSpec { image: image.into(), ..Default::default() });
    config
}

/// The layer of an archive that was written by a runtime like ours, as far as anybody looks at it without criu.
fn foreign_files() -> Layer {
    let config =
        r#"{"id":"a","name":"b","createdTime":"","checkpointedTime":"","restoredTime":"","restored":false}"#;
    Layer::new()
        .dir("checkpoint", 0o700)
        .file("checkpoint/inventory.img", 0o600, "x")
        .file("config.dump", 0o600, config)
        .file("spec.dump", 0o600, "{}")
}

const CRIO: &str = "io.kubernetes.cri-o.annotations.checkpoint.name";
const CHECKPOINTCTL: &str = "org.criu.checkpoint.container.name";

#[test]
fn an_image_that_is_a_checkpoint_is_no_ordinary_image() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let sandbox = client.run(pod("pod", &daemon.folder().join("logs"))).await.unwrap();
        for (number, key) in [CRIO, CHECKPOINTCTL].into_iter().enumerate() {
            let image = bowline_testkit::busybox().unwrap().labels(&[("key", key)]).annotation(key, "main");
            let image = image.build();
            let name = pull_built(&mut client, &daemon, &format!("checkpoint-{number}"), &image).await;
            let digest = format!("{}@{}", name.rsplit_once(':').unwrap().0, image.digest());
            for name in [name, digest, image.id.clone()] {
                let config = from_image(&client, "main", &name);
                let answer = client.create(&sandbox, config).await;
                let status = answer.clone().expect_err("it was accepted");
                assert!(status.message().contains(&name), "{status:?}");
                refused(answer, Code::Unimplemented, "[checkpoint]");
            }
        }
        // Of manifests that share a config, one alone makes no checkpoint of the others.
        let image = bowline_testkit::busybox().unwrap().annotation(CRIO, "main").build();
        let name = pull_built(&mut client, &daemon, "pretends", &image).await;
        for name in [name, client.image.clone()] {
            let mut config = from_image(&client, "main", &name);
            config.metadata.get_or_insert_default().attempt = name.len() as u32;
            client.create(&sandbox, config).await.expect("an ordinary image");
        }
        client.remove(&sandbox).await.unwrap();
    });
}

#[test]
fn an_image_that_holds_no_checkpoint_makes_no_container() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let sandbox = client.run(pod("pod", &daemon.folder().join("logs"))).await.unwrap();
        let image = |layer: Layer| ImageBuilder::new().layer(layer).annotation(CHECKPOINTCTL, "main");
        let own = r#"{"version":1,"criu":"","kernel":"","descriptors":["","",""],"mounts":{}}"#;
        let table = [
            (
                "empty",
                image(Layer::new().file("archive.tar", 0o600, "x")),
                Code::InvalidArgument,
                "no config.dump",
            ),
            ("two", image(foreign_files()).layer(Layer::new()), Code::InvalidArgument, "2 layers"),
            ("none", ImageBuilder::new().annotation(CRIO, "main"), Code::InvalidArgument, "0 layers"),
            ("foreign", image(foreign_files()), Code::NotFound, "pull it first"),
            (
                "climbing",
                image(foreign_files().symlink("bowline.dump", "/etc/passwd")),
                Code::InvalidArgument,
                "no plain file",
            ),
            (
                "linked",
                image(foreign_files().hardlink("bowline.dump", "config.dump")),
                Code::InvalidArgument,
                "no plain file",
            ),
            (
                "missing",
                image(foreign_files().file("bowline.dump", 0o600, own)),
                Code::NotFound,
                "pull it first",
            ),
        ];
        for (name, image, code, part) in table {
            let name = pull_built(&mut client, &daemon, name, &image.build()).await;
            let config = from_image(&client, "back", &name);
            refused(client.create(&sandbox, config).await, code, part);
        }
        no_work_left(&daemon);
        client.remove(&sandbox).await.unwrap();
    });
}

/// As Kubernetes documents it: archive, image, registry, and a container that names nothing but the image.
#[test]
fn a_container_comes_back_from_an_image() {
    if !criu_works("a container is brought back from an image") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let first = client.run(pod("first", &logs.join("first"))).await.unwrap();
        let config = container(&client, "main", &format!("echo written > /changed; {COUNTER}"));
        let id = client.start(&first, config.clone()).await.unwrap();
        counts_beyond(&logs.join("first/main.log"), 3);
        let archive = daemon.folder().join("archive.tar");
        checkpoint(&mut client, &id, &archive).await.expect("CheckpointContainer");
        client.remove(&first).await.unwrap();
        let image = bowline_testkit::checkpoint_image(fs::read(&archive).unwrap(), "main").build();
        fs::remove_file(&archive).unwrap();
        let name = pull_built(&mut client, &daemon, "written", &image).await;

        let second = client.run(pod("second", &logs.join("second"))).await.unwrap();
        let other = from_image(&client, "other", &name);
        refused(client.create(&second, other).await, Code::FailedPrecondition, "command");
        // The kubelet asks by id.
        let mut back = from_image(&client, "main", &image.id);
        back.command.clear();
        back.args.clear();
        let id = client.create(&second, back).await.expect("CreateContainer from an image");
        let request =
            v1::RemoveImageRequest { image: Some(v1::ImageSpec { image: name, ..Default::default() }) };
        client.images.remove_image(request).await.expect("the image may go once the container is made");
        start(&mut client, &id).await.expect("StartContainer of a restored container");
        let log = logs.join("second/main.log");
        counts_beyond(&log, 5);
        assert!(first_count(&log).unwrap() > 3, "it went on where it was");
        let said = client.exec(&id, &["/bin/cat", "/changed"]).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "written\n");

        // What was brought back can be written again, and knows its program.
        let again = daemon.folder().join("again.tar");
        checkpoint(&mut client, &id, &again).await.expect("CheckpointContainer of a restored container");
        let mut third = config;
        third.image = from_archive(&client, "main", &again).image;
        third.metadata.get_or_insert_default().name = "third".into();
        third.log_path = "third.log".into();
        let id = client.create(&second, third).await.expect("the same command");
        start(&mut client, &id).await.expect("StartContainer, the second time");
        counts_beyond(&logs.join("second/third.log"), 5);
        client.remove(&second).await.unwrap();
        no_work_left(&daemon);
    });
}

#[test]
fn a_container_goes_on_and_its_copy_goes_on_elsewhere() {
    if !criu_works("a container is written and brought back") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let volume = daemon.folder().join("volume");
        fs::create_dir_all(&volume).unwrap();
        let mount = v1::Mount {
            host_path: volume.display().to_string(),
            container_path: "/vol".into(),
            readonly: true,
            ..Default::default()
        };
        let first = client.run(pod("first", &logs.join("first"))).await.unwrap();
        let mut config = container(&client, "main", &format!("echo written > /changed; rm /etc/group; {COUNTER}"));
        config.mounts.push(mount.clone());
        let linux = config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        security.masked_paths = ["/proc/kcore", "/proc/keys", "/sys/firmware"].map(str::to_owned).to_vec();
        security.readonly_paths = ["/proc/sys", "/proc/irq"].map(str::to_owned).to_vec();
        security.no_new_privs = true;
        security.seccomp = Some(v1::SecurityProfile::default());
        let id = client.start(&first, config.clone()).await.unwrap();
        let log = logs.join("first/main.log");
        counts_beyond(&log, 3);

        let archive = daemon.folder().join("archive.tar");
        checkpoint(&mut client, &id, &archive).await.expect("CheckpointContainer");
        let written = count(&log);
        counts_beyond(&log, written + 2);
        no_work_left(&daemon);
        assert_eq!(client.status(&id).await.unwrap().state, i32::from(v1::ContainerState::ContainerRunning));
        let names = names(&archive);
        for name in ["config.dump", "spec.dump", "status.dump", "rootfs-diff.tar", "checkpoint/inventory.img", "dump.log"] {
            assert!(names.iter().any(|known| known == name), "{name} is not in {names:?}");
        }
        client.remove(&first).await.unwrap();

        // A container with a mount that the archive's has not, or without one that it has, is none that was written.
        let second = client.run(pod("second", &logs.join("second"))).await.unwrap();
        let mut wrong = config.clone();
        wrong.image = from_archive(&client, "main", &archive).image;
        wrong.mounts.clear();
        refused(client.create(&second, wrong.clone()).await, Code::FailedPrecondition, "/vol");
        let mut more = config.clone();
        more.image = wrong.image.clone();
        let security = more.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.capabilities = Some(v1::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
        refused(client.create(&second, more).await, Code::FailedPrecondition, "more capabilities");

        let mut back = config;
        back.image = wrong.image;
        let id = client.create(&second, back).await.expect("CreateContainer from an archive");
        fs::remove_file(&archive).unwrap();
        start(&mut client, &id).await.expect("StartContainer of a restored container");
        let log = logs.join("second/main.log");
        counts_beyond(&log, written + 3);
        // It begins where the archive was written, give or take what ran until it was frozen.
        let begun = first_count(&log).unwrap();
        assert!(begun > 3 && begun <= written + 1, "it began at {begun}, and was written at {written}");
        let said = client.exec(&id, &["/bin/sh", "-c", "cat /changed; ls /etc/group; grep -c '^nodev' /proc/filesystems; touch /vol/x; cat /proc/1/status"]).await.unwrap();
        let (out, err) = (String::from_utf8_lossy(&said.stdout).into_owned(), String::from_utf8_lossy(&said.stderr).into_owned());
        assert!(out.starts_with("written\n"), "{out}{err}");
        assert!(err.contains("/etc/group") && err.contains("Read-only"), "{out}{err}");
        assert!(out.contains("NoNewPrivs:\t1") && out.contains("Seccomp:\t2"), "{out}");

        client.runtime.stop_container(v1::StopContainerRequest { container_id: id.clone(), timeout: 0 }).await.unwrap();
        let status = client.status(&id).await.unwrap();
        assert_eq!((status.state, status.exit_code), (i32::from(v1::ContainerState::ContainerExited), 137));
        client.remove(&second).await.unwrap();
        no_work_left(&daemon);
    });
}

/// What criu makes of its images is looked at before it runs: the restrictions are the request's, whatever was written.
#[test]
fn a_request_that_restricts_more_than_the_archive_is_not_undercut() {
    if !criu_works("a restored container that may do more than it should") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let volume = daemon.folder().join("volume");
        fs::create_dir_all(&volume).unwrap();
        let first = client.run(pod("first", &logs.join("first"))).await.unwrap();
        let mut config = container(&client, "main", COUNTER);
        config.mounts.push(v1::Mount {
            host_path: volume.display().to_string(),
            container_path: "/vol".into(),
            ..Default::default()
        });
        let id = client.start(&first, config.clone()).await.unwrap();
        counts_beyond(&logs.join("first/main.log"), 1);
        let archive = daemon.folder().join("archive.tar");
        checkpoint(&mut client, &id, &archive).await.expect("CheckpointContainer");
        client.remove(&first).await.unwrap();

        let second = client.run(pod("second", &logs.join("second"))).await.unwrap();
        config.image = from_archive(&client, "main", &archive).image;
        type Change = fn(&mut v1::ContainerConfig);
        let table: [(&str, Change, &str); 4] = [
            ("a volume", |config| config.mounts[0].readonly = true, "/vol"),
            (
                "the root",
                |config| with_security(config, |security| security.readonly_rootfs = true),
                "fewer restrictions",
            ),
            (
                "a masked path",
                |config| with_security(config, |security| security.masked_paths = vec!["/proc/kcore".into()]),
                "/proc/kcore",
            ),
            (
                "a read-only path",
                |config| with_security(config, |security| security.readonly_paths = vec!["/proc/sys".into()]),
                "/proc/sys",
            ),
        ];
        for (number, (what, change, part)) in (0u32..).zip(table) {
            let mut config = config.clone();
            config.metadata.get_or_insert_default().attempt = number;
            change(&mut config);
            let id = client.create(&second, config).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let status = start(&mut client, &id).await.expect_err(what);
            assert!(
                status.message().contains("not what was asked for") && status.message().contains(part),
                "{what}: {status:?}"
            );
            // Its end is told once its log is complete.
            let ended = i32::from(v1::ContainerState::ContainerExited);
            let end = async {
                while client.status(&id).await.unwrap().state != ended {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, end).await.unwrap_or_else(|_| panic!("{what}: it does not end"));
        }
        assert_eq!(count(&logs.join("second/main.log")), 0, "no instruction of it ran");
        // The archive itself is fine.
        config.metadata.get_or_insert_default().attempt = 9;
        let id = client.create(&second, config).await.unwrap();
        start(&mut client, &id).await.expect("as it was written");
        counts_beyond(&logs.join("second/main.log"), 1);
        client.remove(&second).await.unwrap();
        no_work_left(&daemon);
    });
}

/// What Kubernetes calls the restricted profile, and a root that nobody writes to.
#[test]
fn the_strictest_container_comes_back_as_strict() {
    if !criu_works("a container without any rights") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let mut config = container(&client, "main", COUNTER);
        with_security(&mut config, |security| {
            security.run_as_user = Some(v1::Int64Value { value: 1000 });
            security.readonly_rootfs = true;
            security.no_new_privs = true;
            security.seccomp = Some(v1::SecurityProfile::default());
            let all = v1::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() };
            security.capabilities = Some(all);
            security.masked_paths =
                ["/proc/kcore", "/proc/acpi", "/sys/firmware"].map(str::to_owned).to_vec();
            security.readonly_paths = ["/proc/sys", "/proc/bus"].map(str::to_owned).to_vec();
        });
        let first = client.run(pod("first", &logs.join("first"))).await.unwrap();
        let id = client.start(&first, config.clone()).await.unwrap();
        counts_beyond(&logs.join("first/main.log"), 2);
        let archive = daemon.folder().join("archive.tar");
        checkpoint(&mut client, &id, &archive).await.expect("CheckpointContainer");
        client.remove(&first).await.unwrap();

        let second = client.run(pod("second", &logs.join("second"))).await.unwrap();
        let mut other = config.clone();
        other.image = from_archive(&client, "main", &archive).image;
        with_security(&mut other, |security| {
            security.run_as_user = Some(v1::Int64Value { value: 1001 });
        });
        refused(client.create(&second, other.clone()).await, Code::FailedPrecondition, "other users");
        config.image = other.image;
        let id = client.create(&second, config).await.unwrap();
        start(&mut client, &id).await.expect("StartContainer");
        let log = logs.join("second/main.log");
        counts_beyond(&log, 3);
        assert!(first_count(&log).unwrap() > 2, "it went on where it was");
        let said = client.exec(&id, &["/bin/sh", "-c", "cat /proc/1/status; touch /x"]).await.unwrap();
        let out = String::from_utf8_lossy(&said.stdout).into_owned();
        for line in ["Uid:\t1000\t1000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(out.contains(line), "{line}: {out}");
        }
        assert!(String::from_utf8_lossy(&said.stderr).contains("Read-only"), "{said:?}");
        client.remove(&second).await.unwrap();
    });
}

/// A container that runc runs, in the namespaces of a pod, as containerd and CRI-O have it do. It goes with this.
struct OfRunc {
    folder: PathBuf,
    process: std::process::Child,
}

const RUNC_NAME: &str = "bowline-test";

fn runc(folder: &Path) -> Command {
    let mut command = Command::new("runc");
    command.arg("--root").arg(folder.join("state")).stdin(Stdio::null());
    command
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

impl OfRunc {
    /// `like`: a container that runs in the pod; the bundle is what it is made of, but for the program.
    async fn start(client: &mut Client, daemon: &Daemon, like: &str, script: &str) -> OfRunc {
        let request = v1::ContainerStatusRequest { container_id: like.into(), verbose: true };
        let answer = client.runtime.container_status(request).await.unwrap().into_inner();
        let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
        let (mut spec, pid) = (info["runtimeSpec"].clone(), info["pid"].as_i64().unwrap());
        spec["process"]["args"] = serde_json::json!(["/bin/sh", "-c", script]);
        for part in ["apparmorProfile", "selinuxLabel"] {
            spec["process"].as_object_mut().unwrap().remove(part);
        }
        spec["root"] = serde_json::json!({"path": "rootfs"});
        spec["linux"]["cgroupsPath"] = "/bowline-test-runc".into();
        spec["linux"].as_object_mut().unwrap().remove("seccomp");
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            let name = match namespace["type"].as_str().unwrap() {
                "network" => "net",
                "ipc" => "ipc",
                "uts" => "uts",
                _ => continue,
            };
            namespace["path"] = format!("/proc/{pid}/ns/{name}").into();
        }
        for mount in spec["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/dev/shm" {
                *mount = serde_json::json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                    "options": ["nosuid", "noexec", "nodev"]});
            }
        }
        let folder = daemon.folder().join("runc");
        for name in ["rootfs", "upper", "work"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        fs::write(folder.join("config.json"), spec.to_string()).unwrap();
        let layers = fs::read_dir(daemon.folder().join("root/images/layers")).unwrap();
        let mut layers = layers.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        let (Some(layer), None) = (layers.next(), layers.next()) else { panic!("one image of one layer") };
        let part = |name: &str| folder.join(name).display().to_string();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", layer.display(), part("upper"), part("work"));
        succeeds(
            Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o", &options])
                .arg(folder.join("rootfs")),
        );
        let process = runc(&folder)
            .args(["run", "--bundle"])
            .arg(&folder)
            .arg(RUNC_NAME)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        OfRunc { folder, process }
    }

    /// Waits until it has counted.
    fn counts(&mut self, number: u64) {
        use std::io::BufRead as _;
        let lines = std::io::BufReader::new(self.process.stdout.as_mut().unwrap()).lines();
        let mut last = 0;
        for line in lines {
            last = line.unwrap().strip_prefix("count ").and_then(|text| text.parse().ok()).unwrap_or(last);
            if last >= number {
                return;
            }
        }
        let mut said = String::new();
        let _ = std::io::Read::read_to_string(self.process.stderr.as_mut().unwrap(), &mut said);
        panic!("runc's container ended at {last}: {said}");
    }

    /// Has it written, and puts an archive together: `fill` adds the changed files.
    fn write(&self, image: &str, archive: &Path, fill: impl FnOnce(&mut tar::Builder<fs::File>)) {
        let images = self.folder.join("checkpoint");
        if !images.exists() {
            let mut command = runc(&self.folder);
            command.args(["checkpoint", "--leave-running", "--file-locks", "--image-path"]).arg(&images);
            succeeds(command.arg("--work-path").arg(&self.folder).arg(RUNC_NAME));
        }
        let zero = "0001-01-01T00:00:00Z";
        let config = serde_json::json!({
            "id": "1".repeat(64), "name": "main", "rootfsImage": "busybox", "rootfsImageRef": image,
            "rootfsImageName": "busybox", "runtime": "runc", "createdTime": zero, "checkpointedTime": zero,
            "restoredTime": zero, "restored": false,
        });
        let mut builder = tar::Builder::new(fs::File::create(archive).unwrap());
        builder.append_dir_all("checkpoint", &images).unwrap();
        member(&mut builder, "config.dump", config.to_string().as_bytes());
        member(&mut builder, "spec.dump", &fs::read(self.folder.join("config.json")).unwrap());
        fill(&mut builder);
        builder.into_inner().unwrap();
    }
}

impl Drop for OfRunc {
    fn drop(&mut self) {
        let _ = runc(&self.folder).args(["delete", "--force", RUNC_NAME]).output();
        let _ = self.process.wait();
        let _ = Command::new("umount").arg(self.folder.join("rootfs")).status();
    }
}

fn member<W: std::io::Write>(builder: &mut tar::Builder<W>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    builder.append_data(&mut header, name, bytes).unwrap();
}

/// Archives as containerd 2 and CRI-O write them, around what runc has criu write.
#[test]
fn a_container_of_runc_comes_back_here() {
    if !criu_works("an archive of another runtime") {
        return;
    }
    if Command::new("runc").arg("--version").output().is_err() {
        println!("NOT TESTED: an archive of another runtime: there is no runc");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let status = v1::ImageStatusRequest {
            image: Some(v1::ImageSpec { image: client.image.clone(), ..Default::default() }),
            verbose: false,
        };
        let image = client.images.image_status(status).await.unwrap().into_inner().image.unwrap().id;
        let logs = daemon.folder().join("logs");
        let first = client.run(pod("first", &logs.join("first"))).await.unwrap();
        let config = container(&client, "like", COUNTER);
        let like = client.start(&first, config).await.unwrap();
        let script = format!("echo written > /tmp/changed; rm /etc/group; {COUNTER}");
        let mut theirs = OfRunc::start(&mut client, &daemon, &like, &script).await;
        theirs.counts(4);

        // containerd: a compressed layer or a plain one, with OCI's mark.
        let containerd = daemon.folder().join("containerd.tar");
        theirs.write(&image, &containerd, |builder| {
            let mut diff = tar::Builder::new(Vec::new());
            member(&mut diff, "tmp/changed", b"written\n");
            member(&mut diff, "etc/.wh.group", b"");
            member(builder, "rootfs-diff.tar", &diff.into_inner().unwrap());
        });
        // CRI-O: a list of what is gone, and the image's id by its number alone.
        let crio = daemon.folder().join("crio.tar");
        theirs.write(image.trim_start_matches("sha256:"), &crio, |builder| {
            let mut diff = tar::Builder::new(Vec::new());
            member(&mut diff, "tmp/changed", b"written\n");
            member(builder, "rootfs-diff.tar", &diff.into_inner().unwrap());
            member(builder, "deleted.files", br#"["/etc/group"]"#);
        });
        drop(theirs);
        client.remove(&first).await.unwrap();

        let second = client.run(pod("second", &logs.join("second"))).await.unwrap();
        let volume = v1::Mount {
            host_path: logs.display().to_string(),
            container_path: "/dev/shm".into(),
            ..Default::default()
        };
        for (name, archive) in [("containerd", &containerd), ("crio", &crio)] {
            let mut config = from_archive(&client, name, archive);
            (config.command, config.args) = (Vec::new(), Vec::new());
            let mut other = config.clone();
            other.metadata.get_or_insert_default().attempt = 7;
            other.mounts.push(v1::Mount { container_path: "/more".into(), ..volume.clone() });
            let id = client.create(&second, other).await.expect("a mount more");
            refused(start(&mut client, &id).await, Code::FailedPrecondition, "/more");
            let id = client.create(&second, config).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            start(&mut client, &id).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            let log = logs.join("second").join(format!("{name}.log"));
            counts_beyond(&log, 6);
            assert!(first_count(&log).unwrap() > 3, "{name}: it went on where it was");
            let script = "cat /tmp/changed; stat -c %a /tmp; ls /etc/group";
            let said = client.exec(&id, &["/bin/sh", "-c", script]).await.unwrap();
            let out = String::from_utf8_lossy(&said.stdout).into_owned();
            assert!(out.starts_with("written\n1777\n"), "{name}: {out}");
            assert!(String::from_utf8_lossy(&said.stderr).contains("/etc/group"), "{name}: {said:?}");
        }
        client.remove(&second).await.unwrap();
        no_work_left(&daemon);
    });
}

/// Types into a container's terminal, as `kubectl attach -it` does, until its log has a text.
async fn typed(client: &Client, id: &str, text: &str, log: &Path, wanted: &str) {
    let terminal = Wanted { stdin: true, stdout: true, stderr: false, terminal: true };
    let request =
        v1::AttachRequest { container_id: id.into(), stdin: true, tty: true, stdout: true, stderr: false };
    let address = client.runtime.clone().attach(request).await.unwrap().into_inner().url;
    let (streams, driver) =
        streaming::command(&address, None, Transport::WebSocket, terminal).await.expect("attach");
    let driver = tokio::spawn(async move {
        let _ = driver.await;
    });
    let mut stdin = streams.stdin.expect("the input");
    stdin.send(text.to_owned().into()).await.expect("type");
    wait_for(&format!("{} has `{wanted}`", log.display()), PATIENCE, || {
        fs::read_to_string(log).unwrap_or_default().contains(wanted)
    });
    drop(stdin);
    driver.abort();
}

/// A shell that somebody types into: it has /dev/tty open, and job control.
#[test]
fn a_shell_in_a_terminal_goes_on_elsewhere() {
    if !criu_works("a container with a terminal") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let first = client.run(pod("first", &logs.join("first"))).await.unwrap();
        let mut config = container(&client, "main", "");
        (config.command, config.args) = (vec!["/bin/sh".into(), "-i".into()], Vec::new());
        (config.stdin, config.tty) = (true, true);
        let id = client.start(&first, config.clone()).await.unwrap();
        let log = logs.join("first/main.log");
        typed(&client, &id, "i=41; stty rows 33; echo sum $((i+1))\n", &log, "sum 42").await;
        let archive = daemon.folder().join("archive.tar");
        checkpoint(&mut client, &id, &archive).await.expect("CheckpointContainer");
        typed(&client, &id, "echo after $((i+2))\n", &log, "after 43").await;
        client.remove(&first).await.unwrap();

        let second = client.run(pod("second", &logs.join("second"))).await.unwrap();
        config.image = from_archive(&client, "main", &archive).image;
        let mut other = config.clone();
        other.tty = false;
        refused(client.create(&second, other).await, Code::FailedPrecondition, "tty: ");
        let id = client.create(&second, config.clone()).await.expect("CreateContainer from an archive");
        start(&mut client, &id).await.expect("StartContainer of a restored container");
        let log = logs.join("second/main.log");
        typed(&client, &id, "echo back $((i+3)); stty size\n", &log, "back 44").await;
        wait_for("the size is as it was", PATIENCE, || fs::read_to_string(&log).unwrap().contains("33 "));
        let script =
            "echo by the console > /dev/console; cut -d' ' -f4-8 /proc/1/stat; stat -c %t /dev/console";
        let said = client.exec(&id, &["/bin/sh", "-c", script]).await.unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        // Parent, group, session, terminal (its number is 0x8800 and more), group in front.
        let numbers: Vec<i64> = said.split_whitespace().take(5).map(|word| word.parse().unwrap()).collect();
        assert!(numbers[..3] == [0, 1, 1] && numbers[3] >= 0x8800 && numbers[4] == 1, "{said}");
        assert!(said.trim_end().ends_with("88"), "{said}");
        wait_for("the console is the terminal", PATIENCE, || {
            fs::read_to_string(&log).unwrap().contains("by the console")
        });
        // Ctrl-C ends what is in front.
        typed(&client, &id, "echo now; sleep 1000; echo ended $?\n", &log, "now\r").await;
        let sleeps = async {
            while !String::from_utf8_lossy(&client.clone().exec(&id, &["/bin/ps"]).await.unwrap().stdout)
                .lines()
                .any(|line| line.ends_with("sleep 1000"))
            {}
        };
        tokio::time::timeout(PATIENCE, sleeps).await.expect("the shell runs a program");
        typed(&client, &id, "\u{3}", &log, "^C").await;
        typed(&client, &id, "echo still $((i+4))\n", &log, "still 45").await;

        // Once more, from what was brought back.
        let again = daemon.folder().join("again.tar");
        checkpoint(&mut client, &id, &again).await.expect("CheckpointContainer of a restored container");
        config.image = from_archive(&client, "main", &again).image;
        config.metadata.get_or_insert_default().attempt = 1;
        config.log_path = "third.log".into();
        let id = client.create(&second, config).await.unwrap();
        start(&mut client, &id).await.expect("StartContainer, the second time");
        typed(&client, &id, "echo third $((i+5))\n", &logs.join("second/third.log"), "third 46").await;
        client.remove(&second).await.unwrap();
        no_work_left(&daemon);
    });
}

fn with_security(
    config: &mut v1::ContainerConfig,
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) {
    change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
}

#[test]
fn a_pod_with_an_open_port_goes_on_elsewhere() {
    if !criu_works("a pod is written and brought back") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let first = client.run(pod("first", &logs.join("first"))).await.unwrap();
        let counter = container(&client, "counter", COUNTER);
        let server = container(&client, "server", "echo up; exec nc -ll -p 7000 -e echo hello");
        let one = client.start(&first, counter.clone()).await.unwrap();
        let other = client.start(&first, server.clone()).await.unwrap();
        counts_beyond(&logs.join("first/counter.log"), 3);
        let ip = address(&mut client, &first).await;
        wait_for("the port answers", PATIENCE, || hello(&ip));

        let output = daemon.folder().join("out");
        fs::create_dir(&output).unwrap();
        let whole = |ids: &[&String]| v1::CheckpointPodRequest {
            pod_sandbox_id: first.clone(),
            output_path: output.display().to_string(),
            container_ids: ids.iter().map(|id| (*id).clone()).collect(),
            ..Default::default()
        };
        refused(
            client.runtime.checkpoint_pod(whole(&[&one])).await,
            Code::FailedPrecondition,
            "container_ids",
        );
        assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
        let before = count(&logs.join("first/counter.log"));
        client.runtime.checkpoint_pod(whole(&[&one, &other])).await.expect("CheckpointPod");
        let written = count(&logs.join("first/counter.log"));
        counts_beyond(&logs.join("first/counter.log"), written + 2);
        refused(
            client.runtime.checkpoint_pod(whole(&[&one, &other])).await,
            Code::InvalidArgument,
            "not empty",
        );
        client.remove(&first).await.unwrap();

        let back = |containers: Vec<v1::ContainerConfig>| v1::RestorePodRequest {
            checkpoint_path: output.display().to_string(),
            config: Some(pod("second", &logs.join("second"))),
            container_configs: containers,
            ..Default::default()
        };
        refused(
            client.runtime.restore_pod(back(vec![counter.clone()])).await,
            Code::InvalidArgument,
            "container_configs",
        );
        let mut changed = server.clone();
        changed.envs.push(v1::KeyValue { key: "NEW".into(), value: "1".into() });
        let answer = client.runtime.restore_pod(back(vec![counter.clone(), changed])).await;
        refused(answer, Code::FailedPrecondition, "environment");
        let pods = client.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap();
        assert_eq!(pods.into_inner().items.len(), 0, "a failed RestorePod leaves nothing");

        let restored =
            client.runtime.restore_pod(back(vec![server, counter])).await.expect("RestorePod").into_inner();
        let names: Vec<&str> = restored.restored_containers.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["server", "counter"]);
        for container in &restored.restored_containers {
            let status = client.status(&container.container_id).await.unwrap();
            assert_eq!(status.state, i32::from(v1::ContainerState::ContainerCreated));
        }
        fs::remove_dir_all(&output).unwrap();
        for container in &restored.restored_containers {
            start(&mut client, &container.container_id).await.expect("StartContainer");
        }
        let log = logs.join("second/counter.log");
        counts_beyond(&log, written);
        assert!(first_count(&log).unwrap() > before, "it went on where it was");
        let second = restored.pod_sandbox_id;
        let ip = address(&mut client, &second).await;
        wait_for("the port answers again", PATIENCE, || hello(&ip));
        client.remove(&second).await.unwrap();
        no_work_left(&daemon);
    });
}

#[test]
fn a_daemon_that_dies_in_the_middle_leaves_the_container_running() {
    if !criu_works("the daemon dies while criu writes") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::start_with(RESTORE);
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let sandbox = client.run(pod("pod", &logs)).await.unwrap();
        let config = container(&client, "main", COUNTER);
        let id = client.start(&sandbox, config).await.unwrap();
        let log = logs.join("main.log");
        counts_beyond(&log, 2);
        let archive = daemon.folder().join("out").join("archive.tar");
        fs::create_dir(archive.parent().unwrap()).unwrap();
        let mut asking = client.clone();
        let location = archive.clone();
        let container_id = id.clone();
        let call = tokio::spawn(async move { checkpoint(&mut asking, &container_id, &location).await });
        let images = daemon.folder().join("root/checkpoints");
        wait_for("criu writes", PATIENCE, || {
            let works = fs::read_dir(&images).into_iter().flatten().flatten();
            works.into_iter().any(|work| work.path().join("0/checkpoint/dump.log").exists())
        });
        daemon.kill();
        assert!(call.await.unwrap().is_err());
        daemon.restart();
        no_work_left(&daemon);
        let before = count(&log);
        counts_beyond(&log, before + 2);
        assert_eq!(fs::read_dir(archive.parent().unwrap()).unwrap().count(), 0, "no half archive");
        let mut client = Client::connect(&daemon).await;
        checkpoint(&mut client, &id, &archive).await.expect("the next one works");
        client.remove(&sandbox).await.unwrap();
    });
}

fn names(archive: &Path) -> Vec<String> {
    let mut archive = tar::Archive::new(fs::File::open(archive).unwrap());
    let entries = archive.entries().unwrap();
    entries.map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
}

async fn address(client: &mut Client, sandbox: &str) -> String {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: false };
    let answer = client.runtime.pod_sandbox_status(request).await.unwrap().into_inner();
    answer.status.unwrap().network.unwrap().ip
}

fn hello(address: &str) -> bool {
    use std::io::Read as _;
    let Ok(mut stream) = std::net::TcpStream::connect((address, 7000)) else { return false };
    let mut text = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.read_to_string(&mut text).is_ok()
        && text.starts_with("hello")
}
