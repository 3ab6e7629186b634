//! Executing plugins that are not built in.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::Value;

use crate::CniError;
use crate::config::CniConfig;

/// A result or an error.
const STDOUT_MAX: usize = 1024 * 1024;
/// Its end is told when a plugin fails without a word on standard output.
const STDERR_MAX: usize = 64 * 1024;
/// How much of that is told.
const STDERR_TOLD: usize = 1024;
/// What plugins find programs by, should the daemon itself have no PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One run of a plugin.
pub(crate) struct Run<'a> {
    pub(crate) plugin: &'a str,
    pub(crate) command: &'static str,
    pub(crate) sandbox_id: &'a str,
    pub(crate) if_name: &'a str,
    pub(crate) netns: Option<&'a str>,
    pub(crate) args: &'a str,
    pub(crate) stdin: &'a Value,
    pub(crate) timeout: Duration,
}

/// Runs the plugin to its end and gives what it wrote to standard output.
pub(crate) fn run(config: &CniConfig, run: &Run<'_>) -> Result<Vec<u8>, CniError> {
    let path = find(config, run.plugin)?;
    let dirs: Vec<_> = config.bin_dirs.iter().map(|d| d.to_string_lossy()).collect();
    let mut command = Command::new(&path);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()))
        .env("CNI_COMMAND", run.command)
        .env("CNI_PATH", dirs.join(":"))
        .env("CNI_CONTAINERID", run.sandbox_id)
        .env("CNI_IFNAME", run.if_name)
        .env("CNI_NETNS", run.netns.unwrap_or_default())
        .env("CNI_ARGS", run.args)
        .current_dir("/")
        // A group of its own, so that a plugin that is killed takes its helpers along.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(CniError::file("execute plugin", &path))?;
    let stdin = serde_json::to_vec(run.stdin).unwrap_or_default();
    let talk = talk(&mut child, &stdin, run.timeout);
    let ended = match talk {
        Ok(Some(said)) => said,
        other => {
            end(&mut child);
            return match other {
                Err(e) => Err(CniError::file("talk to plugin", &path)(e)),
                _ => Err(CniError::PluginTimeout {
                    plugin: run.plugin.to_owned(),
                    command: run.command,
                    seconds: run.timeout.as_secs(),
                }),
            };
        }
    };
    let status = child.wait().map_err(CniError::file("wait for plugin", &path))?;
    if status.success() {
        return Ok(ended.stdout);
    }
    Err(failure(run, &ended, &status.to_string()))
}

/// The program: a regular, executable file of that name in the first folder that has one.
fn find(config: &CniConfig, plugin: &str) -> Result<PathBuf, CniError> {
    for dir in &config.bin_dirs {
        let path = dir.join(plugin);
        if fs::metadata(&path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0) {
            return Ok(path);
        }
    }
    let dirs: Vec<_> = config.bin_dirs.iter().map(|d| d.display().to_string()).collect();
    Err(CniError::PluginMissing { plugin: plugin.to_owned(), searched: dirs.join(", ") })
}

struct Said {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Feeds and drains the child until it ends. `None`: it did not end in time.
///
/// The end is told by its pidfd, not by its pipes: a daemon that a plugin starts may keep those open for ever.
fn talk(child: &mut Child, stdin: &[u8], timeout: Duration) -> io::Result<Option<Said>> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let (Some(input), Some(mut stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::Error::other("a pipe is missing"));
    };
    fcntl_setfl(&input, fcntl_getfl(&input)? | OFlags::NONBLOCK)?;
    fcntl_setfl(&stdout, fcntl_getfl(&stdout)? | OFlags::NONBLOCK)?;
    fcntl_setfl(&stderr, fcntl_getfl(&stderr)? | OFlags::NONBLOCK)?;
    let mut input = Some(input);
    let (mut out_open, mut err_open, mut written) = (true, true, 0);
    let mut said = Said { stdout: Vec::new(), stderr: Vec::new() };
    let begin = Instant::now();
    loop {
        let Some(left) = timeout.checked_sub(begin.elapsed()) else { return Ok(None) };
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if let Some(input) = &input {
            fds.push(PollFd::new(input, PollFlags::OUT));
        }
        if out_open {
            fds.push(PollFd::new(&stdout, PollFlags::IN));
        }
        if err_open {
            fds.push(PollFd::new(&stderr, PollFlags::IN));
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut fds, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let ended = !fds[0].revents().is_empty();
        drop(fds);
        if let Some(pipe) = &mut input {
            match pipe.write(&stdin[written..]) {
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // A plugin need not read its input.
                Err(_) => written = stdin.len(),
            }
            if written == stdin.len() {
                input = None;
            }
        }
        out_open = out_open && drain(&mut stdout, &mut said.stdout, STDOUT_MAX)?;
        err_open = err_open && drain(&mut stderr, &mut said.stderr, STDERR_MAX)?;
        if ended {
            return Ok(Some(said));
        }
    }
}

/// Reads what there is; what exceeds the limit is thrown away. False: the other end is closed.
fn drain(pipe: &mut impl Read, into: &mut Vec<u8>, max: usize) -> io::Result<bool> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => {
                let room = max.saturating_sub(into.len());
                into.extend_from_slice(&buffer[..n.min(room)]);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn end(child: &mut Child) {
    // Both fail only if it has ended meanwhile.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

fn failure(run: &Run<'_>, said: &Said, status: &str) -> CniError {
    let answer: Option<Value> = serde_json::from_slice(&said.stdout).ok();
    let field = |name: &str| answer.as_ref().and_then(|a| a.get(name));
    let code = field("code").and_then(Value::as_u64).unwrap_or(0);
    let mut message = field("msg").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(details) = field("details").and_then(Value::as_str).filter(|d| !d.is_empty()) {
        message = format!("{message}; {details}");
    }
    if message.is_empty() {
        let tail = &said.stderr[said.stderr.len().saturating_sub(STDERR_TOLD)..];
        message = format!("{status}; {}", String::from_utf8_lossy(tail).trim());
    }
    CniError::PluginFailed { plugin: run.plugin.to_owned(), command: run.command, code, message }
}
