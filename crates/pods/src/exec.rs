//! Commands in running containers: with their output in memory (ExecSync), or with their streams in the caller's hands.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bowline_launch_plan::LaunchPlan;
use bowline_model::ContainerId;
use bowline_monitor_proto::{Answer, Exec, Request};
use bowline_plan::ExecRequest;
use rustix::fs::OFlags;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

use crate::PodError;
use crate::error::doing;
use crate::monitor::{Monitor, MonitorError, sealed};

/// The most output of each stream that is kept; the rest is read and thrown away (CRI: 16 MiB, the kubelet's cap).
const MAX_OUTPUT: usize = 16 << 20;
/// How long a killed command may take to be reaped.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long a command whose client is gone may take to notice.
const HANG_UP: Duration = Duration::from_secs(2);

/// What a command left.
#[derive(Debug, Default)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code, or 128 and the number of the signal.
    pub code: i32,
}

/// What it takes to run commands in a container, given out by its pod's actor.
pub(crate) struct Ticket {
    pub container: ContainerId,
    pub plan: Arc<LaunchPlan>,
    pub monitor: Arc<Monitor>,
}

/// A command that is to run beside whoever asked for it.
#[derive(Debug, Clone, Default)]
pub struct ExecCall {
    /// Program and arguments.
    pub command: Vec<String>,
    /// With a terminal: input and output are one.
    pub terminal: bool,
    /// Standard input is wanted.
    pub stdin: bool,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted; there is none with a terminal.
    pub stderr: bool,
}

/// Our ends of a process' streams. Dropping them is what hanging up is.
#[derive(Debug, Default)]
pub struct Streams {
    /// To write its input to.
    pub stdin: Option<OwnedFd>,
    /// To read its output from.
    pub stdout: Option<OwnedFd>,
    /// To read its error output from.
    pub stderr: Option<OwnedFd>,
    /// Instead of all of these: its terminal.
    pub terminal: Option<OwnedFd>,
}

/// A command that runs. Dropped before its end, it has a moment to see that its streams are gone (and the hang-up of
/// its terminal), and is killed.
pub struct Running {
    /// Its streams, to be taken.
    pub streams: Streams,
    monitor: Arc<Monitor>,
    operation: u64,
    exited: Option<oneshot::Receiver<i32>>,
}

impl Running {
    /// Waits for its end: exit code, or 128 and the number of the signal.
    pub async fn exited(&mut self) -> Result<i32, PodError> {
        let lost = || doing("run the command")(MonitorError::Lost);
        let code = self.exited.as_mut().ok_or_else(lost)?.await;
        self.exited = None;
        code.map_err(|_| lost())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(exited) = self.exited.take() else { return };
        let (monitor, operation) = (self.monitor.clone(), self.operation);
        drop(std::mem::take(&mut self.streams));
        tokio::spawn(async move {
            if tokio::time::timeout(HANG_UP, exited).await.is_err() {
                monitor.forget_exec(operation);
                let _ = monitor.call(Request::KillExec { exec: operation }, &[]).await;
            }
        });
    }
}

/// Starts a command.
pub(crate) async fn exec(ticket: Ticket, call: ExecCall) -> Result<Running, PodError> {
    let plan = plan(&ticket, call.command, call.terminal)?;
    let wanted = match call.terminal {
        true => [false; 3],
        false => [call.stdin, call.stdout, call.stderr],
    };
    let (operation, reply, exited, streams) = launch(&ticket, &plan, wanted)?;
    // From here on whoever goes away leaves no command behind.
    let mut running = Running { streams, monitor: ticket.monitor.clone(), operation, exited: Some(exited) };
    match launched(&plan, reply).await {
        Ok(terminal) => running.streams.terminal = terminal,
        Err(error) => {
            running.exited = None;
            ticket.monitor.forget_exec(operation);
            return Err(error);
        }
    }
    Ok(running)
}

/// Runs a command to its end.
pub(crate) async fn exec_sync(
    ticket: Ticket,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput, PodError> {
    let plan = plan(&ticket, command, false)?;
    let (operation, reply, exited, streams) = launch(&ticket, &plan, [false, true, true])?;
    // Whoever stops waiting, by a timeout or by going away, leaves no command behind.
    let mut guard = Guard { monitor: ticket.monitor.clone(), operation, armed: true };
    let run = finish(&plan, reply, exited, streams);
    let result = match timeout {
        None => run.await,
        Some(limit) => match tokio::time::timeout(limit, run).await {
            Ok(result) => result,
            Err(_) => {
                guard.armed = false;
                kill(&ticket.monitor, operation).await;
                return Err(PodError::Deadline(format!(
                    "the command did not end within {limit:?} and was killed"
                )));
            }
        },
    };
    guard.armed = false;
    result
}

fn plan(ticket: &Ticket, command: Vec<String>, terminal: bool) -> Result<LaunchPlan, PodError> {
    let argv = command.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let argv = argv.map_err(|_| PodError::Invalid("cmd: an argument has a NUL inside".into()))?;
    let request = ExecRequest { argv, terminal, ..ExecRequest::default() };
    bowline_plan::exec_plan(&ticket.plan, &request).map_err(|error| PodError::Invalid(error.to_string()))
}

type Reply = oneshot::Receiver<(Answer, Vec<OwnedFd>)>;
type Pieces = (u64, Reply, oneshot::Receiver<i32>, Streams);

/// Asks for the command, with pipes for the wanted of its three streams.
fn launch(ticket: &Ticket, plan: &LaunchPlan, wanted: [bool; 3]) -> Result<Pieces, PodError> {
    let pipe = |wanted: bool| match wanted {
        true => rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map(Some),
        false => Ok(None),
    };
    let pipes = [pipe(wanted[0]), pipe(wanted[1]), pipe(wanted[2])];
    let [stdin, stdout, stderr] = pipes.map(|pipe| pipe.map(Option::unzip).map_err(io::Error::from));
    let (in_read, in_write) = stdin.map_err(doing("open a pipe"))?;
    let (out_read, out_write) = stdout.map_err(doing("open a pipe"))?;
    let (err_read, err_write) = stderr.map_err(doing("open a pipe"))?;
    let memory = sealed(&plan.encode()).map_err(doing("seal the launch plan"))?;
    let [stdin, stdout, stderr] = wanted;
    let exec = Exec { container: *ticket.container.as_bytes(), stdin, stdout, stderr };
    let theirs = [&in_read, &out_write, &err_write].into_iter().flatten();
    let descriptors: Vec<_> = std::iter::once(&memory).chain(theirs).map(|fd| fd.as_fd()).collect();
    let sent = ticket.monitor.exec(Request::Exec { exec }, &descriptors);
    let (operation, reply, exited) = sent.map_err(doing("run the command"))?;
    let streams = Streams { stdin: in_write, stdout: out_read, stderr: err_read, terminal: None };
    Ok((operation, reply, exited, streams))
}

/// Waits until the program runs; its terminal, if it has one.
async fn launched(plan: &LaunchPlan, reply: Reply) -> Result<Option<OwnedFd>, PodError> {
    use bowline_monitor_proto::Refusal;
    let (answer, descriptors) = reply.await.map_err(|_| doing("run the command")(MonitorError::Lost))?;
    match answer {
        Answer::Launched { .. } => Ok(descriptors.into_iter().next()),
        Answer::Failed { stage, detail, errno, text } => {
            Err(crate::start::launch_error(plan, stage, detail, errno, &text))
        }
        Answer::Refused { why: Refusal::NotRunning | Refusal::Unknown } => {
            Err(PodError::State("the container is not running".into()))
        }
        Answer::Refused { why: Refusal::Full } => {
            Err(PodError::Full("the pod has too many commands running in it; try again later".into()))
        }
        other => Err(PodError::failed("run the command", format!("the monitor answered {other:?}"))),
    }
}

async fn finish(
    plan: &LaunchPlan,
    reply: Reply,
    mut exited: oneshot::Receiver<i32>,
    streams: Streams,
) -> Result<ExecOutput, PodError> {
    let lost = || doing("run the command")(MonitorError::Lost);
    let reading = || doing("read the command's output");
    let pipe =
        |pipe: Option<OwnedFd>| pipe.ok_or_else(|| reading()(io::Error::from(io::ErrorKind::NotFound)));
    let (stdout, stderr) = (pipe(streams.stdout)?, pipe(streams.stderr)?);
    for pipe in [&stdout, &stderr] {
        // Of the reading end alone: each end has flags of its own.
        rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK).map_err(|errno| reading()(io::Error::from(errno)))?;
    }
    launched(plan, reply).await?;
    if let Ok(code) = tokio::time::timeout(UNWATCHED, &mut exited).await {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        drain(&stdout, &mut output);
        drain(&stderr, &mut errors);
        return Ok(ExecOutput { stdout: output, stderr: errors, code: code.map_err(|_| lost())? });
    }
    let mut stdout = Capture::new(stdout).map_err(reading())?;
    let mut stderr = Capture::new(stderr).map_err(reading())?;
    let code = loop {
        tokio::select! {
            code = &mut exited => break code.map_err(|_| lost())?,
            () = stdout.read(), if !stdout.ended => {}
            () = stderr.read(), if !stderr.ended => {}
        }
    };
    // All that the command wrote is in the pipes by now. What a child of it still holds open is not waited for. Straight from
    // the pipes: the runtime remembers an earlier "nothing there" until its next look, and would answer from that.
    drain(&stdout.pipe, &mut stdout.bytes);
    drain(&stderr.pipe, &mut stderr.bytes);
    Ok(ExecOutput { stdout: stdout.bytes, stderr: stderr.bytes, code })
}

async fn kill(monitor: &Arc<Monitor>, operation: u64) {
    let killed = monitor.call(Request::KillExec { exec: operation }, &[]);
    let _ = tokio::time::timeout(KILL_LIMIT, killed).await;
    monitor.wait_exec(operation, KILL_LIMIT).await;
}

struct Guard {
    monitor: Arc<Monitor>,
    operation: u64,
    armed: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            let (monitor, operation) = (self.monitor.clone(), self.operation);
            monitor.forget_exec(operation);
            tokio::spawn(async move {
                let _ = monitor.call(Request::KillExec { exec: operation }, &[]).await;
            });
        }
    }
}

/// How long nobody looks at what a command writes. Most have ended by then, and all that they wrote is in the pipes: to be
/// woken at the end of each of its streams, just before it is heard that it has ended, would cost each call a
/// processor's way out of its rest twice. One that writes more than a pipe holds waits so long, once.
const UNWATCHED: Duration = Duration::from_millis(4);

/// Reads what is there now of a pipe that does not block; not what somebody who still holds it open may write for ever.
fn drain(pipe: impl AsFd, bytes: &mut Vec<u8>) {
    let mut chunk = [0u8; 16 << 10];
    let mut left = rustix::io::ioctl_fionread(&pipe).unwrap_or(0);
    while left > 0 {
        match rustix::io::read(&pipe, &mut chunk) {
            Ok(0) => return,
            Ok(len) => {
                left = left.saturating_sub(len as u64);
                keep(bytes, &chunk[..len]);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Takes in as much as a client gets.
fn keep(bytes: &mut Vec<u8>, more: &[u8]) {
    let room = MAX_OUTPUT - bytes.len();
    bytes.extend_from_slice(&more[..more.len().min(room)]);
}

/// One stream, read as it comes.
struct Capture {
    pipe: Receiver,
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    fn new(pipe: OwnedFd) -> io::Result<Capture> {
        Ok(Capture { pipe: Receiver::from_owned_fd(pipe)?, bytes: Vec::new(), ended: false })
    }

    /// Waits for something to read, and reads it once. An error counts as the end.
    async fn read(&mut self) {
        let mut chunk = [0u8; 16 << 10];
        match self.pipe.readable().await.and_then(|()| self.pipe.try_read(&mut chunk)) {
            Ok(0) => self.ended = true,
            Ok(len) => keep(&mut self.bytes, &chunk[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.ended = true,
        }
    }
}
