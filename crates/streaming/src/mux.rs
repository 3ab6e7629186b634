//! What SPDY and WebSocket have in common for those who use them: streams of bytes inside one connection.
//!
//! A connection is driven by one future, its driver; the streams' ends talk to it through bounded queues. A reader that
//! does not read stops the driver's reading, and so the peer by way of TCP: neither protocol has a flow control per stream that
//! clients keep to (Go's spdystream ignores windows), so one stream that is stuck holds up its neighbours. A stream
//! whose reader has gone holds up nobody: what comes for it is thrown away.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{mpsc, watch};

use crate::spdy::Headers;

/// Pieces that may wait for the reader of a stream, at most [`PIECE`] bytes each.
pub(crate) const QUEUE: usize = 8;
/// Pieces of all streams that may wait to be sent.
pub(crate) const SEND_QUEUE: usize = 8;
/// The longest piece.
pub(crate) const PIECE: usize = 32 << 10;
/// How long the peer may be silent, not hanging up, once all is said.
const LINGER: Duration = Duration::from_secs(5);
/// How long it may take to hang up at most.
const LONGEST: Duration = Duration::from_secs(120);
/// How often somebody who waits for room looks whether the peer is still there.
const LOOK: Duration = Duration::from_secs(2);

/// The stream was broken off, or its connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream was broken off")]
pub struct Gone;

/// Something of a stream that has arrived.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    /// The peer will send no more.
    End,
}

/// Something to be sent.
#[derive(Debug)]
pub(crate) enum Out {
    Data {
        stream: u32,
        bytes: Bytes,
    },
    /// We send no more on it.
    End {
        stream: u32,
    },
    /// We want no more of it.
    Reset {
        stream: u32,
    },
    /// A new stream (SPDY clients only).
    Open {
        stream: u32,
        headers: Headers,
    },
    /// All is said.
    Finish,
}

/// The receiving end of a stream.
#[derive(Debug)]
pub struct Incoming {
    pieces: mpsc::Receiver<Piece>,
    ended: bool,
}

impl Incoming {
    pub(crate) fn new() -> (mpsc::Sender<Piece>, Incoming) {
        let (send, pieces) = mpsc::channel(QUEUE);
        (send, Incoming { pieces, ended: false })
    }

    /// How many pieces wait to be read.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.pieces.len()
    }

    /// The next piece; `None` once the peer has ended the stream.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Gone> {
        if self.ended {
            return Ok(None);
        }
        match self.pieces.recv().await {
            Some(Piece::Data(bytes)) => Ok(Some(bytes)),
            Some(Piece::End) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(Gone),
        }
    }
}

/// The sending end of a stream. Dropping it says nothing to the peer.
#[derive(Debug)]
pub struct Outgoing {
    stream: u32,
    out: mpsc::Sender<Out>,
    reset: watch::Receiver<bool>,
}

impl Outgoing {
    pub(crate) fn new(stream: u32, out: mpsc::Sender<Out>, reset: watch::Receiver<bool>) -> Outgoing {
        Outgoing { stream, out, reset }
    }

    /// Sends, once there is room.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        self.put(Out::Data { stream: self.stream, bytes }).await
    }

    /// Says that this was all.
    pub async fn end(&mut self) -> Result<(), Gone> {
        self.put(Out::End { stream: self.stream }).await
    }

    /// Breaks the stream off in both directions.
    pub async fn reset(&mut self) -> Result<(), Gone> {
        self.put(Out::Reset { stream: self.stream }).await
    }

    /// Waits until the peer breaks the stream off.
    pub async fn broken_off(&self) {
        self.watch().await;
    }

    /// The same, beside the use of the stream.
    pub(crate) fn watch(&self) -> impl Future<Output = ()> + Send + use<> {
        broken_off(self.reset.clone())
    }

    async fn put(&mut self, out: Out) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.broken_off() => Err(Gone),
            sent = self.out.send(out) => sent.map_err(|_| Gone),
        }
    }
}

/// Waits until a stream is broken off; for ever, if it has ended in order.
pub(crate) async fn broken_off(mut reset: watch::Receiver<bool>) {
    if reset.wait_for(|reset| *reset).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// When something last moved.
#[derive(Debug, Clone)]
pub struct Activity(Arc<(Instant, AtomicU64)>);

impl Default for Activity {
    fn default() -> Self {
        Activity(Arc::new((Instant::now(), AtomicU64::new(0))))
    }
}

impl Activity {
    pub(crate) fn note(&self) {
        self.0.1.store(self.0.0.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until nothing has moved for so long.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.0.1.load(Ordering::Relaxed));
            let idle = self.0.0.elapsed().saturating_sub(last);
            if idle >= limit {
                return;
            }
            tokio::time::sleep(limit - idle).await;
        }
    }
}

/// Reads on when all is said, until the peer hangs up, for as long as it says anything. A slow one still takes what it was sent, and
/// says (in SPDY) that it does; a socket that is closed meanwhile answers with a reset, and what was on its way is lost.
pub(crate) async fn linger(
    reading: impl Future<Output = std::io::Result<()>>,
    activity: &Activity,
) -> std::io::Result<()> {
    linger_for(reading, activity, LINGER, LONGEST).await
}

async fn linger_for(
    reading: impl Future<Output = std::io::Result<()>>,
    activity: &Activity,
    silent: Duration,
    longest: Duration,
) -> std::io::Result<()> {
    // All that was said counts as said now.
    activity.note();
    tokio::select! {
        biased;
        ended = reading => ended,
        () = activity.idle(silent) => Ok(()),
        () = tokio::time::sleep(longest) => Ok(()),
    }
}

/// Sees a peer that has gone while nobody reads from the connection: a duplicate of its socket, only to look at.
#[derive(Debug, Default)]
pub struct Hangup(pub Option<OwnedFd>);

impl Hangup {
    /// Waits until the peer has gone.
    pub(crate) async fn gone(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.0.as_ref().is_some_and(gone) {
                return;
            }
        }
    }
}

fn gone(socket: &OwnedFd) -> bool {
    let mut look = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// Gives a piece to its reader, waiting for room. False: nobody reads it. An error: the peer has gone meanwhile.
pub(crate) async fn deliver(
    pieces: &mpsc::Sender<Piece>,
    piece: Piece,
    hangup: &Hangup,
) -> std::io::Result<bool> {
    tokio::select! {
        biased;
        sent = pieces.send(piece) => Ok(sent.is_ok()),
        () = hangup.gone() => Err(std::io::ErrorKind::ConnectionAborted.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_says_something_is_waited_for_and_a_silent_one_is_not() {
        let activity = Activity::default();
        // Far longer than it ever says nothing, so that a busy machine makes no difference.
        let (silent, longest) = (Duration::from_secs(2), Duration::from_secs(60));
        let slow = async {
            for _ in 0..60 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                activity.note();
            }
            Err(std::io::ErrorKind::UnexpectedEof.into())
        };
        let ended = linger_for(slow, &activity, silent, longest).await;
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof, "to its own end");
        linger_for(std::future::pending(), &activity, silent, longest).await.unwrap();
        let chatty = async {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                activity.note();
            }
        };
        linger_for(chatty, &activity, silent, Duration::from_millis(600)).await.unwrap();
    }
}
