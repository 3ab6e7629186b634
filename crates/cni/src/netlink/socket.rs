//! Sending batches and reading their answers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Duration;

use bowline_linux::netlink::{NetlinkFamily, open_netlink};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::batch::{Batch, attributes};

/// `NLMSG_ERROR`: an acknowledgement, with 0 or an errno.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const DONE: u16 = 3;
/// `NLM_F_CAPPED`: the request is not echoed behind the errno.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes follow, among them the kernel's words.
const ACK_TLVS: u16 = 0x200;
/// Dumps come in pieces of at most this.
const RECEIVE: usize = 32 * 1024;
/// The kernel answers while it handles the send; this only keeps a bug from becoming a hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// The kernel's no to one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) words: String,
}

impl Refusal {
    pub(crate) fn into_io(self) -> io::Error {
        let plain = io::Error::from(self.errno);
        if self.words.is_empty() {
            return plain;
        }
        io::Error::new(plain.kind(), format!("{plain}: {}", self.words))
    }
}

/// A netlink socket. It belongs to the network namespace it was opened in.
pub(crate) struct Socket {
    fd: OwnedFd,
    next_seq: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open(family: NetlinkFamily) -> io::Result<Socket> {
        let fd = open_netlink(family)?;
        set_socket_timeout(&fd, Timeout::Recv, Some(PATIENCE))?;
        Ok(Socket { fd, next_seq: 1, buffer: vec![0; RECEIVE] })
    }

    /// The number of a link in the socket's namespace, without netlink: this takes no lock (`SIOCGIFINDEX`).
    pub(crate) fn index_of(&self, link: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.fd, link)?)
    }

    /// Sends the batch and waits until each message is answered. `on_data` sees what the kernel sends besides
    /// acknowledgements: the index of the message it answers, and the payload.
    ///
    /// The kernel handles the messages in order and goes on after a refusal.
    pub(crate) fn exchange(
        &mut self,
        batch: &mut Batch,
        mut on_data: impl FnMut(usize, &[u8]),
    ) -> io::Result<Vec<Option<Refusal>>> {
        let first = self.next_seq;
        self.next_seq = first.wrapping_add(batch.len() as u32);
        let bytes = batch.numbered(first);
        if send(&self.fd, bytes, SendFlags::empty())? != bytes.len() {
            return Err(io::Error::other("netlink took only a part of the batch"));
        }
        let mut answers = vec![None; batch.len()];
        let mut open = (0..batch.len()).filter(|i| batch.is_answered(*i)).count();
        while open > 0 {
            let (len, _) = recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC)?;
            let received =
                self.buffer.get(..len).ok_or_else(|| io::Error::other("netlink answer too long"))?;
            for (seq, kind, flags, payload) in messages(received) {
                let index = seq.wrapping_sub(first) as usize;
                // Anything else answers an earlier batch that ended early.
                if index >= answers.len() {
                    continue;
                }
                match kind {
                    ERROR | DONE => {
                        let refusal = refusal(flags, payload, kind == ERROR);
                        if !batch.is_answered(index) {
                            // The bracket of an nfnetlink batch was refused, and all within it.
                            return match refusal {
                                Some(refusal) => Err(refusal.into_io()),
                                None => continue,
                            };
                        }
                        answers[index] = refusal;
                        open -= 1;
                    }
                    _ => on_data(index, payload),
                }
            }
        }
        Ok(answers)
    }

    /// [`Socket::exchange`] for a batch in which any refusal is a failure: the first one is the error.
    pub(crate) fn run(&mut self, batch: &mut Batch) -> io::Result<()> {
        match self.exchange(batch, |_, _| {})?.into_iter().flatten().next() {
            Some(refusal) => Err(refusal.into_io()),
            None => Ok(()),
        }
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u32, u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..16)?;
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let seq = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let payload = bytes.get(16..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((seq, kind, flags, payload))
    })
}

fn refusal(flags: u16, payload: &[u8], is_error: bool) -> Option<Refusal> {
    let code = payload.get(..4).map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    if code >= 0 {
        return None;
    }
    let mut words = String::new();
    // NLMSGERR_ATTR_MSG = 1; with CAPPED the attributes follow the errno and the request's header.
    if is_error && flags & ACK_TLVS != 0 && flags & CAPPED != 0 {
        for (kind, value) in attributes(payload.get(20..).unwrap_or(&[])) {
            if kind == 1 {
                words = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
        }
    }
    Some(Refusal { errno: Errno::from_raw_os_error(-code), words })
}

/// How many idle sockets a pool keeps.
const KEPT: usize = 8;

/// Sockets of one family in one namespace, so that a slow request holds up no other.
pub(crate) struct SocketPool {
    family: NetlinkFamily,
    idle: Mutex<Vec<Socket>>,
}

impl SocketPool {
    /// Opens the first socket at once: it fixes the namespace and shows whether the kernel has the family.
    pub(crate) fn new(family: NetlinkFamily) -> io::Result<SocketPool> {
        Ok(SocketPool { family, idle: Mutex::new(vec![Socket::open(family)?]) })
    }

    /// Lends a socket. One that saw an I/O error is not taken back.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Socket) -> io::Result<T>) -> io::Result<T> {
        let idle = self.idle.lock().map_or(None, |mut idle| idle.pop());
        let mut socket = match idle {
            Some(socket) => socket,
            None => Socket::open(self.family)?,
        };
        let done = work(&mut socket)?;
        if let Ok(mut idle) = self.idle.lock()
            && idle.len() < KEPT
        {
            idle.push(socket);
        }
        Ok(done)
    }
}
