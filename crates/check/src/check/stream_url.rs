//! Addresses of streams, and what is spoken there.

use anyhow::{Context as _, Result, bail, ensure};
use bowline_streaming::Outcome;
use bowline_streaming::client::Transport;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::{Code, Status};

use super::case::{Case, case, same};
use super::stream_exec::{ALL, OUTPUTS, Session, address};
use crate::node::{Node, refused};

pub(super) const CASES: &[Case] = &[
    case!("stream-url/absolute", "KT", absolute).quick(),
    case!("stream-url/versions", "KT", versions),
    // Takes every place there is.
    case!("stream-url/limit", "K", limit).serial(),
];

/// Asks over bare HTTP: the first line of the answer, and its headers.
async fn http(address: &str, method: &str, headers: &[(&str, &str)]) -> Result<String> {
    let rest = address.strip_prefix("http://").with_context(|| format!("`{address}` is no http address"))?;
    let (host, path) = rest.split_once('/').with_context(|| format!("`{address}` has no path"))?;
    let mut socket = TcpStream::connect(host).await.with_context(|| format!("connect to {host}"))?;
    let mut text = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    socket.write_all((text + "\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
        if socket.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

const SPDY: [(&str, &str); 2] = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];

fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

async fn absolute(node: Node) -> Result<()> {
    let container = node.pod("url").run().await?.container("main").start().await?;
    for method in ["GET", "POST"] {
        let address = address(&container, &["say", "x"], OUTPUTS).await?;
        let mut headers = SPDY.to_vec();
        headers.push(("X-Stream-Protocol-Version", "v4.channel.k8s.io"));
        let answer = http(&address, method, &headers).await?;
        same!(code(&answer), "101", "{method}");
        let again = http(&address, method, &headers).await?;
        ensure!(code(&again).starts_with('4'), "a second use was answered with {again:?}");
        let at = address.rfind('/').context("no path")?;
        let unknown = http(&format!("{}/AAAAAAAAAAAAAAAAAAAAAA", &address[..at]), method, &headers).await?;
        ensure!(code(&unknown).starts_with('4'), "an unknown token was answered with {unknown:?}");
    }
    Ok(())
}

async fn versions(node: Node) -> Result<()> {
    let container = node.pod("versions").run().await?.container("main").start().await?;
    let fresh = async || address(&container, &["say", "x"], OUTPUTS).await;
    let mut headers = SPDY.to_vec();
    headers.extend([
        ("X-Stream-Protocol-Version", "v5.channel.k8s.io"),
        ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
    ]);
    let answer = http(&fresh().await?, "POST", &headers).await?.to_ascii_lowercase();
    ensure!(answer.contains("x-stream-protocol-version: v4.channel.k8s.io"), "v5, v4 offered: {answer:?}");
    let websocket = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for version in ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let mut headers = websocket.to_vec();
        headers.push(("Sec-WebSocket-Protocol", version));
        let answer = http(&fresh().await?, "GET", &headers).await?.to_ascii_lowercase();
        ensure!(answer.contains(&format!("sec-websocket-protocol: {version}")), "{version}: {answer:?}");
        ensure!(
            answer.contains(&"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_ascii_lowercase()),
            "{answer:?}"
        );
    }
    // With the message that ends stdin, which v5 brought.
    let address = address(&container, &["copy", ";", "exit", "7"], ALL).await?;
    let got = Session::open(&address, Transport::WebSocket, ALL).await?.talk(b"over v5", true).await?;
    same!((got.stdout, got.outcome), (b"over v5".to_vec(), Outcome::Code(7)), "over v5");
    Ok(())
}

async fn limit(node: Node) -> Result<()> {
    let container = node.pod("limit").run().await?.container("main").start().await?;
    let mut given = Vec::new();
    let refusal = loop {
        if given.len() == 2000 {
            bail!("two thousand tokens were given out that nobody used");
        }
        match address(&container, &["say", "x"], OUTPUTS).await {
            Ok(address) => given.push(address),
            Err(error) => break error.downcast::<Status>()?,
        }
    };
    // Used up, so that others need not wait for a minute.
    for address in &given {
        http(address, "GET", &[]).await?;
    }
    refused::<()>(Err(refusal), &[Code::ResourceExhausted], "too many tokens")?;
    address(&container, &["say", "x"], OUTPUTS).await.context("after all tokens were used")?;
    Ok(())
}
