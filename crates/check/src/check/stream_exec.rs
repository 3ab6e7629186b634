//! Exec as a stream: what `kubectl exec` stands on.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bowline_cri_proto::v1;
use bowline_streaming::client::{self, Command, Driver, Transport, Wanted};
use bowline_streaming::{Incoming, Outcome};
use bytes::Bytes;
use tonic::Code;

use super::case::{Case, case, same};
use crate::container::Ctr;
use crate::endpoint::ask;
use crate::images::PROGRAM;
use crate::node::{Node, refused};
use crate::pattern::repeats;

pub(super) const CASES: &[Case] = &[
    case!("stream-exec/plain", "C", plain).quick(),
    case!("stream-exec/tty-stdin-open", "C", tty_stdin_open),
    case!("stream-exec/stdin-eof", "K", stdin_eof).quick(),
    case!("stream-exec/exit-code", "KT", exit_code).quick(),
    case!("stream-exec/resize", "KT", resize),
    case!("stream-exec/big", "K", big),
    case!("stream-exec/request-checks", "PS", request_checks),
    case!("stream-abuse/aborted", "S", aborted),
];

/// How long a session may take that should not take long.
const LIMIT: Duration = Duration::from_secs(60);

/// A session that stands.
pub(super) struct Session {
    pub(super) streams: Command,
    pub(super) driver: Driver,
}

/// How a session went.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) outcome: Outcome,
}

pub(super) const OUTPUTS: Wanted = Wanted { stdin: false, stdout: true, stderr: true, terminal: false };
pub(super) const ALL: Wanted = Wanted { stdin: true, ..OUTPUTS };
pub(super) const TERMINAL: Wanted = Wanted { stdin: true, stdout: true, stderr: false, terminal: true };

/// The address for a command.
pub(super) async fn address(container: &Ctr, words: &[&str], wanted: Wanted) -> Result<String> {
    let request = v1::ExecRequest {
        container_id: container.id.clone(),
        cmd: std::iter::once(PROGRAM).chain(words.iter().copied()).map(str::to_owned).collect(),
        tty: wanted.terminal,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    Ok(container.pod.node.runtime().exec(ask(request)).await?.into_inner().url)
}

impl Session {
    /// Begins one at an address.
    pub(super) async fn open(address: &str, transport: Transport, wanted: Wanted) -> Result<Session> {
        let (streams, driver) =
            client::command(address, None, transport, wanted).await.context("open the session")?;
        Ok(Session { streams, driver })
    }

    /// Runs it to its end: input goes in, and ends if that is wanted.
    pub(super) async fn talk(self, input: &[u8], end: bool) -> Result<Ending> {
        let Session { streams, driver } = self;
        let Command { stdin, stdout, stderr, mut error, resize: _resize } = streams;
        let work = async {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    let sent = input.is_empty() || stdin.send(Bytes::copy_from_slice(input)).await.is_ok();
                    if sent && end {
                        let _ = stdin.end().await;
                    }
                }
                // Only the end of the session ends it.
                std::future::pending().await
            };
            let read = async { tokio::join!(all(stdout), all(stderr), client::outcome(&mut error)) };
            tokio::select! {
                (stdout, stderr, outcome) = read => outcome.map(|outcome| Ending { stdout, stderr, outcome }),
                never = feed => never,
            }
        };
        beside(driver, async { work.await.context("the session broke off") }).await
    }
}

/// Runs what needs the connection beside its driver. What has arrived when the connection ends is still to be read.
pub(super) async fn beside<T>(driver: Driver, work: impl Future<Output = Result<T>>) -> Result<T> {
    let driver = async {
        let _ = driver.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        done = crate::patience::timeout(LIMIT, work) => done.context("the session does not end")?,
        () = driver => bail!("the driver ended twice"),
    }
}

async fn all(from: Option<Incoming>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(mut from) = from else { return bytes };
    while let Ok(Some(piece)) = from.next().await {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

/// Runs operations of the helper, over SPDY.
async fn run(container: &Ctr, words: &[&str], wanted: Wanted, input: &[u8]) -> Result<Ending> {
    let address = address(container, words, wanted).await?;
    Session::open(&address, Transport::Spdy, wanted).await?.talk(input, true).await
}

async fn paused(node: &Node, name: &str) -> Result<Ctr> {
    node.pod(name).run().await?.container("main").start().await
}

async fn plain(node: Node) -> Result<()> {
    let container = paused(&node, "plain").await?;
    let words = ["bytes", "out", "00ff0a0d80fe", ";", "bytes", "err", "0102", ";", "say", "end"];
    // Several times: an end that is heard first must not hide the last words.
    for _ in 0..5 {
        let got = run(&container, &words, OUTPUTS, b"").await?;
        same!(got.stdout, b"\x00\xff\x0a\x0d\x80\xfeend\n".to_vec(), "stdout");
        same!(got.stderr, b"\x01\x02".to_vec(), "stderr");
        same!(got.outcome, Outcome::Success, "status");
    }
    Ok(())
}

async fn tty_stdin_open(node: Node) -> Result<()> {
    let container = paused(&node, "tty").await?;
    let address = address(&container, &["say", "hello"], TERMINAL).await?;
    let got = Session::open(&address, Transport::Spdy, TERMINAL).await?.talk(b"", false).await?;
    same!(String::from_utf8_lossy(&got.stdout), "hello\r\n", "what is on the terminal");
    same!(got.outcome, Outcome::Success, "status");
    Ok(())
}

async fn stdin_eof(node: Node) -> Result<()> {
    let container = paused(&node, "eof").await?;
    let got = run(&container, &["copy", ";", "say", "after"], ALL, b"some words\n").await?;
    same!(String::from_utf8_lossy(&got.stdout), "some words\nafter\n", "stdout");
    same!(got.outcome, Outcome::Success, "status");
    Ok(())
}

async fn exit_code(node: Node) -> Result<()> {
    let container = paused(&node, "code").await?;
    for (code, expected) in [("0", Outcome::Success), ("1", Outcome::Code(1)), ("42", Outcome::Code(42))] {
        let got = run(&container, &["say", "words", ";", "exit", code], OUTPUTS, b"").await?;
        same!(got.outcome, expected, "status of exit {code}");
        same!(got.stdout, b"words\n".to_vec(), "stdout of exit {code}");
    }
    let request = v1::ExecRequest {
        container_id: container.id.clone(),
        cmd: vec!["/no/such/program".to_owned()],
        stdout: true,
        ..Default::default()
    };
    let address = node.runtime().exec(ask(request)).await?.into_inner().url;
    let wanted = Wanted { stdout: true, ..Wanted::default() };
    let got = Session::open(&address, Transport::Spdy, wanted).await?.talk(b"", false).await?;
    ensure!(matches!(got.outcome, Outcome::Failed(_) | Outcome::Code(126 | 127)), "{:?}", got.outcome);
    Ok(())
}

async fn resize(node: Node) -> Result<()> {
    let container = paused(&node, "resize").await?;
    let words = ["await-window", "31", "101", ";", "await-window", "7", "9"];
    let address = address(&container, &words, TERMINAL).await?;
    let Session { mut streams, driver } = Session::open(&address, Transport::Spdy, TERMINAL).await?;
    let mut sizes = streams.resize.take().context("no stream for sizes")?;
    let mut stdout = streams.stdout.take().context("no stdout")?;
    let session = async {
        let mut seen = String::new();
        sizes.send(client::size(31, 101)).await?;
        while !seen.contains("window=31 101") {
            let piece = stdout.next().await?.context("the output ended before the first size")?;
            seen.push_str(&String::from_utf8_lossy(&piece));
        }
        sizes.send(client::size(7, 9)).await?;
        while let Some(piece) = stdout.next().await? {
            seen.push_str(&String::from_utf8_lossy(&piece));
        }
        ensure!(seen.contains("window=7 9"), "seen: {seen:?}");
        same!(client::outcome(&mut streams.error).await?, Outcome::Success, "status");
        Ok(())
    };
    beside(driver, session).await
}

/// A hundred mebibytes there and back.
async fn big(node: Node) -> Result<()> {
    const TOTAL: usize = 100 << 20;
    let container = paused(&node, "big").await?;
    let address = address(&container, &["copy"], ALL).await?;
    let Session { mut streams, driver } = Session::open(&address, Transport::Spdy, ALL).await?;
    let (mut stdin, mut stdout) =
        (streams.stdin.take().context("no stdin")?, streams.stdout.take().context("no stdout")?);
    // Of a length that fits no buffer, so that nothing lines up.
    let block = Bytes::from((0..65_521u32).map(|n| (n * 7 % 251) as u8).collect::<Vec<_>>());
    let write = async {
        let mut left = TOTAL;
        while left > 0 {
            let part = block.slice(..left.min(block.len()));
            left -= part.len();
            stdin.send(part).await?;
        }
        stdin.end().await?;
        anyhow::Ok(())
    };
    let read = async {
        let mut at = 0;
        while let Some(piece) = stdout.next().await? {
            ensure!(repeats(&block, at, &piece), "what came back differs after {at} bytes");
            at += piece.len();
        }
        same!(at, TOTAL, "bytes that came back");
        Ok(())
    };
    let session = async {
        tokio::try_join!(write, read)?;
        same!(client::outcome(&mut streams.error).await?, Outcome::Success, "status");
        Ok(())
    };
    beside(driver, session).await
}

async fn request_checks(node: Node) -> Result<()> {
    let container = paused(&node, "checks").await?;
    let ask_for = async |id: &str, tty, stdout, stderr| {
        let cmd = vec![PROGRAM.to_owned(), "pause".to_owned()];
        let request = v1::ExecRequest { container_id: id.to_owned(), cmd, tty, stdin: false, stdout, stderr };
        node.runtime().exec(ask(request)).await
    };
    refused(ask_for(&container.id, false, false, false).await, &[Code::InvalidArgument], "no stream")?;
    refused(ask_for(&container.id, true, true, true).await, &[Code::InvalidArgument], "tty with stderr")?;
    let attach = |tty, stdout, stderr| {
        let id = container.id.clone();
        v1::AttachRequest { container_id: id, stdin: false, tty, stdout, stderr }
    };
    for (tty, stdout, stderr, what) in
        [(false, false, false, "attach to no stream"), (true, true, true, "attach to a tty's stderr")]
    {
        let answer = node.runtime().attach(ask(attach(tty, stdout, stderr))).await;
        refused(answer, &[Code::InvalidArgument], what)?;
    }
    container.stop(0).await?;
    let answer = ask_for(&container.id, false, true, false).await;
    refused(answer, &[Code::FailedPrecondition], "exec in a container that has ended")?;
    let answer = node.runtime().attach(ask(attach(false, true, false))).await;
    refused(answer, &[Code::FailedPrecondition], "attach to a container that has ended")?;
    Ok(())
}

/// A thousand sessions, dropped at every stage.
async fn aborted(node: Node) -> Result<()> {
    let container = paused(&node, "aborted").await?;
    let before = container.host_pids().len();
    for round in 0..200 {
        let transport = if round % 2 == 0 { Transport::Spdy } else { Transport::WebSocket };
        // Never asked for; asked for and dropped at once; while it runs; with input on its way; at its end.
        drop(address(&container, &["pause"], ALL).await.or_else(at_limit)?);
        let open = async |words: &[&str]| {
            let address = address(&container, words, ALL).await?;
            Session::open(&address, transport, ALL).await
        };
        drop(open(&["pause"]).await?);
        for words in [&["pause"][..], &["copy"], &["say", "end"]] {
            let Session { mut streams, mut driver } = open(words).await?;
            let mut stdin = streams.stdin.take().context("no stdin")?;
            let some = async {
                let _ = stdin.send(Bytes::from_static(&[b'x'; 1000])).await;
            };
            tokio::select! { () = some => {}, _ = &mut driver => {} }
        }
    }
    let quiet = crate::node::until("the commands of dropped sessions end", LIMIT, async || {
        let left = container.host_pids().len();
        Ok(match left == before {
            true => crate::node::Found::Yes(()),
            false => crate::node::Found::Not(format!("{left} processes")),
        })
    });
    quiet.await?;
    let got = run(&container, &["say", "still here"], OUTPUTS, b"").await?;
    same!(got.stdout, b"still here\n".to_vec(), "stdout afterwards");
    Ok(())
}

/// Tokens that nobody uses wait for a minute, and are limited.
fn at_limit(error: anyhow::Error) -> Result<String> {
    match error.downcast_ref::<tonic::Status>() {
        Some(status) if status.code() == Code::ResourceExhausted => Ok(String::new()),
        _ => Err(error),
    }
}
