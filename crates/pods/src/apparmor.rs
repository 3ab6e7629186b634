//! AppArmor: what the node has of it, the profile of containers that ask for none, and whether one is loaded.
//!
//! Only `apparmor_parser` can compile a profile, so it is executed, once per boot and text. Everything else is files of the
//! kernel. `docs/design/security-modules.md` says who gets which profile.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bowline_oci::NodeFacts;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::PodError;

/// The name of our profile.
pub const DEFAULT_PROFILE: &str = "bowline-default";
/// What no container has to ask for: no profile.
pub(crate) const UNCONFINED: &str = "unconfined";

const PROFILE: &str = include_str!("apparmor/profile");
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const POLICY: &str = "/sys/kernel/security/apparmor";
/// Where the parser is, should the daemon's PATH not name it.
const FOLDERS: [&str; 4] = ["/sbin", "/usr/sbin", "/usr/local/sbin", "/usr/bin"];
/// How long the parser may take; it needs a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of what it says is told.
const SAID: usize = 1024;

/// What the node's owner wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApparmorConfig {
    /// Use it where the kernel has it.
    pub enable: bool,
    /// A profile that is loaded already, instead of ours.
    pub default_profile: Option<String>,
}

impl Default for ApparmorConfig {
    fn default() -> Self {
        ApparmorConfig { enable: true, default_profile: None }
    }
}

/// What this node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApparmorState {
    /// The kernel has none, or it is switched off; with the reason.
    Off(String),
    /// Profiles can be named, but containers that name none have none; with the reason.
    NoDefault(String),
    /// Containers that name none have this profile.
    Default(String),
}

/// AppArmor for the daemon's life.
pub(crate) struct Apparmor {
    config: ApparmorConfig,
    /// Holds the text that we loaded last, and with which the profile need not be loaded again.
    record: PathBuf,
    state: ApparmorState,
    /// One load at a time.
    loading: Mutex<()>,
}

impl Apparmor {
    /// Looks at the node, and loads the default profile unless it is loaded.
    pub(crate) fn set_up(config: &ApparmorConfig, state: &Path) -> Apparmor {
        let mut apparmor = Apparmor {
            config: config.clone(),
            record: state.join("apparmor-default"),
            state: ApparmorState::Off(String::new()),
            loading: Mutex::new(()),
        };
        apparmor.state = match off(config) {
            Some(why) => ApparmorState::Off(why),
            None => match apparmor.find_default() {
                Ok(name) => ApparmorState::Default(name),
                Err(why) => ApparmorState::NoDefault(why),
            },
        };
        match &apparmor.state {
            ApparmorState::Off(why) => tracing::debug!(why, "no AppArmor"),
            ApparmorState::NoDefault(why) => {
                tracing::warn!(why, "containers that name no AppArmor profile have none");
            }
            ApparmorState::Default(profile) => tracing::debug!(profile, "the default AppArmor profile"),
        }
        apparmor
    }

    pub(crate) fn state(&self) -> &ApparmorState {
        &self.state
    }

    /// What specs are made from.
    pub(crate) fn tell(&self, facts: &mut NodeFacts) {
        (facts.apparmor, facts.apparmor_default) = match &self.state {
            ApparmorState::Off(_) => (false, None),
            ApparmorState::NoDefault(_) => (true, None),
            ApparmorState::Default(profile) => (true, Some(profile.clone())),
        };
    }

    fn find_default(&self) -> Result<String, String> {
        let Some(name) = &self.config.default_profile else {
            self.load(true)?;
            return Ok(DEFAULT_PROFILE.to_owned());
        };
        match is_loaded(name) {
            Ok(true) => Ok(name.clone()),
            Ok(false) => Err(format!("apparmor.default_profile: no profile {name} is loaded on this node")),
            Err(why) => Err(why),
        }
    }

    /// Loads our profile; one of the same text that is there already is good enough if `reuse`.
    fn load(&self, reuse: bool) -> Result<(), String> {
        let _turn = self.loading.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let text = text(&own_label());
        let loaded = is_loaded(DEFAULT_PROFILE)?;
        if reuse && loaded && fs::read_to_string(&self.record).is_ok_and(|known| known == text) {
            return Ok(());
        }
        parse(&text)?;
        // Not being able to note it costs the next daemon a fraction of a second.
        if let Err(error) = fs::write(&self.record, &text) {
            tracing::warn!(%error, path = %self.record.display(), "could not note which profile is loaded");
        }
        Ok(())
    }

    /// Makes sure that a container's profile is loaded: the kernel would say so only when its program starts. Our own is
    /// loaded again if somebody has removed it, as tools do that tidy up profiles without a file in /etc/apparmor.d.
    pub(crate) fn require(&self, profile: &str) -> Result<(), PodError> {
        // Stacks of profiles and other policy namespaces are the kernel's to judge.
        let is_composed = profile.starts_with(':') || profile.contains("//&");
        if profile.is_empty() || profile == UNCONFINED || is_composed {
            return Ok(());
        }
        let doing = || format!("find the AppArmor profile {profile}");
        if is_loaded(profile).map_err(|why| PodError::failed(doing(), why))? {
            return Ok(());
        }
        if self.state == ApparmorState::Default(profile.to_owned()) {
            if self.config.default_profile.is_none() {
                tracing::warn!(
                    profile,
                    "somebody has removed the default AppArmor profile; loading it again"
                );
                return self
                    .load(false)
                    .map_err(|why| PodError::failed("load the default AppArmor profile", why));
            }
            return Err(PodError::State(format!(
                "apparmor.default_profile: profile {profile} is no longer loaded on this node; load it with apparmor_parser"
            )));
        }
        Err(PodError::Invalid(format!(
            "security_context.apparmor.localhost_ref: no profile {profile} is loaded on this node; load it with \
             apparmor_parser"
        )))
    }
}

/// Why there is no AppArmor; `None`: there is.
fn off(config: &ApparmorConfig) -> Option<String> {
    if !config.enable {
        return Some("apparmor.enable is false".to_owned());
    }
    let enabled = fs::read_to_string(ENABLED);
    (!enabled.is_ok_and(|text| text.starts_with('Y')))
        .then(|| "the kernel has it not, or not enabled".to_owned())
}

/// What a look at the node finds, for people: nothing is loaded.
pub fn look() -> ApparmorState {
    if let Some(why) = off(&ApparmorConfig::default()) {
        return ApparmorState::Off(why);
    }
    match (is_loaded(DEFAULT_PROFILE), parser()) {
        (Ok(true), _) => ApparmorState::Default(DEFAULT_PROFILE.to_owned()),
        (Err(why), _) | (_, Err(why)) => ApparmorState::NoDefault(why),
        (Ok(false), Ok(_)) => ApparmorState::NoDefault(format!(
            "{DEFAULT_PROFILE} is not loaded; a daemon that starts loads it"
        )),
    }
}

/// Whether a profile of this name is loaded, or why nobody knows.
fn is_loaded(name: &str) -> Result<bool, String> {
    let path = format!("{POLICY}/profiles");
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{path} is not there: mount securityfs on /sys/kernel/security"),
        _ => format!("{path}: {error}"),
    })?;
    Ok(names(&text).any(|loaded| loaded == name))
}

/// The names in the kernel's list, whose lines are `name (mode)`. A name may hold spaces.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.rsplit_once(" (")).map(|(name, _)| name)
}

/// The label of this process; monitors inherit it.
fn own_label() -> String {
    let read = |path| fs::read_to_string(path).ok();
    let label = read("/proc/self/attr/apparmor/current").or_else(|| read("/proc/self/attr/current"));
    let label = label.unwrap_or_default();
    let name = label.trim_end().rsplit_once(" (").map_or(label.trim_end(), |(name, _)| name);
    if name.is_empty() { UNCONFINED.to_owned() } else { name.to_owned() }
}

/// The text of our profile for a daemon of this label.
fn text(daemon: &str) -> String {
    // A label may hold anything but a quote.
    PROFILE
        .replace("@NAME@", DEFAULT_PROFILE)
        .replace("@DAEMON@", &format!("\"{}\"", daemon.replace('"', "")))
}

fn parser() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    let mut programs =
        folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join("apparmor_parser"));
    programs.find(|program| program.is_file()).ok_or_else(|| {
        "there is no apparmor_parser to load a profile with; install the package apparmor and restart the daemon"
            .to_owned()
    })
}

/// Has the kernel take this text, in place of a profile of the same name.
fn parse(text: &str) -> Result<(), String> {
    let program = parser()?;
    let run = || -> io::Result<(Option<ExitStatus>, String)> {
        let mut input = in_memory(c"apparmor profile")?;
        input.write_all(text.as_bytes())?;
        input.rewind()?;
        // Files, since a pipe would have to be drained while we wait.
        let mut said = in_memory(c"apparmor parser")?;
        let mut command = Command::new(&program);
        command.args(["--skip-cache", "--replace"]).env_clear().env("LC_ALL", "C").current_dir("/");
        command.stdin(input).stdout(said.try_clone()?).stderr(said.try_clone()?);
        let mut child = command.spawn()?;
        let status = wait(&mut child, PATIENCE)?;
        said.rewind()?;
        let mut words = Vec::new();
        said.take(SAID as u64).read_to_end(&mut words)?;
        Ok((status, String::from_utf8_lossy(&words).trim().to_owned()))
    };
    let program = program.display();
    match run() {
        Ok((Some(status), _)) if status.success() => Ok(()),
        Ok((Some(status), said)) => Err(format!("{program} failed ({status}): {said}")),
        Ok((None, _)) => Err(format!("{program} did not end within {} s", PATIENCE.as_secs())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

fn in_memory(name: &std::ffi::CStr) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// Waits for the child's end; `None`: it took too long, and was killed.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let begin = Instant::now();
    loop {
        let left = patience.saturating_sub(begin.elapsed());
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)], Some(&time)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_of_profiles() {
        let list =
            "docker-default (enforce)\n/usr/bin/man (complain)\na name (with) spaces (enforce)\nbroken\n";
        let found: Vec<&str> = names(list).collect();
        assert_eq!(found, ["docker-default", "/usr/bin/man", "a name (with) spaces"]);
    }

    #[test]
    fn the_text_has_no_hole() {
        let text = text("snap.bowline \"quoted\"");
        assert!(!text.contains('@'), "{text}");
        assert!(text.contains("profile bowline-default flags"));
        assert!(text.contains("signal (receive) peer=\"snap.bowline quoted\","));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        // Its input stays open.
        let input = child.stdin.take();
        assert_eq!(wait(&mut child, Duration::from_millis(50)).unwrap(), None);
        drop(input);
        let mut child = Command::new("true").spawn().unwrap();
        assert!(wait(&mut child, PATIENCE).unwrap().unwrap().success());
    }
}
