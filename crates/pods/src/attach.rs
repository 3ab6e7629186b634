//! Watching a running container: copies of its output, and access to its input.
//!
//! The copies come through pipes that the pod's monitor writes to (`docs/design/monitor-protocol.md`), so they need
//! nothing of the daemon that started the container. The life line among them tells when the container has ended.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use bowline_model::ContainerId;
use bowline_monitor_proto::{Answer, Attach, Refusal, Request};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe::Receiver;

use crate::PodError;
use crate::error::doing;
use crate::exec::{Streams, Ticket};
use crate::monitor::Monitor;

/// What of a container is to be watched.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttachCall {
    /// Its input is wanted.
    pub stdin: bool,
    /// Its output is wanted.
    pub stdout: bool,
    /// Its error output is wanted.
    pub stderr: bool,
}

/// How watching ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// The container has ended.
    Ended,
    /// What it wrote was not read, and it was not to wait any longer.
    LeftBehind,
}

/// A container that is being watched. Dropping it ends that, and with it the input that is read once.
pub struct Attached {
    /// Its streams, to be taken: `terminal` is for input and size only, its output comes through `stdout`.
    pub streams: Streams,
    once: bool,
    container: ContainerId,
    monitor: Arc<Monitor>,
    life: Receiver,
}

impl Attached {
    /// Waits until there is nothing more to watch.
    pub async fn parted(&mut self) -> Parting {
        loop {
            if self.life.readable().await.is_err() {
                return Parting::Ended;
            }
            match self.life.try_read(&mut [0u8; 8]) {
                Ok(len) if len > 0 => return Parting::LeftBehind,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return Parting::Ended,
            }
        }
    }

    /// What ends the container's input, for use while [`Attached::parted`] is waited for.
    pub fn input_closer(&self) -> InputCloser {
        InputCloser { once: self.once, container: self.container.clone(), monitor: self.monitor.clone() }
    }
}

/// Ends a container's input.
pub struct InputCloser {
    /// It ends with whoever has it first.
    pub once: bool,
    container: ContainerId,
    monitor: Arc<Monitor>,
}

impl InputCloser {
    /// Ends the container's standard input, once our own end of it is closed as well. Nothing with a terminal.
    pub async fn close_stdin(&self) {
        let request = Request::CloseStdin { container: *self.container.as_bytes() };
        // One that is gone has no input either.
        let _ = self.monitor.call(request, &[]).await;
    }
}

/// Begins to watch.
pub(crate) async fn attach(
    ticket: Ticket,
    call: AttachCall,
    once: bool,
    connect: impl FnOnce() -> io::Result<OwnedFd>,
) -> Result<Attached, PodError> {
    let known = ticket.monitor.knows_attach(connect).await;
    if !known.map_err(doing("attach to the container"))? {
        let text = "the pod's monitor is older than attaching; make the pod anew, or use exec";
        return Err(PodError::Unsupported(text.into()));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from).map_err(doing("open a pipe"));
    let wanted = |wanted: bool| if wanted { pipe().map(Some) } else { Ok(None) };
    let (life, life_write) = pipe()?;
    let (stdout, out_write) = wanted(call.stdout)?.unzip();
    let (stderr, err_write) = wanted(call.stderr)?.unzip();
    let AttachCall { stdin, .. } = call;
    let attach = Attach {
        container: *ticket.container.as_bytes(),
        stdin,
        stdout: call.stdout,
        stderr: call.stderr,
        once: stdin && once,
    };
    let theirs = [&out_write, &err_write].into_iter().flatten();
    let descriptors: Vec<_> = std::iter::once(&life_write).chain(theirs).map(|fd| fd.as_fd()).collect();
    let answer = ticket.monitor.call(Request::Attach { attach }, &descriptors).await;
    let (answer, descriptors) = answer.map_err(doing("attach to the container"))?;
    let (mut stdin, mut terminal) = (None, None);
    match answer {
        Answer::Attached { input: false, .. } => {}
        Answer::Attached { terminal: true, .. } => terminal = descriptors.into_iter().next(),
        Answer::Attached { .. } => stdin = descriptors.into_iter().next(),
        Answer::Refused { why: Refusal::NotRunning | Refusal::Unknown } => {
            return Err(PodError::State(format!("container {} is not running", ticket.container)));
        }
        Answer::Refused { why: Refusal::Full } => {
            return Err(PodError::Full(format!("too many are attached to container {}", ticket.container)));
        }
        other => {
            return Err(PodError::failed(
                "attach to the container",
                format!("the monitor answered {other:?}"),
            ));
        }
    }
    let life = Receiver::from_owned_fd(life).map_err(doing("wait for the container"))?;
    let streams = Streams { stdin, stdout, stderr, terminal };
    Ok(Attached { streams, once, container: ticket.container, monitor: ticket.monitor, life })
}
