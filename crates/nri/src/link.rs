//! A socket with calls in both directions: a runtime's end, or a plugin's.
//!
//! One task reads and one writes. Whoever calls waits for the answer of its stream; whoever is called is a task of its
//! own. When the socket ends, however, everybody who waits is told, and nothing more can be called.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bowline_nri_proto::ttrpc::{Request, Response, Status};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::wire::{Connection, Inbox, Kind, MAX_MESSAGE, Message, encode};

/// Calls of the other end that may be under way here.
const MAX_SERVED: usize = 16;
/// Messages that may wait to be written.
const WAITING: usize = 64;

/// gRPC codes that are told apart.
pub(crate) mod code {
    pub(crate) const UNKNOWN: i32 = 2;
    pub(crate) const INVALID_ARGUMENT: i32 = 3;
    pub(crate) const DEADLINE_EXCEEDED: i32 = 4;
    pub(crate) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(crate) const UNIMPLEMENTED: i32 = 12;
}

/// What became of a call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The other end said no.
    #[error("{text}")]
    Refused {
        /// A gRPC code.
        code: i32,
        /// Its words.
        text: String,
    },
    /// The other end did not answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection has ended.
    #[error("the connection has ended")]
    Closed,
    /// The request is longer than a message may be.
    #[error("the request has {0} bytes, and a message has {MAX_MESSAGE} at most")]
    TooLong(usize),
    /// The answer makes no sense.
    #[error("the answer cannot be read")]
    BadAnswer,
}

/// What the other end may ask, by name of service and method: the payload of an answer, or (code, words).
pub(crate) type Service = Arc<
    dyn Fn(
            String,
            String,
            Vec<u8>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Vec<u8>, (i32, String)>> + Send>>
        + Send
        + Sync,
>;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Runtime,
    Plugin,
}

impl End {
    /// Where this end calls, and where it serves.
    fn connections(self) -> (Connection, Connection) {
        match self {
            End::Runtime => (Connection::Plugin, Connection::Runtime),
            End::Plugin => (Connection::Runtime, Connection::Plugin),
        }
    }
}

/// A socket with calls in both directions. Dropping it does not end it: [`Link::close`] does.
pub(crate) struct Link {
    end: End,
    state: Arc<State>,
    outgoing: mpsc::Sender<Message>,
}

#[derive(Default)]
struct State {
    calls: Mutex<Calls>,
    closed: AtomicBool,
    /// Wakes both tasks when the link is closed.
    close: Notify,
    /// Wakes those who wait for the end.
    ended: Notify,
}

#[derive(Default)]
struct Calls {
    last: u32,
    waiting: HashMap<u32, oneshot::Sender<Response>>,
}

impl State {
    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shut(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Those who wait see their senders go.
        self.calls().waiting.clear();
        self.close.notify_waiters();
        self.ended.notify_waiters();
    }
}

impl Link {
    /// Begins to read and write. `service` answers what the other end asks.
    pub(crate) fn start(socket: UnixStream, end: End, service: Service) -> Arc<Link> {
        let (read, write) = socket.into_split();
        let (outgoing, queue) = mpsc::channel(WAITING);
        let state = Arc::new(State::default());
        let link = Arc::new(Link { end, state: state.clone(), outgoing: outgoing.clone() });
        tokio::spawn(write_all(write, queue, state.clone()));
        tokio::spawn(read_all(read, end, service, outgoing, state));
        link
    }

    /// Calls a method of the other end. The limit of time is told to the other end as well.
    pub(crate) async fn call<A: prost::Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl prost::Message,
        limit: Duration,
    ) -> Result<A, CallError> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
            metadata: Vec::new(),
        };
        let payload = request.encode_to_vec();
        if payload.len() > MAX_MESSAGE {
            return Err(CallError::TooLong(payload.len()));
        }
        let (answer, answered) = oneshot::channel();
        let stream = {
            let mut calls = self.state.calls();
            if self.is_closed() {
                return Err(CallError::Closed);
            }
            // Odd and rising.
            let stream = if calls.last == 0 { 1 } else { calls.last.wrapping_add(2) };
            calls.last = stream;
            calls.waiting.insert(stream, answer);
            stream
        };
        let _forget = Forget { state: &self.state, stream };
        let message = Message { connection: self.end.connections().0, stream, kind: Kind::Request, payload };
        let exchange = async {
            self.outgoing.send(message).await.map_err(|_| CallError::Closed)?;
            answered.await.map_err(|_| CallError::Closed)
        };
        let response =
            tokio::time::timeout(limit, exchange).await.map_err(|_| CallError::Timeout(limit))??;
        match response.status {
            // The other end keeps the limit as well, and may be the first to say so.
            Some(Status { code: code::DEADLINE_EXCEEDED, .. }) => Err(CallError::Timeout(limit)),
            Some(Status { code, message }) if code != 0 => Err(CallError::Refused { code, text: message }),
            _ => A::decode(response.payload.as_slice()).map_err(|_| CallError::BadAnswer),
        }
    }

    /// Ends the connection.
    pub(crate) fn close(&self) {
        self.state.shut();
    }

    /// The connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.closed.load(Ordering::SeqCst)
    }

    /// Waits for the end of the connection.
    pub(crate) async fn ended(&self) {
        let ended = self.state.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if !self.is_closed() {
            ended.await;
        }
    }
}

/// A call that nobody waits for any more.
struct Forget<'a> {
    state: &'a State,
    stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.state.calls().waiting.remove(&self.stream);
    }
}

async fn write_all(mut socket: OwnedWriteHalf, mut queue: mpsc::Receiver<Message>, state: Arc<State>) {
    let work = async {
        while let Some(message) = queue.recv().await {
            if socket.write_all(&encode(&message)).await.is_err() {
                return;
            }
        }
    };
    until_closed(&state, work).await;
    state.shut();
}

async fn read_all(
    mut socket: OwnedReadHalf,
    end: End,
    service: Service,
    outgoing: mpsc::Sender<Message>,
    state: Arc<State>,
) {
    let (calls_on, serves_on) = end.connections();
    let served = Arc::new(Semaphore::new(MAX_SERVED));
    let work = async {
        let mut inbox = Inbox::default();
        let mut buffer = vec![0; 32 << 10];
        loop {
            let length = match socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            let messages = match inbox.take(buffer.get(..length).unwrap_or_default()) {
                Ok(messages) => messages,
                Err(error) => {
                    tracing::warn!(%error, "an NRI connection is ended: what came cannot be understood");
                    return;
                }
            };
            for message in messages {
                match message.kind {
                    Kind::Response if message.connection == calls_on => answer(&state, &message),
                    Kind::Request if message.connection == serves_on => {
                        serve(message, &service, &served, &outgoing);
                    }
                    // A response to nothing, or a request where nobody serves.
                    Kind::Request | Kind::Response => {}
                }
            }
        }
    };
    until_closed(&state, work).await;
    state.shut();
}

async fn until_closed(state: &State, work: impl Future<Output = ()>) {
    let closed = state.close.notified();
    tokio::pin!(closed);
    closed.as_mut().enable();
    if state.closed.load(Ordering::SeqCst) {
        return;
    }
    tokio::select! {
        () = closed => {}
        () = work => {}
    }
}

fn answer(state: &State, message: &Message) {
    let Some(waiting) = state.calls().waiting.remove(&message.stream) else { return };
    let unreadable = || Response {
        status: Some(Status { code: code::UNKNOWN, message: "the answer cannot be read".into() }),
        payload: Vec::new(),
    };
    let _ = waiting.send(Response::decode(message.payload.as_slice()).unwrap_or_else(|_| unreadable()));
}

fn serve(message: Message, service: &Service, served: &Arc<Semaphore>, outgoing: &mpsc::Sender<Message>) {
    let permit = served.clone().try_acquire_owned();
    let (service, outgoing) = (service.clone(), outgoing.clone());
    tokio::spawn(async move {
        let result = match (permit, Request::decode(message.payload.as_slice())) {
            (Ok(_permit), Ok(request)) => service(request.service, request.method, request.payload).await,
            (Err(_), _) => {
                Err((code::RESOURCE_EXHAUSTED, format!("{MAX_SERVED} calls are under way already")))
            }
            (_, Err(error)) => Err((code::INVALID_ARGUMENT, error.to_string())),
        };
        let result = match result {
            Ok(payload) if payload.len() + 16 > MAX_MESSAGE => {
                Err((code::RESOURCE_EXHAUSTED, format!("the answer has {} bytes", payload.len())))
            }
            other => other,
        };
        let response = match result {
            Ok(payload) => Response { status: None, payload },
            Err((code, message)) => Response { status: Some(Status { code, message }), payload: Vec::new() },
        };
        let Message { connection, stream, .. } = message;
        let answer = Message { connection, stream, kind: Kind::Response, payload: response.encode_to_vec() };
        let _ = outgoing.send(answer).await;
    });
}

#[cfg(test)]
mod tests {
    use bowline_nri_proto::v1alpha1::{Empty, LinuxPids};

    use super::*;

    fn a_pair(service: Service) -> (Arc<Link>, Arc<Link>) {
        let (one, two) = UnixStream::pair().unwrap();
        let nobody: Service =
            Arc::new(|_, _, _| Box::pin(async { Err((code::UNIMPLEMENTED, String::new())) }));
        (Link::start(one, End::Runtime, nobody), Link::start(two, End::Plugin, service))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn calls_go_both_ways_and_at_once() {
        let double: Service = Arc::new(|service, method, payload| {
            Box::pin(async move {
                let number = LinuxPids::decode(payload.as_slice()).unwrap().limit;
                match (service.as_str(), method.as_str()) {
                    ("s", "Double") => Ok(LinuxPids { limit: 2 * number }.encode_to_vec()),
                    ("s", "Never") => std::future::pending().await,
                    _ => Err((code::UNIMPLEMENTED, format!("no {method}"))),
                }
            })
        });
        let (runtime, plugin) = a_pair(double);
        let (a, b) = tokio::join!(
            runtime.call::<LinuxPids>("s", "Double", &LinuxPids { limit: 4 }, LONG),
            runtime.call::<LinuxPids>("s", "Double", &LinuxPids { limit: 5 }, LONG)
        );
        assert_eq!((a.unwrap().limit, b.unwrap().limit), (8, 10));
        let missing = runtime.call::<Empty>("s", "Other", &Empty {}, LONG).await.unwrap_err();
        assert!(matches!(missing, CallError::Refused { code: code::UNIMPLEMENTED, .. }), "{missing}");
        let back = plugin.call::<Empty>("s", "Any", &Empty {}, LONG).await.unwrap_err();
        assert!(matches!(back, CallError::Refused { code: code::UNIMPLEMENTED, .. }), "{back}");
        let late = runtime.call::<Empty>("s", "Never", &Empty {}, Duration::from_millis(20)).await;
        assert!(matches!(late, Err(CallError::Timeout(_))));
        let again = runtime.call::<LinuxPids>("s", "Double", &LinuxPids { limit: 7 }, LONG).await;
        assert_eq!(again.unwrap().limit, 14, "a late answer harms nobody");
    }

    #[tokio::test]
    async fn whoever_waits_is_told_of_the_end() {
        let never: Service = Arc::new(|_, _, _| Box::pin(std::future::pending()));
        let (runtime, plugin) = a_pair(never);
        let call = runtime.call::<Empty>("s", "m", &Empty {}, LONG);
        let close = async {
            tokio::task::yield_now().await;
            plugin.close();
        };
        let (outcome, ()) = tokio::join!(call, close);
        assert!(matches!(outcome, Err(CallError::Closed)));
        runtime.ended().await;
        assert!(matches!(runtime.call::<Empty>("s", "m", &Empty {}, LONG).await, Err(CallError::Closed)));
    }
}
