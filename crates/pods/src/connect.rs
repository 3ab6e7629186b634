//! Connections to the ports of a pod, made inside its network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};

use crate::PodError;
use crate::error::doing;
use crate::monitor::Monitor;

/// Where to connect from, given out by the pod's actor.
pub(crate) struct Network {
    /// The pod's network namespace; none with the host's network.
    pub namespace: Option<OwnedFd>,
    pub monitor: Arc<Monitor>,
}

/// A connection to a port of a pod.
pub struct Connection {
    /// The connection.
    pub stream: TcpStream,
    /// The pod is up for as long as its monitor is.
    monitor: Arc<Monitor>,
}

impl Connection {
    /// Splits off what waits for the end of the pod: a connection that is kept open after it keeps the pod's network.
    pub fn into_parts(self) -> (TcpStream, impl Future<Output = ()> + Send + use<>) {
        let monitor = self.monitor;
        (self.stream, async move { monitor.gone().await })
    }
}

/// Connects to a port on the pod's own loopback address: IPv4, and IPv6 if nobody listens there.
pub(crate) async fn connect(network: Network, port: u16) -> Result<Connection, PodError> {
    let Network { namespace, monitor } = network;
    let sockets = match namespace {
        None => sockets(),
        Some(namespace) => {
            let made = tokio::task::spawn_blocking(move || sockets_in(namespace)).await;
            made.map_err(doing("make a socket in the pod's network"))?
        }
    };
    let (v4, v6) = sockets.map_err(doing("make a socket in the pod's network"))?;
    let what = || format!("connect to port {port} in the pod");
    let v4 = v4.connect(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    let first = tokio::select! {
        first = v4 => first,
        () = monitor.gone() => return Err(PodError::State("the pod is going away".into())),
    };
    let stream = match (first, v6) {
        (Ok(stream), _) => stream,
        (Err(error), None) => return Err(doing(what())(error)),
        (Err(error), Some(v6)) => {
            match v6.connect(SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port)).await {
                Ok(stream) => stream,
                // What IPv4 said is what people expect to read.
                Err(_) => return Err(doing(what())(error)),
            }
        }
    };
    let _ = stream.set_nodelay(true);
    Ok(Connection { stream, monitor })
}

/// A socket belongs to the namespace of the thread that made it, so a thread goes there, makes it, and is never used for
/// anything else.
fn sockets_in(namespace: OwnedFd) -> io::Result<(TcpSocket, Option<TcpSocket>)> {
    let thread =
        std::thread::Builder::new().name("connect".into()).stack_size(64 << 10).spawn(move || {
            use std::os::fd::AsFd as _;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            sockets()
        })?;
    thread.join().map_err(|_| io::Error::other("the thread that makes a socket panicked"))?
}

fn sockets() -> io::Result<(TcpSocket, Option<TcpSocket>)> {
    let socket = |family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
        Ok::<_, io::Error>(TcpSocket::from_std_stream(std::net::TcpStream::from(fd)))
    };
    // A host without IPv6 has none here either.
    Ok((socket(AddressFamily::INET)?, socket(AddressFamily::INET6).ok()))
}
