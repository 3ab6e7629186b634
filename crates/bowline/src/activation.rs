//! Sockets that systemd opened for us (sd_listen_fds(3)). Optional: without any, the daemon opens its own.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketType, sockopt};

/// The first descriptor that is passed.
const FIRST: i32 = 3;
/// Others' permission to write to a socket's file, which is what connecting needs.
const OTHERS: u32 = 0o002;

/// Why a passed socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActivationError {
    /// The variables make no sense.
    #[error("LISTEN_FDS is `{0}`, which is no number of descriptors")]
    Count(String),
    /// The descriptors are not there.
    #[error("could not take over the sockets that systemd passes")]
    Take(#[source] io::Error),
    /// Not what we listen on.
    #[error(
        "systemd passes {what} as `{name}`, and this daemon takes a listening unix stream socket alone; see bowline.socket"
    )]
    Kind {
        /// What it is.
        what: String,
        /// Its name, FileDescriptorName= of the unit.
        name: String,
    },
    /// Another one than is configured.
    #[error(
        "systemd passes a socket at {}, and the configured one (`listen`) is {}; change one of them, or disable bowline.socket",
        passed.display(),
        configured.display()
    )]
    Path {
        /// Where systemd listens.
        passed: PathBuf,
        /// Where we are to listen.
        configured: PathBuf,
    },
    /// Whoever can connect is root on the node.
    #[error("everybody on this machine may connect to {} (mode {mode:o}); set SocketMode=0600 in bowline.socket", path.display())]
    Open {
        /// Where it is.
        path: PathBuf,
        /// What its file allows.
        mode: u32,
    },
    /// There is more than one.
    #[error("systemd passes {0} sockets, and this daemon takes one; see bowline.socket")]
    Many(usize),
}

/// What was passed.
#[derive(Debug, Default)]
pub(crate) struct Passed(Vec<(String, OwnedFd)>);

/// Takes what was passed to this process over. `pid`, `count` and `names` are LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES.
pub(crate) fn take(
    pid: Option<&str>,
    count: Option<&str>,
    names: Option<&str>,
) -> Result<Passed, ActivationError> {
    // Meant for another process, whose environment we have.
    if pid.and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return Ok(Passed::default());
    }
    let count = count.unwrap_or("0");
    let number: usize = count.parse().map_err(|_| ActivationError::Count(count.to_owned()))?;
    let taken = bowline_linux::inherited::take_descriptors(FIRST, number).map_err(ActivationError::Take)?;
    let names =
        names.unwrap_or_default().split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    Ok(Passed(names.zip(taken).collect()))
}

impl Passed {
    /// The socket of `configured`, if one was passed.
    pub(crate) fn socket(self, configured: &Path) -> Result<Option<UnixListener>, ActivationError> {
        let count = self.0.len();
        let Some((name, socket)) = self.0.into_iter().next() else { return Ok(None) };
        if count > 1 {
            return Err(ActivationError::Many(count));
        }
        let passed = match path_of(&socket) {
            Ok(path) => path,
            Err(what) => return Err(ActivationError::Kind { what, name }),
        };
        if passed != configured {
            return Err(ActivationError::Path { passed, configured: configured.to_owned() });
        }
        // Removed behind systemd's back: nobody can connect, and whoever looks will see why.
        let mode = std::fs::metadata(&passed).map_or(0, |meta| meta.permissions().mode() & 0o777);
        if mode & OTHERS != 0 {
            return Err(ActivationError::Open { path: passed, mode });
        }
        let listener = UnixListener::from(socket);
        listener.set_nonblocking(true).map_err(ActivationError::Take)?;
        Ok(Some(listener))
    }
}

/// Where a socket listens, or what it is instead.
fn path_of(socket: &OwnedFd) -> Result<PathBuf, String> {
    let no_socket = |error: rustix::io::Errno| format!("something else than a socket ({error})");
    let family = sockopt::socket_domain(socket.as_fd()).map_err(no_socket)?;
    let kind = sockopt::socket_type(socket.as_fd()).map_err(no_socket)?;
    let listens = sockopt::socket_acceptconn(socket.as_fd()).map_err(no_socket)?;
    if family != AddressFamily::UNIX || kind != SocketType::STREAM {
        return Err("another kind of socket".to_owned());
    }
    if !listens {
        return Err("a socket that does not listen".to_owned());
    }
    let address = rustix::net::getsockname(socket).map_err(no_socket)?;
    let address = rustix::net::SocketAddrUnix::try_from(address).map_err(no_socket)?;
    let path = address.path().ok_or("a socket without a path")?;
    Ok(PathBuf::from(path.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(socket: impl Into<OwnedFd>) -> Passed {
        Passed(vec![("cri".to_owned(), socket.into())])
    }

    fn listener(mode: u32) -> (tempfile::TempDir, PathBuf, UnixListener) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, path, listener)
    }

    #[test]
    fn the_configured_socket_is_taken() {
        let (_folder, path, listener) = listener(0o600);
        assert!(passed(listener).socket(&path).unwrap().is_some());
        assert!(Passed::default().socket(&path).unwrap().is_none());
    }

    #[test]
    fn what_is_meant_for_others_is_left_alone() {
        assert!(take(Some("1"), Some("1"), None).unwrap().0.is_empty());
        assert!(take(None, Some("1"), None).unwrap().0.is_empty());
    }

    #[test]
    fn other_sockets_are_refused_by_name() {
        let (_folder, path, listener) = listener(0o666);
        let refused = |passed: Passed, at: &Path| passed.socket(at).unwrap_err().to_string();
        let open = refused(passed(listener.try_clone().unwrap()), &path);
        assert!(open.contains("SocketMode=0600"), "{open}");
        let elsewhere = refused(passed(listener), Path::new("/run/bowline/bowline.sock"));
        assert!(elsewhere.contains("`listen`") && elsewhere.contains("x.sock"), "{elsewhere}");
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(refused(passed(one), &path).contains("does not listen"));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(refused(passed(tcp), &path).contains("another kind of socket"));
        let (one, _writer) = std::io::pipe().unwrap();
        assert!(refused(passed(one), &path).contains("something else than a socket"));
    }
}
