//! Pod networks, from the host and from inside.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bowline_cri_proto::v1::{NamespaceMode, Protocol};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::case::{Case, case, same};
use crate::container::Ctr;
use crate::host;
use crate::node::{Found, Node, refused, skip, until};
use crate::pod::Pod;

pub(super) const CASES: &[Case] = &[
    case!("network/pod-ip", "CK", pod_ip).quick(),
    case!("network/pod-to-pod", "K", pod_to_pod),
    case!("network/shared-loopback", "CK", shared_loopback),
    case!("network/host-port-loopback", "C", host_port_loopback),
    case!("network/host-port-node", "K", host_port_node),
    case!("network/host-port-ip", "K", host_port_ip),
    case!("network/host-port-freed", "K", host_port_freed),
    case!("network/host-port-taken", "S", host_port_taken),
    case!("network/container-port-only", "C", container_port_only),
    case!("network/host-network", "CK", host_network).quick(),
    case!("network/not-host-network", "C", not_host_network),
    case!("network/ip-stable", "K", ip_stable),
];

/// What a listener answers the host.
async fn ask_tcp(address: SocketAddr) -> Result<String> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        anyhow::Ok(text.split(' ').next().unwrap_or_default().to_owned())
    };
    crate::patience::timeout(Duration::from_secs(2), talk)
        .await
        .with_context(|| format!("{address} is silent"))?
}

/// Asks until the answer is this: a listener needs a moment.
async fn answers(address: SocketAddr, expected: &str) -> Result<()> {
    until(format!("an answer from {address}"), Duration::from_secs(8), async || {
        Ok(match ask_tcp(address).await {
            Ok(text) if text == expected => Found::Yes(()),
            other => Found::Not(format!("{other:?}")),
        })
    })
    .await
}

async fn ask_udp(address: SocketAddr) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(address).await?;
    socket.send(b"?").await?;
    let mut buffer = [0; 512];
    let length = crate::patience::timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await??;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// A container that listens.
async fn server(pod: &Pod, name: &str, address: &str, text: &str) -> Result<Ctr> {
    let container = pod.container(name).cmd(&["serve", "tcp", address, text, ";", "pause"]).start().await?;
    container.says("serving").await?;
    Ok(container)
}

/// A port of the host that is free now.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("0.0.0.0:0")?.local_addr()?.port())
}

/// The first address of the node that is not loopback.
fn node_address() -> Result<IpAddr> {
    // No packet is sent: connecting a UDP socket only chooses the address.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    if socket.connect("192.0.2.1:9").is_err() {
        return skip("the node has no address besides loopback");
    }
    let address = socket.local_addr()?.ip();
    if address.is_loopback() || address.is_unspecified() {
        return skip("the node has no address besides loopback");
    }
    Ok(address)
}

async fn pod_ip(node: Node) -> Result<()> {
    let pod = node.pod("ip").run().await?;
    let ip = pod.ip().await?;
    ensure!(ip.is_ipv4() || !pod_has_ipv4(&pod).await?, "the first address is {ip} on a dual-stack node");
    server(&pod, "main", "0.0.0.0:8080", "hello").await?;
    answers(SocketAddr::new(ip, 8080), "hello").await
}

async fn pod_has_ipv4(pod: &Pod) -> Result<bool> {
    let network = pod.status().await?.network.unwrap_or_default();
    Ok(network.additional_ips.iter().any(|ip| ip.ip.parse::<std::net::Ipv4Addr>().is_ok()))
}

async fn pod_to_pod(node: Node) -> Result<()> {
    let (one, two) = (node.pod("one").run().await?, node.pod("two").run().await?);
    let (ip_one, ip_two) = (one.ip().await?, two.ip().await?);
    let (first, second) = (
        server(&one, "main", "0.0.0.0:8081", "one").await?,
        server(&two, "main", "0.0.0.0:8082", "two").await?,
    );
    let ways = [(&first, ip_two, 8082, "two"), (&second, ip_one, 8081, "one"), (&first, ip_one, 8081, "one")];
    for (from, ip, port, expected) in ways {
        let address = SocketAddr::new(ip, port).to_string();
        let answer = from.exec(&["ask", "tcp", &address]).await?;
        let answer = answer.get("answer").with_context(|| format!("asking {address}"))?;
        same!(answer.split(' ').next(), Some(expected), "the answer from {address}");
    }
    Ok(())
}

async fn shared_loopback(node: Node) -> Result<()> {
    let pod = node.pod("loopback").run().await?;
    server(&pod, "server", "127.0.0.1:8083", "near").await?;
    let client = pod.container("client").start().await?;
    let answer = client.exec(&["ask", "tcp", "127.0.0.1:8083"]).await?;
    ensure!(answer.get("answer")?.starts_with("near"), "{answer:?}");
    if host::has_ipv6() {
        server(&pod, "six", "[::1]:8084", "six").await.context("listening on ::1")?;
        let answer = client.exec(&["ask", "tcp", "[::1]:8084"]).await?;
        ensure!(answer.get("answer")?.starts_with("six"), "{answer:?}");
    }
    Ok(())
}

async fn host_port_loopback(node: Node) -> Result<()> {
    let port = free_port()?;
    let pod = node.pod("port").port(Protocol::Tcp, port, 80, "").run().await?;
    server(&pod, "main", "0.0.0.0:80", "behind").await?;
    answers(SocketAddr::from(([127, 0, 0, 1], port)), "behind").await
}

async fn host_port_node(node: Node) -> Result<()> {
    let address = node_address()?;
    let (tcp, udp) = (free_port()?, free_port()?);
    let spec = node.pod("port").port(Protocol::Tcp, tcp, 80, "").port(Protocol::Udp, udp, 81, "");
    let pod = spec.run().await?;
    let words =
        ["serve", "udp", "0.0.0.0:81", "datagram", ";", "serve", "tcp", "0.0.0.0:80", "stream", ";", "pause"];
    pod.container("main").cmd(&words).start().await?.says("serving").await?;
    answers(SocketAddr::new(address, tcp), "stream").await?;
    until("a datagram", Duration::from_secs(5), async || {
        Ok(match ask_udp(SocketAddr::new(address, udp)).await {
            Ok(text) if text == "datagram" => Found::Yes(()),
            other => Found::Not(format!("{other:?}")),
        })
    })
    .await?;
    let other = node.pod("other").run().await?.container("main").start().await?;
    let answer = other.exec(&["ask", "tcp", &SocketAddr::new(address, tcp).to_string()]).await?;
    ensure!(answer.get("answer").context("from another pod")?.starts_with("stream"), "{answer:?}");
    Ok(())
}

async fn host_port_ip(node: Node) -> Result<()> {
    let address = node_address()?;
    let port = free_port()?;
    let pod = node.pod("port").port(Protocol::Tcp, port, 80, &address.to_string()).run().await?;
    server(&pod, "main", "0.0.0.0:80", "limited").await?;
    answers(SocketAddr::new(address, port), "limited").await?;
    if let Ok(text) = ask_tcp(SocketAddr::from(([127, 0, 0, 1], port))).await {
        bail!("a port of {address} alone answers on 127.0.0.1: {text}");
    }
    Ok(())
}

async fn host_port_freed(node: Node) -> Result<()> {
    let port = free_port()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let first = node.pod("first").port(Protocol::Tcp, port, 80, "").run().await?;
    server(&first, "main", "0.0.0.0:80", "first").await?;
    answers(address, "first").await?;
    first.stop().await?;
    ensure!(ask_tcp(address).await.is_err(), "the port of a stopped pod answers");
    let second = node.pod("second").port(Protocol::Tcp, port, 80, "").run().await?;
    server(&second, "main", "0.0.0.0:80", "second").await?;
    answers(address, "second").await
}

async fn host_port_taken(node: Node) -> Result<()> {
    let port = free_port()?;
    let pod = node.pod("first").port(Protocol::Tcp, port, 80, "").run().await?;
    server(&pod, "main", "0.0.0.0:80", "first").await?;
    let second = node.pod("second").port(Protocol::Tcp, port, 80, "").try_run().await;
    let status = refused(second, &[], "a second pod with the same host port")?;
    ensure!(
        status.message().contains(&port.to_string()),
        "the error does not name the port: {}",
        status.message()
    );
    answers(SocketAddr::from(([127, 0, 0, 1], port)), "first").await
}

async fn container_port_only(node: Node) -> Result<()> {
    let pod = node.pod("inside").port(Protocol::Tcp, 0, 8085, "").run().await?;
    server(&pod, "main", "0.0.0.0:8085", "inside").await?;
    answers(SocketAddr::new(pod.ip().await?, 8085), "inside").await?;
    ensure!(ask_tcp(SocketAddr::from(([127, 0, 0, 1], 8085))).await.is_err(), "it is published on the host");
    Ok(())
}

/// A listener of the host on loopback.
async fn host_listener() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn host_network(node: Node) -> Result<()> {
    let (_listener, address) = host_listener().await?;
    let port = free_port()?;
    let pod = node.pod("host").host_network().port(Protocol::Tcp, port, 80, "").run().await?;
    same!(pod.status().await?.network.unwrap_or_default().ip, "", "the status' IP");
    let container = pod.container("main").start().await?;
    let answer = container.exec(&["ask", "tcp", &address.to_string(), ";", "ns"]).await?;
    same!(
        answer.find("ask.error").is_some_and(|error| error == "ECONNREFUSED"),
        false,
        "a refused host listener"
    );
    same!(
        answer.get("ns.net")?,
        std::fs::read_link("/proc/self/ns/net")?.to_string_lossy(),
        "the network namespace"
    );
    ensure!(
        ask_tcp(SocketAddr::from(([127, 0, 0, 1], port))).await.is_err(),
        "the port mapping is not ignored"
    );
    Ok(())
}

async fn not_host_network(node: Node) -> Result<()> {
    let (_listener, address) = host_listener().await?;
    let pod =
        node.pod("apart").namespaces(|options| options.network = NamespaceMode::Pod as i32).run().await?;
    let report = pod.report("main", &["ask", "tcp", &address.to_string()]).await?;
    report.failed("ask", &["ECONNREFUSED"])
}

async fn ip_stable(node: Node) -> Result<()> {
    let pod = node.pod("stable").run().await?;
    let first = pod.status().await?.network.context("no network in the status")?;
    for extra in &first.additional_ips {
        extra.ip.parse::<IpAddr>().with_context(|| format!("the additional IP `{}`", extra.ip))?;
    }
    let container = pod.container("main").start().await?;
    same!(pod.status().await?.network, Some(first.clone()), "network with a container");
    container.stop(0).await?;
    container.remove().await?;
    same!(pod.status().await?.network, Some(first), "network when the container is gone");
    Ok(())
}
