//! The HTTP server: a token becomes a session, a session is one task.
//!
//! ```text
//!   accept --> (TLS) --> HTTP/1.1: path, token, protocol --> 101 --> session: driver of the wire beside the work
//! ```
//!
//! The task that answered the request goes on as the session. It ends with the client, with the work, or with a limit,
//! and everything that belongs to it is dropped with it.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bowline_model::SandboxId;
use bowline_pods::Pods;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming as Body;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::command::{self, ClientStreams, Job};
use crate::mux::{Activity, Hangup, Outgoing};
use crate::negotiate::{Agreed, Purpose, Refused, Wire, negotiate};
use crate::port_forward;
use crate::spdy::{self, NewStream, Role};
use crate::tls::Acceptor;
use crate::tokens::Tokens;
use crate::websocket::{self, Form};

/// How long a client may take to say what it wants.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take to open the streams that it needs.
const STREAMS_LIMIT: Duration = Duration::from_secs(30);
/// How often tokens that are over are thrown away.
const SWEEP: Duration = Duration::from_secs(60);
/// The pause after a connection could not be accepted, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Ports of one request, as channels have numbers of one byte.
const MAX_PORTS: usize = 64;

/// What a token stands for.
#[derive(Debug, Clone)]
pub(crate) enum Session {
    Command(Job),
    Ports { pod: SandboxId, ports: Vec<u16> },
}

/// What every connection needs.
pub(crate) struct Inner {
    pub pods: Pods,
    pub tls: Option<Acceptor>,
    pub tokens: Mutex<Tokens<(&'static str, Session)>>,
    pub idle: Duration,
    pub longest: Option<Duration>,
}

/// Serves for ever. `most`: connections at once.
pub(crate) async fn serve(inner: Arc<Inner>, listener: TcpListener, most: usize) {
    let places = Arc::new(Semaphore::new(most));
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = sweep.tick() => {
                inner.tokens.lock().unwrap_or_else(PoisonError::into_inner).sweep(Instant::now());
                continue;
            }
        };
        match accepted {
            Ok((socket, _)) => match places.clone().try_acquire_owned() {
                Ok(place) => drop(tokio::spawn(connection(inner.clone(), socket, place))),
                Err(_) => drop(tokio::spawn(turn_away(socket))),
            },
            Err(error) => {
                tracing::warn!(%error, "could not accept a streaming connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn turn_away(mut socket: TcpStream) {
    let text = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let _ = tokio::time::timeout(HEAD_LIMIT, socket.write_all(text.as_bytes())).await;
}

async fn connection(inner: Arc<Inner>, socket: TcpStream, _place: OwnedSemaphorePermit) {
    let _ = socket.set_nodelay(true);
    keep_alive(&socket);
    let hangup = Hangup(socket.as_fd().try_clone_to_owned().ok());
    let acceptor = inner.tls.as_ref().map(Acceptor::acceptor);
    match acceptor {
        None => converse(inner, socket, hangup).await,
        Some(acceptor) => match tokio::time::timeout(HEAD_LIMIT, acceptor.accept(socket)).await {
            Ok(Ok(socket)) => converse(inner, socket, hangup).await,
            Ok(Err(error)) => tracing::debug!(%error, "a client of the streaming server failed at TLS"),
            Err(_) => {}
        },
    }
}

/// A peer whose machine has gone is found within minutes, and not at the idle limit.
fn keep_alive(socket: &TcpStream) {
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle, set_tcp_keepintvl};
    let _ = set_socket_keepalive(socket, true);
    let _ = set_tcp_keepidle(socket, Duration::from_secs(60));
    let _ = set_tcp_keepintvl(socket, Duration::from_secs(15));
}

/// A request that was granted.
struct Granted {
    session: Session,
    wire: Wire,
    upgrade: OnUpgrade,
}

async fn converse<S>(inner: Arc<Inner>, socket: S, hangup: Hangup)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let granted = Mutex::new(None);
    let service = service_fn(|request| {
        let answer = match grant(&inner, request) {
            Ok((answer, session)) => {
                *granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
                answer
            }
            Err(refusal) => *refusal,
        };
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    let served = http.serve_connection(TokioIo::new(socket), service).with_upgrades().await;
    if let Err(error) = served {
        tracing::debug!(%error, "a streaming connection broke before its session");
        return;
    }
    let granted = granted.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(Granted { session, wire, upgrade }) = granted else { return };
    let Ok(socket) = upgrade.await else { return };
    let activity = Activity::default();
    let longest = async {
        match inner.longest {
            Some(longest) => tokio::time::sleep(longest).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = run(&inner.pods, session, wire, TokioIo::new(socket), hangup, activity.clone()) => {
            tracing::debug!(?ended, "a streaming session ended");
        }
        () = activity.idle(inner.idle) => tracing::info!("a streaming session was idle for too long and was ended"),
        () = longest => tracing::info!("a streaming session was at its longest and was ended"),
    }
}

type Answer = Response<Full<Bytes>>;

fn plain(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text.into() + "\n")));
    *answer.status_mut() = status;
    let text = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(hyper::header::CONTENT_TYPE, text);
    answer
}

fn headers(answer: &mut Answer, headers: Vec<(&'static str, String)>) {
    for (name, value) in headers {
        let name = hyper::header::HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, value.parse()) {
            answer.headers_mut().append(name, value);
        }
    }
}

/// Looks at a request: its answer, and what becomes of the connection after that; or only an answer.
fn grant(inner: &Inner, mut request: Request<Body>) -> Result<(Answer, Granted), Box<Answer>> {
    if request.method() != Method::GET && request.method() != Method::POST {
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST");
        headers(&mut answer, vec![("Allow", "GET, POST".to_owned())]);
        return Err(Box::new(answer));
    }
    let mut path = request.uri().path().trim_start_matches('/').split('/');
    let (kind, token, more) = (path.next(), path.next(), path.next());
    let purpose = match kind {
        Some("exec" | "attach") => Purpose::Command,
        Some("portforward") => Purpose::Ports,
        _ => return Err(unknown()),
    };
    let (Some(token), None) = (token, more) else { return Err(unknown()) };
    // Whatever comes of it: the token is used up.
    let session = inner.tokens.lock().unwrap_or_else(PoisonError::into_inner).take(token, Instant::now());
    let Some((_, mut session)) = session.filter(|(for_kind, _)| Some(*for_kind) == kind) else {
        return Err(unknown());
    };
    let Agreed { wire, headers: answer_headers } =
        negotiate(purpose, request.headers()).map_err(|refused| Box::new(refusal(refused)))?;
    if let (Session::Ports { ports, .. }, Wire::Channels { .. }) = (&mut session, &wire) {
        if ports.is_empty() {
            *ports = ports_of(request.uri().query().unwrap_or_default());
        }
        if ports.is_empty() || ports.len() > MAX_PORTS {
            let text = format!("name 1 to {MAX_PORTS} ports, as `?port=80` or in the request");
            return Err(Box::new(plain(StatusCode::BAD_REQUEST, text)));
        }
    }
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    headers(&mut answer, answer_headers);
    let upgrade = hyper::upgrade::on(&mut request);
    Ok((answer, Granted { session, wire, upgrade }))
}

fn unknown() -> Box<Answer> {
    let text =
        "this address is unknown, was used before, or is older than a minute; ask the runtime for a new one";
    Box::new(plain(StatusCode::NOT_FOUND, text))
}

fn refusal(refused: Refused) -> Answer {
    let status = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut answer = plain(status, refused.text);
    headers(&mut answer, refused.headers);
    answer
}

/// `port=1,2&port=3`; what is no port is left out.
fn ports_of(query: &str) -> Vec<u16> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    let numbers = values.flat_map(|value| value.split(',')).filter_map(|number| number.parse().ok());
    numbers.filter(|port| *port > 0).collect()
}

/// Runs a session on whatever wire was agreed.
async fn run<S>(
    pods: &Pods,
    session: Session,
    wire: Wire,
    socket: S,
    hangup: Hangup,
    activity: Activity,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    match wire {
        Wire::Spdy { version } => over_spdy(pods, session, version, socket, hangup, activity).await,
        Wire::Tunnel => {
            let (stream, moving) = websocket::tunnel(socket, hangup, false);
            // The session hangs up first, then the tunnel says goodbye.
            let session = over_spdy(pods, session, 1, stream, Hangup::default(), activity);
            tokio::pin!(moving);
            tokio::select! {
                moved = &mut moving => moved,
                ended = session => {
                    moving.await?;
                    ended
                }
            }
        }
        Wire::Channels { form, version } => {
            over_channels(pods, session, form, version, socket, hangup, activity).await
        }
    }
}

async fn over_spdy<S>(
    pods: &Pods,
    session: Session,
    version: u8,
    socket: S,
    hangup: Hangup,
    activity: Activity,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (handle, mut new, driver) = spdy::connection(socket, hangup, Role::Server, activity);
    let work = async move {
        match session {
            Session::Command(job) => {
                let gathered = gather(&mut new, &job, version).await;
                // What else is opened is nobody's.
                drop(new);
                if let Some((client, mut error)) = gathered {
                    let outcome = command::serve(pods, job, client).await;
                    let _ = error.send(outcome.bytes(version >= 4).into()).await;
                    let _ = error.end().await;
                }
            }
            Session::Ports { pod, .. } => port_forward::serve(pods, &pod, new).await,
        }
        handle.finish().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = driver.run() => ended,
        () = work => Ok(()),
    }
}

/// Waits for the streams that a command needs.
async fn gather(
    new: &mut mpsc::Receiver<NewStream>,
    job: &Job,
    version: u8,
) -> Option<(ClientStreams, Outgoing)> {
    let ([stdin, stdout, stderr], terminal) = job.wanted();
    let mut client = ClientStreams::default();
    let mut error = None;
    let gathered = async {
        loop {
            let missing = error.is_none()
                || stdin && client.stdin.is_none()
                || stdout && client.stdout.is_none()
                || stderr && client.stderr.is_none()
                || terminal && version >= 3 && client.resize.is_none();
            if !missing {
                return true;
            }
            let Some(mut stream) = new.recv().await else { return false };
            match stream.headers.get("streamtype").unwrap_or_default() {
                "error" if error.is_none() => error = Some(stream.outgoing),
                "stdin" if client.stdin.is_none() => client.stdin = Some(stream.incoming),
                "stdout" if client.stdout.is_none() => client.stdout = Some(stream.outgoing),
                "stderr" if client.stderr.is_none() => client.stderr = Some(stream.outgoing),
                "resize" if client.resize.is_none() => client.resize = Some(stream.incoming),
                other => {
                    tracing::debug!(stream = other, "a client opened a stream that nobody needs");
                    let _ = stream.outgoing.reset().await;
                }
            }
        }
    };
    match tokio::time::timeout(STREAMS_LIMIT, gathered).await {
        Ok(true) => error.map(|error| (client, error)),
        Ok(false) => None,
        Err(_) => {
            tracing::info!("a streaming client did not open its streams within 30 seconds");
            None
        }
    }
}

/// Channels of exec and attach.
mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
}

async fn over_channels<S>(
    pods: &Pods,
    session: Session,
    form: Form,
    version: u8,
    socket: S,
    hangup: Hangup,
    activity: Activity,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let from_peer: Vec<u8> = match &session {
        Session::Command(_) => vec![channel::STDIN, channel::RESIZE],
        Session::Ports { ports, .. } => (0..ports.len()).map(|at| (at * 2) as u8).collect(),
    };
    let (mut channels, driver) = websocket::channels(socket, hangup, form, &from_peer, activity);
    let work = async {
        match session {
            Session::Command(job) => {
                let ([stdin, stdout, stderr], _) = job.wanted();
                let mut error = channels.outgoing(channel::ERROR);
                let client = ClientStreams {
                    stdin: channels.incoming.remove(&channel::STDIN).filter(|_| stdin),
                    resize: channels.incoming.remove(&channel::RESIZE),
                    stdout: stdout.then(|| channels.outgoing(channel::STDOUT)),
                    stderr: stderr.then(|| channels.outgoing(channel::STDERR)),
                };
                // An empty message on the lowest channel that we write tells that the connection stands.
                let first = [(stdout, channel::STDOUT), (stderr, channel::STDERR), (true, channel::ERROR)];
                if let Some((_, first)) = first.iter().find(|(open, _)| *open) {
                    let _ = channels.outgoing(*first).send(Bytes::new()).await;
                }
                let outcome = command::serve(pods, job, client).await;
                let _ = error.send(outcome.bytes(version >= 4).into()).await;
                channels.finish().await;
            }
            Session::Ports { pod, ports } => {
                port_forward::serve_channels(pods, &pod, &ports, channels).await;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = driver.run() => ended,
        () = work => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_query() {
        assert_eq!(ports_of("port=80"), [80]);
        assert_eq!(ports_of("a=b&port=80,443&port=0&port=x&port=70000"), [80, 443]);
        assert!(ports_of("").is_empty());
    }
}
