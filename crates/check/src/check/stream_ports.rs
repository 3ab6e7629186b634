//! Port-forward: connections to ports of a pod.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bowline_cri_proto::v1;
use bowline_streaming::Gone;
use bowline_streaming::client::{self, Driver, Forwarded, Forwarder, Transport};
use bytes::Bytes;
use futures_util::future::try_join_all;

use super::case::{Case, case, same};
use crate::container::Ctr;
use crate::endpoint::ask;
use crate::node::Node;
use crate::pod::Pod;

pub(super) const CASES: &[Case] = &[
    case!("port-forward/pod", "CK", pod).quick(),
    case!("port-forward/host-network", "C", host_network),
    case!("port-forward/many", "K", many),
    case!("port-forward/tunnel", "T", tunnel),
];

const LIMIT: Duration = Duration::from_secs(60);
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

async fn forward(pod: &Pod, transport: Transport) -> Result<(Forwarder, Driver)> {
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: Vec::new() };
    let address = pod.node.runtime().port_forward(ask(request)).await?.into_inner().url;
    client::port_forward(&address, None, transport).await.context("open the session")
}

/// Says something on a connection, ends that side, and has all that comes back.
async fn exchange(forwarder: &Forwarder, port: u16, words: &'static [u8]) -> Result<String> {
    let Forwarded { mut incoming, mut outgoing, mut error } = forwarder.open(port).await?;
    outgoing.send(Bytes::from_static(words)).await?;
    outgoing.end().await?;
    let mut answer = Vec::new();
    while let Some(piece) = incoming.next().await? {
        answer.extend_from_slice(&piece);
    }
    same!(error.next().await, Ok(None), "the error stream");
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Runs what needs the connection beside its driver.
async fn beside<T>(driver: Driver, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = crate::patience::timeout(LIMIT, work) => done.context("the connections do not end")?,
        ended = driver => bail!("the connection ended: {ended:?}"),
    }
}

async fn server(pod: &Pod, words: &[&str]) -> Result<Ctr> {
    let container = pod.container("main").cmd(words).start().await?;
    container.says("serving").await?;
    Ok(container)
}

async fn pod(node: Node) -> Result<()> {
    let pod = node.pod("forward").run().await?;
    let words =
        ["serve", "http", "127.0.0.1:80", "four", ";", "serve", "http", "[::1]:81", "six", ";", "pause"];
    server(&pod, &words).await?;
    let (forwarder, driver) = forward(&pod, Transport::Spdy).await?;
    beside(driver, async {
        for (port, expected) in [(80, "four"), (81, "six")] {
            let answer = exchange(&forwarder, port, REQUEST).await?;
            ensure!(answer.starts_with("HTTP/1.0 200") && answer.ends_with(expected), "{port}: {answer:?}");
        }
        Ok(())
    })
    .await
}

async fn host_network(node: Node) -> Result<()> {
    let pod = node.pod("host").host_network().run().await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    server(&pod, &["serve", "http", &format!("127.0.0.1:{port}"), "host", ";", "pause"]).await?;
    let (forwarder, driver) = forward(&pod, Transport::Spdy).await?;
    beside(driver, async {
        let answer = exchange(&forwarder, port, REQUEST).await?;
        ensure!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("host"), "{answer:?}");
        Ok(())
    })
    .await
}

async fn many(node: Node) -> Result<()> {
    let pod = node.pod("many").run().await?;
    let container = server(&pod, &["serve", "whole", "127.0.0.1:90", ";", "pause"]).await?;
    let (forwarder, driver) = forward(&pod, Transport::Spdy).await?;
    beside(driver, async {
        // The answer comes only after the end of what is said: half-close passes.
        let one = || async {
            same!(exchange(&forwarder, 90, b"twenty-two bytes long.").await?, "ready 22 bytes", "the answer");
            anyhow::Ok(())
        };
        for _ in 0..20 {
            one().await?;
        }
        try_join_all((0..20).map(|_| one())).await?;
        // One is broken off, one cannot be made; the rest goes on.
        let mut held = forwarder.open(90).await?;
        held.outgoing.send(Bytes::from_static(b"unfinished")).await?;
        let greeted = async |connection: &mut Forwarded| {
            let greeting = connection.incoming.next().await?.context("no greeting")?;
            same!(&greeting[..], b"ready ", "the greeting");
            anyhow::Ok(())
        };
        greeted(&mut held).await?;
        let mut broken = forwarder.open(90).await?;
        greeted(&mut broken).await?;
        broken.outgoing.reset().await?;
        container.says("broken-off").await?;
        let mut refused = forwarder.open(9).await?;
        let text = refused.error.next().await?.context("nothing is said of a port that refuses")?;
        ensure!(String::from_utf8_lossy(&text).contains('9'), "{text:?}");
        same!(refused.incoming.next().await, Err(Gone), "the data of a port that refuses");
        one().await?;
        held.outgoing.end().await?;
        let mut answer = Vec::new();
        while let Some(piece) = held.incoming.next().await? {
            answer.extend_from_slice(&piece);
        }
        same!(&answer[..], b"10 bytes", "the answer on the connection that was held");
        Ok(())
    })
    .await
}

async fn tunnel(node: Node) -> Result<()> {
    let pod = node.pod("tunnel").run().await?;
    server(&pod, &["serve", "http", "127.0.0.1:80", "through", ";", "pause"]).await?;
    let (forwarder, driver) = forward(&pod, Transport::WebSocket).await?;
    beside(driver, async {
        for _ in 0..3 {
            let answer = exchange(&forwarder, 80, REQUEST).await?;
            ensure!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("through"), "{answer:?}");
        }
        Ok(())
    })
    .await
}
