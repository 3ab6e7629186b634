//! `bowline serve`: reads the configuration, puts the parts together, recovers, serves, drains.
//!
//! The order matters. Locks come first, so that a second daemon ends before it touches anything; the socket comes last,
//! so that whoever can connect finds everything recovered.

use std::error::Error;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline_cni::{Cni, CniConfig};
use bowline_cri::ServerInfo;
use bowline_image::{Images, ImagesConfig, Unpacker};
use bowline_pods::{ChosenDriver, Pods, PodsConfig, chain};
use bowline_store::{Store, StoreError};
use bowline_streaming::{Streaming, StreamingError};
use futures_util::Stream;
use rustix::fs::Mode;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tonic::transport::Server;

use crate::activation::{self, ActivationError, Passed};
use crate::config::{self, Config, Flags};
use crate::listen::{ListenError, listen, private_folder};
use crate::log::{self, Format, Level};
use crate::memory;
use crate::metrics;
use crate::notify::Notifier;
use crate::traces::{SpanPerCall, Traces};

/// How long calls under way may go on after the signal to end. Operations outlive their calls anyway: this is for the
/// answers.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the network's configuration and plugins are looked at.
const NETWORK_WATCH: Duration = Duration::from_secs(5);
/// The pause after a connection could not be accepted, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Flags of `bowline serve`; `docs/operate/configuration.md` tells of files and defaults.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Configuration file [default: /etc/bowline/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of records and images [default: /var/lib/bowline]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder of what is gone after a reboot [default: /run/bowline]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Socket to serve CRI on [default: unix:///run/bowline/bowline.sock]
    #[arg(long, value_name = "unix:///PATH")]
    listen: Option<String>,
    /// Socket for NRI plugins [default: /var/run/nri/nri.sock; nri.sock in --state if that is another than the default]
    #[arg(long, value_name = "PATH")]
    nri_socket: Option<PathBuf>,
    /// Have a bridge network when there is no CNI configuration
    #[arg(long)]
    default_network: bool,
    /// What to log [default: info]
    #[arg(long, value_enum)]
    log_level: Option<Level>,
    /// How to log [default: text]
    #[arg(long, value_enum)]
    log_format: Option<Format>,
}

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("another daemon uses {}; give this one a folder of its own with --state", .0.display())]
    StateInUse(PathBuf),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Activation(#[from] ActivationError),
    #[error(transparent)]
    Streaming(#[from] StreamingError),
    #[error("could not {doing}")]
    Failed { doing: &'static str, source: Box<dyn Error + Send + Sync> },
}

impl ServeError {
    fn failed<E: Into<Box<dyn Error + Send + Sync>>>(doing: &'static str) -> impl FnOnce(E) -> ServeError {
        move |source| ServeError::Failed { doing, source: source.into() }
    }

    fn status(&self) -> ExitCode {
        match self {
            ServeError::StateInUse(_)
            | ServeError::Store(StoreError::InUse { .. })
            | ServeError::Listen(ListenError::InUse(_)) => ExitCode::from(3),
            ServeError::Store(_)
            | ServeError::Listen(_)
            | ServeError::Activation(_)
            | ServeError::Streaming(_)
            | ServeError::Failed { .. } => ExitCode::FAILURE,
        }
    }
}

/// Runs the daemon to its end.
pub(crate) fn main(args: Args) -> ExitCode {
    // First of all: while there is one thread, and no descriptor of ours.
    let inherited = inherited();
    let flags = Flags {
        root: args.root,
        state: args.state,
        listen: args.listen,
        nri_socket: args.nri_socket,
        default_network: args.default_network,
        log_level: args.log_level,
        log_format: args.log_format,
    };
    let config = match config::load(args.config.as_deref(), flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("bowline serve: {}", chain(&error));
            return ExitCode::from(2);
        }
    };
    match run(config, inherited) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(reason = chain(&error), "the daemon ends");
            error.status()
        }
    }
}

/// What systemd left for us.
#[derive(Default)]
struct Inherited {
    notifier: Notifier,
    sockets: Passed,
}

/// Takes over what is meant for us alone, so that no program that we start finds it.
fn inherited() -> Result<Inherited, ActivationError> {
    let names =
        ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
    let found = bowline_linux::inherited::take_variables(names).map_err(ActivationError::Take)?;
    let [socket, usec, watched, pid, count, fd_names] = &found;
    let text =
        |value: &Option<std::ffi::OsString>| value.as_ref().map(|value| value.to_string_lossy().into_owned());
    let notifier =
        Notifier::new(socket.as_ref().map(PathBuf::from), text(usec).as_deref(), text(watched).as_deref());
    let sockets = activation::take(text(pid).as_deref(), text(count).as_deref(), text(fd_names).as_deref())?;
    Ok(Inherited { notifier, sockets })
}

fn run(config: Config, inherited: Result<Inherited, ActivationError>) -> Result<(), ServeError> {
    // Files that we make for pods must be readable inside, whatever shell started us.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Work that takes long is the monitors' and the blocking threads'.
        .worker_threads(2)
        .thread_name("bowline")
        .enable_all()
        .build();
    let started = runtime.as_ref().map_or(Ok(None), |runtime| {
        let _inside = runtime.enter();
        Traces::start(&config.settings.traces)
    });
    let (traces, no_traces) = started.map_or_else(|error| (None, Some(error)), |traces| (traces, None));
    log::init(config.settings.log.level, config.settings.log.format, traces.as_ref());
    let runtime = runtime.map_err(ServeError::failed("start the threads"))?;
    if let Some(error) = no_traces {
        return Err(ServeError::failed(
            "send traces (traces.endpoint, or OTEL_EXPORTER_OTLP_* of the environment)",
        )(error));
    }
    let outcome = runtime.block_on(serve(config, inherited?));
    if let Some(traces) = traces {
        traces.end();
    }
    // A blocking thread that hangs on a dead disk must not keep the daemon from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(config: Config, inherited: Inherited) -> Result<(), ServeError> {
    let began = Instant::now();
    let Inherited { notifier, sockets } = inherited;
    let passed = sockets.socket(&config.socket)?;
    let signals = Signals::new().map_err(ServeError::failed("wait for signals"))?;
    let store = Store::open(&config.root)?;
    private_folder(&config.state).map_err(ServeError::failed("make the state folder"))?;
    let _state_lock = lock(&config.state)?;

    let tried = tokio::task::spawn_blocking(bowline_pods::kernel::require).await;
    tried
        .map_err(|error| error.to_string())
        .and_then(|required| required)
        .map_err(ServeError::failed("use this kernel: it lacks what pods need"))?;
    let driver = ChosenDriver::on_this_machine(config.settings.cgroup_driver.into())
        .map_err(ServeError::failed("use the configured cgroup driver"))?;
    tracing::info!(driver = %driver.driver, why = driver.why, "cgroup driver");
    notifier.status("Recovering");
    let images = Images::open(images_config(&config)).await.map_err(ServeError::failed("open the images"))?;
    let cni = Arc::new(Cni::new(cni_config(&config)).map_err(ServeError::failed("set up the network"))?);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(bowline_cni::try_link_drivers).await {
        tracing::warn!(%error, "the built-in bridge plugin cannot attach pods on this node");
    }
    repair(&cni).await;
    let mut pods_config = PodsConfig::new(config.root.clone(), config.state.clone(), config.monitor.clone());
    if let Some(folders) = &config.settings.cdi.spec_dirs {
        pods_config.cdi_folders.clone_from(folders);
    }
    if let Some(seconds) = config.settings.paths.timeout_seconds {
        pods_config.path_patience = Duration::from_secs(seconds.get().into());
    }
    let checkpoint = &config.settings.checkpoint;
    pods_config.checkpoint =
        bowline_pods::CheckpointConfig { criu: checkpoint.criu.clone(), restore: checkpoint.restore };
    pods_config.apparmor = config.settings.apparmor.config();
    pods_config.selinux = config.settings.selinux.config();
    pods_config.cgroup_driver = driver;
    pods_config.nri = config.nri.as_ref().map(|nri| nri.config.clone());
    let pods = Pods::open(pods_config, store, images.clone(), cni.clone())
        .await
        .map_err(ServeError::failed("recover the pods"))?;

    // Before clients come: no container passes by plugins that are started with us.
    let (plugins, _nri_file) = nri_socket(&config)?.unzip();
    pods.start_plugins(plugins).await;
    let streaming = Streaming::open(config.streaming.clone(), pods.clone()).await?;
    // systemd's socket outlives us, so that clients wait for the next daemon; ours would be a file that nobody serves.
    let (socket, socket_file) = match passed {
        Some(socket) => (socket, None),
        None => (listen(&config.socket)?, Some(SocketFile(config.socket.clone()))),
    };
    let socket = UnixListener::from_std(socket).map_err(ServeError::failed("listen"))?;
    tokio::spawn(watch_network(cni.clone()));
    // Only now: the layers of recovered containers are held again.
    // What an unreadable record refers to is not known, so nothing is reclaimed while there is one.
    if pods.all_records_read() {
        tokio::spawn(async move { images.collect().await });
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        root = %config.root.display(),
        listen = %config.socket.display(),
        streaming = streaming.base(),
        pods = pods.views().pods().len(),
        millis = began.elapsed().as_millis() as u64,
        "serving"
    );
    let listening = Listening { socket, file: socket_file };
    serve_until_signal(&config, pods, streaming, listening, signals, notifier).await
}

/// The socket that is served.
struct Listening {
    socket: UnixListener,
    /// Its file, if it is ours.
    file: Option<SocketFile>,
}

async fn serve_until_signal(
    config: &Config,
    pods: Pods,
    streaming: Streaming,
    listening: Listening,
    mut signals: Signals,
    notifier: Notifier,
) -> Result<(), ServeError> {
    let metrics = match config.settings.metrics.listen {
        Some(address) => {
            let listener = metrics::listen(address).await;
            Some(listener.map_err(ServeError::failed("open the address of metrics.listen"))?)
        }
        None => None,
    };
    let (runtime, image) = bowline_cri::services(pods.clone(), streaming, server_info(config));
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::builder()
        .layer(SpanPerCall::default())
        .add_service(runtime)
        .add_service(image)
        .add_service(bowline_cri::admin::admin_service(pods.clone()));
    let mut serving =
        tokio::spawn(server.serve_with_incoming_shutdown(connections(listening.socket), async move {
            // A dropped sender stops us just as well.
            let _ = stopped.await;
        }));
    if let Some(listener) = metrics {
        let exporter = bowline_cri::Exporter::new(pods.clone(), env!("CARGO_PKG_VERSION"));
        tokio::spawn(metrics::serve(listener, Arc::new(exporter)));
    }
    notifier.ready(&pods);
    tokio::spawn(notifier.clone().watch(config.socket.clone()));
    tokio::spawn(notifier.clone().keep_status(pods.clone()));
    tokio::spawn(memory::keep_small());

    let ended_early = tokio::select! {
        ended = &mut serving => Some(ended),
        name = signals.asked_to_end(&pods, &notifier) => {
            tracing::info!(signal = name, "ending; pods go on");
            None
        }
    };
    notifier.say("STOPPING=1\nSTATUS=Ending; pods go on");
    // Clients find nobody at once, instead of a queue that nobody serves.
    drop(listening.file);
    if ended_early.is_none() {
        // Streams of events end by themselves only with us.
        pods.end_events();
        let _ = stop.send(());
        if tokio::time::timeout(DRAIN, &mut serving).await.is_err() {
            tracing::warn!(seconds = DRAIN.as_secs(), "calls that had not ended are cut off");
            serving.abort();
        }
    }
    pods.shutdown().await;
    match ended_early {
        None => Ok(()),
        Some(Ok(Ok(()))) => Err(ServeError::failed("go on serving")("the server ended by itself")),
        Some(Ok(Err(error))) => Err(ServeError::failed("serve")(error)),
        Some(Err(error)) => Err(ServeError::failed("serve")(error)),
    }
}

/// Accepted connections, for ever: no error of one accept ends the daemon.
fn connections(socket: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures_util::stream::unfold(socket, |socket| async move {
        loop {
            match socket.accept().await {
                Ok((connection, _)) => return Some((Ok(connection), socket)),
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// Where NRI plugins connect. At the place that all runtimes share another one may listen; then nobody connects to us.
fn nri_socket(config: &Config) -> Result<Option<(UnixListener, SocketFile)>, ServeError> {
    let Some((nri, path)) = config.nri.as_ref().and_then(|nri| Some((nri, nri.socket.as_ref()?))) else {
        return Ok(None);
    };
    match listen(path) {
        Ok(socket) => {
            let socket = UnixListener::from_std(socket);
            let socket = socket.map_err(ServeError::failed("listen for NRI plugins"))?;
            Ok(Some((socket, SocketFile(path.clone()))))
        }
        Err(ListenError::InUse(path)) if !nri.socket_named => {
            tracing::warn!(
                path = %path.display(),
                "another runtime has NRI's usual socket: no plugins can connect; name one of our own with nri.socket_path"
            );
            Ok(None)
        }
        Err(error) => Err(ServeError::failed("listen for NRI plugins (nri.socket_path)")(error)),
    }
}

/// A socket's file, which goes with it.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "the socket was removed by somebody else");
        }
    }
}

/// Two daemons with roots of their own may still have been given one state folder.
fn lock(state: &Path) -> Result<File, ServeError> {
    let file = File::options().create(true).truncate(false).write(true).open(state.join("lock"));
    let file = file.map_err(ServeError::failed("open the lock of the state folder"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ServeError::StateInUse(state.to_owned())),
        Err(TryLockError::Error(error)) => Err(ServeError::failed("lock the state folder")(error)),
    }
}

fn images_config(config: &Config) -> ImagesConfig {
    // By way of /proc, so that an upgrade that replaces our file does not mix two versions.
    let unpacker = Unpacker::Process { program: "/proc/self/exe".into(), args: vec!["unpack".into()] };
    let mut images = ImagesConfig::new(config.root.join("images"), unpacker);
    let settings = &config.settings.images;
    if let Some(folders) = &settings.registry_config_dirs {
        images.registry_config_dirs.clone_from(folders);
    }
    if let Some(number) = settings.max_concurrent_downloads {
        images.max_concurrent_downloads = number.get() as usize;
    }
    if let Some(seconds) = settings.stall_timeout_seconds {
        images.stall_timeout = Duration::from_secs(seconds.get().into());
    }
    images.pinned.clone_from(&settings.pinned);
    images
}

fn cni_config(config: &Config) -> CniConfig {
    let mut cni = CniConfig::below(&config.root);
    if let Some(folders) = &config.settings.cni.conf_dirs {
        cni.conf_dirs.clone_from(folders);
    }
    if let Some(folders) = &config.settings.cni.bin_dirs {
        cni.bin_dirs.clone_from(folders);
    }
    cni.default_network.clone_from(&config.default_network);
    cni
}

fn server_info(config: &Config) -> ServerInfo {
    ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: config.state.clone(),
        root: config.root.clone(),
        settings: serde_json::to_value(&config.settings).unwrap_or_default(),
    }
}

/// Puts back rules that others took away while we were not there. What cannot be put back is no reason not to serve:
/// pods that need none of it go on.
async fn repair(cni: &Arc<Cni>) {
    let cni = cni.clone();
    match tokio::task::spawn_blocking(move || cni.repair()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(reason = chain(&error), "some network rules could not be put back"),
        Err(error) => tracing::error!(%error, "putting network rules back broke off"),
    }
}

/// Sees new conflists, and asks plugins that are executed how they are, so that a status need not.
async fn watch_network(cni: Arc<Cni>) {
    loop {
        let looking = cni.clone();
        let look = move || {
            let changed = looking.reload_if_changed();
            looking.probe_plugins();
            changed
        };
        if let Ok(true) = tokio::task::spawn_blocking(look).await {
            tracing::info!(status = ?cni.status(), "the network configuration changed");
        }
        tokio::time::sleep(NETWORK_WATCH).await;
    }
}

/// SIGHUP: looks at the network's configuration now instead of in a few seconds. Nothing else is read again.
async fn reload(pods: &Pods, notifier: &Notifier) {
    notifier.reloading();
    let cni = pods.cni().clone();
    if let Ok(true) = tokio::task::spawn_blocking(move || cni.reload_if_changed()).await {
        tracing::info!(status = ?pods.cni().status(), "the network configuration changed");
    }
    tracing::info!("SIGHUP: the network configuration was looked at; any other change needs a restart");
    notifier.ready(pods);
}

/// The signals that we act on.
struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one that asks us to end.
    async fn asked_to_end(&mut self, pods: &Pods, notifier: &Notifier) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.int.recv() => return "SIGINT",
                // Closing a terminal must not end a node's runtime.
                _ = self.hup.recv() => reload(pods, notifier).await,
            }
        }
    }
}
