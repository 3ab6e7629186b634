//! Streaming: exec, attach and port-forward for clients that CRI sends here with an address.
//!
//! ```text
//!   cri: Exec, Attach, PortForward --> Streaming::.. --> a token in an address
//!   client: GET or POST that address --> server --> negotiate --> spdy | websocket --> command | port_forward --> pods
//! ```
//!
//! - [`spdy`] and [`websocket`]: the wires, for both ends; what they have in common is in `mux`
//! - `server`: HTTP, sessions, limits; `tokens`, `negotiate`, `tls`: what it needs
//! - `command`, `port_forward`: the work
//! - [`client`]: the other end, for the client commands and for tests
//!
//! Design, limits and sources: docs/design/streaming.md.

pub mod client;
mod command;
mod descriptor;
mod mux;
mod negotiate;
mod port_forward;
mod server;
pub mod spdy;
mod status;
mod tls;
mod tokens;
pub mod websocket;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bowline_model::{ContainerId, SandboxId};
use bowline_pods::{AttachCall, ExecCall, Pods};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use command::Job;
use server::{Inner, Session};

pub use mux::{Activity, Gone, Hangup, Incoming, Outgoing};
pub use status::Outcome;
pub use tls::{TlsError, TlsFiles};
pub use tokens::TooMany;

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct StreamingConfig {
    /// Where it listens; port 0: the kernel chooses. Also what addresses name, so no wildcard.
    pub address: SocketAddr,
    /// With TLS.
    pub tls: Option<TlsFiles>,
    /// How long a session may move nothing.
    pub idle: Duration,
    /// How long a session may last; none: for ever.
    pub longest: Option<Duration>,
    /// The most connections at once.
    pub max_connections: usize,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        StreamingConfig {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            // As the kubelet has it.
            idle: Duration::from_secs(4 * 3600),
            longest: None,
            max_connections: 1000,
        }
    }
}

/// Why the server could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    /// It cannot listen there.
    #[error(
        "could not listen on {address} for streaming; `streaming.address` and `streaming.port` say where"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its certificate is no good.
    #[error("the streaming server cannot use TLS as configured")]
    Tls(#[from] TlsError),
}

/// The streaming server.
#[derive(Clone)]
pub struct Streaming {
    inner: Arc<Inner>,
    base: Arc<str>,
    _serving: Arc<Serving>,
}

struct Serving(AbortHandle);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Streaming {
    /// Listens, and serves from now on. Ends with its last handle; sessions go on.
    pub async fn open(config: StreamingConfig, pods: Pods) -> Result<Streaming, StreamingError> {
        let failed = |source| StreamingError::Listen { address: config.address, source };
        let listener = TcpListener::bind(config.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tls = config.tls.map(tls::Acceptor::open).transpose()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let inner = Arc::new(Inner {
            pods,
            tls,
            tokens: Mutex::default(),
            idle: config.idle,
            longest: config.longest,
        });
        let serving = tokio::spawn(server::serve(inner.clone(), listener, config.max_connections));
        let _serving = Arc::new(Serving(serving.abort_handle()));
        Ok(Streaming { inner, base: format!("{scheme}://{address}").into(), _serving })
    }

    /// Where the server is: scheme, address and port.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// An address at which the command runs, once.
    pub fn exec(&self, container: ContainerId, call: ExecCall) -> Result<String, TooMany> {
        self.address("exec", Session::Command(Job::Exec { container, call }))
    }

    /// An address at which the container can be watched, once. `terminal`: the client has one, and tells of its size.
    pub fn attach(
        &self,
        container: ContainerId,
        call: AttachCall,
        terminal: bool,
    ) -> Result<String, TooMany> {
        self.address("attach", Session::Command(Job::Attach { container, call, terminal }))
    }

    /// An address at which ports of the pod are forwarded, once. `ports`: only for protocols that do not name them
    /// themselves.
    pub fn port_forward(&self, pod: SandboxId, ports: Vec<u16>) -> Result<String, TooMany> {
        self.address("portforward", Session::Ports { pod, ports })
    }

    fn address(&self, kind: &'static str, session: Session) -> Result<String, TooMany> {
        let mut tokens = self.inner.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = tokens.put((kind, session), Instant::now())?;
        Ok(format!("{}/{kind}/{token}", self.base))
    }
}
