//! The daemon's end of a pod's monitor: starting one, talking to it, hearing from it.
//!
//! One task per monitor reads its socket. Requests are answered through a table of operation numbers; a lost
//! connection answers everything that waits with [`MonitorError::Lost`]. Sending does not wait: a monitor that has
//! stopped reading (its queue holds hundreds of requests) counts as lost.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bowline_linux::clone::Cloned;
use bowline_linux::exec::StringArray;
use bowline_linux::{message, spawn};
use bowline_monitor_proto::paths::PATHS_NAME;
use bowline_monitor_proto::{
    Answer, Call, Event, Hooked, Launch, MAX_MESSAGE, Message, Pids, Request, decode, encode,
};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};

/// Why a monitor gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MonitorError {
    /// It is gone, or does not read.
    #[error("the pod's monitor is gone")]
    Lost,
    /// It could not be started or reached.
    #[error("could not {doing} the pod's monitor")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> MonitorError {
    move |source| MonitorError::Io { doing, source: Arc::new(source) }
}

/// The program, copied into sealed memory once: a pod's monitor goes on with it whatever becomes of the file, and no
/// container can reach a file of the host through it (CVE-2019-5736).
pub struct Program {
    memory: Option<OwnedFd>,
    path: PathBuf,
}

impl Program {
    /// Reads the program at `path`.
    ///
    /// A host may forbid memory files that can be run (`vm.memfd_noexec` 2, Linux 6.3); then the file itself is run.
    pub fn load(path: &std::path::Path) -> io::Result<Program> {
        let bytes = std::fs::read(path)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = match rustix::fs::memfd_create("bowline-monitor", flags | MemfdFlags::EXEC) {
            // Before 6.3 there is no such flag, and every memory file can be run.
            Err(rustix::io::Errno::INVAL) => Some(rustix::fs::memfd_create("bowline-monitor", flags)?),
            Err(rustix::io::Errno::ACCESS) => None,
            other => Some(other?),
        };
        if let Some(memory) = &memory {
            let mut written = 0;
            while written < bytes.len() {
                written += rustix::io::write(memory, &bytes[written..])?;
            }
            let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
            rustix::fs::fcntl_add_seals(memory, seals)?;
        } else {
            tracing::warn!(
                "this host forbids executable memory files (vm.memfd_noexec); monitors run from {}",
                path.display()
            );
        }
        Ok(Program { memory, path: path.to_owned() })
    }

    /// Starts a monitor; it has the other end of the socket as standard input. `null` is /dev/null; `cgroup` is the
    /// cgroup v2 folder that it is born in, where there is that hierarchy.
    pub fn start(
        &self,
        sandbox: &str,
        null: BorrowedFd<'_>,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<(Cloned, OwnedFd), MonitorError> {
        use std::os::unix::ffi::OsStringExt as _;
        let (ours, theirs) = message::pair().map_err(io_error("open a channel to"))?;
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(|error| io_error("name")(error.into()));
        let path = text(self.executable().into_os_string().into_vec())?;
        let argv = StringArray::new(vec![c"bowline-monitor".into(), text(sandbox.into())?]);
        let envp = StringArray::new(Vec::new());
        let program = spawn::Program {
            path: &path,
            argv: &argv,
            envp: &envp,
            stdin: theirs.as_fd(),
            output: null,
            cgroup,
            folder: c"/",
            tied: false,
        };
        Ok((spawn::spawn(&program).map_err(io_error("start"))?, ours))
    }

    /// Starts a worker that opens paths, with the other end of the socket as standard input.
    pub fn start_paths(&self) -> io::Result<(std::process::Child, OwnedFd)> {
        use std::os::unix::process::CommandExt as _;
        use std::process::Stdio;

        let (ours, theirs) = message::pair()?;
        let child = std::process::Command::new(self.executable())
            .arg0(PATHS_NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok((child, ours))
    }

    fn executable(&self) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        match &self.memory {
            Some(memory) => PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd())),
            None => self.path.clone(),
        }
    }
}

type Reply = (Answer, Vec<OwnedFd>);

/// An answer to come.
pub struct Asked(oneshot::Receiver<Reply>);

impl Asked {
    /// Waits for it.
    pub async fn wait(self) -> Result<Reply, MonitorError> {
        self.0.await.map_err(|_| MonitorError::Lost)
    }
}

#[derive(Default)]
struct Waiting {
    replies: HashMap<u64, oneshot::Sender<Reply>>,
    execs: HashMap<u64, oneshot::Sender<i32>>,
    /// Launches with hooks: who is told of the process at the gate.
    gates: HashMap<u64, oneshot::Sender<i32>>,
    lost: bool,
}

/// A connection to a monitor.
pub struct Monitor {
    /// The runtime's stream type only serves to wait: messages are sent and received by `message`.
    socket: UnixStream,
    waiting: Mutex<Waiting>,
    next: AtomicU64,
    gone: watch::Sender<bool>,
    attaches: OnceCell<bool>,
    restores: OnceCell<bool>,
    /// Started by this daemon, so that it knows every request that we know.
    fresh: bool,
    hooks: OnceCell<bool>,
}

/// What the pod's actor hears of its monitor.
#[derive(Debug)]
pub enum Heard {
    /// Something happened.
    Event(Event),
    /// The connection is gone.
    Lost,
}

impl Monitor {
    /// Takes a connected socket; `heard` gets what the monitor says unasked. `fresh`: this daemon has started it.
    pub fn attach(
        socket: OwnedFd,
        heard: mpsc::Sender<Heard>,
        fresh: bool,
    ) -> Result<Arc<Monitor>, MonitorError> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true).map_err(io_error("talk to"))?;
        let socket = UnixStream::from_std(socket).map_err(io_error("talk to"))?;
        // Numbers of this daemon's life: a monitor outlives several, and must not take one's for another's.
        let first = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |t| t.as_nanos() as u64);
        let monitor = Arc::new(Monitor {
            socket,
            waiting: Mutex::default(),
            next: AtomicU64::new(first),
            gone: watch::Sender::new(false),
            attaches: OnceCell::new(),
            restores: OnceCell::new(),
            fresh,
            hooks: OnceCell::new(),
        });
        tokio::spawn(listen(monitor.clone(), heard));
        Ok(monitor)
    }

    /// Asks, and waits for the answer.
    pub async fn call(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reply, MonitorError> {
        self.ask(request, descriptors)?.wait().await
    }

    /// Asks; the answer may be waited for, or not.
    pub fn ask(&self, request: Request, descriptors: &[BorrowedFd<'_>]) -> Result<Asked, MonitorError> {
        self.send(request, descriptors).map(|(_, reply)| Asked(reply))
    }

    /// Whether this daemon has started it, so that it knows every request that we know. One that does not hangs up.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Asks for an exec: (its number, the answer to come, its exit to come).
    #[allow(clippy::type_complexity)]
    pub fn exec(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(u64, oneshot::Receiver<Reply>, oneshot::Receiver<i32>), MonitorError> {
        let (send, exited) = oneshot::channel();
        let operation = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().execs.insert(operation, send);
        let reply = self.send_as(operation, request, descriptors)?;
        Ok((operation, reply, exited))
    }

    /// Asks for a launch with hooks: (the answer to come, the process that waits at the gate). The latter never comes if
    /// the answer does.
    #[allow(clippy::type_complexity)]
    pub fn launch_hooked(
        &self,
        hooked: Hooked,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(oneshot::Receiver<Reply>, oneshot::Receiver<i32>), MonitorError> {
        let (send, waiting) = oneshot::channel();
        let operation = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().gates.insert(operation, send);
        let reply = self.send_as(operation, Request::LaunchHooked { hooked }, descriptors)?;
        Ok((reply, waiting))
    }

    /// Waits until the monitor has told of the end of an exec whose receiver is gone, at most `limit`.
    pub async fn wait_exec(&self, operation: u64, limit: std::time::Duration) {
        let (send, exited) = oneshot::channel();
        {
            let mut waiting = self.lock();
            // Told already: the entry is gone.
            match waiting.execs.get_mut(&operation) {
                Some(entry) => *entry = send,
                None => return,
            }
        }
        let _ = tokio::time::timeout(limit, exited).await;
        self.forget_exec(operation);
    }

    /// Nobody waits for this exec any more.
    pub fn forget_exec(&self, operation: u64) {
        self.lock().execs.remove(&operation);
    }

    fn send(
        &self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(u64, oneshot::Receiver<Reply>), MonitorError> {
        let operation = self.next.fetch_add(1, Ordering::Relaxed);
        Ok((operation, self.send_as(operation, request, descriptors)?))
    }

    fn send_as(
        &self,
        operation: u64,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<oneshot::Receiver<Reply>, MonitorError> {
        let (send, receive) = oneshot::channel();
        {
            let mut waiting = self.lock();
            if waiting.lost {
                return Err(MonitorError::Lost);
            }
            waiting.replies.insert(operation, send);
        }
        let bytes = encode(&Call { operation, request });
        match message::send(self.socket.as_fd(), &bytes, descriptors) {
            Ok(()) => Ok(receive),
            Err(error) => {
                let mut waiting = self.lock();
                waiting.replies.remove(&operation);
                waiting.execs.remove(&operation);
                waiting.gates.remove(&operation);
                match error.kind() {
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(MonitorError::Lost),
                    _ => Err(io_error("ask")(error)),
                }
            }
        }
    }

    /// Ends the conversation. A monitor that was not committed yet ends with it.
    pub fn hang_up(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self) {
        let mut waiting = self.lock();
        waiting.lost = true;
        // Dropping the senders answers whoever waits.
        waiting.replies.clear();
        waiting.execs.clear();
        waiting.gates.clear();
        drop(waiting);
        self.gone.send_replace(true);
    }

    /// Whether this monitor knows of attachments. One that was started before there were any takes such a request for
    /// rubbish and hangs up, so one that an earlier daemon has started is asked once, over a connection that may be lost.
    pub async fn knows_attach(
        &self,
        connect: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<bool, MonitorError> {
        self.knows(&self.attaches, Request::CloseStdin { container: NOBODY }, connect).await
    }

    /// The same for what criu needs.
    pub async fn knows_criu(
        &self,
        connect: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<bool, MonitorError> {
        self.knows(&self.restores, Request::Restored { container: NOBODY, pid: 0 }, connect).await
    }

    /// The same for launches with hooks.
    pub async fn knows_hooks(
        &self,
        connect: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<bool, MonitorError> {
        let launch = Launch { container: NOBODY, slot: 0, log: false, stdin: false, pids: Pids::Plan };
        let (bundle, group) = (CString::default(), CString::default());
        let hooked = Hooked { launch, bundle, surroundings: None, group };
        self.knows(&self.hooks, Request::LaunchHooked { hooked }, connect).await
    }

    async fn knows(
        &self,
        known: &OnceCell<bool>,
        request: Request,
        connect: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> Result<bool, MonitorError> {
        if self.fresh {
            return Ok(true);
        }
        known.get_or_try_init(|| probe(request, connect)).await.copied()
    }

    /// Waits until the monitor is gone.
    pub async fn gone(&self) {
        // The sender is ours: it does not go before us.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// Whether its process was there a moment ago: it has the only other end of the socket.
    pub fn is_there(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut look = [PollFd::new(&self.socket, PollFlags::empty())];
        poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|hung_up| hung_up == 0)
    }
}

/// The id of no container.
const NOBODY: [u8; 32] = [0; 32];

/// Whether a monitor knows a request, by a connection that may be lost. There is no such container, which is all that it
/// can say of it.
async fn probe(
    request: Request,
    connect: impl FnOnce() -> io::Result<OwnedFd>,
) -> Result<bool, MonitorError> {
    let (heard, _unheard) = mpsc::channel(1);
    let probe = Monitor::attach(connect().map_err(io_error("reach"))?, heard, false)?;
    let known = probe.call(request, &[]).await.is_ok();
    probe.hang_up();
    Ok(known)
}

async fn listen(monitor: Arc<Monitor>, heard: mpsc::Sender<Heard>) {
    loop {
        if monitor.socket.readable().await.is_err() {
            break;
        }
        let received = monitor.socket.try_io(Interest::READABLE, || {
            let mut buffer = vec![0u8; MAX_MESSAGE];
            let (len, descriptors) = message::receive(monitor.socket.as_fd(), &mut buffer)?;
            buffer.truncate(len);
            Ok((buffer, descriptors))
        });
        match received {
            Ok((bytes, _)) if bytes.is_empty() => break,
            Ok((bytes, descriptors)) => match decode::<Message>(&bytes) {
                Ok(Message::Reply { operation, answer }) => {
                    let mut table = monitor.lock();
                    table.gates.remove(&operation);
                    let waiting = table.replies.remove(&operation);
                    drop(table);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send((answer, descriptors));
                    }
                }
                Ok(Message::Event { event: Event::ExecExited { exec, code } }) => {
                    let waiting = monitor.lock().execs.remove(&exec);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(code);
                    }
                }
                Ok(Message::Event { event: Event::Waiting { operation, pid } }) => {
                    let waiting = monitor.lock().gates.remove(&operation);
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(pid);
                    }
                }
                Ok(Message::Event { event }) => {
                    if heard.send(Heard::Event(event)).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "a monitor sent a message that makes no sense");
                    break;
                }
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    monitor.lose();
    let _ = heard.send(Heard::Lost).await;
}

/// Waits for a monitor that this daemon started, so that it leaves no zombie.
#[expect(
    deprecated,
    reason = "unsound only for types whose descriptor changes or is closed early; an OwnedFd's is not"
)]
pub fn reap(process: Cloned) {
    tokio::spawn(async move {
        // Without a place in the reactor (out of memory) it stays a zombie until we end; it harms nobody.
        let Ok(pidfd) = AsyncFd::with_interest(process.pidfd, Interest::READABLE) else { return };
        let _ = pidfd.readable().await;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let _ = rustix::process::waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), options);
    });
}

/// A plan in sealed memory, as monitors take it.
pub fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("launch-plan", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::write(&memory, &bytes[written..])?;
    }
    rustix::fs::fcntl_add_seals(
        &memory,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(memory)
}
