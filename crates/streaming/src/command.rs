//! Exec and attach: between the streams of a session and those of a process.
//!
//! ```text
//!   stdin  --> feed ----> pipe or terminal        ends: the pipe is closed, a terminal gets its end-of-file character
//!   resize --> resize --> terminal
//!   stdout <-- drain <--- pipe or terminal        after the process' end what is still there is sent, then the status
//! ```
//!
//! All of it is one future: a client that goes away takes it along, whatever it waits for.

use std::future::pending;
use std::io;

use bowline_model::ContainerId;
use bowline_pods::{AttachCall, ExecCall, Parting, PodError, Pods, chain};
use bytes::Bytes;
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use serde::Deserialize;
use tokio::io::Interest;
use tokio::sync::watch;

use crate::descriptor::Descriptor;
use crate::mux::{Incoming, Outgoing};
use crate::status::Outcome;

/// What is read at once.
const READ: usize = 16 << 10;
/// The most of a message on the resize stream that is kept until the rest comes.
const MAX_RESIZE: usize = 4 << 10;

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    Exec { container: ContainerId, call: ExecCall },
    Attach { container: ContainerId, call: AttachCall, terminal: bool },
}

impl Job {
    /// Which of stdin, stdout and stderr the client was promised, and whether there is a terminal.
    pub(crate) fn wanted(&self) -> ([bool; 3], bool) {
        match self {
            Job::Exec { call, .. } => ([call.stdin, call.stdout, call.stderr], call.terminal),
            Job::Attach { call, terminal, .. } => ([call.stdin, call.stdout, call.stderr], *terminal),
        }
    }
}

/// The client's end.
#[derive(Debug, Default)]
pub(crate) struct ClientStreams {
    pub stdin: Option<Incoming>,
    pub resize: Option<Incoming>,
    pub stdout: Option<Outgoing>,
    pub stderr: Option<Outgoing>,
}

/// Does it, to its end.
pub(crate) async fn serve(pods: &Pods, job: Job, client: ClientStreams) -> Outcome {
    match job {
        Job::Exec { container, call } => match exec(pods, &container, call, client).await {
            Ok(0) => Outcome::Success,
            Ok(code) => Outcome::Code(code),
            Err(error) => Outcome::Failed(format!("error executing command in container: {}", chain(&error))),
        },
        Job::Attach { container, call, .. } => match attach(pods, &container, call, client).await {
            Ok(Parting::Ended) => Outcome::Success,
            Ok(Parting::LeftBehind) => Outcome::Failed(
                "detached: what the container wrote was not read for 10 seconds; attach again".into(),
            ),
            Err(error) => Outcome::Failed(format!("error attaching to container: {}", chain(&error))),
        },
    }
}

fn descriptor(fd: Option<std::os::fd::OwnedFd>, interest: Interest) -> Result<Option<Descriptor>, PodError> {
    let wrapped: io::Result<_> = fd.map(|fd| Descriptor::new(fd, interest)).transpose();
    wrapped.map_err(|error| PodError::failed("take over a stream", error))
}

async fn exec(
    pods: &Pods,
    container: &ContainerId,
    call: ExecCall,
    client: ClientStreams,
) -> Result<i32, PodError> {
    let mut running = pods.exec(container, call).await?;
    let streams = std::mem::take(&mut running.streams);
    let terminal = descriptor(streams.terminal, Interest::READABLE | Interest::WRITABLE)?;
    let stdin = descriptor(streams.stdin, Interest::WRITABLE)?;
    let stdout = descriptor(streams.stdout, Interest::READABLE)?;
    let stderr = descriptor(streams.stderr, Interest::READABLE)?;
    let (tell, over) = watch::channel(false);
    let outputs = async {
        match &terminal {
            Some(terminal) => drain_terminal(terminal, client.stdout, over.clone()).await,
            None => {
                tokio::join!(
                    drain(stdout, client.stdout, over.clone()),
                    drain(stderr, client.stderr, over.clone())
                );
            }
        }
    };
    let ended = async {
        let code = running.exited().await;
        tell.send_replace(true);
        code
    };
    let inputs = async {
        let feed = async {
            let Some(mut incoming) = client.stdin else { return };
            match (&terminal, stdin) {
                (Some(terminal), _) => {
                    if let Some(last) = feed(&mut incoming, terminal).await {
                        end_of_file(terminal, last).await;
                    }
                }
                // Dropping the pipe is the end of the input.
                (None, Some(pipe)) => drop(feed(&mut incoming, &pipe).await),
                (None, None) => {}
            }
        };
        tokio::join!(feed, resize(client.resize, terminal.as_ref()));
        pending::<()>().await;
    };
    tokio::select! {
        (code, ()) = async { tokio::join!(ended, outputs) } => code,
        () = inputs => unreachable_code(),
    }
}

/// The input's future never ends by itself.
fn unreachable_code<T>() -> Result<T, PodError> {
    Err(PodError::failed("go on", "the input ended the session"))
}

async fn attach(
    pods: &Pods,
    container: &ContainerId,
    call: AttachCall,
    client: ClientStreams,
) -> Result<Parting, PodError> {
    let mut attached = pods.attach(container, call).await?;
    let streams = std::mem::take(&mut attached.streams);
    let terminal = descriptor(streams.terminal, Interest::WRITABLE)?;
    let stdin = descriptor(streams.stdin, Interest::WRITABLE)?;
    let stdout = descriptor(streams.stdout, Interest::READABLE)?;
    let stderr = descriptor(streams.stderr, Interest::READABLE)?;
    let closer = attached.input_closer();
    let (tell, over) = watch::channel(false);
    let outputs = async {
        tokio::join!(drain(stdout, client.stdout, over.clone()), drain(stderr, client.stderr, over.clone()));
    };
    let ended = async {
        let parting = attached.parted().await;
        tell.send_replace(true);
        parting
    };
    let inputs = async {
        let feed = async {
            let Some(mut incoming) = client.stdin else { return };
            match (&terminal, stdin) {
                (Some(terminal), _) => {
                    let last = feed(&mut incoming, terminal).await;
                    if let (Some(last), true) = (last, closer.once) {
                        end_of_file(terminal, last).await;
                    }
                }
                (None, Some(pipe)) => {
                    feed(&mut incoming, &pipe).await;
                    drop(pipe);
                    if closer.once {
                        closer.close_stdin().await;
                    }
                }
                // A container without input: what comes is thrown away.
                (None, None) => {}
            }
        };
        tokio::join!(feed, resize(client.resize, terminal.as_ref()));
        pending::<()>().await;
    };
    tokio::select! {
        (parting, ()) = async { tokio::join!(ended, outputs) } => Ok(parting),
        () = inputs => unreachable_code(),
    }
}

/// Sends what a pipe has, until its end or until the process is over and nothing is left. A client that breaks the
/// stream off closes the pipe, as closing a reader does anywhere.
async fn drain(from: Option<Descriptor>, to: Option<Outgoing>, over: watch::Receiver<bool>) {
    let (Some(from), Some(mut to)) = (from, to) else { return };
    let mut buffer = vec![0; READ];
    while let Some(len) = read(&from, &mut buffer, over.clone()).await {
        if to.send(Bytes::copy_from_slice(&buffer[..len])).await.is_err() {
            return;
        }
    }
    let _ = to.end().await;
}

/// The same of a terminal, which is read even if nobody wants it: its user would wait.
async fn drain_terminal(from: &Descriptor, mut to: Option<Outgoing>, over: watch::Receiver<bool>) {
    let mut buffer = vec![0; READ];
    while let Some(len) = read(from, &mut buffer, over.clone()).await {
        if let Some(stream) = &mut to
            && stream.send(Bytes::copy_from_slice(&buffer[..len])).await.is_err()
        {
            to = None;
        }
    }
    if let Some(mut to) = to {
        let _ = to.end().await;
    }
}

async fn read(from: &Descriptor, buffer: &mut [u8], mut over: watch::Receiver<bool>) -> Option<usize> {
    let read = tokio::select! {
        biased;
        // All that the process wrote is there by now; a child of it that still holds the other end is not waited for.
        _ = over.wait_for(|over| *over) => None,
        read = from.read(buffer) => Some(read),
    };
    let len = match read {
        Some(read) => read.ok()?,
        None => from.read_now(buffer).ok()??,
    };
    (len > 0).then_some(len)
}

/// Passes input on. The last byte, if the client ended it in order; whoever takes no more input ends it as well.
async fn feed(from: &mut Incoming, to: &Descriptor) -> Option<u8> {
    let mut last = b'\n';
    loop {
        match from.next().await {
            Ok(Some(bytes)) => {
                last = bytes.last().copied().unwrap_or(last);
                to.write_all(&bytes).await.ok()?;
            }
            Ok(None) => return Some(last),
            Err(_) => return None,
        }
    }
}

/// What Ctrl-D does, where the terminal reads lines: without it whoever reads would wait for ever. In the middle of a
/// line the first one only passes the line on.
async fn end_of_file(terminal: &Descriptor, last: u8) {
    let Ok(settings) = tcgetattr(terminal.fd()) else { return };
    if settings.local_modes.contains(LocalModes::ICANON) {
        let code = settings.special_codes[SpecialCodeIndex::VEOF];
        let times = if last == b'\n' { 1 } else { 2 };
        let _ = terminal.write_all(&vec![code; times]).await;
    }
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// Sizes of the client's terminal, JSON objects one after the other. What is no size ends it.
async fn resize(from: Option<Incoming>, terminal: Option<&Descriptor>) {
    let Some(mut from) = from else { return };
    let mut text: Vec<u8> = Vec::new();
    while let Ok(Some(bytes)) = from.next().await {
        text.extend_from_slice(&bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&text).into_iter::<Size>();
        let mut broken = false;
        for size in &mut sizes {
            match (size, terminal) {
                (Ok(Size { width, height }), Some(terminal)) => {
                    let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
                    let _ = tcsetwinsize(terminal.fd(), size);
                }
                (Ok(_), None) => {}
                (Err(error), _) => broken = !error.is_eof(),
            }
        }
        let used = sizes.byte_offset();
        text.drain(..used);
        if broken || text.len() > MAX_RESIZE {
            return;
        }
    }
}
