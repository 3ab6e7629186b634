//! Containers and pods written by criu and brought back. The real runs need a criu that works on this kernel, as in the
//! guest of `cargo xtask vm checkpoint`; elsewhere they say that they were not tried.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bowline_cri_proto::v1;
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
        let table: [(fn(&mut v1::CheckpointPodRequest), &str); 5] = [
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
            (
                archive("foreign", &|builder| file(builder, "config.dump", config)),
                Code::InvalidArgument,
                "another runtime",
            ),
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
