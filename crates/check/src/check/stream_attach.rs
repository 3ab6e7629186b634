//! Attach: a container's own streams.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bowline_cri_proto::v1;
use bowline_streaming::client::{self, Transport, Wanted};
use bowline_streaming::{Incoming, Outcome};
use bytes::Bytes;

use super::case::{Case, case, same};
use super::stream_exec::{ALL, OUTPUTS, Session, TERMINAL, beside};
use crate::container::Ctr;
use crate::endpoint::ask;
use crate::node::Node;

pub(super) const CASES: &[Case] = &[
    case!("attach/stdin-once", "C", stdin_once).quick(),
    case!("attach/stdin-stays", "K", stdin_stays),
    case!("attach/several", "KT", several),
    case!("attach/resize", "KT", resize),
];

const LIMIT: Duration = Duration::from_secs(30);

async fn attach(container: &Ctr, wanted: Wanted) -> Result<Session> {
    let request = v1::AttachRequest {
        container_id: container.id.clone(),
        stdin: wanted.stdin,
        tty: wanted.terminal,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    let address = container.pod.node.runtime().attach(ask(request)).await?.into_inner().url;
    Session::open(&address, Transport::Spdy, wanted).await
}

/// Reads until the text is there.
async fn read_until(from: &mut Incoming, text: &str) -> Result<()> {
    let mut seen = String::new();
    let read = async {
        while !seen.contains(text) {
            let piece = from.next().await?.with_context(|| format!("the output ended without `{text}`"))?;
            seen.push_str(&String::from_utf8_lossy(&piece));
        }
        anyhow::Ok(())
    };
    crate::patience::timeout(LIMIT, read).await.with_context(|| format!("`{text}` does not come"))?
}

async fn stdin_once(node: Node) -> Result<()> {
    let container = node.pod("once").run().await?.container("main").cmd(&["copy", ";", "say", "over"]);
    let container = container.edit(|config| (config.stdin, config.stdin_once) = (true, true)).start().await?;
    let got = attach(&container, ALL).await?.talk(b"some words\n", true).await?;
    same!(String::from_utf8_lossy(&got.stdout), "some words\nover\n", "stdout");
    same!(got.outcome, Outcome::Success, "status");
    same!(container.exited().await?.exit_code, 0, "exit code");
    same!(container.output()?.stdout(), "some words\nover\n", "the log");
    Ok(())
}

async fn stdin_stays(node: Node) -> Result<()> {
    let container = node.pod("stays").run().await?.container("main").cmd(&["copy"]);
    let container = container.edit(|config| config.stdin = true).start().await?;
    for words in ["first\n", "second\n"] {
        let Session { mut streams, driver } = attach(&container, ALL).await?;
        let (mut stdin, mut stdout) =
            (streams.stdin.take().context("no stdin")?, streams.stdout.take().context("no stdout")?);
        let session = async {
            stdin.send(Bytes::copy_from_slice(words.as_bytes())).await?;
            read_until(&mut stdout, words).await?;
            stdin.end().await?;
            anyhow::Ok(())
        };
        tokio::select! {
            done = session => done?,
            ended = driver => bail!("the connection ended: {ended:?}"),
        }
    }
    same!(container.status().await?.state, v1::ContainerState::ContainerRunning as i32, "state");
    Ok(())
}

async fn several(node: Node) -> Result<()> {
    let container = node.pod("several").run().await?.container("main").cmd(&["copy"]);
    let container = container.edit(|config| config.stdin = true).start().await?;
    let (first, second) = (attach(&container, OUTPUTS).await?, attach(&container, ALL).await?);
    let Session { streams: mut watching, driver: first } = first;
    let Session { streams: mut both, driver: second } = second;
    let mut stdin = both.stdin.take().context("no stdin")?;
    let (mut one, mut two) =
        (watching.stdout.take().context("no stdout")?, both.stdout.take().context("no stdout")?);
    let drivers = async { tokio::join!(first, second) };
    let session = async {
        // The first time also tells that both are attached.
        let mut said = 0;
        let mut seen = false;
        while !seen && said < 300 {
            said += 1;
            stdin.send(Bytes::from(format!("line {said}\n"))).await?;
            read_until(&mut two, &format!("line {said}\n")).await?;
            seen = tokio::time::timeout(Duration::from_millis(100), one.next()).await.is_ok();
        }
        ensure!(seen, "the first watcher sees nothing");
        stdin.send(Bytes::from_static(b"for both\n")).await?;
        tokio::try_join!(read_until(&mut one, "for both"), read_until(&mut two, "for both"))?;
        anyhow::Ok(())
    };
    tokio::select! {
        done = session => done?,
        ended = drivers => bail!("the connections ended: {ended:?}"),
    }
    // One leaves, by dropping everything; the log has it all, and the container goes on.
    drop((watching, one));
    same!(container.status().await?.state, v1::ContainerState::ContainerRunning as i32, "state");
    ensure!(container.output()?.stdout().contains("for both\n"), "the log lacks what was attached to");
    Ok(())
}

async fn resize(node: Node) -> Result<()> {
    let container = node.pod("size").run().await?.container("main").cmd(&["await-window", "31", "101"]);
    let container = container.edit(|config| (config.stdin, config.tty) = (true, true)).start().await?;
    let Session { mut streams, driver } = attach(&container, TERMINAL).await?;
    let mut sizes = streams.resize.take().context("no stream for sizes")?;
    let mut stdout = streams.stdout.take().context("no stdout")?;
    let session = async {
        sizes.send(client::size(31, 101)).await?;
        read_until(&mut stdout, "window=31 101").await?;
        same!(client::outcome(&mut streams.error).await?, Outcome::Success, "status");
        anyhow::Ok(())
    };
    beside(driver, session).await
}
