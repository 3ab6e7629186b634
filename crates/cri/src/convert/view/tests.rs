use std::sync::Arc;

use bowline_model::container::Exit;
use bowline_model::spec::{ContainerSpec, ImageRef, Mount, PodSpec, Resources};
use bowline_model::{ContainerId, SandboxId, Signal};
use bowline_store::{ImageRecord, UserRecord};

use super::*;

/// A pod whose id is this byte 32 times.
pub(crate) fn a_pod(byte: u8) -> PodView {
    let metadata = PodMetadata { name: "web".into(), uid: "u".into(), namespace: "n".into(), attempt: 2 };
    PodView {
        id: SandboxId::from_bytes([byte; 32]),
        spec: Arc::new(PodSpec {
            metadata,
            labels: [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "1".to_owned())].into(),
            ..PodSpec::default()
        }),
        ready: true,
        created_at: 7,
        ips: vec!["10.1.0.2".into(), "fd00::2".into()],
        cni_result: "{}".into(),
        monitor: 42,
        cgroup: "".into(),
        resources: Default::default(),
        selinux: None,
    }
}

/// A container of that pod.
pub(crate) fn a_container(byte: u8, life: Life) -> ContainerView {
    let image =
        ImageRef { image: "sha256:aa".into(), user_specified: "busybox:1".into(), ..ImageRef::default() };
    ContainerView {
        id: ContainerId::from_bytes([byte; 32]),
        pod: SandboxId::from_bytes([byte; 32]),
        spec: Arc::new(ContainerSpec {
            name: "c".into(),
            image,
            labels: [("app".to_owned(), "web".to_owned())].into(),
            mounts: vec![Mount { container_path: "/c".into(), host_path: "/h".into(), ..Mount::default() }],
            resources: Resources { cpu_shares: 2, ..Resources::default() },
            ..ContainerSpec::default()
        }),
        created_at: 9,
        life,
        image: Arc::new(ImageRecord {
            id: "sha256:aa".into(),
            reference: "r/busybox@sha256:bb".into(),
            ..ImageRecord::default()
        }),
        user: Arc::new(UserRecord { uid: 1000, gid: 1234, groups: vec![1234, 50000] }),
        cgroup: "".into(),
        stop_signal: Signal::TERM,
        log_path: "/logs/c/0.log".into(),
        notes: Arc::new([]),
        image_volumes: Arc::new([]),
    }
}

#[test]
fn a_pods_status() {
    let status = pod_status(&a_pod(1));
    assert_eq!(status.id, "01".repeat(32));
    assert_eq!(status.metadata.unwrap().attempt, 2);
    assert_eq!(status.state, v1::PodSandboxState::SandboxReady as i32);
    let network = status.network.unwrap();
    assert_eq!((network.ip.as_str(), network.additional_ips[0].ip.as_str()), ("10.1.0.2", "fd00::2"));
    assert_eq!(status.linux.unwrap().namespaces.unwrap().options, Some(v1::NamespaceOption::default()));
}

#[test]
fn a_pod_on_the_hosts_network_has_no_address() {
    let status = pod_status(&PodView { ips: Vec::new(), ready: false, ..a_pod(1) });
    assert_eq!(status.network, Some(v1::PodSandboxNetworkStatus::default()));
    assert_eq!(status.state, v1::PodSandboxState::SandboxNotready as i32);
}

#[test]
fn states_and_outcomes() {
    let exit = |code, oom| Exit { code, oom, finished_at: 30, message: "m".into(), ..Exit::default() };
    let stopping = Life::Stopping { pid: 5, started_at: 20, kill_at: 90, killed: false };
    let created = v1::ContainerState::ContainerCreated;
    let running = v1::ContainerState::ContainerRunning;
    let exited = v1::ContainerState::ContainerExited;
    for (life, state, times, code, reason) in [
        (Life::Created, created, (0, 0), 0, ""),
        (Life::Starting { stop_by: None }, created, (0, 0), 0, ""),
        (Life::Running { pid: 5, started_at: 20 }, running, (20, 0), 0, ""),
        (stopping, running, (20, 0), 0, ""),
        (Life::Exited { started_at: 20, exit: exit(0, false) }, exited, (20, 30), 0, "Completed"),
        (Life::Exited { started_at: 20, exit: exit(3, false) }, exited, (20, 30), 3, "Error"),
        (Life::Exited { started_at: 20, exit: exit(137, true) }, exited, (20, 30), 137, "OOMKilled"),
        (
            Life::Exited { started_at: 0, exit: Exit { reason: Some("StartError"), ..exit(128, false) } },
            exited,
            (0, 30),
            128,
            "StartError",
        ),
    ] {
        let status = container_status(&a_container(1, life));
        assert_eq!(status.state, state as i32, "{reason}");
        assert_eq!((status.started_at, status.finished_at), times, "{reason}");
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
    }
}

#[test]
fn a_status_tells_what_was_asked_and_what_was_given() {
    let status = container_status(&a_container(1, Life::Created));
    assert_eq!(status.image.unwrap().image, "busybox:1");
    assert_eq!(status.image_ref, "r/busybox@sha256:bb");
    assert_eq!(status.image_id, "sha256:aa");
    assert_eq!(status.mounts.len(), 1);
    assert_eq!(status.log_path, "/logs/c/0.log");
    assert_eq!(status.resources.unwrap().linux.unwrap().cpu_shares, 2);
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 1234, vec![1234, 50000]));
    assert_eq!(status.stop_signal, v1::Signal::Sigterm as i32);
}
