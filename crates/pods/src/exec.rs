//! ExecSync: a command in a running container, its output in memory.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bowline_launch_plan::LaunchPlan;
use bowline_model::ContainerId;
use bowline_monitor_proto::{Answer, Exec, Request};
use bowline_plan::ExecRequest;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

use crate::PodError;
use crate::error::doing;
use crate::monitor::{Monitor, MonitorError, sealed};

/// The most output of each stream that is kept; the rest is read and thrown away (CRI: 16 MiB, the kubelet's cap).
const MAX_OUTPUT: usize = 16 << 20;
/// How long a killed command may take to be reaped.
const KILL_LIMIT: Duration = Duration::from_secs(10);

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

/// Runs a command to its end.
pub(crate) async fn exec_sync(
    ticket: Ticket,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput, PodError> {
    let argv = command.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
    let argv = argv.map_err(|_| PodError::Invalid("cmd: an argument has a NUL inside".into()))?;
    let plan = bowline_plan::exec_plan(&ticket.plan, &ExecRequest { argv, ..ExecRequest::default() });
    let plan = plan.map_err(|error| PodError::Invalid(error.to_string()))?;
    let (operation, reply, exited, stdout, stderr) = launch(&ticket, &plan)?;
    // Whoever stops waiting, by a timeout or by going away, leaves no command behind.
    let mut guard = Guard { monitor: ticket.monitor.clone(), operation, armed: true };
    let run = finish(&plan, reply, exited, stdout, stderr);
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

type Pieces = (u64, oneshot::Receiver<(Answer, Vec<OwnedFd>)>, oneshot::Receiver<i32>, OwnedFd, OwnedFd);

fn launch(ticket: &Ticket, plan: &LaunchPlan) -> Result<Pieces, PodError> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (out_read, out_write) = pipe().map_err(doing("open a pipe"))?;
    let (err_read, err_write) = pipe().map_err(doing("open a pipe"))?;
    let memory = sealed(&plan.encode()).map_err(doing("seal the launch plan"))?;
    let exec = Exec { container: *ticket.container.as_bytes(), stdin: false, stdout: true, stderr: true };
    let descriptors = [memory.as_fd(), out_write.as_fd(), err_write.as_fd()];
    let sent = ticket.monitor.exec(Request::Exec { exec }, &descriptors);
    let (operation, reply, exited) = sent.map_err(doing("run the command"))?;
    Ok((operation, reply, exited, out_read, err_read))
}

async fn finish(
    plan: &LaunchPlan,
    reply: oneshot::Receiver<(Answer, Vec<OwnedFd>)>,
    mut exited: oneshot::Receiver<i32>,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<ExecOutput, PodError> {
    let lost = || doing("run the command")(MonitorError::Lost);
    let mut stdout = Capture::new(stdout).map_err(doing("read the command's output"))?;
    let mut stderr = Capture::new(stderr).map_err(doing("read the command's output"))?;
    match reply.await.map_err(|_| lost())?.0 {
        Answer::Launched { .. } => {}
        Answer::Failed { stage, detail, errno, text } => {
            return Err(crate::start::launch_error(plan, stage, detail, errno, &text));
        }
        Answer::Refused {
            why: bowline_monitor_proto::Refusal::NotRunning | bowline_monitor_proto::Refusal::Unknown,
        } => {
            return Err(PodError::State("the container is not running".into()));
        }
        other => return Err(PodError::failed("run the command", format!("the monitor answered {other:?}"))),
    }
    let code = loop {
        tokio::select! {
            code = &mut exited => break code.map_err(|_| lost())?,
            () = stdout.read(), if !stdout.ended => {}
            () = stderr.read(), if !stderr.ended => {}
        }
    };
    // All that the command wrote is in the pipes by now. What a child of it still holds open is not waited for.
    stdout.drain();
    stderr.drain();
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

    /// Waits for something to read, and reads it.
    async fn read(&mut self) {
        match self.pipe.readable().await {
            Ok(()) => self.read_some(),
            Err(_) => self.ended = true,
        }
    }

    /// Reads what is there. Straight from the pipe: the runtime remembers an earlier "nothing there" until its next
    /// look, and would answer from that without asking.
    fn drain(&mut self) {
        let mut chunk = [0u8; 16 << 10];
        while !self.ended {
            match rustix::io::read(&self.pipe, &mut chunk) {
                Ok(0) => self.ended = true,
                Ok(len) => self.keep(&chunk[..len]),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_OUTPUT - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Reads once. An error counts as the end.
    fn read_some(&mut self) {
        let mut chunk = [0u8; 16 << 10];
        match self.pipe.try_read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(len) => self.keep(&chunk[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.ended = true,
        }
    }
}
