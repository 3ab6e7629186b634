//! Attachments: copies of a container's output to whoever watches it.
//!
//! Each has a pipe for each stream that it wants, and a life line, a pipe that carries no data: its end tells the
//! daemon that the container has ended, and its loss tells us that the daemon has lost interest.
//!
//! A watcher that reads sets the pace: what its pipe does not take is kept (one read of the log thread per stream),
//! and the container's pipes wait as they wait for a slow disk. One that takes nothing for [`PATIENCE`] is left behind: it
//! finds [`LEFT_BEHIND`] on its life line. So nobody who stops reading stops a container or its log for longer.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::log::Key;

/// The most attachments of one container.
const MAX: usize = 32;
/// How long a watcher may take nothing while there is something.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most that is kept for one stream of a watcher once its container has ended: as much as a pipe can hold unless
/// somebody privileged made it larger.
const MAX_KEPT: usize = 2 << 20;
/// On the life line of a watcher that did not read.
const LEFT_BEHIND: &[u8] = b"!";
/// Marks attachments among the events of the log thread.
pub const MARK: u64 = 1 << 62;

/// Names an attachment.
pub type Number = u32;

/// The pipes of an attachment, our ends.
pub struct Ends {
    /// Its end is ours to tell, its loss the daemon's.
    pub life: OwnedFd,
    /// For standard output (or the terminal's) and standard error.
    pub streams: [Option<OwnedFd>; 2],
}

struct Stream {
    fd: OwnedFd,
    /// What the pipe has not taken yet.
    kept: Vec<u8>,
    /// Since when it takes nothing.
    stuck: Option<Instant>,
}

struct Attachment {
    number: Number,
    key: Key,
    life: OwnedFd,
    streams: [Option<Stream>; 2],
    /// The container has ended: what is kept is the last.
    last: bool,
    /// Nobody is there any more.
    gone: bool,
}

/// All attachments of the pod.
#[derive(Default)]
pub struct Attachments(Vec<Attachment>);

fn mark(number: Number, which: u64) -> EventData {
    EventData::new_u64(MARK | u64::from(number) << 2 | which)
}

impl Attachments {
    /// Takes one in; false if the container has as many as it may have.
    pub fn add(&mut self, epoll: &OwnedFd, key: Key, number: Number, ends: Ends) -> bool {
        if self.0.iter().filter(|known| known.key == key).count() >= MAX {
            return false;
        }
        // Nothing is waited for but the loss of the other end, which the kernel reports unasked.
        let _ = epoll::add(epoll, &ends.life, mark(number, 2), EventFlags::empty());
        let mut streams = ends.streams.map(|fd| fd.map(|fd| Stream { fd, kept: Vec::new(), stuck: None }));
        for (which, stream) in streams.iter_mut().enumerate() {
            let Some(stream) = stream else { continue };
            let _ = rustix::io::ioctl_fionbio(&stream.fd, true);
            let _ = epoll::add(epoll, &stream.fd, mark(number, which as u64), EventFlags::empty());
        }
        self.0.push(Attachment { number, key, life: ends.life, streams, last: false, gone: false });
        true
    }

    /// Passes output on.
    pub fn copy(&mut self, epoll: &OwnedFd, key: Key, index: usize, bytes: &[u8]) {
        for attachment in self.0.iter_mut().filter(|known| known.key == key) {
            attachment.feed(epoll, index, bytes);
        }
    }

    /// A stream of the container has ended; its watchers see the end of theirs.
    pub fn end_stream(&mut self, key: Key, index: usize) {
        for attachment in self.0.iter_mut().filter(|known| known.key == key && !known.last) {
            // With something kept, the end of the container brings it.
            if attachment.streams[index].as_ref().is_some_and(|stream| stream.kept.is_empty()) {
                attachment.streams[index] = None;
            }
        }
    }

    /// Whether a watcher has not taken yet what there is.
    pub fn holds_back(&self, key: Key) -> bool {
        self.0.iter().any(|known| known.key == key && !known.last && known.keeps())
    }

    /// The container has ended, and nothing more will come.
    pub fn end(&mut self, key: Key) {
        for attachment in self.0.iter_mut().filter(|known| known.key == key) {
            attachment.last = true;
        }
    }

    /// Something happened at the other end of a pipe.
    pub fn happened(&mut self, epoll: &OwnedFd, data: u64, flags: EventFlags) {
        let (number, which) = (((data & !MARK) >> 2) as Number, (data & 3) as usize);
        let Some(attachment) = self.0.iter_mut().find(|known| known.number == number) else { return };
        let lost = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        match which {
            0 | 1 if lost => attachment.streams[which] = None,
            0 | 1 => attachment.flush(epoll, which),
            _ => attachment.gone |= lost,
        }
    }

    /// When the patience with somebody ends.
    pub fn deadline(&self) -> Option<Instant> {
        let streams = self.0.iter().flat_map(|known| known.streams.iter().flatten());
        streams.filter_map(|stream| stream.stuck).min().map(|since| since + PATIENCE)
    }

    /// Lets go of those who are through, gone or too slow: (whose, which).
    pub fn let_go(&mut self) -> Vec<(Key, Number)> {
        let mut left = Vec::new();
        if self.0.is_empty() {
            return left;
        }
        let now = Instant::now();
        self.0.retain(|attachment| {
            let slow = attachment.streams.iter().flatten().any(|stream| {
                stream.stuck.is_some_and(|since| now.duration_since(since) >= PATIENCE)
                    || stream.kept.len() > MAX_KEPT
            });
            if slow {
                let _ = rustix::io::write(&attachment.life, LEFT_BEHIND);
            }
            let done = slow || attachment.gone || attachment.last && !attachment.keeps();
            if done {
                left.push((attachment.key, attachment.number));
            }
            !done
        });
        left
    }
}

impl Attachment {
    fn keeps(&self) -> bool {
        self.streams.iter().flatten().any(|stream| !stream.kept.is_empty())
    }

    fn feed(&mut self, epoll: &OwnedFd, index: usize, bytes: &[u8]) {
        let Some(stream) = &mut self.streams[index] else { return };
        let idle = stream.kept.is_empty();
        let taken = if idle { stream.write(bytes) } else { Some(0) };
        let Some(taken) = taken else {
            self.streams[index] = None;
            return;
        };
        stream.kept.extend_from_slice(&bytes[taken..]);
        if idle && !stream.kept.is_empty() {
            stream.stuck = Some(Instant::now());
            let _ = epoll::modify(epoll, &stream.fd, mark(self.number, index as u64), EventFlags::OUT);
        }
    }

    fn flush(&mut self, epoll: &OwnedFd, index: usize) {
        let Some(stream) = &mut self.streams[index] else { return };
        let kept = std::mem::take(&mut stream.kept);
        let Some(taken) = stream.write(&kept) else {
            self.streams[index] = None;
            return;
        };
        if taken < kept.len() {
            stream.kept = kept[taken..].to_vec();
            if taken > 0 {
                stream.stuck = Some(Instant::now());
            }
        } else {
            stream.stuck = None;
            let _ = epoll::modify(epoll, &stream.fd, mark(self.number, index as u64), EventFlags::empty());
        }
    }
}

impl Stream {
    /// How much the pipe took; `None` if nobody reads it any more.
    fn write(&self, bytes: &[u8]) -> Option<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            match rustix::io::write(self.fd.as_fd(), &bytes[taken..]) {
                Ok(len) => taken += len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return None,
            }
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK).unwrap()
    }

    fn read(fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0u8; 1 << 20];
        let len = rustix::io::read(fd, &mut buffer)?;
        buffer.truncate(len);
        Ok(buffer)
    }

    fn one() -> (OwnedFd, Attachments, OwnedFd, OwnedFd) {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let ((life, our_life), (out, our_out)) = (pipe(), pipe());
        let mut all = Attachments::default();
        assert!(all.add(&epoll, 7, 1, Ends { life: our_life, streams: [Some(our_out), None] }));
        (epoll, all, life, out)
    }

    #[test]
    fn output_is_copied_to_those_who_asked_for_it() {
        let (epoll, mut all, life, out) = one();
        all.copy(&epoll, 7, 0, b"hello");
        all.copy(&epoll, 7, 1, b"not wanted");
        all.copy(&epoll, 8, 0, b"somebody else's");
        assert_eq!(read(&out).unwrap(), b"hello");
        all.end(7);
        assert_eq!(all.let_go(), [(7, 1)]);
        assert_eq!(read(&out).unwrap(), b"", "the end");
        assert_eq!(read(&life).unwrap(), b"", "the end of the container");
    }

    #[test]
    fn what_a_pipe_does_not_take_is_kept_and_holds_the_container_back() {
        let (epoll, mut all, _life, out) = one();
        let much = vec![b'x'; 100_000];
        all.copy(&epoll, 7, 0, &much);
        assert!(all.holds_back(7) && !all.holds_back(8));
        assert!(all.deadline().is_some());
        let mut got = read(&out).unwrap().len();
        all.happened(&epoll, MARK | 1 << 2, EventFlags::OUT);
        assert!(!all.holds_back(7) && all.deadline().is_none());
        got += read(&out).unwrap().len();
        assert_eq!(got, much.len());
    }

    #[test]
    fn the_last_output_is_delivered_after_the_end() {
        let (epoll, mut all, _life, out) = one();
        all.copy(&epoll, 7, 0, &vec![b'x'; 100_000]);
        all.end(7);
        assert!(!all.holds_back(7), "the log is not held up by a watcher once the container has ended");
        assert_eq!(all.let_go(), []);
        read(&out).unwrap();
        all.happened(&epoll, MARK | 1 << 2, EventFlags::OUT);
        assert_eq!(all.let_go(), [(7, 1)]);
    }

    #[test]
    fn a_watcher_that_went_away_is_let_go() {
        let (epoll, mut all, life, out) = one();
        drop((life, out));
        all.happened(&epoll, MARK | 1 << 2 | 2, EventFlags::ERR);
        assert_eq!(all.let_go(), [(7, 1)]);
    }

    #[test]
    fn there_is_a_limit() {
        let (epoll, mut all, _life, _out) = one();
        let mut ends = Vec::new();
        let mut add = |all: &mut Attachments, number| {
            let (other, life) = pipe();
            ends.push(other);
            all.add(&epoll, 7, number, Ends { life, streams: [None, None] })
        };
        assert!((2..=MAX as u32).all(|number| add(&mut all, number)));
        assert!(!add(&mut all, 99));
    }
}
