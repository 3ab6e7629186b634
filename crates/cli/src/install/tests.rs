use clap::Parser as _;

use super::*;
use crate::args::{ClientArgs, ClientCommand};

/// A folder with programs to install, and one to install below.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        fs::create_dir_all(machine.path("from")).unwrap();
        for name in ["bowline", "bowline-monitor", "bowline-check-helper"] {
            fs::write(machine.path("from").join(name), format!("{name} 1")).unwrap();
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of the machine that is installed.
    fn file(&self, name: &str) -> PathBuf {
        self.path("to").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    fn install(&self, more: &[&str]) -> Done {
        match self.parsed("install", more) {
            ClientCommand::Install(args) => install_from(&self.path("from/bowline"), &args),
            other => panic!("{other:?}"),
        }
    }

    fn uninstall(&self, more: &[&str]) -> Done {
        let ClientCommand::Uninstall(args) = self.parsed("uninstall", more) else { panic!("no uninstall") };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(uninstall("unix:///nowhere", Duration::from_secs(1), &args))
    }

    fn parsed(&self, command: &str, more: &[&str]) -> ClientCommand {
        let to = self.path("to").display().to_string();
        let words = [&["bowline", command, "--root-dir", &to], more].concat();
        ClientArgs::try_parse_from(words).unwrap().command
    }

    fn everything(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("to")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => {
                        found.push(entry.path().strip_prefix(self.path("to")).unwrap().display().to_string())
                    }
                }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn what_is_installed_is_gone_again() {
    use std::os::unix::fs::PermissionsExt as _;
    let machine = Machine::new();
    assert_eq!(machine.install(&["--dry-run"]).unwrap(), 0);
    assert!(machine.everything().is_empty());
    machine.install(&[]).unwrap();
    let expected = [
        "etc/bowline/config.toml",
        "etc/crictl.yaml",
        "usr/local/bin/bowline",
        "usr/local/lib/systemd/system/bowline.service",
        "usr/local/lib/systemd/system/bowline.socket",
        "usr/local/libexec/bowline/bowline-check-helper",
        "usr/local/libexec/bowline/bowline-monitor",
        "usr/local/share/bowline/installed.json",
    ];
    assert_eq!(machine.everything(), expected);
    assert!(
        machine
            .text("usr/local/lib/systemd/system/bowline.service")
            .contains("=/usr/local/bin/bowline serve")
    );
    let mode = fs::metadata(machine.file("usr/local/bin/bowline")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    // The same again changes nothing.
    let before = machine.text("usr/local/share/bowline/installed.json");
    machine.install(&[]).unwrap();
    assert_eq!(machine.text("usr/local/share/bowline/installed.json"), before);
    machine.uninstall(&["--dry-run"]).unwrap();
    assert_eq!(machine.everything(), expected);
    machine.uninstall(&[]).unwrap();
    assert!(machine.everything().is_empty(), "{:?}", machine.everything());
    let again = machine.uninstall(&[]).unwrap_err().text().unwrap();
    assert!(again.contains("installed nothing below /usr/local"), "{again}");
}

#[test]
fn what_somebody_changed_is_kept() {
    let machine = Machine::new();
    machine.install(&[]).unwrap();
    fs::write(machine.file("etc/bowline/config.toml"), "[log]\nlevel = \"debug\"\n").unwrap();
    // A newer version.
    fs::write(machine.path("from/bowline"), "bowline 2").unwrap();
    machine.install(&[]).unwrap();
    assert_eq!(machine.text("usr/local/bin/bowline"), "bowline 2");
    assert!(machine.text("etc/bowline/config.toml").contains("debug"));
    machine.uninstall(&[]).unwrap();
    assert_eq!(machine.everything(), ["etc/bowline/config.toml"]);
    machine.install(&["--force"]).unwrap();
    assert!(!machine.text("etc/bowline/config.toml").contains("debug"));
    fs::write(machine.file("etc/crictl.yaml"), "timeout: 3\n").unwrap();
    machine.uninstall(&["--force"]).unwrap();
    assert!(machine.everything().is_empty());
}

#[test]
fn settings_that_were_there_before_us_are_not_ours() {
    let machine = Machine::new();
    fs::create_dir_all(machine.file("etc")).unwrap();
    fs::write(machine.file("etc/crictl.yaml"), "runtime-endpoint: unix:///run/containerd/containerd.sock\n")
        .unwrap();
    machine.install(&[]).unwrap();
    assert!(machine.text("etc/crictl.yaml").contains("containerd"));
    machine.uninstall(&["--force"]).unwrap();
    assert_eq!(machine.everything(), ["etc/crictl.yaml"]);
}

#[test]
fn a_package_brings_only_what_is_its_own() {
    let machine = Machine::new();
    machine.install(&["--package", "--prefix", "/usr"]).unwrap();
    let files = machine.everything();
    assert!(
        !files.iter().any(|file| file.contains("crictl") || file.contains("installed.json")),
        "{files:?}"
    );
    assert!(machine.text("usr/lib/systemd/system/bowline.service").contains("=/usr/bin/bowline serve"));
}

#[test]
fn errors_say_what_to_try() {
    let machine = Machine::new();
    fs::remove_file(machine.path("from/bowline-monitor")).unwrap();
    let text = machine.install(&[]).unwrap_err().text().unwrap();
    assert!(text.contains("bowline-monitor is not beside") && text.contains("try: "), "{text}");
    let text = machine.install(&["--prefix", "usr"]).unwrap_err().text().unwrap();
    assert!(text.contains("--prefix usr is no absolute path"), "{text}");
    assert!(machine.everything().is_empty());
}
