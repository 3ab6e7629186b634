//! Hooks: programs of the host that run at points of a container's life.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use bowline_model::runtime_spec::{Hook, Hooks};

use crate::process;

/// A hook without a timeout may take for ever.
const UNLIMITED: Option<i64> = None;

/// Refuses, before anything is made, what could not be run later.
pub(crate) fn check(hooks: &Hooks) -> Result<()> {
    for (kind, list) in
        [("createContainer", &hooks.create_container), ("startContainer", &hooks.start_container)]
    {
        if !list.is_empty() {
            bail!("hooks.{kind} is not supported: hooks run in the host's namespaces only");
        }
    }
    let kinds = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ];
    for (kind, list) in kinds {
        for (index, hook) in list.iter().enumerate() {
            let field = format!("hooks.{kind}[{index}]");
            if !hook.path.starts_with('/') {
                bail!("{field}.path: {:?} is not absolute", hook.path);
            }
            if let Some(timeout) = hook.timeout.filter(|timeout| *timeout <= 0) {
                bail!("{field}.timeout: {timeout} is not above 0");
            }
        }
    }
    Ok(())
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
    let limit = hook.timeout.map_or(UNLIMITED, |seconds| Some(i64::from(seconds) * 1000));
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
