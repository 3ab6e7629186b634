//! Exec, attach and port-forward of the real daemon: clients that leave at any moment, a daemon that dies, watchers that
//! do not read. What a session of good manners is like is in `bowline check`.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_streaming::client::{self, Command, Driver, Transport, Wanted};
use bowline_streaming::spdy::{self, Handle, Headers, Role};
use bowline_streaming::{Activity, Gone, Hangup, Incoming, Outcome};
use bowline_tests::{Client, Daemon, Inventory, container, go_program, pod, wait_for};
use bytes::Bytes;

const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true, terminal: false };
const OUTPUT: Wanted = Wanted { stdin: false, stdout: true, stderr: false, terminal: false };
const LIMIT: Duration = Duration::from_secs(30);

/// A daemon with a pod.
struct Node {
    runtime: tokio::runtime::Runtime,
    daemon: Daemon,
    client: Client,
    pod: String,
}

impl Node {
    fn start() -> Node {
        Node::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Node {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let daemon = Daemon::start();
        let (client, pod) = runtime.block_on(async {
            let mut client = Client::connect(&daemon).await;
            client.pull(&daemon).await;
            let mut config = pod("streams", &daemon.folder().join("logs"));
            change(&mut config);
            let pod = client.run(config).await.unwrap();
            (client, pod)
        });
        Node { runtime, daemon, client, pod }
    }

    fn container(&mut self, script: &str, change: impl FnOnce(&mut v1::ContainerConfig)) -> String {
        let mut config = container(&self.client, "main", script);
        change(&mut config);
        self.runtime.block_on(self.client.start(&self.pod, config)).unwrap()
    }

    fn log(&self) -> Vec<u8> {
        fs::read(self.daemon.folder().join("logs/main.log")).unwrap()
    }
}

async fn exec_address(client: &Client, id: &str, command: &[&str], wanted: Wanted) -> String {
    let request = v1::ExecRequest {
        container_id: id.into(),
        cmd: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: wanted.terminal,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    client.runtime.clone().exec(request).await.unwrap().into_inner().url
}

async fn attach_address(client: &Client, id: &str, wanted: Wanted) -> String {
    let request = v1::AttachRequest {
        container_id: id.into(),
        stdin: wanted.stdin,
        tty: wanted.terminal,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    client.runtime.clone().attach(request).await.unwrap().into_inner().url
}

async fn all(mut from: Incoming) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(piece)) = from.next().await {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// Runs the driver beside everything, and gives the streams.
async fn begin(
    address: &str,
    transport: Transport,
    wanted: Wanted,
) -> (Command, tokio::task::JoinHandle<()>) {
    let (streams, driver) = client::command(address, None, transport, wanted).await.unwrap();
    (streams, drive(driver))
}

fn drive(driver: Driver) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let _ = driver.await;
    })
}

#[derive(Debug)]
struct Usage {
    descriptors: usize,
    threads: usize,
    kibibytes: usize,
}

fn usage(pid: u32) -> Usage {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kibibytes = memory.trim().trim_end_matches(" kB").parse().unwrap();
    Usage { descriptors: count("fd"), threads: count("task"), kibibytes }
}

fn monitor_of(pod: &str) -> u32 {
    let found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        (line.split('\0').next() == Some("bowline-monitor") && line.contains(pod)).then_some(pid)
    });
    found.expect("the pod has a monitor")
}

/// Sends the request of an upgrade and nothing more.
fn upgrade(address: &str, headers: &str) -> TcpStream {
    let (host, path) = address.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(host).unwrap();
    write!(socket, "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n{headers}\r\n").unwrap();
    socket
}

const SPDY: &str = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
const WEBSOCKET: &str = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";

/// One session, dropped at a stage that its number says.
async fn abort(client: &Client, id: &str, pod: &str, number: usize) {
    let transport = if number.is_multiple_of(2) { Transport::Spdy } else { Transport::WebSocket };
    match number % 8 {
        // A connection that says nothing; half a request; an upgrade without streams; rubbish after the upgrade.
        0 => {
            let address = attach_address(client, id, ALL).await;
            drop(TcpStream::connect(address.split('/').nth(2).unwrap()).unwrap());
            let mut half = upgrade(&address, "Upgr");
            let _ = half.write_all(b"ade: SPD");
            // Tokens that nobody uses are limited, and that is another matter.
            drop(upgrade(&address, SPDY));
        }
        1 => drop(upgrade(&exec_address(client, id, &["cat"], ALL).await, SPDY)),
        2 => {
            let mut socket = upgrade(&exec_address(client, id, &["cat"], ALL).await, WEBSOCKET);
            let _ = socket.write_all(b"rubbish that is no frame");
            let _ = socket.shutdown(Shutdown::Both);
        }
        // Commands: just begun; with input on its way; at their end.
        3 => {
            let (_, driver) = begin(&exec_address(client, id, &["cat"], ALL).await, transport, ALL).await;
            driver.abort();
        }
        4 => {
            let (mut streams, driver) =
                begin(&exec_address(client, id, &["cat"], ALL).await, transport, ALL).await;
            let mut stdin = streams.stdin.take().unwrap();
            stdin.send(Bytes::from(vec![b'x'; 10_000])).await.unwrap();
            let _ = streams.stdout.unwrap().next().await;
            driver.abort();
        }
        5 => {
            let (streams, driver) =
                begin(&exec_address(client, id, &["echo", "x"], ALL).await, transport, ALL).await;
            let _ = streams.stdout.unwrap().next().await;
            driver.abort();
        }
        // Attached, to a container that says nothing.
        6 => {
            let (_streams, driver) = begin(&attach_address(client, id, ALL).await, transport, ALL).await;
            driver.abort();
        }
        // Ports: one that refuses, one connection that stands.
        _ => {
            let request = v1::PortForwardRequest { pod_sandbox_id: pod.into(), port: vec![] };
            let address = client.runtime.clone().port_forward(request).await.unwrap().into_inner().url;
            let (forwarder, driver) = client::port_forward(&address, None, transport).await.unwrap();
            let driver = drive(driver);
            let mut refused = forwarder.open(9).await.unwrap();
            let _ = refused.error.next().await;
            let mut stands = forwarder.open(7).await.unwrap();
            stands.outgoing.send(Bytes::from_static(b"x")).await.unwrap();
            driver.abort();
        }
    }
}

fn abort_many(count: usize) {
    let mut node = Node::start();
    // Something listens and keeps its connections; the commands of dropped sessions end up with a shell that reaps.
    let id = node.container("nc -ll -p 7 -e cat & while :; do sleep 0.1; done", |config| {
        config.stdin = true;
    });
    let (daemon, monitor) = (node.daemon.pid().unwrap(), monitor_of(&node.pod));
    let round = |from: usize, to: usize| {
        let (client, id, pod) = (node.client.clone(), id.clone(), node.pod.clone());
        node.runtime.block_on(async move {
            for start in (from..to).step_by(8) {
                let mut running = tokio::task::JoinSet::new();
                for number in start..(start + 8).min(to) {
                    let (client, id, pod) = (client.clone(), id.clone(), pod.clone());
                    running.spawn(async move { abort(&client, &id, &pod, number).await });
                }
                while let Some(done) = running.join_next().await {
                    done.unwrap();
                }
            }
        });
    };
    // What a first round leaves in caches and pools is no leak.
    round(0, 200);
    let settled = |pid: u32| {
        // Sessions end a moment after their clients: until the number stays.
        let mut last = usage(pid).descriptors;
        let mut same = 0;
        wait_for("the sessions have ended", LIMIT, || {
            let now = usage(pid).descriptors;
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same > 300
        });
        usage(pid)
    };
    let before = (settled(daemon), settled(monitor));
    round(200, 200 + count);
    let within = |now: usize, before: usize, more: usize| now <= before + more;
    for (pid, before, name) in [(daemon, &before.0, "the daemon"), (monitor, &before.1, "the monitor")] {
        wait_for(&format!("{name} has let go of {count} sessions"), LIMIT, || {
            let now = usage(pid);
            within(now.descriptors, before.descriptors, 4) && within(now.threads, before.threads, 12)
        });
        let now = usage(pid);
        println!("{name}: {before:?} before, {now:?} after {count} sessions");
        // A kibibyte kept for each session would show as ten thousand.
        assert!(
            within(now.kibibytes, before.kibibytes, 4096 + count / 2),
            "{name}: {before:?}, then {now:?}"
        );
    }
    wait_for("the commands of dropped sessions have ended", LIMIT, || {
        let running = node.runtime.block_on(node.client.exec(&id, &["ps", "-o", "args"])).unwrap().stdout;
        !String::from_utf8_lossy(&running).lines().any(|line| line.trim() == "cat" || line == "echo x")
    });
}

#[test]
fn a_thousand_aborted_sessions_leave_nothing() {
    abort_many(1000);
}

#[test]
#[ignore = "minutes; what the short one shows, with ten times as many"]
fn ten_thousand_aborted_sessions_leave_nothing() {
    abort_many(10_000);
}

#[test]
fn what_a_client_abandons_is_killed_and_a_reset_of_stdout_is_a_closed_pipe() {
    let mut node = Node::start();
    let id = node.container("sleep 1000", |_| {});
    let alive = |node: &mut Node, what: &str| {
        let output = node.runtime.block_on(node.client.exec(&id, &["ps", "-o", "args"])).unwrap().stdout;
        String::from_utf8_lossy(&output).lines().any(|line| line.trim() == what)
    };
    let client = node.client.clone();
    let (_streams, driver) = node.runtime.block_on(async {
        let address = exec_address(&client, &id, &["sleep", "777"], ALL).await;
        begin(&address, Transport::Spdy, ALL).await
    });
    wait_for("the command runs", LIMIT, || alive(&mut node, "sleep 777"));
    driver.abort();
    wait_for("the abandoned command is killed", LIMIT, || !alive(&mut node, "sleep 777"));
    // A client that breaks stdout off closes the pipe: `yes` ends by SIGPIPE, 128 and 13.
    let outcome = node.runtime.block_on(async {
        let (handle, driver) = raw_spdy(&exec_address(&client, &id, &["yes"], OUTPUT).await);
        drive(driver);
        let named = |kind: &str| Headers(vec![("streamType".into(), kind.into())]);
        let (mut error, _) = handle.open(named("error")).await.unwrap();
        let (mut stdout, mut breaker) = handle.open(named("stdout")).await.unwrap();
        stdout.next().await.unwrap();
        breaker.reset().await.unwrap();
        client::outcome(&mut error).await
    });
    assert_eq!(outcome, Ok(Outcome::Code(141)));
}

/// A connection by hand, with nothing of the client's library but the frames.
fn raw_spdy(address: &str) -> (Handle, Driver) {
    let mut socket = upgrade(address, SPDY);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("v4.channel.k8s.io"), "{head}");
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::TcpStream::from_std(socket).unwrap();
    let (handle, _, driver) = spdy::connection(socket, Hangup::default(), Role::Client, Activity::default());
    (handle, Box::pin(driver.run()))
}

#[test]
fn a_daemon_started_anew_attaches_and_one_that_died_ends_the_input_that_is_read_once() {
    let mut node = Node::start();
    let id = node.container("cat; echo over; exec sleep 1000", |config| {
        (config.stdin, config.stdin_once) = (true, true);
    });
    let client = node.client.clone();
    node.daemon.kill();
    node.daemon.restart();
    // The first to attach, after a daemon that did not start the container.
    let (address, driver) = node.runtime.block_on(async {
        let address = attach_address(&client, &id, ALL).await;
        let (mut streams, driver) = begin(&address, Transport::Spdy, ALL).await;
        let mut stdin = streams.stdin.take().unwrap();
        stdin.send(Bytes::from_static(b"after the restart\n")).await.unwrap();
        assert_eq!(streams.stdout.unwrap().next().await.unwrap().unwrap(), "after the restart\n");
        (address, driver)
    });
    assert!(!String::from_utf8_lossy(&node.log()).contains("over"));
    node.daemon.kill();
    wait_for("the input ends with the daemon that had it", LIMIT, || {
        String::from_utf8_lossy(&node.log()).contains("over")
    });
    node.runtime.block_on(driver).unwrap();
    node.daemon.restart();
    // Nobody gets the input again, and old addresses are unknown.
    let refused = node.runtime.block_on(client::command(&address, None, Transport::Spdy, ALL));
    assert!(refused.is_err());
    node.runtime.block_on(async {
        let address = attach_address(&client, &id, ALL).await;
        let (_streams, driver) = begin(&address, Transport::WebSocket, ALL).await;
        driver.abort();
    });
    assert_eq!(
        node.runtime.block_on(node.client.status(&id)).unwrap().state,
        v1::ContainerState::ContainerRunning as i32
    );
}

#[test]
fn a_watcher_that_does_not_read_holds_up_a_container_for_a_while_and_its_log_is_whole() {
    let mut node = Node::start();
    // Forty megabytes: more than all buffers on the way hold.
    const LINES: usize = 40_000;
    let script =
        format!("read go; yes $(printf %01000d 0) | head -n {LINES}; echo the last one; exec sleep 1000");
    let id = node.container(&script, |config| config.stdin = true);
    let client = node.client.clone();
    let outcome = node.runtime.block_on(async {
        let (watcher, _driver) =
            begin(&attach_address(&client, &id, OUTPUT).await, Transport::Spdy, OUTPUT).await;
        let Command { stdout: stuck, mut error, .. } = watcher;
        let (mut other, _other_driver) =
            begin(&attach_address(&client, &id, ALL).await, Transport::WebSocket, ALL).await;
        other.stdin.as_mut().unwrap().send(Bytes::from_static(b"go\n")).await.unwrap();
        // The other one reads, and gets it all: once the first was left behind.
        let mut seen = 0;
        let mut stdout = other.stdout.unwrap();
        while seen < LINES + 1 {
            let piece = stdout.next().await.unwrap().unwrap();
            seen += piece.iter().filter(|byte| **byte == b'\n').count();
        }
        // It reads at last what is there, and is told.
        let (_, outcome) = tokio::join!(all(stuck.unwrap()), client::outcome(&mut error));
        outcome
    });
    let Ok(Outcome::Failed(text)) = outcome else { panic!("{outcome:?}") };
    assert!(text.contains("not read"), "{text}");
    let log = node.log();
    assert_eq!(log.iter().filter(|byte| **byte == b'\n').count(), LINES + 1, "lines of the log");
    assert!(log.ends_with(b" F the last one\n"));
}

#[test]
fn output_of_a_container_without_a_log_is_there_to_the_last_byte() {
    let mut node = Node::start();
    let script = "read go; dd if=/dev/zero bs=1000 count=3000 2>/dev/null; exit 3";
    let id = node.container(script, |config| {
        config.stdin = true;
        config.log_path.clear();
    });
    let client = node.client.clone();
    let (bytes, outcome) = node.runtime.block_on(async {
        let (mut streams, _driver) =
            begin(&attach_address(&client, &id, ALL).await, Transport::Spdy, ALL).await;
        streams.stdin.as_mut().unwrap().send(Bytes::from_static(b"go\n")).await.unwrap();
        tokio::join!(all(streams.stdout.unwrap()), client::outcome(&mut streams.error))
    });
    assert_eq!((bytes.len(), outcome), (3_000_000, Ok(Outcome::Success)));
    wait_for("the exit is told", LIMIT, || {
        node.runtime.block_on(node.client.status(&id)).unwrap().exit_code == 3
    });
}

#[test]
fn a_pod_with_open_connections_goes_without_a_trace() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    let folder = daemon.folder().to_owned();
    let mut client = runtime.block_on(Client::connect(&daemon));
    runtime.block_on(client.pull(&daemon));
    let clean = Inventory::take(&folder);
    let pod = runtime.block_on(client.run(pod("streams", &folder.join("logs")))).unwrap();
    let mut node = Node { runtime, daemon, client, pod };
    let id = node.container("nc -ll -p 7 -e cat & while sleep 0.1; do echo here; done", |_| {});
    let client = node.client.clone();
    let (pod_id, runtime) = (node.pod.clone(), &node.runtime);
    let namespaces = namespaces(node.daemon.pid().unwrap());
    runtime.block_on(async {
        let request = v1::PortForwardRequest { pod_sandbox_id: pod_id.clone(), port: vec![] };
        let address = client.runtime.clone().port_forward(request).await.unwrap().into_inner().url;
        let (forwarder, driver) = client::port_forward(&address, None, Transport::Spdy).await.unwrap();
        let driver = drive(driver);
        let mut connection = loop {
            // The listener may need a moment; a refusal may come before there is anything to send on.
            let mut connection = forwarder.open(7).await.unwrap();
            let sent = connection.outgoing.send(Bytes::from_static(b"x")).await;
            if sent.is_ok()
                && let Ok(Some(echo)) = connection.incoming.next().await
            {
                assert_eq!(echo, "x");
                break connection;
            }
        };
        let (streams, attached) =
            begin(&attach_address(&client, &id, OUTPUT).await, Transport::Spdy, OUTPUT).await;
        let Command { mut error, stdout, .. } = streams;
        // The session stands before the container is asked for: only output tells that it is attached.
        let mut stdout = stdout.unwrap();
        stdout.next().await.unwrap().unwrap();
        let reading = tokio::spawn(async move { while let Ok(Some(_)) = stdout.next().await {} });
        client.clone().remove(&pod_id).await.unwrap();
        // Its server was killed, which may be heard first.
        let end = connection.incoming.next().await;
        assert!(matches!(end, Ok(None) | Err(Gone)), "the connection ends with the pod: {end:?}");
        assert_eq!(client::outcome(&mut error).await, Ok(Outcome::Success), "the end of the container");
        reading.await.unwrap();
        // The session itself goes on, and finds nothing to connect to.
        let mut refused = forwarder.open(7).await.unwrap();
        let text = refused.error.next().await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&text).contains("no pod sandbox"), "{text:?}");
        attached.await.unwrap();
        driver.abort();
    });
    clean.wait_equal(&folder);
    assert_eq!(self::namespaces(node.daemon.pid().unwrap()), namespaces, "namespaces that the daemon holds");
}

/// Network namespaces that a process holds by descriptor.
fn namespaces(pid: u32) -> usize {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    links.filter_map(|entry| fs::read_link(entry.path()).ok()).filter(|to| to.starts_with("net:")).count()
}

#[test]
fn the_command_line_passes_input_output_and_the_exit_code() {
    let mut node = Node::start();
    let id = node.container("cat; echo over; sleep 1000", |config| {
        (config.stdin, config.stdin_once) = (true, true);
    });
    for transport in ["auto", "spdy"] {
        let mut child = node
            .daemon
            .cli(&["exec", "-i", "--transport", transport, &id, "sh", "-c", "cat; echo err >&2; exit 5"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 1 << 20]));
        let output = child.wait_with_output().unwrap();
        feed.join().unwrap().unwrap();
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        assert_eq!((output.stdout.len(), &output.stderr[..]), (1 << 20, &b"err\n"[..]));
    }
    let terminal = node.daemon.cli(&["exec", "-t", &id, "sh", "-c", "tty; exit 3"]).output().unwrap();
    assert_eq!(terminal.status.code(), Some(3), "{terminal:?}");
    assert!(terminal.stdout.starts_with(b"/dev/pts/"), "{terminal:?}");
    let mut attach = node.daemon.cli(&["attach", "-i", &id]);
    let mut child = attach.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"some words\n").unwrap();
    let mut seen = [0; 16];
    child.stdout.take().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"some words\nover\n");
    let _ = child.kill();
    let _ = child.wait();
    forward_by_command_line(&mut node, &id);
}

fn forward_by_command_line(node: &mut Node, id: &str) {
    use std::io::BufRead as _;
    let serve = ["sh", "-c", "nc -ll -p 7 -e cat >/dev/null 2>&1 &"];
    node.runtime.block_on(node.client.exec(id, &serve)).unwrap();
    let mut forward = node.daemon.cli(&["port-forward", "--address", "127.0.0.1", &node.pod, ":7"]);
    let mut child = forward.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let local = line.split(' ').next().unwrap();
    for _ in 0..3 {
        let mut socket = TcpStream::connect(local).unwrap();
        socket.write_all(b"echo").unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "echo");
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn sessions_that_are_idle_or_take_too_long_are_ended() {
    for (setting, words) in [
        ("idle_timeout_seconds = 1", "was idle for too long"),
        ("max_duration_seconds = 1", "was at its longest"),
    ] {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let daemon = Daemon::start_with(&format!("[streaming]\n{setting}\n"));
        let mut client = runtime.block_on(Client::connect(&daemon));
        runtime.block_on(client.pull(&daemon));
        let pod = runtime.block_on(client.run(pod("limits", &daemon.folder().join("logs")))).unwrap();
        let config = container(&client, "main", "sleep 1000");
        let id = runtime.block_on(client.start(&pod, config)).unwrap();
        let mut command = daemon.cli(&["exec", "-i", &id, "cat"]);
        let mut session =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // Held: neither side ends by itself.
        let input = session.stdin.take();
        wait_for("the session is ended", LIMIT, || session.try_wait().unwrap().is_some());
        // Said when the session is over on our side too.
        wait_for("the log says why", LIMIT, || daemon.log().contains(words));
        drop(input);
        wait_for("its command is ended too", LIMIT, || {
            let running = runtime.block_on(client.exec(&id, &["ps", "-o", "args"])).unwrap().stdout;
            !String::from_utf8_lossy(&running).lines().any(|line| line.trim() == "cat")
        });
        runtime.block_on(client.remove(&pod)).unwrap();
    }
}

#[test]
fn addresses_are_https_with_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    make_certificate(folder.path());
    let more =
        format!("[streaming]\ntls_cert = \"{}\"\ntls_key = \"{}\"\n", path("tls.crt"), path("tls.key"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start_with(&more);
    let mut client = runtime.block_on(Client::connect(&daemon));
    runtime.block_on(client.pull(&daemon));
    let pod = runtime.block_on(client.run(pod("tls", &daemon.folder().join("logs")))).unwrap();
    let config = container(&client, "main", "sleep 1000");
    let id = runtime.block_on(client.start(&pod, config)).unwrap();
    let address = runtime.block_on(exec_address(&client, &id, &["true"], OUTPUT));
    assert!(address.starts_with("https://127.0.0.1:"), "{address}");
    for transport in ["websocket", "spdy"] {
        let args = ["exec", "-i", "--transport", transport, "--tls-ca", &path("tls.crt"), &id, "echo", "hi"];
        let output = daemon.cli(&args).stdin(Stdio::null()).output().unwrap();
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"hi\n"[..]), "{output:?}");
    }
    let unknown = daemon.cli(&["exec", "-i", &id, "echo", "hi"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1), "a certificate that nobody vouches for");
    runtime.block_on(client.remove(&pod)).unwrap();
}

fn make_certificate(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    fs::write(folder.join("tls.crt"), made.cert.pem()).unwrap();
    fs::write(folder.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
}

#[test]
fn the_second_client_gets_along_with_us() {
    use std::io::BufRead as _;
    // Kubernetes' own client library.
    let Some(program) = go_program("second-client") else { return };
    // On the host's network, so that the server can be one that takes twenty connections at once; busybox' loses some.
    let mut node = Node::start_with(|config| {
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options =
            Some(v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, ..Default::default() });
    });
    let id = node.container("sleep 1000", |_| {});
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let served = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in server.incoming().flatten() {
            std::thread::spawn(move || {
                let mut writer = socket.try_clone().unwrap();
                let _ = std::io::copy(&mut &socket, &mut writer);
                let _ = socket.shutdown(Shutdown::Write);
            });
        }
    });
    let client = node.client.clone();
    for wire in ["spdy", "websocket"] {
        let script = ["sh", "-c", "cat; echo err >&2; exit 5"];
        let address = node.runtime.block_on(exec_address(&client, &id, &script, ALL));
        let mut child = std::process::Command::new(&program)
            .args(["exec", wire, &address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 4 << 20]));
        let output = child.wait_with_output().unwrap();
        feed.join().unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.status.code(), output.stdout.len(), &*said),
            (Some(5), 4 << 20, "err\n"),
            "{wire}"
        );

        let wanted = Wanted { stdin: true, stdout: true, stderr: false, terminal: true };
        let address = node.runtime.block_on(exec_address(&client, &id, &["sh", "-c", "tty; exit 6"], wanted));
        let mut command = std::process::Command::new(&program);
        let output = command.args(["exec", wire, &address, "tty"]).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{wire}: {output:?}");
        assert!(output.stdout.starts_with(b"/dev/pts/"), "{wire}: {output:?}");

        let request = v1::PortForwardRequest { pod_sandbox_id: node.pod.clone(), port: vec![] };
        let address = node.runtime.block_on(client.runtime.clone().port_forward(request)).unwrap();
        let mut child = std::process::Command::new(&program)
            .args(["forward", wire, &address.into_inner().url, &served.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port: u16 = line.trim().parse().unwrap();
        let talks: Vec<_> = (0..20).map(|_| std::thread::spawn(move || echo(port))).collect();
        talks.into_iter().for_each(|talk| talk.join().unwrap());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success(), "{wire}");
    }
}

fn echo(port: u16) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let words = vec![b'y'; 100_000];
    let mut writer = socket.try_clone().unwrap();
    let sending = words.clone();
    let write = std::thread::spawn(move || {
        writer.write_all(&sending).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    write.join().unwrap();
    assert!(answer == words, "{} of {} bytes came back", answer.len(), words.len());
}
