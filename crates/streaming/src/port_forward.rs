//! Port-forward: connections to ports of a pod, each in a pair of streams.
//!
//! The client opens an error stream and a data stream for each connection, with the same `requestID`. Each connection
//! lives and dies by itself: half-close passes both ways, a reset is a reset of that one, and what went wrong before the
//! connection stood is said on its error stream. Nothing is said there of a connection that broke: Go's client takes any word
//! on it for a reason to close all the others.

use std::collections::HashMap;
use std::time::Duration;

use bowline_model::SandboxId;
use bowline_pods::{Pods, chain};
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::mux::{Incoming, Outgoing};
use crate::spdy::NewStream;
use crate::websocket::Channels;

/// How long the second stream of a pair may take.
const PAIR_LIMIT: Duration = Duration::from_secs(30);
/// What is read at once.
const READ: usize = 16 << 10;

/// A pair that is not complete.
struct Half {
    data: Option<(u16, NewStream)>,
    error: Option<NewStream>,
    until: Instant,
}

/// Forwards what the client opens, until it opens no more.
pub(crate) async fn serve(pods: &Pods, pod: &SandboxId, mut new: mpsc::Receiver<NewStream>) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    // Dropped with this future, and every connection with it.
    let mut running = JoinSet::new();
    loop {
        let first = halves.values().map(|half| half.until).min();
        let expiry = async {
            match first {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = new.recv() => {
                let Some(stream) = stream else { return };
                if let Some((port, data, error)) = pair(&mut halves, stream).await {
                    let (pods, pod) = (pods.clone(), pod.clone());
                    running.spawn(async move {
                        forward(&pods, &pod, port, data.incoming, data.outgoing, error.outgoing).await;
                    });
                }
            }
            _ = running.join_next(), if !running.is_empty() => {}
            () = expiry => {
                let now = Instant::now();
                let late: Vec<String> =
                    halves.iter().filter(|(_, half)| half.until <= now).map(|(id, _)| id.clone()).collect();
                for id in late {
                    let half = halves.remove(&id);
                    let streams = half.into_iter().flat_map(|half| [half.data.map(|(_, data)| data), half.error]);
                    for stream in streams.flatten() {
                        refuse(stream, "the other stream of the pair did not come within 30 seconds").await;
                    }
                }
            }
        }
    }
}

/// Takes a stream in; both, once they are there.
async fn pair(halves: &mut HashMap<String, Half>, stream: NewStream) -> Option<(u16, NewStream, NewStream)> {
    let kind = stream.headers.get("streamtype").unwrap_or_default().to_owned();
    let port = stream.headers.get("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
    let Some(port) = port else {
        refuse(stream, "the header `port` must be a number from 1 to 65535").await;
        return None;
    };
    // Clients older than the header open the error stream first, and the data stream right after it.
    let id = match (stream.headers.get("requestid"), kind.as_str()) {
        (Some(id), _) => id.to_owned(),
        (None, "data") => format!("stream {}", stream.id.wrapping_sub(2)),
        (None, _) => format!("stream {}", stream.id),
    };
    let half = halves.entry(id.clone()).or_insert_with(|| Half {
        data: None,
        error: None,
        until: Instant::now() + PAIR_LIMIT,
    });
    match kind.as_str() {
        "data" if half.data.is_none() => half.data = Some((port, stream)),
        "error" if half.error.is_none() => half.error = Some(stream),
        _ => {
            refuse(stream, "the header `streamType` must be `data` or `error`, one of each").await;
            return None;
        }
    }
    match halves.remove(&id)? {
        Half { data: Some((port, data)), error: Some(error), .. } => Some((port, data, error)),
        half => {
            halves.insert(id, half);
            None
        }
    }
}

async fn refuse(mut stream: NewStream, why: &str) {
    tracing::debug!(why, "a stream of a port-forward was refused");
    let _ = stream.outgoing.reset().await;
}

/// Forwards the ports that were asked for, one connection each, in pairs of channels: data and errors.
pub(crate) async fn serve_channels(pods: &Pods, pod: &SandboxId, ports: &[u16], mut channels: Channels) {
    let mut running = JoinSet::new();
    for (at, port) in ports.iter().enumerate() {
        let number = (at * 2) as u8;
        let Some(incoming) = channels.incoming.remove(&number) else { continue };
        let (mut data, mut error) = (channels.outgoing(number), channels.outgoing(number + 1));
        let (pods, pod, port) = (pods.clone(), pod.clone(), *port);
        running.spawn(async move {
            // Each channel begins with the port that it is for.
            let name = Bytes::copy_from_slice(&port.to_le_bytes());
            if data.send(name.clone()).await.is_ok() && error.send(name).await.is_ok() {
                forward(&pods, &pod, port, incoming, data, error).await;
            }
        });
    }
    while running.join_next().await.is_some() {}
    channels.finish().await;
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Both sides have said all.
    Both,
    /// The client broke it off.
    Client,
    /// The pod's side broke.
    Pod,
}

async fn forward(
    pods: &Pods,
    pod: &SandboxId,
    port: u16,
    incoming: Incoming,
    mut data: Outgoing,
    mut error: Outgoing,
) {
    let connection = tokio::select! {
        connection = pods.connect(pod, port) => connection,
        () = data.broken_off() => {
            let _ = error.end().await;
            return;
        }
    };
    let connection = match connection {
        Ok(connection) => connection,
        Err(failed) => {
            let text = format!("error forwarding port {port} to pod {pod}: {}", chain(&failed));
            let _ = error.send(text.into()).await;
            let _ = error.end().await;
            let _ = data.reset().await;
            return;
        }
    };
    let (stream, pod_gone) = connection.into_parts();
    let end = tokio::select! {
        end = copy(stream, incoming, &mut data) => end,
        () = pod_gone => End::Pod,
    };
    if end == End::Pod {
        let _ = data.reset().await;
    }
    let _ = error.end().await;
}

async fn copy(mut stream: TcpStream, incoming: Incoming, data: &mut Outgoing) -> End {
    // Borrowed: owned halves say goodbye when they are dropped, before anything can be broken off.
    let (read, write) = stream.split();
    // Looks at the same stream; the sending end is in use meanwhile.
    let broken_off = data.watch();
    let mut down_ended = false;
    let end = {
        let down = async {
            let end = down(read, data).await;
            down_ended = end == End::Both;
            end
        };
        let both = async {
            tokio::pin!(down);
            let up = up(incoming, &write);
            tokio::pin!(up);
            // A connection that breaks one way is over, unless it is only that nobody reads any more.
            tokio::select! {
                up = &mut up => match up {
                    End::Client => End::Client,
                    End::Both | End::Pod => down.await,
                },
                down = &mut down => match down {
                    End::Both => match up.await {
                        End::Client => End::Client,
                        _ => End::Both,
                    },
                    broken => broken,
                },
            }
        };
        tokio::select! {
            end = both => end,
            () = broken_off => End::Client,
        }
    };
    if end == End::Client && !down_ended {
        // The pod's side learns that it was broken off, not that all was said.
        let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    }
    end
}

async fn up(mut from: Incoming, to: &WriteHalf<'_>) -> End {
    loop {
        match from.next().await {
            Ok(Some(bytes)) => {
                if write_all(to, &bytes).await.is_err() {
                    return End::Pod;
                }
            }
            Ok(None) => {
                let _ = rustix::net::shutdown(to.as_ref(), rustix::net::Shutdown::Write);
                return End::Both;
            }
            Err(_) => return End::Client,
        }
    }
}

async fn write_all(to: &WriteHalf<'_>, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn down(mut from: ReadHalf<'_>, to: &mut Outgoing) -> End {
    loop {
        let mut buffer = BytesMut::with_capacity(READ);
        match from.read_buf(&mut buffer).await {
            Ok(0) => return if to.end().await.is_ok() { End::Both } else { End::Client },
            Ok(_) => {
                if to.send(buffer.freeze()).await.is_err() {
                    return End::Client;
                }
            }
            Err(_) => return End::Pod,
        }
    }
}
