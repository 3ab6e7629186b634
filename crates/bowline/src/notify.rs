//! Tells systemd how we are (sd_notify(3), `Type=notify`), and that we are well (`WatchdogSec=`).
//!
//! Being well means: a connection to the daemon's own socket is accepted, and `Status` is answered on it. A daemon whose
//! threads hang, whose locks are held or whose socket is gone says nothing any more, and systemd starts it anew; pods
//! go on meanwhile.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_cri_proto::v1::runtime_service_client::RuntimeServiceClient;
use bowline_pods::Pods;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tonic::transport::{Endpoint, Uri};

/// Between two tries after the daemon did not answer itself.
const AGAIN: Duration = Duration::from_secs(1);
/// How often what `systemctl status` shows is brought up to date.
const STATUS: Duration = Duration::from_secs(10);

/// Whoever started us, if it wants to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notifier {
    socket: Option<PathBuf>,
    /// Without a word from us for this long we are taken for hung.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// `socket`, `usec` and `pid` are NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
    pub(crate) fn new(socket: Option<PathBuf>, usec: Option<&str>, pid: Option<&str>) -> Notifier {
        let ours = pid.is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let usec = usec.and_then(|usec| usec.parse().ok()).filter(|usec| ours && *usec > 0);
        Notifier { socket, watchdog: usec.map(Duration::from_micros) }
    }

    /// Sends lines, such as `STOPPING=1`, if somebody wants to know.
    pub(crate) fn say(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = send(socket.as_os_str().as_bytes(), state) {
            tracing::warn!(%error, state, "could not tell systemd");
        }
    }

    /// What `systemctl status` shows.
    pub(crate) fn status(&self, text: &str) {
        self.say(&format!("STATUS={text}"));
    }

    /// The socket is open. A program between systemd and us is not the one to look after.
    pub(crate) fn ready(&self, pods: &Pods) {
        self.say(&format!("READY=1\nMAINPID={}\nSTATUS={}", std::process::id(), summary(pods)));
    }

    /// What was asked for by SIGHUP begins; [`Notifier::ready`] ends it.
    pub(crate) fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// Keeps the status true, for ever.
    pub(crate) async fn keep_status(self, pods: Pods) {
        if self.socket.is_none() {
            return;
        }
        let mut said = String::new();
        loop {
            let now = summary(&pods);
            if now != said {
                self.status(&now);
                said = now;
            }
            sleep(STATUS).await;
        }
    }

    /// Says that we are well, as long as we are; for ever. `socket` is the daemon's own.
    pub(crate) async fn watch(self, socket: PathBuf) {
        let Some(limit) = self.watchdog else { return };
        // sd_watchdog_enabled(3) recommends half, which leaves time for one late answer.
        let interval = limit / 2;
        loop {
            match timeout(interval, answers(&socket)).await {
                Ok(Ok(())) => {
                    self.say("WATCHDOG=1");
                    sleep(interval).await;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the daemon cannot reach itself; systemd will start it anew");
                    sleep(AGAIN).await;
                }
                Err(_) => {
                    tracing::warn!(seconds = interval.as_secs(), "the daemon does not answer itself in time");
                }
            }
        }
    }
}

fn summary(pods: &Pods) -> String {
    let views = pods.views();
    let ready = views.pods().iter().filter(|pod| pod.ready).count();
    format!("Serving {ready} pods, {} containers known", views.containers().len())
}

/// Asks as any client does: over a new connection.
async fn answers(socket: &Path) -> Result<(), tonic::Status> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
    let channel = channel.map_err(|error| tonic::Status::unavailable(bowline_pods::chain(&error)))?;
    RuntimeServiceClient::new(channel).status(v1::StatusRequest { verbose: false }).await.map(drop)
}

fn send(socket: &[u8], state: &str) -> io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?,
    };
    let sender = UnixDatagram::unbound()?;
    // systemd that does not read must not hold the daemon up.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        Notifier::new(Some(path), None, None).say("READY=1");
        let mut buffer = [0; 16];
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let own = std::process::id().to_string();
        let watchdog = |usec, pid| Notifier::new(None, Some(usec), pid).watchdog;
        assert_eq!(watchdog("60000000", Some(own.as_str())), Some(Duration::from_secs(60)));
        assert_eq!(watchdog("60000000", None), Some(Duration::from_secs(60)));
        assert_eq!(watchdog("60000000", Some("1")), None);
        assert_eq!(watchdog("0", None), None);
        assert_eq!(watchdog("soon", None), None);
    }

    #[tokio::test]
    async fn nobody_is_well_whose_socket_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cri.sock");
        assert!(answers(&path).await.is_err(), "no socket");
        // Connections wait in its queue for ever, as those to a stopped daemon do.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(timeout(Duration::from_millis(200), answers(&path)).await.is_err());
    }
}
