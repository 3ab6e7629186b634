//! The log thread: from the containers' pipes to their log files.
//!
//! One thread for all containers of the pod. It reads what a pipe has, turns it into records and appends whole
//! records with one write. While a file cannot be written (disk full, quota, I/O error) what was read is kept, the
//! container's pipes are left alone, and the write is tried again every [`RETRY`]: output is never dropped, the
//! container waits. The lock of the command queue is held for a push or a swap only.
//!
//! What is read is also copied to whoever watches the container (`attach.rs`); while a watcher has not taken it, the
//! pipes are left alone as well.
//!
//! Limits: one record of 16 KiB pending per stream, one read of [`CHUNK`] bytes unwritten per container.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::attach::{self, Attachments, Ends};
use crate::record::{Splitter, Stamper, now};

/// Bytes read at once: the default size of a pipe.
const CHUNK: usize = 64 << 10;
/// How long a failed write waits for its next try.
const RETRY: Duration = Duration::from_millis(500);
/// How long the end of output is waited for once the container has ended. Its processes are dead by then; only a
/// descriptor that was handed to another container can hold a pipe open.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// Small, since it counts for every pod: the buffers are on the heap.
const STACK: usize = 64 << 10;

/// Names a container to this thread: its slot.
pub type Key = u16;

/// What the control thread asks for.
pub enum Command {
    /// Read these streams from now on.
    Add {
        /// Whose.
        key: Key,
        /// Standard output, or the terminal.
        stdout: OwnedFd,
        /// Standard error.
        stderr: Option<OwnedFd>,
        /// Where to; `None`: read and discard, so that the container never blocks.
        file: Option<OwnedFd>,
    },
    /// Go on in another file; answered.
    Reopen {
        /// Whose.
        key: Key,
        /// The file.
        file: OwnedFd,
    },
    /// The container has ended: read to the end; answered once all is written, or after [`DRAIN_LIMIT`].
    Drain {
        /// Whose.
        key: Key,
    },
    /// Nobody wants the log any more.
    Remove {
        /// Whose.
        key: Key,
    },
    /// Copy the output to these pipes as well; answered.
    Attach {
        /// Whose.
        key: Key,
        /// Names the attachment.
        number: attach::Number,
        /// Where to.
        ends: Ends,
    },
}

/// What the control thread hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The file was exchanged.
    Reopened(Key),
    /// The log is complete.
    Drained(Key),
    /// From here on output is copied.
    Attached(attach::Number),
    /// There are too many attachments already.
    TooMany(attach::Number),
    /// An attachment is over.
    Left(Key, attach::Number),
}

struct Shared {
    commands: Mutex<VecDeque<Command>>,
    done: Mutex<VecDeque<Done>>,
    wake_log: OwnedFd,
    wake_control: OwnedFd,
}

/// The control thread's end.
#[derive(Clone)]
pub struct LogThread(Arc<Shared>);

impl LogThread {
    /// Starts the thread.
    pub fn start() -> io::Result<LogThread> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            commands: Mutex::default(),
            done: Mutex::default(),
            wake_log: eventfd(0, flags)?,
            wake_control: eventfd(0, flags)?,
        });
        let worker = Worker::new(shared.clone())?;
        std::thread::Builder::new().name("log".into()).stack_size(STACK).spawn(move || worker.run())?;
        Ok(LogThread(shared))
    }

    /// Asks for something.
    pub fn send(&self, command: Command) {
        self.0.commands.lock().unwrap_or_else(PoisonError::into_inner).push_back(command);
        let _ = rustix::io::write(&self.0.wake_log, &1u64.to_ne_bytes());
    }

    /// Readable when [`LogThread::take`] has something.
    pub fn wakeup(&self) -> &OwnedFd {
        &self.0.wake_control
    }

    /// All that was answered since.
    pub fn take(&self) -> VecDeque<Done> {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.0.wake_control, &mut count);
        std::mem::take(&mut *self.0.done.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Stream {
    fd: OwnedFd,
    splitter: Splitter,
}

struct Container {
    key: Key,
    streams: [Option<Stream>; 2],
    file: Option<OwnedFd>,
    /// Records that the file has not taken yet.
    unwritten: Vec<u8>,
    drain_until: Option<Instant>,
    /// Its pipes are watched.
    watched: bool,
    /// The end of the drain was told although the log was not complete.
    told: bool,
}

struct Worker {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    containers: Vec<Container>,
    attachments: Attachments,
    stamper: Stamper,
    buffer: Vec<u8>,
}

/// Marks the wake-up descriptor among the events.
const WAKE: u64 = u64::MAX;

impl Worker {
    fn new(shared: Arc<Shared>) -> io::Result<Worker> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.wake_log, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Worker {
            shared,
            epoll,
            containers: Vec::new(),
            attachments: Attachments::default(),
            stamper: Stamper::default(),
            buffer: Vec::new(),
        })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(32);
        loop {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                // Only a broken descriptor table leads here; the control thread goes on without logs.
                Err(_) => return,
            }
            for event in &events {
                match event.data.u64() {
                    WAKE => self.obey(),
                    data if data & attach::MARK != 0 => {
                        self.attachments.happened(&self.epoll, data, event.flags);
                    }
                    data => self.read((data >> 1) as Key, (data & 1) as usize),
                }
            }
            self.let_go();
            self.retry();
            self.finish_drains();
            // Whoever held a container back does so no more.
            if self.let_go() {
                self.retry();
            }
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let stuck = self.containers.iter().any(|container| !container.unwritten.is_empty());
        let draining = self.containers.iter().filter_map(|container| container.drain_until).min();
        let until = draining.into_iter().chain(self.attachments.deadline()).min();
        let until_drain = until.map(|until| until.saturating_duration_since(Instant::now()));
        let wait = match (stuck, until_drain) {
            (true, Some(drain)) => Some(drain.min(RETRY)),
            (true, None) => Some(RETRY),
            (false, drain) => drain,
        };
        wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) })
    }

    fn obey(&mut self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.shared.wake_log, &mut count);
        let commands =
            std::mem::take(&mut *self.shared.commands.lock().unwrap_or_else(PoisonError::into_inner));
        for command in commands {
            match command {
                Command::Add { key, stdout, stderr, file } => self.add(key, stdout, stderr, file),
                Command::Reopen { key, file } => {
                    if let Some(container) = self.containers.iter_mut().find(|container| container.key == key)
                    {
                        container.file = Some(file);
                    }
                    self.answer(Done::Reopened(key));
                }
                Command::Drain { key } => self.drain(key),
                Command::Remove { key } => {
                    self.containers.retain(|container| container.key != key);
                    self.attachments.end(key);
                }
                Command::Attach { key, number, ends } => {
                    let taken = self.attachments.add(&self.epoll, key, number, ends);
                    // One whose container has just ended sees the end at once.
                    if !self.containers.iter().any(|container| container.key == key && !container.told) {
                        self.attachments.end(key);
                    }
                    self.answer(if taken { Done::Attached(number) } else { Done::TooMany(number) });
                }
            }
        }
    }

    fn add(&mut self, key: Key, stdout: OwnedFd, stderr: Option<OwnedFd>, file: Option<OwnedFd>) {
        let stream = |fd, name| Stream { fd, splitter: Splitter::new(name) };
        let streams = [Some(stream(stdout, "stdout")), stderr.map(|fd| stream(fd, "stderr"))];
        for (index, stream) in streams.iter().enumerate() {
            let Some(stream) = stream else { continue };
            let _ = rustix::io::ioctl_fionbio(&stream.fd, true);
            let data = EventData::new_u64(u64::from(key) << 1 | index as u64);
            let _ = epoll::add(&self.epoll, &stream.fd, data, EventFlags::IN);
        }
        self.containers.push(Container {
            key,
            streams,
            file,
            unwritten: Vec::new(),
            drain_until: None,
            watched: true,
            told: false,
        });
    }

    fn drain(&mut self, key: Key) {
        let Some(at) = self.containers.iter().position(|container| container.key == key) else {
            self.answer(Done::Drained(key));
            return;
        };
        self.containers[at].drain_until = Some(Instant::now() + DRAIN_LIMIT);
        for index in 0..2 {
            // What is in the pipe now is read now; the end of the stream usually comes with it.
            while self.may_read(at) && self.read_once(at, index) {}
        }
    }

    /// Whether there is room for more output. Once the container has ended, its watchers wait for what is left and the
    /// log waits for no watcher.
    fn may_read(&self, at: usize) -> bool {
        let container = &self.containers[at];
        container.unwritten.is_empty()
            && (container.drain_until.is_some() || !self.attachments.holds_back(container.key))
    }

    fn read(&mut self, key: Key, index: usize) {
        if let Some(at) = self.containers.iter().position(|container| container.key == key) {
            self.read_once(at, index);
        }
    }

    /// Reads one chunk and writes its records. True if there may be more.
    fn read_once(&mut self, at: usize, index: usize) -> bool {
        if !self.may_read(at) {
            return false;
        }
        let container = &mut self.containers[at];
        let Some(stream) = &mut container.streams[index] else { return false };
        self.buffer.resize(CHUNK, 0);
        let time = now();
        let more = match rustix::io::read(&stream.fd, &mut self.buffer[..]) {
            Ok(0) => false,
            Ok(len) => {
                self.attachments.copy(&self.epoll, container.key, index, &self.buffer[..len]);
                if container.file.is_some() {
                    stream.splitter.feed(
                        &self.buffer[..len],
                        time,
                        &mut self.stamper,
                        &mut container.unwritten,
                    );
                }
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => return false,
            // EIO is how a terminal says that its last user has gone.
            Err(_) => false,
        };
        if !more {
            if container.file.is_some() {
                stream.splitter.finish(time, &mut self.stamper, &mut container.unwritten);
            }
            let _ = epoll::delete(&self.epoll, &stream.fd);
            container.streams[index] = None;
            self.attachments.end_stream(container.key, index);
        }
        container.write();
        if !self.may_read(at) {
            self.watch(at, false);
        }
        more
    }

    /// Stops or resumes reading a container's pipes.
    fn watch(&mut self, at: usize, on: bool) {
        let container = &mut self.containers[at];
        if container.watched == on {
            return;
        }
        container.watched = on;
        for (index, stream) in container.streams.iter().enumerate() {
            let Some(stream) = stream else { continue };
            let data = EventData::new_u64(u64::from(container.key) << 1 | index as u64);
            // A watch without EPOLLIN would still report EPOLLHUP, again and again.
            let _ = if on {
                epoll::add(&self.epoll, &stream.fd, data, EventFlags::IN)
            } else {
                epoll::delete(&self.epoll, &stream.fd)
            };
        }
    }

    fn retry(&mut self) {
        for at in 0..self.containers.len() {
            if self.containers[at].watched {
                continue;
            }
            if !self.containers[at].unwritten.is_empty() {
                self.containers[at].write();
            }
            if self.may_read(at) {
                self.watch(at, true);
                if self.containers[at].drain_until.is_some() {
                    for index in 0..2 {
                        while self.may_read(at) && self.read_once(at, index) {}
                    }
                }
            }
        }
    }

    fn let_go(&mut self) -> bool {
        let left = self.attachments.let_go();
        for (key, number) in &left {
            self.answer(Done::Left(*key, *number));
        }
        !left.is_empty()
    }

    fn finish_drains(&mut self) {
        let mut at = 0;
        while at < self.containers.len() {
            let container = &mut self.containers[at];
            let complete = container.streams.iter().all(Option::is_none) && container.unwritten.is_empty();
            let key = container.key;
            match container.drain_until {
                Some(_) if complete => {
                    self.containers.swap_remove(at);
                    self.attachments.end(key);
                    self.answer(Done::Drained(key));
                    continue;
                }
                // Told already; the disk has taken the rest at last.
                None if container.told && complete => {
                    self.containers.swap_remove(at);
                    continue;
                }
                Some(until) if Instant::now() >= until => self.give_up_waiting(at),
                _ => {}
            }
            at += 1;
        }
    }

    /// Somebody else holds the pipe open, or the disk takes nothing. The exit is safe in its slot and must be told;
    /// what was read goes on being written for as long as nobody removes the container.
    fn give_up_waiting(&mut self, at: usize) {
        let stuck = !self.containers[at].unwritten.is_empty();
        if !stuck {
            self.watch(at, false);
        }
        let container = &mut self.containers[at];
        let time = now();
        for stream in container.streams.iter_mut().filter_map(Option::take) {
            let mut stream = stream;
            stream.splitter.finish(time, &mut self.stamper, &mut container.unwritten);
        }
        container.drain_until = None;
        container.told = true;
        container.write();
        let key = container.key;
        self.attachments.end(key);
        self.answer(Done::Drained(key));
    }

    fn answer(&self, done: Done) {
        self.shared.done.lock().unwrap_or_else(PoisonError::into_inner).push_back(done);
        let _ = rustix::io::write(&self.shared.wake_control, &1u64.to_ne_bytes());
    }
}

impl Container {
    /// Writes what is there to be written; keeps what the file does not take.
    fn write(&mut self) {
        let Some(file) = &self.file else {
            self.unwritten = Vec::new();
            return;
        };
        let mut written = 0;
        while written < self.unwritten.len() {
            match rustix::io::write(file.as_fd(), &self.unwritten[written..]) {
                Ok(len) => written += len,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if written == self.unwritten.len() {
            // Keep a small buffer, give a large one back.
            if self.unwritten.capacity() > CHUNK * 2 {
                self.unwritten = Vec::new();
            } else {
                self.unwritten.clear();
            }
        } else {
            self.unwritten.drain(..written);
        }
    }
}
