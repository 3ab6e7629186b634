//! The kubelet's own log reader (k8s.io/cri-client, pkg/logs) reads our logs: split lines, two streams, a line without
//! end, and on across a rotation. Left out where there is no `go`.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_tests::{Client, Daemon, container, go_program, pod, wait_for};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn the_kubelets_reader_sees_what_was_written() {
    let Some(program) = go_program("kubelet-logs") else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    let logs = daemon.folder().join("logs");
    let mut client = runtime.block_on(Client::connect(&daemon));
    runtime.block_on(client.pull(&daemon));
    let pod = runtime.block_on(client.run(pod("logs", &logs))).unwrap();
    let reader = |id: &str, name: &str, more: &[&str]| {
        let mut command = Command::new(&program);
        command.args([daemon.endpoint(), logs.join(name).display().to_string(), id.to_owned()]).args(more);
        command.stdin(Stdio::null());
        command
    };

    // Lines up to and beyond the 16 KiB of a record, empty ones, both streams, and an end without a newline.
    let script = "for n in 1 16383 16384 16385 40000 100000; do head -c $n /dev/zero | tr '\\0' x; echo; done; \
                  echo; echo problem >&2; printf 'the end'";
    let id = runtime.block_on(client.start(&pod, container(&client, "writes", script))).unwrap();
    wait_for("it ends", LIMIT, || {
        let status = runtime.block_on(client.status(&id)).unwrap();
        status.state() == v1::ContainerState::ContainerExited
    });
    let output = reader(&id, "writes.log", &[]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut expected: Vec<u8> = Vec::new();
    for length in [1, 16383, 16384, 16385, 40000, 100_000] {
        expected.extend(std::iter::repeat_n(b'x', length).chain([b'\n']));
    }
    expected.extend(b"\nthe end");
    assert!(output.stdout == expected, "{} bytes of {}", output.stdout.len(), expected.len());
    assert_eq!(output.stderr, b"problem\n");

    // Followed across a rotation, to the end of the container.
    let script = "echo one; while ! [ -e /go ]; do sleep 0.1; done; echo two; while ! [ -e /end ]; do sleep 0.1; done; echo three";
    let id = runtime.block_on(client.start(&pod, container(&client, "follows", script))).unwrap();
    let file = daemon.folder().join("followed");
    let mut child =
        reader(&id, "follows.log", &["follow"]).stdout(fs::File::create(&file).unwrap()).spawn().unwrap();
    let has = |word: &str| fs::read_to_string(&file).is_ok_and(|text| text.contains(word));
    wait_for("the first line", LIMIT, || has("one"));
    fs::rename(logs.join("follows.log"), logs.join("follows.log.1")).unwrap();
    let reopen = v1::ReopenContainerLogRequest { container_id: id.clone() };
    runtime.block_on(client.runtime.reopen_container_log(reopen)).unwrap();
    runtime.block_on(client.exec(&id, &["touch", "/go"])).unwrap();
    wait_for("the line after the rotation", LIMIT, || has("two"));
    runtime.block_on(client.exec(&id, &["touch", "/end"])).unwrap();
    let mut ended = None;
    wait_for("the reader ends with the container", LIMIT, || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    });
    assert_eq!(fs::read_to_string(&file).unwrap(), "one\ntwo\nthree\n");
    runtime.block_on(client.remove(&pod)).unwrap();
}
