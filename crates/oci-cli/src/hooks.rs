//! Hooks: programs that run at points of a container's life (docs/design/hooks.md).

use std::ffi::CString;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use bowline_launch_plan::HookPrograms;
use bowline_model::runtime_spec::{Hook, Hooks};
use bowline_plan::hook_programs;

use crate::process;
use crate::store::{Record, Status};

/// A hook without a timeout may take for ever.
const UNLIMITED: u32 = 0;

/// What hooks that run in the container need, beside those of the host.
pub(crate) struct OnTheWay {
    programs: HookPrograms,
    bundle: CString,
    gate: OwnedFd,
    opener: OwnedFd,
    /// For createContainer and startContainer hooks.
    states: [File; 2],
}

impl OnTheWay {
    /// `None` without hooks that come before the program.
    pub(crate) fn new(hooks: Option<&Hooks>, bundle: &Path) -> Result<Option<OnTheWay>> {
        let Some(hooks) = hooks.filter(|hooks| hooks.come_before_the_program()) else { return Ok(None) };
        let (gate, opener) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Some(OnTheWay {
            programs: hook_programs(hooks, UNLIMITED)?,
            bundle: CString::new(bundle.as_os_str().as_bytes())?,
            gate,
            opener,
            states: [stdin(b"")?, stdin(b"")?],
        }))
    }

    /// For the launcher. Our stderr is theirs.
    pub(crate) fn hooks(&self) -> bowline_launch::Hooks<'_> {
        bowline_launch::Hooks {
            programs: &self.programs,
            surroundings: None,
            bundle: &self.bundle,
            gate: self.gate.as_fd(),
            create_state: self.states[0].as_fd(),
            start_state: self.states[1].as_fd(),
            output: rustix::stdio::stderr(),
        }
    }

    /// While the process waits: tells the container's hooks of it, runs those of the host, and lets it go on.
    pub(crate) fn pass(&mut self, record: &Record) -> Result<()> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", record.process.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let inside = line.and_then(|line| line.split_whitespace().last()).and_then(|pid| pid.parse().ok());
        let inside: i32 = inside.context("the process has no number in its container")?;
        for (file, status) in self.states.iter_mut().zip([Status::Creating, Status::Created]) {
            let mut state = record.state(status);
            state.pid = Some(inside);
            file.write_all(&serde_json::to_vec(&state)?)?;
        }
        let state = record.state_json(Status::Creating)?;
        run("prestart", &record.hooks.prestart, &record.bundle, &state)?;
        run("createRuntime", &record.hooks.create_runtime, &record.bundle, &state)?;
        rustix::io::write(&self.opener, b"1").context("let the process go on")?;
        Ok(())
    }
}

/// Runs hooks one after the other, up to the first that fails.
pub(crate) fn run(kind: &str, hooks: &[Hook], bundle: &Path, state: &[u8]) -> Result<()> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, bundle, state).with_context(|| format!("hooks.{kind}[{index}] ({})", hook.path))?;
    }
    Ok(())
}

/// As [`run`], where a failure stops nothing: it is told, and the next one has its turn.
pub(crate) fn run_all(kind: &str, hooks: &[Hook], bundle: &Path, state: &[u8]) {
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(error) = run_one(hook, bundle, state) {
            eprintln!("bowline oci: warning: hooks.{kind}[{index}] ({}): {error:#}", hook.path);
        }
    }
}

fn run_one(hook: &Hook, bundle: &Path, state: &[u8]) -> Result<()> {
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for line in &hook.env {
        let (name, value) = line.split_once('=').with_context(|| format!("env {line:?} has no ="))?;
        command.env(name, value);
    }
    // Our stdout is data for the caller; and a container's, which a hook must not write to.
    command.stdin(stdin(state)?).stdout(Stdio::from(rustix::stdio::stderr().try_clone_to_owned()?));
    command.current_dir(bundle);
    let mut child = command.spawn().context("could not be run")?;
    let limit = hook.timeout.map(|seconds| i64::from(seconds) * 1000);
    wait(&mut child, limit)
}

/// A file in memory, not a pipe: a hook that does not read its input must not hold us up.
fn stdin(state: &[u8]) -> Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("state", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(state)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn wait(child: &mut Child, limit: Option<i64>) -> Result<()> {
    let pidfd = process::open(i32::try_from(child.id())?)?.context("has no process")?;
    if !process::ended(&pidfd, limit)? {
        child.kill().context("could not be killed")?;
        child.wait()?;
        bail!("was killed after {} s, its timeout", limit.unwrap_or_default() / 1000);
    }
    let status = child.wait()?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => bail!("ended with exit code {code}"),
        (None, signal) => bail!("was ended by signal {}", signal.unwrap_or_default()),
    }
}
