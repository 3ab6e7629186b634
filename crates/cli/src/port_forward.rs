//! `port-forward`: ports of a pod on this machine, each connection by itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_streaming::client::{self, Forwarded, Forwarder};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::args::PortForwardArgs;
use crate::client::Client;
use crate::failure::{Done, Failure, doing};
use crate::render::{print_line, say};
use crate::select;
use crate::stream::{Trouble, failed, with_fallback};

/// What is read at once.
const READ: usize = 16 << 10;

/// Forwards until it is interrupted, or the connection to the pod is lost.
pub(crate) async fn port_forward(client: &Client, args: PortForwardArgs) -> Done {
    let pod = select::pod(client, &args.pod).await?.id;
    let listeners = listen(&args).await?;
    let what = format!("forward ports of {}", args.pod);
    let ask = async || {
        let port = args.ports.iter().map(|(_, remote)| i32::from(*remote)).collect();
        let message = v1::PortForwardRequest { pod_sandbox_id: pod.clone(), port };
        let answer = client.runtime().port_forward(client.request(message)).await;
        Ok(answer.map_err(doing(what.clone()))?.into_inner().url)
    };
    let begin =
        async |wire, address: String| client::port_forward(&address, args.stream.tls_ca.as_ref(), wire).await;
    let begun = with_fallback(ask, args.stream.transport, begin).await;
    let (forwarder, driver) = begun.map_err(|trouble| match trouble {
        Trouble::Asking(failure) => failure,
        Trouble::Streaming(error) => failed(&what, &error),
    })?;
    // For scripts as well: with port 0 only this tells which it is.
    for (listener, remote) in &listeners {
        if let Ok(local) = listener.local_addr() {
            print_line(&format!("{local} -> {remote}"))?;
        }
    }
    let mut running = JoinSet::new();
    for (listener, remote) in listeners {
        running.spawn(accept(listener, remote, forwarder.clone()));
    }
    tokio::select! {
        _ = driver => Err(Failure::new("the connection to the pod was lost")),
        _ = tokio::signal::ctrl_c() => Ok(0),
    }
}

async fn listen(args: &PortForwardArgs) -> Result<Vec<(TcpListener, u16)>, Failure> {
    let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let (addresses, chosen): (&[IpAddr], bool) =
        if args.address.is_empty() { (&both, false) } else { (&args.address, true) };
    let mut listeners = Vec::new();
    for (local, remote) in &args.ports {
        // The same number on both, if the kernel chooses it.
        let mut local = *local;
        for address in addresses {
            match TcpListener::bind(SocketAddr::new(*address, local)).await {
                Ok(listener) => {
                    local = listener.local_addr().map_or(local, |address| address.port());
                    listeners.push((listener, *remote));
                }
                // A machine without IPv6 is served by IPv4.
                Err(_) if !chosen && address.is_ipv6() => {}
                Err(error) => return Err(Failure::io(&format!("listen on {address} port {local}"), error)),
            }
        }
    }
    Ok(listeners)
}

async fn accept(listener: TcpListener, remote: u16, forwarder: Forwarder) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => drop(running.spawn(forward(socket, remote, forwarder.clone()))),
                // For want of descriptors, as a rule: they come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            _ = running.join_next(), if !running.is_empty() => {}
        }
    }
}

async fn forward(mut socket: TcpStream, remote: u16, forwarder: Forwarder) {
    let Ok(Forwarded { mut incoming, mut outgoing, mut error }) = forwarder.open(remote).await else {
        return;
    };
    // Borrowed: owned halves say goodbye when they are dropped, before anything can be broken off.
    let (mut read, mut write) = socket.split();
    let up = async {
        loop {
            let mut buffer = BytesMut::with_capacity(READ);
            match read.read_buf(&mut buffer).await {
                Ok(0) => return outgoing.end().await.is_ok(),
                Ok(_) if outgoing.send(buffer.freeze()).await.is_ok() => {}
                Ok(_) => return true,
                Err(_) => {
                    let _ = outgoing.reset().await;
                    return false;
                }
            }
        }
    };
    let down = async {
        loop {
            match incoming.next().await {
                Ok(Some(bytes)) if write.write_all(&bytes).await.is_ok() => {}
                Ok(Some(_)) => return true,
                Ok(None) => {
                    let _ = write.shutdown().await;
                    return true;
                }
                Err(_) => return false,
            }
        }
    };
    let broken = {
        tokio::pin!(up);
        tokio::pin!(down);
        tokio::select! {
            fine = &mut up => !(fine && down.await),
            fine = &mut down => !(fine && up.await),
        }
    };
    if broken {
        // Whoever is at our end learns that it was broken off, not that all was said.
        let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    }
    drop(socket);
    let mut text = Vec::new();
    while let Ok(Some(bytes)) = error.next().await {
        text.extend_from_slice(&bytes);
    }
    if !text.is_empty() {
        say(&format!("error: {}", String::from_utf8_lossy(&text)));
    }
}
