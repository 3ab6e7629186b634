//! The other end: for the client commands, and for tests.
//!
//! An address is good for one request, so whoever wants to try another protocol after a refusal asks the runtime for
//! another address.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::mux::{Activity, Gone, Hangup, Incoming, Outgoing};
use crate::spdy::{self, Handle, Headers, Role};
use crate::status::Outcome;
use crate::websocket::{self, Form};

/// The longest explanation of a refusal that is read.
const MAX_EXPLANATION: usize = 16 << 10;
/// How long it is waited for.
const EXPLANATION_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

/// What moves the bytes: it has to be run beside the use of the streams, and ends with the connection.
pub type Driver = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// How to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// SPDY/3.1.
    Spdy,
    /// WebSocket; v5 for commands, a tunnel for ports.
    WebSocket,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// That is no address of a stream.
    #[error("`{0}` is no address of a streaming server")]
    Address(String),
    /// The server cannot be reached.
    #[error("could not reach the streaming server at {address}")]
    Reach {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It said something else than yes.
    #[error("the streaming server refused: {status} {text}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// What it said.
        text: String,
    },
    /// It cannot be understood.
    #[error("the streaming server broke off")]
    Http(#[from] hyper::Error),
    /// The authorities cannot be used.
    #[error("could not read certificates from {}: {reason}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// What is wanted of a command.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// To send input.
    pub stdin: bool,
    /// Its output.
    pub stdout: bool,
    /// Its error output.
    pub stderr: bool,
    /// It has a terminal: sizes are sent.
    pub terminal: bool,
}

/// The streams of a command.
#[derive(Debug)]
pub struct Command {
    /// Its input.
    pub stdin: Option<Outgoing>,
    /// Sizes of the terminal; see [`size`].
    pub resize: Option<Outgoing>,
    /// Its output.
    pub stdout: Option<Incoming>,
    /// Its error output.
    pub stderr: Option<Incoming>,
    /// Tells how it ended; see [`outcome`].
    pub error: Incoming,
}

/// A terminal's size, as it is sent.
pub fn size(rows: u16, columns: u16) -> Bytes {
    format!("{{\"Width\":{columns},\"Height\":{rows}}}\n").into()
}

/// Waits for the end of a session.
pub async fn outcome(error: &mut Incoming) -> Result<Outcome, Gone> {
    let mut text = Vec::new();
    loop {
        match error.next().await {
            Ok(Some(bytes)) if text.len() < MAX_EXPLANATION => text.extend_from_slice(&bytes),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(Outcome::read(&text)),
            // A connection that ends with the word said has said it.
            Err(Gone) if !text.is_empty() => return Ok(Outcome::read(&text)),
            Err(Gone) => return Err(Gone),
        }
    }
}

/// Begins a command, or watching one.
pub async fn command(
    address: &str,
    authorities: Option<&PathBuf>,
    transport: Transport,
    wanted: Wanted,
) -> Result<(Command, Driver), ClientError> {
    match transport {
        Transport::Spdy => {
            let versions = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
            let headers = versions.map(|version| ("X-Stream-Protocol-Version", version.to_owned()));
            let socket = upgrade(address, authorities, "POST", "SPDY/3.1", &headers).await?;
            let (handle, _, driver) =
                spdy::connection(socket, Hangup::default(), Role::Client, Activity::default());
            let mut driver: Driver = Box::pin(driver.run());
            let opening = command_streams(&handle, wanted);
            let streams = tokio::select! {
                ended = &mut driver => Err(broken_off(address, ended)),
                streams = opening => streams.map_err(|Gone| broken_off(address, Ok(()))),
            }?;
            // The handle lives as long as the connection.
            let driver: Driver = Box::pin(async move {
                let _handle = handle;
                driver.await
            });
            Ok((streams, driver))
        }
        Transport::WebSocket => {
            let headers = websocket_headers("v5.channel.k8s.io");
            let socket = upgrade(address, authorities, "GET", "websocket", &headers).await?;
            let form = Form { base64: false, close_signal: true, client: true };
            let (mut channels, driver) =
                websocket::channels(socket, Hangup::default(), form, &[1, 2, 3], Activity::default());
            let mut incoming = |channel| channels.incoming.remove(&channel);
            let (stdout, stderr) = (incoming(1), incoming(2));
            let error = incoming(3).ok_or_else(|| broken_off(address, Ok(())))?;
            let streams = Command {
                stdin: wanted.stdin.then(|| channels.outgoing(0)),
                resize: wanted.terminal.then(|| channels.outgoing(4)),
                stdout: stdout.filter(|_| wanted.stdout),
                stderr: stderr.filter(|_| wanted.stderr),
                error,
            };
            let driver: Driver = Box::pin(async move {
                let _channels = channels;
                driver.run().await
            });
            Ok((streams, driver))
        }
    }
}

async fn command_streams(handle: &Handle, wanted: Wanted) -> Result<Command, Gone> {
    let open = |kind: &'static str| handle.open(Headers(vec![("streamType".into(), kind.into())]));
    let (error, _) = open("error").await?;
    let stdin = if wanted.stdin { Some(open("stdin").await?.1) } else { None };
    let stdout = if wanted.stdout { Some(open("stdout").await?.0) } else { None };
    let stderr = if wanted.stderr { Some(open("stderr").await?.0) } else { None };
    let resize = if wanted.terminal { Some(open("resize").await?.1) } else { None };
    Ok(Command { stdin, resize, stdout, stderr, error })
}

/// Opens connections to ports of a pod.
#[derive(Clone)]
pub struct Forwarder {
    handle: Handle,
    next: Arc<std::sync::atomic::AtomicU32>,
}

/// A connection to a port.
#[derive(Debug)]
pub struct Forwarded {
    /// From the pod.
    pub incoming: Incoming,
    /// To the pod.
    pub outgoing: Outgoing,
    /// Why there is none.
    pub error: Incoming,
}

impl Forwarder {
    /// Opens one.
    pub async fn open(&self, port: u16) -> Result<Forwarded, Gone> {
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
        let headers = |kind: &str| {
            let pairs = [("streamType", kind), ("port", &port.to_string()), ("requestID", &id)];
            Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
        };
        let (error, mut to_error) = self.handle.open(headers("error")).await?;
        // We write nothing to it.
        to_error.end().await?;
        let (incoming, outgoing) = self.handle.open(headers("data")).await?;
        Ok(Forwarded { incoming, outgoing, error })
    }

    /// Ends the connection to the server, once all is said.
    pub async fn finish(&self) {
        self.handle.finish().await;
    }
}

/// Begins to forward ports.
pub async fn port_forward(
    address: &str,
    authorities: Option<&PathBuf>,
    transport: Transport,
) -> Result<(Forwarder, Driver), ClientError> {
    let forwarder = |handle| Forwarder { handle, next: Arc::default() };
    match transport {
        Transport::Spdy => {
            let headers = [("X-Stream-Protocol-Version", "portforward.k8s.io".to_owned())];
            let socket = upgrade(address, authorities, "POST", "SPDY/3.1", &headers).await?;
            let (handle, _, driver) =
                spdy::connection(socket, Hangup::default(), Role::Client, Activity::default());
            Ok((forwarder(handle), Box::pin(driver.run())))
        }
        Transport::WebSocket => {
            let headers = websocket_headers("SPDY/3.1+portforward.k8s.io");
            let socket = upgrade(address, authorities, "GET", "websocket", &headers).await?;
            let (stream, moving) = websocket::tunnel(socket, Hangup::default(), true);
            let (handle, _, driver) =
                spdy::connection(stream, Hangup::default(), Role::Client, Activity::default());
            let driver = async move {
                let (moved, ended) = tokio::join!(moving, driver.run());
                moved.and(ended)
            };
            Ok((forwarder(handle), Box::pin(driver)))
        }
    }
}

fn websocket_headers(protocol: &str) -> [(&'static str, String); 3] {
    [
        ("Sec-WebSocket-Version", "13".to_owned()),
        ("Sec-WebSocket-Key", websocket::new_key()),
        ("Sec-WebSocket-Protocol", protocol.to_owned()),
    ]
}

fn broken_off(address: &str, ended: io::Result<()>) -> ClientError {
    let source = ended.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
    ClientError::Reach { address: address.to_owned(), source }
}

/// A stream of bytes, whatever is below it.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// Asks for an upgrade, and has what the connection becomes.
async fn upgrade(
    address: &str,
    authorities: Option<&PathBuf>,
    method: &str,
    to: &str,
    headers: &[(&str, String)],
) -> Result<Box<dyn Socket>, ClientError> {
    let no_address = || ClientError::Address(address.to_owned());
    let uri: Uri = address.parse().map_err(|_| no_address())?;
    let (Some(host), Some(path)) = (uri.host(), uri.path_and_query()) else { return Err(no_address()) };
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let reach = |source| ClientError::Reach { address: format!("{host}:{port}"), source };
    let socket = TcpStream::connect((bare, port)).await.map_err(reach)?;
    let _ = socket.set_nodelay(true);
    let socket: Box<dyn Socket> = match tls {
        false => Box::new(socket),
        true => {
            let name = ServerName::try_from(bare.to_owned()).map_err(|_| no_address())?;
            Box::new(connector(authorities)?.connect(name, socket).await.map_err(reach)?)
        }
    };
    let mut request = Request::builder()
        .method(method)
        .uri(path.as_str())
        .header("Host", format!("{host}:{port}"))
        .header("Connection", "Upgrade")
        .header("Upgrade", to)
        .header("Content-Length", "0");
    for (name, value) in headers {
        request = request.header(*name, value.as_str());
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| no_address())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let connection = connection.with_upgrades();
    tokio::pin!(connection);
    let sending = sender.send_request(request);
    tokio::pin!(sending);
    // Both in this future, so that nothing goes on without whoever asked. The connection may end with the answer.
    let mut connected = true;
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut sending => break answer?,
            ended = &mut connection, if connected => {
                ended?;
                connected = false;
            }
        }
    };
    let rest = async {
        if connected {
            let _ = connection.await;
        }
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status().as_u16();
        let text = http_body_util::Limited::new(answer.into_body(), MAX_EXPLANATION).collect();
        let moving = async {
            rest.await;
            tokio::time::sleep(EXPLANATION_LIMIT).await;
        };
        let text = tokio::select! {
            text = text => text.map(|text| text.to_bytes()).unwrap_or_default(),
            () = moving => Bytes::new(),
            () = tokio::time::sleep(EXPLANATION_LIMIT) => Bytes::new(),
        };
        return Err(ClientError::Refused { status, text: String::from_utf8_lossy(&text).trim().to_owned() });
    }
    let (upgraded, ()) = tokio::join!(hyper::upgrade::on(answer), rest);
    Ok(Box::new(TokioIo::new(upgraded?)))
}

fn connector(authorities: Option<&PathBuf>) -> Result<tokio_rustls::TlsConnector, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    match authorities {
        Some(path) => {
            let wrong = |reason: String| ClientError::Authorities { path: path.clone(), reason };
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            for certificate in read.map_err(|error| wrong(error.to_string()))? {
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = builder.map_err(|error| ClientError::Address(error.to_string()))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()).into())
}
