//! A folder with a bundle and a root for states, and the command line.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Set for a process that shall be `bowline oci`.
pub const AS_COMMAND: &str = "BOWLINE_OCI_TEST_AS_COMMAND";

pub struct Place {
    folder: tempfile::TempDir,
}

/// The host's static busybox.
pub fn host_busybox() -> &'static str {
    let places = ["/bin/busybox", "/usr/bin/busybox"];
    places.into_iter().find(|path| Path::new(path).exists()).expect("busybox-static is installed")
}

/// Waits for the end of a process, which is not our child.
pub fn stopped(pid: i64) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
    let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut poll, Some(&limit)).unwrap(), 1, "{pid:?} does not end");
}

/// The folders of this name below the hierarchies that are mounted.
pub fn groups_below(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let roots = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let roots =
        roots.filter(|fields| fields[2].starts_with("cgroup")).map(|fields| Path::new(fields[1]).join(name));
    roots.filter(|path| path.is_dir()).collect()
}

/// A test that fails leaves nothing to the next.
impl Drop for Place {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.path("root")).into_iter().flatten().flatten() {
            let _ = self.command(&["delete", "--force"]).arg(entry.file_name()).status();
        }
    }
}

impl Place {
    pub fn new(name: &str) -> Place {
        let folder = tempfile::Builder::new().prefix(&format!("bowline-oci-{name}-")).tempdir().unwrap();
        let bin = folder.path().join("bundle/rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for empty in ["proc", "dev"] {
            fs::create_dir(folder.path().join("bundle/rootfs").join(empty)).unwrap();
        }
        fs::copy(host_busybox(), bin.join("busybox")).unwrap();
        for name in ["sh", "sleep", "cat", "hostname", "id", "true", "grep"] {
            symlink("busybox", bin.join(name)).unwrap();
        }
        Place { folder }
    }

    pub fn path(&self, below: &str) -> String {
        self.folder.path().join(below).to_str().unwrap().to_owned()
    }

    pub fn bundle_path(&self) -> String {
        self.path("bundle")
    }

    /// Writes config.json: a plain container, changed.
    pub fn bundle(&self, change: impl FnOnce(&mut Value)) {
        let namespaces = ["mount", "pid", "uts", "ipc", "network"].map(|kind| json!({"type": kind}));
        let all = json!(["CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"]);
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/",
                "capabilities": {"bounding": all, "effective": all, "permitted": all},
            },
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            ],
            "annotations": {"a": "b"},
            "linux": {"namespaces": namespaces},
        });
        change(&mut spec);
        fs::write(self.path("bundle/config.json"), spec.to_string()).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(AS_COMMAND, "1").arg("--root").arg(self.path("root")).args(args).stdin(Stdio::null());
        command
    }

    /// Runs to success. Streams are files, since a container keeps them open.
    pub fn ok(&self, args: &[&str]) {
        let (status, stderr) = self.status(args);
        assert!(status == Some(0), "{args:?}: {status:?} {stderr}");
    }

    /// Runs to failure, which is told with these words.
    pub fn fails(&self, args: &[&str], words: &str) {
        let (status, stderr) = self.status(args);
        assert!(status == Some(1) && stderr.contains(words), "{args:?}, {words}: {status:?} {stderr}");
    }

    fn status(&self, args: &[&str]) -> (Option<i32>, String) {
        let path = self.path("stderr");
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(File::create(&path).unwrap());
        let status = command.status().unwrap();
        (status.code(), fs::read_to_string(path).unwrap())
    }

    /// What it prints.
    pub fn output(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.output(&["state", id])).unwrap()
    }

    /// No state, no cgroup, no mount.
    pub fn nothing_left(&self) {
        if let Ok(entries) = fs::read_dir(self.path("root")) {
            let left: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "{left:?}");
        }
        assert_eq!(groups_below("bowline-oci"), Vec::<PathBuf>::new());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.folder.path().to_str().unwrap()), "{mounts}");
    }
}
