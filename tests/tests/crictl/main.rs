//! Every command and every flag of crictl does its work, with the real crictl where it is installed.
//!
//! crictl itself says what it offers: at the end each command and flag of its help must have been used, but those of
//! [`EXCUSED`].
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use bowline_testkit::{AuthMode, ImageBuilder, Layer, Registry};
use bowline_tests::{Daemon, Inventory, wait_for};

mod containers;
mod images;
mod own;
mod pods;
mod streams;

const LIMIT: Duration = Duration::from_secs(30);

/// Flags that cannot work here, with the reason.
const EXCUSED: &[(&str, &str, &str)] = &[
    ("update", "--cpu-count", "Windows only"),
    ("update", "--cpu-maximum", "Windows only"),
    ("create", "--username", "asks as `pull --username` does, in the same function"),
    ("run", "--username", "asks as `pull --username` does, in the same function"),
];

/// What the tests share: a daemon, a registry that wants a password, and crictl.
struct Crictl {
    daemon: Daemon,
    locked: Registry,
    used: Used,
}

/// Command -> the flags that were given to it.
type Used = Rc<RefCell<BTreeMap<String, BTreeSet<String>>>>;

impl Crictl {
    fn new(daemon: Daemon, used: Used) -> Crictl {
        let auth = AuthMode::Basic { user: "anna".into(), password: "secret".into() };
        let locked = Registry::builder().auth(auth).start();
        let busybox = bowline_testkit::busybox().expect("a static busybox is installed");
        daemon.registry.push("busybox", "1", &busybox.build());
        let other = ImageBuilder::new().layer(Layer::new().file("f", 0o644, "f"));
        daemon.registry.push("other", "1", &other.build());
        locked.push("locked", "1", &busybox.env(&["LOCKED=yes"]).build());
        let crictl = Crictl { daemon, locked, used };
        let config = format!("runtime-endpoint: {}\ntimeout: 20\n", crictl.daemon.endpoint());
        crictl.write("crictl.yaml", &config);
        crictl
    }

    /// A command, with what it uses noted. `globals` come before the command.
    fn command(&self, globals: &[&str], args: &[&str]) -> Command {
        let mut used = self.used.borrow_mut();
        used.entry(String::new()).or_default().extend(globals.iter().filter_map(|word| flag(word)));
        let name = args.first().copied().unwrap_or_default();
        let end = args.iter().position(|word| *word == "--").unwrap_or(args.len());
        used.entry(name.to_owned()).or_default().extend(args[..end].iter().filter_map(|word| flag(word)));
        let mut command = Command::new("crictl");
        command.args(["--config", &self.file("crictl.yaml")]).args(globals).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Runs it; what it wrote to stdout.
    fn ok(&self, args: &[&str]) -> String {
        self.ok_with(&[], args)
    }

    fn ok_with(&self, globals: &[&str], args: &[&str]) -> String {
        let output = self.command(globals, args).output().expect("start crictl");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "crictl {args:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs it, and expects words in its output.
    fn says(&self, args: &[&str], words: &[&str]) -> String {
        let output = self.ok(args);
        for word in words {
            assert!(output.contains(word), "crictl {args:?} does not say `{word}`: {output}");
        }
        output
    }

    /// Runs it, and expects lines of ids, in any order.
    fn ids(&self, args: &[&str], ids: &[&str]) {
        let output = self.ok(args);
        let got: BTreeSet<_> = output.lines().collect();
        assert_eq!(got, ids.iter().copied().collect(), "crictl {args:?}");
    }

    /// Runs it; it must fail and name something.
    fn fails(&self, args: &[&str], word: &str) {
        let output = self.command(&[], args).output().expect("start crictl");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success(),
            "crictl {args:?} works: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(said.contains(word), "crictl {args:?} does not say `{word}`: {said}");
    }

    /// The id that a command prints.
    fn id(&self, args: &[&str]) -> String {
        let output = self.ok(args);
        let id = output.lines().last().unwrap_or_default().trim().to_owned();
        assert_eq!(id.len(), 64, "crictl {args:?}: {output}");
        id
    }

    /// Starts it with its output in a file, until the file has all these words; then ends it. `meanwhile` is done again
    /// and again: nobody outside knows when crictl has begun to listen.
    fn watch(&self, args: &[&str], words: &[&str], mut meanwhile: impl FnMut()) {
        let file = self.path("watched");
        let out = fs::File::create(&file).unwrap();
        let child =
            self.command(&[], args).stdout(out).stderr(Stdio::inherit()).spawn().expect("start crictl");
        let mut child = Ending(child);
        wait_for(&format!("crictl {args:?} says {words:?}"), LIMIT, || {
            meanwhile();
            let text = text(&file);
            words.iter().all(|word| text.contains(word))
        });
        child.end();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.folder().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file, and says where.
    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.file(name)
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.daemon.registry.host())
    }

    /// A pod's configuration.
    fn pod(&self, name: &str) -> String {
        let logs = self.file("logs");
        let text = format!(
            r#"{{"metadata": {{"name": "{name}", "uid": "{name}-uid", "namespace": "crictl"}},
                "labels": {{"app": "{name}"}}, "log_directory": "{logs}", "linux": {{}}}}"#
        );
        self.write(&format!("{name}.pod.json"), &text)
    }

    /// A container's configuration, with the kubelet's labels: crictl knows pods by them.
    fn container(&self, name: &str, image: &str, script: &str, more: &str) -> String {
        let text = format!(
            r#"{{"metadata": {{"name": "{name}"}}, "image": {{"image": "{image}"}},
                "labels": {{"role": "{name}", "io.kubernetes.pod.name": "main",
                            "io.kubernetes.pod.namespace": "crictl"}}, "command": ["/bin/sh", "-c", "{script}"],
                "log_path": "{name}.log"{more}}}"#
        );
        self.write(&format!("{name}.container.json"), &text)
    }

    /// Every command and flag of crictl's help was used.
    fn all_used(&self) {
        let used = self.used.borrow();
        let mut missing = Vec::new();
        let top = self.help(&[]);
        let commands =
            section(&top, "COMMANDS:").map(|line| words(line).next().unwrap_or_default().to_owned());
        let commands: Vec<_> = commands.filter(|name| name != "help").collect();
        assert!(commands.len() >= 30, "{top}");
        for name in std::iter::once(String::new()).chain(commands) {
            let (text, title) = if name.is_empty() {
                (top.clone(), "GLOBAL OPTIONS:")
            } else {
                (self.help(&[&name]), "OPTIONS:")
            };
            let Some(flags) = used.get(&name) else {
                missing.push(format!("command {name}"));
                continue;
            };
            for line in section(&text, title).filter(|line| line.starts_with('-')) {
                let names: Vec<_> = words(line).filter(|word| word.starts_with('-')).collect();
                let known = names.iter().any(|flag| {
                    matches!(*flag, "--help" | "--version")
                        || flags.contains(*flag)
                        || EXCUSED.iter().any(|(command, excused, _)| *command == name && excused == flag)
                });
                if !known {
                    missing.push(format!("{name} {}", names.join(" ")));
                }
            }
        }
        assert!(missing.is_empty(), "not tried: {missing:#?}");
    }

    fn help(&self, args: &[&str]) -> String {
        let output = Command::new("crictl").args(args).arg("--help").output().expect("start crictl");
        String::from_utf8(output.stdout).expect("text")
    }
}

/// A word without its value, if it is a flag.
fn flag(word: &str) -> Option<String> {
    let name = word.split('=').next().unwrap_or_default();
    (name.len() > 1 && name.starts_with('-') && !name[1..].starts_with(char::is_numeric))
        .then(|| name.to_owned())
}

/// The names at the beginning of a line of help: `--all, -a  What it does`.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split("  ").next().unwrap_or_default().split([',', ' ']).filter(|word| !word.is_empty())
}

/// The lines of a section of help, up to the next title, trimmed.
fn section<'a>(text: &'a str, title: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines()
        .skip_while(move |line| *line != title)
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .map(str::trim)
        .filter(|line| !line.is_empty())
}

/// A process that does not outlive its owner.
struct Ending(Child);

impl Ending {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.end();
    }
}

/// A terminal of so many rows and columns: the master, and the end for a child's stdin.
fn terminal(rows: u16, columns: u16) -> (OwnedFd, OwnedFd) {
    use rustix::pty;
    let master = pty::openpt(pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY).unwrap();
    pty::grantpt(&master).unwrap();
    pty::unlockpt(&master).unwrap();
    let name = pty::ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size).unwrap();
    (master, slave)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn every_command_and_flag() {
    if Command::new("crictl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no crictl on PATH");
        return;
    }
    let crictl = Crictl::new(Daemon::start(), Used::default());
    let clean = Inventory::take(crictl.daemon.folder());
    own::globals(&crictl);
    own::information(&crictl);
    images::pull(&crictl);
    images::look(&crictl);
    pods::lifecycle(&crictl);
    containers::make(&crictl);
    containers::lists(&crictl);
    containers::change(&crictl);
    containers::logs(&crictl);
    streams::exec(&crictl);
    streams::attach(&crictl);
    streams::port_forward(&crictl);
    pods::observe(&crictl);
    containers::end(&crictl);
    pods::end(&crictl);
    images::remove(&crictl);
    clean.wait_equal(crictl.daemon.folder());
    streams::over_tls(&crictl);
    crictl.all_used();
}
