//! What daemon and unpack worker say to each other, over one SEQPACKET socket. Both ends are the same binary, so there is no version.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::manifest::Compression;

const MAX_MESSAGE: usize = 64 << 10;
/// SCM_MAX_FD is 253; the limit on layers stays below.
const MAX_FDS: usize = 220;

/// Daemon to worker, with the descriptors [stream, layer folder, `layers` folder].
#[derive(Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) compression: Compression,
}

/// Worker to daemon.
#[derive(Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The tree needs its parents: answer with their descriptors, top first.
    NeedParents,
    Done(Report),
    Failed(Failure),
}

/// An unpacked layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) diff_id: Digest,
    /// Whether the tree depends on nothing but its own archive.
    pub(crate) standalone: bool,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// Why a layer could not be unpacked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// The archive is damaged, or asks for what we refuse.
    Corrupt(String),
    /// A limit.
    TooLarge(String),
    /// The file system is full.
    DiskFull(String),
    /// The file system or the machinery failed.
    Io(String),
}

impl Failure {
    pub(crate) fn io(action: &str, error: io::Error) -> Failure {
        let text = format!("could not {action}: {error}");
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::DiskFull(text),
            io::ErrorKind::InvalidData => Failure::Corrupt(text),
            _ => Failure::Io(text),
        }
    }

    pub(crate) fn sys(action: &str, error: rustix::io::Errno) -> Failure {
        Failure::io(action, error.into())
    }

    /// Says at which entry.
    pub(crate) fn at(self, entry: &str) -> Failure {
        let with = |text: String| format!("entry `{entry}`: {text}");
        match self {
            Failure::Corrupt(text) => Failure::Corrupt(with(text)),
            Failure::TooLarge(text) => Failure::TooLarge(with(text)),
            Failure::DiskFull(text) => Failure::DiskFull(with(text)),
            Failure::Io(text) => Failure::Io(with(text)),
        }
    }
}

/// One end of the socket.
pub(crate) struct Link(OwnedFd);

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> Link {
        Link(socket)
    }

    /// A connected pair.
    pub(crate) fn pair() -> io::Result<(Link, OwnedFd)> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Link(ours), theirs))
    }

    pub(crate) fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors for one message"));
        }
        let flags = SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags))?;
        Ok(())
    }

    /// The next message; end of file is an error, because both sides say goodbye with a message.
    pub(crate) fn receive<M: DeserializeOwned>(&self) -> io::Result<(M, Vec<OwnedFd>)> {
        let mut bytes = vec![0u8; MAX_MESSAGE];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::io::retry_on_intr(|| {
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got.bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other end is gone"));
        }
        Ok((serde_json::from_slice(&bytes[..got.bytes])?, fds))
    }

    pub(crate) fn shut_down(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
