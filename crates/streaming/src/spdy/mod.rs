//! SPDY/3.1, as much of it as Kubernetes uses: streams that a client opens, data both ways, half-close, reset, ping.
//!
//! Both roles: the daemon serves, the client commands and the tests open. Windows: we tell the peer of room as it is used up
//! (a client that counts needs that), and do not count ourselves, since Go's spdystream, which every Kubernetes client
//! uses, never tells of any.

mod dictionary;
mod frame;
mod headers;

pub use frame::MAX_DATA;
pub use headers::{Broken, Headers};

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::{Notify, mpsc, watch};

use crate::mux::{
    Activity, Gone, Hangup, Incoming, Out, Outgoing, PIECE, Piece, SEND_QUEUE, broken_off, deliver, linger,
};
use frame::{FIN, HEAD, Head, MAX_CONTROL, Reset, kind};
use headers::{Inflater, Storer};

/// The most streams at once: five hundred forwarded connections, two for each.
const MAX_STREAMS: usize = 1024;
/// Answers that may wait to be sent. A peer that makes us answer more without reading loses its connection.
const MAX_ANSWERS: usize = 4096;
/// New streams that may wait to be looked at.
const NEW_STREAMS: usize = 16;
/// Room is told of in such steps; the window of a stream is 64 KiB at the start.
const WINDOW_STEP: u32 = 16 << 10;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Streams come from the peer.
    Server,
    /// We open them.
    Client,
}

/// A stream that the peer has opened.
#[derive(Debug)]
pub struct NewStream {
    /// Its number.
    pub id: u32,
    /// What the peer said of it.
    pub headers: Headers,
    /// What it sends.
    pub incoming: Incoming,
    /// What it gets.
    pub outgoing: Outgoing,
}

struct Entry {
    /// Gone once the peer has ended its side.
    pieces: Option<mpsc::Sender<Piece>>,
    reset: watch::Sender<bool>,
    we_ended: bool,
    /// Received and not told of.
    untold: u32,
}

struct Shared {
    streams: Mutex<HashMap<u32, Entry>>,
    answers: Mutex<VecDeque<Answer>>,
    wake: Notify,
    activity: Activity,
}

/// What the reading side wants said.
enum Answer {
    /// As it is.
    Frame(Bytes),
    /// Header blocks are stored in the order in which they are sent.
    Reply(u32),
}

impl Shared {
    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, answer: Answer) -> io::Result<()> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_ANSWERS {
            return Err(io::Error::other("the peer asks without reading the answers"));
        }
        answers.push_back(answer);
        self.wake.notify_one();
        Ok(())
    }

    /// Breaks a stream off at our end.
    fn break_off(&self, stream: u32) {
        if let Some(entry) = self.streams().remove(&stream) {
            entry.reset.send_replace(true);
        }
    }
}

/// What is done with a connection from outside its driver.
#[derive(Clone)]
pub struct Handle {
    out: mpsc::Sender<Out>,
    shared: Arc<Shared>,
    next: Arc<AtomicU32>,
}

impl Handle {
    /// Opens a stream.
    pub async fn open(&self, headers: Headers) -> Result<(Incoming, Outgoing), Gone> {
        let stream = self.next.fetch_add(2, Ordering::Relaxed);
        let (pieces, incoming) = Incoming::new();
        let (reset, receiver) = watch::channel(false);
        self.shared
            .streams()
            .insert(stream, Entry { pieces: Some(pieces), reset, we_ended: false, untold: 0 });
        self.out.send(Out::Open { stream, headers }).await.map_err(|_| Gone)?;
        Ok((incoming, Outgoing::new(stream, self.out.clone(), receiver)))
    }

    /// Says that all is said: the driver ends once the peer has it.
    pub async fn finish(&self) {
        let _ = self.out.send(Out::Finish).await;
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.shared.streams().len()
    }
}

/// Moves a connection's bytes; nothing happens unless it is run.
pub struct Driver<S> {
    socket: S,
    hangup: Hangup,
    role: Role,
    out: mpsc::Receiver<Out>,
    /// Weak, so to say: the handles' end of the queue, for the streams that the peer opens.
    sender: mpsc::WeakSender<Out>,
    opened: mpsc::Sender<NewStream>,
    shared: Arc<Shared>,
}

/// Makes a connection of a socket: its handle, the streams that the peer opens, and its driver.
pub fn connection<S>(
    socket: S,
    hangup: Hangup,
    role: Role,
    activity: Activity,
) -> (Handle, mpsc::Receiver<NewStream>, Driver<S>) {
    let (send, out) = mpsc::channel(SEND_QUEUE);
    let (opened, new) = mpsc::channel(NEW_STREAMS);
    let shared = Arc::new(Shared {
        streams: Mutex::default(),
        answers: Mutex::default(),
        wake: Notify::new(),
        activity,
    });
    let sender = send.downgrade();
    let next = Arc::new(AtomicU32::new(if role == Role::Client { 1 } else { 2 }));
    let handle = Handle { out: send, shared: shared.clone(), next };
    (handle, new, Driver { socket, hangup, role, out, sender, opened, shared })
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    /// Runs until the peer is gone, breaks the rules, or [`Handle::finish`] was said and it has hung up.
    pub async fn run(self) -> io::Result<()> {
        let Driver { socket, hangup, role, out, sender, opened, shared } = self;
        let (read, write) = tokio::io::split(socket);
        let reader = Reader {
            socket: BufReader::with_capacity(PIECE, read),
            hangup,
            role,
            sender,
            opened,
            shared: shared.clone(),
            inflater: Inflater::new(),
            untold: 0,
        };
        let reading = reader.run();
        tokio::pin!(reading);
        let outcome = tokio::select! {
            read = &mut reading => read,
            written = write_all(write, out, &shared) => match written {
                // What the peer still sends is read, so that nothing of what it was sent is lost on the way.
                Ok(()) => linger(reading, &shared.activity).await,
                Err(error) => Err(error),
            },
        };
        for (_, entry) in shared.streams().drain() {
            entry.reset.send_replace(true);
        }
        outcome
    }
}

/// A stream's queue, and the word that it was broken off.
type StreamReader = (mpsc::Sender<Piece>, watch::Receiver<bool>);

struct Reader<R> {
    socket: BufReader<R>,
    hangup: Hangup,
    role: Role,
    sender: mpsc::WeakSender<Out>,
    opened: mpsc::Sender<NewStream>,
    shared: Arc<Shared>,
    inflater: Inflater,
    /// Received on all streams and not told of.
    untold: u32,
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) -> io::Result<()> {
        let mut head = [0u8; HEAD];
        loop {
            match self.socket.read_exact(&mut head).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            match Head::parse(head).ok_or_else(|| broken("this is no SPDY/3"))? {
                Head::Data { stream, flags, len } => self.data(stream, flags, len).await?,
                Head::Control { len, .. } if len > MAX_CONTROL => {
                    return Err(broken("a control frame is too long"));
                }
                Head::Control { kind, flags, len } => {
                    let mut body = vec![0; len];
                    self.socket.read_exact(&mut body).await?;
                    self.control(kind, flags, &body).await?;
                }
            }
        }
    }

    async fn data(&mut self, stream: u32, flags: u8, len: usize) -> io::Result<()> {
        self.shared.activity.note();
        let mut reader = self.reader(stream);
        let mut left = len;
        while left > 0 {
            let mut piece = BytesMut::with_capacity(left.min(PIECE));
            let mut part = (&mut self.socket).take(left.min(PIECE) as u64);
            if part.read_buf(&mut piece).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= piece.len();
            let size = piece.len() as u32;
            if !hand_over(&reader, Piece::Data(piece.freeze()), &self.hangup).await? {
                reader = None;
            }
            self.tell_of_room(stream, size)?;
        }
        if flags & FIN != 0 {
            hand_over(&reader, Piece::End, &self.hangup).await?;
            self.peer_ended(stream);
        }
        Ok(())
    }

    /// Where the pieces of a stream go, and what says that it was broken off. `None`: nobody wants them.
    fn reader(&self, stream: u32) -> Option<StreamReader> {
        let streams = self.shared.streams();
        let entry = streams.get(&stream)?;
        Some((entry.pieces.clone()?, entry.reset.subscribe()))
    }

    fn tell_of_room(&mut self, stream: u32, size: u32) -> io::Result<()> {
        self.untold += size;
        if self.untold >= WINDOW_STEP {
            self.shared.answer(Answer::Frame(frame::window_update(0, self.untold)))?;
            self.untold = 0;
        }
        let room = {
            let mut streams = self.shared.streams();
            let Some(entry) = streams.get_mut(&stream) else { return Ok(()) };
            entry.untold += size;
            if entry.untold < WINDOW_STEP {
                return Ok(());
            }
            std::mem::take(&mut entry.untold)
        };
        self.shared.answer(Answer::Frame(frame::window_update(stream, room)))
    }

    fn peer_ended(&self, stream: u32) {
        let mut streams = self.shared.streams();
        if let Some(entry) = streams.get_mut(&stream) {
            entry.pieces = None;
            if entry.we_ended {
                streams.remove(&stream);
            }
        }
    }

    async fn control(&mut self, number: u16, flags: u8, body: &[u8]) -> io::Result<()> {
        let word = |at: usize| {
            let bytes = body.get(at..at + 4).and_then(|bytes| bytes.first_chunk::<4>());
            bytes
                .map(|bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff)
                .ok_or_else(|| broken("a frame is too short"))
        };
        match number {
            kind::SYN_STREAM => {
                let block = body.get(10..).ok_or_else(|| broken("a frame is too short"))?;
                let headers = self.inflater.block(block).map_err(io::Error::other)?;
                self.open(word(0)?, flags, headers).await
            }
            // Nothing is said in these, but each is part of the stream of blocks.
            kind::SYN_REPLY | kind::HEADERS => {
                let block = body.get(4..).ok_or_else(|| broken("a frame is too short"))?;
                self.inflater.block(block).map_err(io::Error::other)?;
                if flags & FIN != 0 {
                    let stream = word(0)?;
                    let reader = self.reader(stream);
                    hand_over(&reader, Piece::End, &self.hangup).await?;
                    self.peer_ended(stream);
                }
                Ok(())
            }
            kind::RST_STREAM => {
                self.shared.break_off(word(0)?);
                Ok(())
            }
            kind::PING => {
                let id = word(0)?;
                // Odd ones are the client's own; the others are echoes.
                match (id % 2 == 1) == (self.role == Role::Server) {
                    true => self.shared.answer(Answer::Frame(frame::ping(id))),
                    false => Ok(()),
                }
            }
            // No more streams will come; those that are there go on.
            kind::GOAWAY => Ok(()),
            // Settings, windows and what we do not know.
            _ => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, flags: u8, headers: Headers) -> io::Result<()> {
        let refuse = |why| self.shared.answer(Answer::Frame(frame::rst_stream(stream, why)));
        let fits = self.role == Role::Server && stream % 2 == 1;
        let (pieces, incoming) = Incoming::new();
        let (reset, receiver) = watch::channel(false);
        let Some(out) = self.sender.upgrade().filter(|_| fits) else { return refuse(Reset::Protocol) };
        {
            let mut streams = self.shared.streams();
            if streams.contains_key(&stream) {
                drop(streams);
                return refuse(Reset::Protocol);
            }
            if streams.len() >= MAX_STREAMS {
                drop(streams);
                return refuse(Reset::Refused);
            }
            let ended = flags & FIN != 0;
            if ended {
                // A new queue has room.
                let _ = pieces.try_send(Piece::End);
            }
            let pieces = (!ended).then_some(pieces);
            streams.insert(stream, Entry { pieces, reset, we_ended: false, untold: 0 });
        }
        self.shared.answer(Answer::Reply(stream))?;
        let outgoing = Outgoing::new(stream, out, receiver);
        let new = NewStream { id: stream, headers, incoming, outgoing };
        tokio::select! {
            biased;
            // Nobody looks at new streams any more: what is under way goes on.
            _ = self.opened.send(new) => Ok(()),
            () = self.hangup.gone() => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

/// Gives a piece to whoever reads the stream; false if nobody does any more. The reading of the whole connection waits
/// here, so a stream that our own side breaks off must not hold it up: its last pieces may have nobody who takes them.
async fn hand_over(reader: &Option<StreamReader>, piece: Piece, hangup: &Hangup) -> io::Result<bool> {
    let Some((pieces, reset)) = reader else { return Ok(false) };
    tokio::select! {
        biased;
        delivered = deliver(pieces, piece, hangup) => delivered,
        () = broken_off(reset.clone()) => Ok(false),
    }
}

/// The most that is gathered before it is written.
const GATHER: usize = 64 << 10;

async fn write_all<W: AsyncWrite + Unpin>(
    mut socket: W,
    mut out: mpsc::Receiver<Out>,
    shared: &Shared,
) -> io::Result<()> {
    let mut storer = Storer::default();
    let mut buffer = BytesMut::with_capacity(GATHER);
    let mut finished = false;
    while !finished {
        let mut next = tokio::select! {
            biased;
            () = shared.wake.notified() => None,
            next = out.recv() => Some(next.unwrap_or(Out::Finish)),
        };
        loop {
            // First of all, each time: what is sent on a stream comes after the word that it is open.
            answers(&mut buffer, &mut storer, shared);
            if let Some(next) = next.take() {
                finished = put(next, &mut buffer, &mut storer, shared);
            }
            next = match finished || buffer.len() >= GATHER / 2 {
                true => None,
                false => out.try_recv().ok(),
            };
            if next.is_none() {
                break;
            }
        }
        socket.write_all_buf(&mut buffer).await?;
        socket.flush().await?;
    }
    socket.shutdown().await
}

fn answers(buffer: &mut BytesMut, storer: &mut Storer, shared: &Shared) {
    let answers = std::mem::take(&mut *shared.answers.lock().unwrap_or_else(PoisonError::into_inner));
    for answer in answers {
        match answer {
            Answer::Frame(frame) => buffer.extend_from_slice(&frame),
            Answer::Reply(stream) => {
                buffer.extend_from_slice(&frame::syn_reply(stream, &storer.block(&Headers::default())));
            }
        }
    }
}

/// Appends one thing to be sent; true if it is the last.
fn put(next: Out, buffer: &mut BytesMut, storer: &mut Storer, shared: &Shared) -> bool {
    match next {
        Out::Data { stream, bytes } => {
            shared.activity.note();
            if shared.streams().contains_key(&stream) {
                for chunk in bytes.chunks(MAX_DATA) {
                    buffer.extend_from_slice(&frame::data_head(stream, 0, chunk.len()));
                    buffer.extend_from_slice(chunk);
                }
            }
        }
        Out::End { stream } => {
            let mut streams = shared.streams();
            let Some(entry) = streams.get_mut(&stream) else { return false };
            if entry.we_ended {
                return false;
            }
            entry.we_ended = true;
            if entry.pieces.is_none() {
                streams.remove(&stream);
            }
            buffer.extend_from_slice(&frame::data_head(stream, FIN, 0));
        }
        Out::Reset { stream } => {
            if shared.streams().contains_key(&stream) {
                shared.break_off(stream);
                buffer.extend_from_slice(&frame::rst_stream(stream, Reset::Cancel));
            }
        }
        Out::Open { stream, headers } => {
            buffer.extend_from_slice(&frame::syn_stream(stream, &storer.block(&headers)));
        }
        Out::Finish => {
            buffer.extend_from_slice(&frame::goaway(0));
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests;
