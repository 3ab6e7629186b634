//! WebSocket, as Kubernetes uses it: channels inside messages, or SPDY inside them.
//!
//! The first byte of each message names a channel. With `v5.channel.k8s.io` a message of 255 and a channel says that
//! its sender ends that channel; before v5 there is no half-close. With the `base64.` protocols a message is text: a
//! digit, and the bytes in base64.

mod frame;
mod tunnel;

pub use tunnel::tunnel;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc, watch};

use crate::mux::{Activity, Hangup, Incoming, Out, Outgoing, Piece, SEND_QUEUE, deliver, linger};
use frame::{Event, NORMAL, Reader, opcode};

/// Says that a channel ends (v5).
const CLOSE_SIGNAL: u8 = 255;
/// The longest message of a base64 protocol: it has to be whole before it can be read.
const MAX_TEXT: usize = 1 << 20;
/// Echoes that may wait to be sent.
const MAX_ECHOES: usize = 64;

/// What the server says to the client's key (RFC 6455, section 4.2.2).
pub fn accept_key(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(hash.finalize())
}

/// A key for a client to send.
pub fn new_key() -> String {
    let mut key = [0u8; 16];
    let _ = rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty());
    BASE64_STANDARD.encode(key)
}

/// How messages look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Form {
    /// Text: a digit and base64.
    pub base64: bool,
    /// Channels can be ended one by one.
    pub close_signal: bool,
    /// We are the client.
    pub client: bool,
}

/// The streams of a connection with channels, and what else is done with it.
pub struct Channels {
    /// What the peer sends, by channel.
    pub incoming: HashMap<u8, Incoming>,
    out: mpsc::Sender<Out>,
    reset: watch::Receiver<bool>,
}

impl Channels {
    /// The sending end of a channel.
    pub fn outgoing(&self, channel: u8) -> Outgoing {
        Outgoing::new(u32::from(channel), self.out.clone(), self.reset.clone())
    }

    /// Says that all is said: the driver ends once the peer has it.
    pub async fn finish(&self) {
        let _ = self.out.send(Out::Finish).await;
    }
}

struct Shared {
    echoes: Mutex<Vec<Bytes>>,
    wake: Notify,
    activity: Activity,
}

impl Shared {
    fn new(activity: Activity) -> Arc<Shared> {
        Arc::new(Shared { echoes: Mutex::default(), wake: Notify::new(), activity })
    }

    fn echo(&self, bytes: Bytes) -> io::Result<()> {
        let mut echoes = self.echoes.lock().unwrap_or_else(PoisonError::into_inner);
        if echoes.len() >= MAX_ECHOES {
            return Err(io::Error::other("the peer asks without reading the answers"));
        }
        echoes.push(bytes);
        self.wake.notify_one();
        Ok(())
    }

    fn put_echoes(&self, buffer: &mut BytesMut, client: bool) {
        let echoes = std::mem::take(&mut *self.echoes.lock().unwrap_or_else(PoisonError::into_inner));
        for echo in echoes {
            frame::put(buffer, opcode::PONG, &[&echo], client.then(frame::mask));
        }
    }
}

/// Moves a connection's bytes; nothing happens unless it is run.
pub struct Driver<S> {
    socket: S,
    hangup: Hangup,
    form: Form,
    pieces: HashMap<u8, mpsc::Sender<Piece>>,
    out: mpsc::Receiver<Out>,
    shared: Arc<Shared>,
    reset: watch::Sender<bool>,
}

/// Makes a connection with channels of a socket; `from_peer` are those on which the peer may send.
pub fn channels<S>(
    socket: S,
    hangup: Hangup,
    form: Form,
    from_peer: &[u8],
    activity: Activity,
) -> (Channels, Driver<S>) {
    let (send, out) = mpsc::channel(SEND_QUEUE);
    let (reset, receiver) = watch::channel(false);
    let (mut pieces, mut incoming) = (HashMap::new(), HashMap::new());
    for channel in from_peer {
        let (sender, receiver) = Incoming::new();
        pieces.insert(*channel, sender);
        incoming.insert(*channel, receiver);
    }
    let shared = Shared::new(activity);
    let channels = Channels { incoming, out: send, reset: receiver };
    (channels, Driver { socket, hangup, form, pieces, out, shared, reset })
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Runs until the peer is gone, breaks the rules, or [`Channels::finish`] was said and it has hung up.
    pub async fn run(self) -> io::Result<()> {
        let Driver { socket, hangup, form, pieces, out, shared, reset } = self;
        let (read, write) = tokio::io::split(socket);
        let reading = read_all(Reader::new(read, !form.client), &hangup, form, pieces, &shared);
        tokio::pin!(reading);
        let outcome = tokio::select! {
            read = &mut reading => read,
            written = write_all(write, out, form, &shared) => match written {
                Ok(()) => linger(reading, &shared.activity).await,
                Err(error) => Err(error),
            },
        };
        reset.send_replace(true);
        outcome
    }
}

async fn read_all<R: AsyncRead + Unpin>(
    mut reader: Reader<R>,
    hangup: &Hangup,
    form: Form,
    mut pieces: HashMap<u8, mpsc::Sender<Piece>>,
    shared: &Shared,
) -> io::Result<()> {
    // The channel of the message that is being read, once its first byte is there.
    let mut channel: Option<u8> = None;
    let mut text = BytesMut::new();
    while let Some(event) = reader.next().await? {
        match event {
            Event::Begin => channel = None,
            Event::Data(mut bytes) => {
                shared.activity.note();
                if channel.is_none() && !bytes.is_empty() {
                    let first = bytes.split_to(1)[0];
                    channel = Some(if form.base64 { first.wrapping_sub(b'0') } else { first });
                }
                let Some(channel) = channel.filter(|_| !bytes.is_empty()) else { continue };
                if form.close_signal && channel == CLOSE_SIGNAL {
                    if let Some(pieces) = pieces.remove(&bytes[0]) {
                        deliver(&pieces, Piece::End, hangup).await?;
                    }
                } else if form.base64 {
                    if text.len() + bytes.len() > MAX_TEXT {
                        return Err(io::Error::other("a message of base64 is longer than 1 MiB"));
                    }
                    text.extend_from_slice(&bytes);
                } else if let Some(pieces) = pieces.get(&channel) {
                    deliver(pieces, Piece::Data(bytes), hangup).await?;
                }
            }
            Event::End if form.base64 => {
                let text = std::mem::take(&mut text);
                let bytes =
                    BASE64_STANDARD.decode(&text).map_err(|_| io::Error::other("this is no base64"))?;
                if let Some(pieces) = channel.and_then(|channel| pieces.get(&channel)) {
                    for chunk in bytes.chunks(crate::mux::PIECE) {
                        deliver(pieces, Piece::Data(Bytes::copy_from_slice(chunk)), hangup).await?;
                    }
                }
            }
            Event::End => {}
            Event::Ping(bytes) => shared.echo(bytes)?,
            Event::Close if form.client => {
                // A server that says goodbye has sent all: what is open has ended.
                for pieces in pieces.values() {
                    deliver(pieces, Piece::End, hangup).await?;
                }
                return Ok(());
            }
            Event::Close => return Ok(()),
        }
    }
    Ok(())
}

async fn write_all<W: AsyncWrite + Unpin>(
    mut socket: W,
    mut out: mpsc::Receiver<Out>,
    form: Form,
    shared: &Shared,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        let next = tokio::select! {
            biased;
            () = shared.wake.notified() => None,
            next = out.recv() => Some(next.unwrap_or(Out::Finish)),
        };
        shared.put_echoes(&mut buffer, form.client);
        let finish = matches!(next, Some(Out::Finish));
        if let Some(next) = next {
            shared.activity.note();
            put(next, &mut buffer, form);
        }
        socket.write_all_buf(&mut buffer).await?;
        socket.flush().await?;
        if finish {
            return match form.client {
                // The server hangs up first.
                true => Ok(()),
                false => socket.shutdown().await,
            };
        }
    }
}

fn put(next: Out, buffer: &mut BytesMut, form: Form) {
    let mask = form.client.then(frame::mask);
    match next {
        Out::Data { stream, bytes } if form.base64 => {
            let text = BASE64_STANDARD.encode(&bytes);
            frame::put(buffer, opcode::TEXT, &[&[b'0' + stream as u8], text.as_bytes()], mask);
        }
        Out::Data { stream, bytes } => {
            frame::put(buffer, opcode::BINARY, &[&[stream as u8], &bytes], mask);
        }
        // Go's client takes a signal from the server for data of an unknown channel; the last frame ends all.
        Out::End { stream } if form.close_signal && form.client => {
            frame::put(buffer, opcode::BINARY, &[&[CLOSE_SIGNAL, stream as u8]], mask);
        }
        Out::Finish => frame::put(buffer, opcode::CLOSE, &[&NORMAL.to_be_bytes()], mask),
        Out::End { .. } | Out::Reset { .. } | Out::Open { .. } => {}
    }
}

#[cfg(test)]
mod tests;
