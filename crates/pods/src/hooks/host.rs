//! Hooks that run on the host: prestart, createRuntime, poststart, poststop.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use bowline_launch::HookEnd;
use bowline_linux::clone::Cloned;
use bowline_linux::exec::StringArray;
use bowline_linux::spawn;
use bowline_model::runtime_spec::Hook;
use bowline_plan::hook_program;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use super::{LIMIT, Tail, named};
use crate::PodError;

/// Where hooks of a container run.
pub(super) struct Place<'a> {
    /// Their working directory.
    pub bundle: &'a Path,
    /// The cgroup that they are born in.
    pub group: Option<&'a OwnedFd>,
}

impl Place<'_> {
    /// Runs the hooks of a kind up to the first that fails.
    pub(super) fn run(&self, kind: &str, hooks: &[Hook], state: &[u8]) -> Result<(), PodError> {
        hooks.iter().enumerate().try_for_each(|(index, hook)| self.one(kind, index, hook, state))
    }

    /// Runs all, and tells of those that fail.
    pub(super) fn run_all(&self, kind: &str, hooks: &[Hook], state: &[u8], container: &str) {
        for (index, hook) in hooks.iter().enumerate() {
            if let Err(error) = self.one(kind, index, hook, state) {
                tracing::warn!(container, error = %crate::chain(&error), "a {kind} hook failed");
            }
        }
    }

    /// Blocks until the hook has ended; it dies with this thread.
    fn one(&self, kind: &str, index: usize, hook: &Hook, state: &[u8]) -> Result<(), PodError> {
        let mut said = Tail::default();
        match self.run_one(&format!("hooks.{kind}[{index}]"), hook, state, &mut said) {
            Ok(None) => Ok(()),
            Ok(Some(end)) => Err(named(kind, index, &hook.path, end, &said)),
            Err(error) => {
                let end = HookEnd::NotRun(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()));
                Err(named(kind, index, &hook.path, end, &said))
            }
        }
    }

    fn run_one(
        &self,
        field: &str,
        hook: &Hook,
        state: &[u8],
        said: &mut Tail,
    ) -> io::Result<Option<HookEnd>> {
        let program = hook_program(field, hook, LIMIT).map_err(io::Error::other)?;
        let folder = CString::new(self.bundle.as_os_str().as_bytes())?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        let stdin = state_file(state)?;
        let process = spawn::spawn(&spawn::Program {
            path: &program.path,
            argv: &StringArray::new(program.argv.clone()),
            envp: &StringArray::new(program.envp.clone()),
            stdin: stdin.as_fd(),
            output: write.as_fd(),
            cgroup: self.group.map(|group| group.as_fd()),
            folder: &folder,
            tied: true,
        })?;
        drop(write);
        let in_time = watch(&process, &read, Duration::from_secs(program.limit.into()), said);
        if !matches!(in_time, Ok(true)) {
            let _ = rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL);
        }
        let end = reap(&process);
        said.take(&read);
        Ok(if in_time? { end? } else { Some(HookEnd::TimedOut) })
    }
}

/// A file in memory, not a pipe: a hook that does not read its input holds nobody up.
pub(super) fn state_file(state: &[u8]) -> io::Result<File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("hook-state", flags)?);
    file.write_all(state)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Reads what the process says until it has ended; false once its time is over.
fn watch(process: &Cloned, output: &OwnedFd, limit: Duration, said: &mut Tail) -> io::Result<bool> {
    let until = Instant::now() + limit;
    let mut open = true;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let end = PollFd::new(&process.pidfd, PollFlags::IN);
        let mut all = [end, PollFd::new(output, PollFlags::IN)];
        // One that has closed its output would be ready for ever.
        let asked = if open { &mut all[..] } else { &mut all[..1] };
        match poll(asked, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !all[0].revents().is_empty() {
            return Ok(true);
        }
        if open && !all[1].revents().is_empty() {
            open = said.take(output);
        }
    }
}

fn reap(process: &Cloned) -> io::Result<Option<HookEnd>> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(0), _) => None,
                    (Some(code), _) => Some(HookEnd::Code(code)),
                    (None, signal) => Some(HookEnd::Signal(signal.unwrap_or_default())),
                });
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout: Option<i32>) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let hook = Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["COLOUR=green".into()],
            timeout,
        };
        let place = Place { bundle: folder.path(), group: None };
        place.run("createRuntime", &[hook], b"{\"id\":\"x\"}").map_err(|error| crate::chain(&error))
    }

    #[test]
    fn a_hook_gets_the_state_its_environment_and_the_bundle() {
        run("test \"$(cat)\" = '{\"id\":\"x\"}' && test $COLOUR = green && test -z \"$HOME\"", None).unwrap();
        run("test \"$(ls /proc/self/fd | wc -l)\" = 4", None).unwrap();
        let error = run("echo one; echo two >&2; exit 3", None).unwrap_err();
        let wanted = "hooks.createRuntime[0] (/bin/sh): it ended with exit code 3; it wrote: one\ntwo";
        assert!(error.contains(wanted), "{error}");
    }

    #[test]
    fn the_end_of_what_a_hook_says_is_kept() {
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; exit 1";
        let error = run(script, None).unwrap_err();
        assert!(error.ends_with("line 20000") && error.len() < 5000, "{error}");
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let error = run("exec 1>&- 2>&-; sleep 1000", Some(1)).unwrap_err();
        assert!(error.contains("killed at the end of its time"), "{error}");
    }

    #[test]
    fn one_who_leaves_somebody_behind_has_ended() {
        run("sleep 5 & exit 0", Some(4)).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let hook = Hook { path: "/no/such/hook".into(), ..Hook::default() };
        let place = Place { bundle: folder.path(), group: None };
        let error = crate::chain(&place.run("prestart", &[hook], b"").unwrap_err());
        assert!(error.contains("hooks.prestart[0] (/no/such/hook): it could not be run"), "{error}");
    }
}
