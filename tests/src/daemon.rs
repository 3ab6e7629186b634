//! A `bowline serve` of a test's own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bowline_testkit::Registry;

use crate::limit::Limit;
use crate::wait_for;

/// The folder with `bowline` and `bowline-monitor`: `BOWLINE_PROGRAMS`, else where cargo puts programs.
pub fn programs() -> PathBuf {
    if let Some(folder) = std::env::var_os("BOWLINE_PROGRAMS") {
        return folder.into();
    }
    let own = std::env::current_exe().expect("a program knows its own path");
    let folder = own
        .ancestors()
        .find(|folder| folder.join("bowline").is_file() && folder.join("bowline-monitor").is_file());
    folder.expect("build the programs first: cargo xtask build").to_owned()
}

/// A program of the package `bowline-tests`: beside the others, or where cargo puts it.
pub fn own_program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a program knows its own path");
    let mut folders = std::iter::once(programs()).chain(own.ancestors().map(Path::to_owned));
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()));
    found.unwrap_or_else(|| panic!("build {name} first: cargo build -p bowline-tests --bins"))
}

/// A program of ours in Go, built from the folder `tests/<name>` in one of the user's cache. `None` without `go`.
pub fn go_program(name: &str) -> Option<PathBuf> {
    if Command::new("go").arg("version").output().is_err() {
        println!("SKIPPED: there is no `go` on PATH, so {name} is left out");
        return None;
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(Into::into);
    let home = || std::env::home_dir().map(|home| home.join(".cache"));
    let folder: PathBuf = cache.or_else(home).unwrap_or_else(std::env::temp_dir);
    let folder = folder.join("bowline-tests").join(name);
    fs::create_dir_all(&folder).expect("make a folder to build in");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    for file in ["main.go", "go.mod", "go.sum"] {
        fs::copy(source.join(file), folder.join(file)).expect("copy the sources");
    }
    let built = Command::new("go").args(["build", "-o", name, "."]).current_dir(&folder).output();
    let built = built.expect("run go");
    assert!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
    Some(folder.join(name))
}

/// A daemon with everything of its own.
pub struct Daemon {
    folder: tempfile::TempDir,
    /// A command line that runs what is appended to it; empty for none.
    wrapper: Vec<String>,
    child: Option<Child>,
    /// Where images come from.
    pub registry: Registry,
    started: u32,
    limit: Limit,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Daemon {
    /// Starts a daemon and waits until it serves.
    pub fn start() -> Daemon {
        Daemon::start_with("")
    }

    /// The same, with more lines of configuration.
    pub fn start_with(more: &str) -> Daemon {
        let mut daemon = Daemon::prepared(more, &[]);
        daemon.restart();
        daemon
    }

    /// The same, not started yet, and to be started by `wrapper`: a command line that takes another one.
    pub fn prepared(more: &str, wrapper: &[String]) -> Daemon {
        crate::adopt_orphans();
        let folder =
            tempfile::Builder::new().prefix("bowline-test-").tempdir().expect("a folder for the daemon");
        let number = free_subnet();
        let root = folder.path().display();
        let config = format!(
            "root = \"{root}/root\"\nstate = \"{root}/state\"\nlisten = \"unix://{root}/state/bowline.sock\"\n{more}\n\
             [cni]\nconf_dirs = [\"{root}/net.d\"]\n\
             [default_network]\nenable = true\nsubnet = \"10.232.{number}.0/24\"\nbridge = \"bwt{:x}\"\ndata_dir = \"{root}/networks\"\n",
            (std::process::id() << 8 | number) & 0xff_ffff,
        );
        fs::write(folder.path().join("config.toml"), config).expect("write the configuration");
        let limit = Limit::start(std::thread::current().name().unwrap_or("a test").to_owned());
        let (wrapper, registry) = (wrapper.to_vec(), Registry::start());
        Daemon { folder, wrapper, child: None, registry, started: 0, limit }
    }

    /// Lets the daemon live as long as its user wants: for programs that are not tests.
    pub fn without_limit(self) -> Daemon {
        self.limit.lift();
        self
    }

    /// Starts the daemon (again) and waits until it serves.
    pub fn restart(&mut self) {
        self.try_restart().expect("the daemon serves");
    }

    /// The command line of the daemon.
    pub fn command(&self) -> Command {
        let program = programs().join("bowline");
        let mut command = match self.wrapper.split_first() {
            None => Command::new(program),
            Some((wrapper, args)) => {
                let mut command = Command::new(wrapper);
                command.args(args).arg(program);
                command
            }
        };
        command.args(["serve", "--config"]).arg(self.folder.path().join("config.toml")).stdin(Stdio::null());
        command
    }

    /// [`Daemon::restart`] of a daemon that may refuse; the error is what it said.
    pub fn try_restart(&mut self) -> Result<(), String> {
        assert!(self.child.is_none(), "it runs already");
        self.started += 1;
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.log_path())
            .expect("open the daemon's log");
        let child = self
            .command()
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log)
            .spawn()
            .expect("start the daemon");
        self.limit.daemon_is(child.id());
        self.child = Some(child);
        let socket = self.socket();
        let mut ended = None;
        wait_for("the daemon serves", Duration::from_secs(120), || {
            ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            ended.is_some() || UnixStream::connect(&socket).is_ok()
        });
        match ended {
            None => Ok(()),
            Some(status) => {
                self.limit.daemon_is(0);
                self.child = None;
                Err(format!("the daemon ended ({status}): {}", self.log()))
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.limit.daemon_is(0);
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("a live child has a number");
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let status = child.wait().expect("wait for the daemon");
        self.limit.daemon_is(0);
        assert!(status.success(), "the daemon ended with {status}: {}", self.log());
    }

    /// `unix:///..`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("state/bowline.sock")
    }

    /// Where NRI plugins connect.
    pub fn nri_socket(&self) -> PathBuf {
        self.folder.path().join("state/nri.sock")
    }

    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }

    /// Takes away what a daemon keeps for its next life: bridge, firewall table, cgroup of the monitors.
    fn clear_host(&self) {
        let root = self.folder.path().join("root");
        let config = bowline_cni::CniConfig::below(&root);
        let instance = config.instance.as_str().to_owned();
        if let Ok(cni) = bowline_cni::Cni::new(config) {
            // Of pods that were killed a moment ago too: a bridge with a port stays.
            let _ = cni.gc(&[]);
            let _ = cni.reap();
            let _ = cni.remove_networks();
        }
        // What was killed a moment ago leaves its groups a little later.
        let limit = Instant::now() + Duration::from_secs(3);
        for hierarchy in crate::inventory::hierarchies() {
            remove_groups(&Path::new(&hierarchy).join("bowline").join(&instance), limit);
        }
    }

    /// A test that failed, or that ends with its pods up, leaves monitors: they would live on.
    fn end_pods(&self) {
        let pods = fs::read_dir(self.folder.path().join("state/pods")).into_iter().flatten().flatten();
        let pods: Vec<String> = pods.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let of_ours = |pid: &i32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split('\0');
            words.next() == Some("bowline-monitor")
                && words.next().is_some_and(|id| pods.iter().any(|pod| pod == id))
        };
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids.filter(of_ours) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        crate::reap();
    }

    /// What the daemon said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The `bowline` command line against this daemon.
    pub fn cli(&self, args: &[&str]) -> Command {
        let mut command = Command::new(programs().join("bowline"));
        command.arg("--endpoint").arg(self.endpoint()).args(args);
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}", self.log());
        }
        self.kill();
        self.end_pods();
        self.clear_host();
    }
}

/// Removes a cgroup folder with those below it, or gives up at `limit`.
fn remove_groups(folder: &Path, limit: Instant) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path(), limit);
        }
    }
    while fs::remove_dir(folder).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy)
        && Instant::now() < limit
    {
        crate::reap();
        std::thread::yield_now();
    }
}

/// The third byte of a subnet that no route of this machine leads to.
fn free_subnet() -> u32 {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let first = std::process::id() * 7 + NUMBER.fetch_add(1, Ordering::Relaxed);
    // Destinations are written as little-endian hexadecimal: 10.232.N.0 is 00NNE80A.
    let free = (0..200)
        .map(|step| (first + step) % 200)
        .find(|number| !routes.contains(&format!("00{number:02X}E80A")));
    free.expect("one of two hundred subnets is free")
}
