//! The daemons at the other end: the one that started us, and any that took over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bowline_monitor_proto::{Answer, Event, Message, encode};

/// Names a connection; never used twice.
pub type PeerId = u32;

/// The most daemons that may be connected at once: one serves, a second may be taking over.
pub const MAX_PEERS: usize = 8;

/// All connections.
#[derive(Default)]
pub struct Peers {
    list: Vec<(PeerId, OwnedFd)>,
    next: PeerId,
}

impl Peers {
    /// Adds a connection; `None` if there are too many.
    pub fn add(&mut self, socket: OwnedFd) -> Option<PeerId> {
        if self.list.len() >= MAX_PEERS {
            return None;
        }
        let _ = rustix::io::ioctl_fionbio(&socket, true);
        let id = self.next;
        self.next += 1;
        self.list.push((id, socket));
        Some(id)
    }

    /// The socket of a connection.
    pub fn socket(&self, id: PeerId) -> Option<BorrowedFd<'_>> {
        self.list.iter().find(|(known, _)| *known == id).map(|(_, socket)| socket.as_fd())
    }

    /// Closes a connection.
    pub fn remove(&mut self, id: PeerId) {
        self.list.retain(|(known, _)| *known != id);
    }

    /// Answers a request; false if nobody hears it. A daemon that does not read loses its connection, and asks for the
    /// state when it comes back.
    pub fn answer(
        &mut self,
        id: PeerId,
        operation: u64,
        answer: Answer,
        descriptors: &[BorrowedFd<'_>],
    ) -> bool {
        let bytes = encode(&Message::Reply { operation, answer });
        let sent = self.socket(id).map(|socket| bowline_linux::message::send(socket, &bytes, descriptors));
        if matches!(sent, Some(Err(_))) {
            self.remove(id);
        }
        matches!(sent, Some(Ok(())))
    }

    /// Tells one alone.
    pub fn tell_one(&mut self, id: PeerId, event: Event) {
        let bytes = encode(&Message::Event { event });
        let sent = self.socket(id).map(|socket| bowline_linux::message::send(socket, &bytes, &[]));
        if matches!(sent, Some(Err(_))) {
            self.remove(id);
        }
    }

    /// Tells everyone.
    pub fn tell(&mut self, event: Event) {
        let bytes = encode(&Message::Event { event });
        self.list.retain(|(_, socket)| bowline_linux::message::send(socket.as_fd(), &bytes, &[]).is_ok());
    }
}
