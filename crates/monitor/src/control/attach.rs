//! Attachments, as the control thread sees them: who gets a container's input, and when that ends.
//!
//! Output is the log thread's (`attach.rs`). The input of a container that reads it once belongs to the first attachment
//! that wants it, and ends with that attachment, however it ends: the log thread tells of the loss of its life line, so
//! a daemon that dies takes along what it had open.

use std::os::fd::{AsFd, OwnedFd};

use bowline_monitor_proto::{Answer, Attach, Id, Refusal};

use super::{Control, Pod};
use crate::attach::{Ends, Number};
use crate::children::{Attaching, Life, Waiting};
use crate::log::{Command, Key};
use crate::peers::PeerId;

fn refused(why: Refusal) -> Option<Answer> {
    Some(Answer::Refused { why })
}

impl Control {
    pub(super) fn attach(
        &mut self,
        peer: PeerId,
        operation: u64,
        wish: &Attach,
        descriptors: Vec<OwnedFd>,
    ) -> Option<Answer> {
        let Some(pod) = &mut self.pod else { return refused(Refusal::Order) };
        let number = pod.next_attachment;
        let Some(container) = pod.find(&wish.container) else { return refused(Refusal::Unknown) };
        if !matches!(container.life, Life::Running) {
            return refused(Refusal::NotRunning);
        }
        let mut descriptors = descriptors.into_iter();
        let Some(life) = descriptors.next() else { return refused(Refusal::Malformed) };
        let mut stream = |wanted: bool| if wanted { descriptors.next() } else { None };
        let streams = [stream(wish.stdout), stream(wish.stderr)];
        let free = container.input_of.is_none();
        if wish.stdin && wish.once && free && container.terminal.is_none() {
            container.input_of = Some(number);
        }
        let key = container.slot;
        // Numbers are in use for as long as somebody watches; four thousand million later nobody of the first does.
        pod.next_attachment = number.wrapping_add(1);
        pod.attaching.push(Attaching {
            number,
            container: wish.container,
            stdin: wish.stdin && free,
            waiting: Waiting { peer, operation },
        });
        // Answered by `attached`, once output is copied.
        pod.log.send(Command::Attach { key, number, ends: Ends { life, streams } });
        None
    }

    /// The log thread has taken an attachment in, or has too many.
    pub(super) fn attached(&mut self, number: Number, taken: bool) {
        let Some(pod) = &mut self.pod else { return };
        let Some(at) = pod.attaching.iter().position(|attaching| attaching.number == number) else { return };
        let Attaching { container, stdin, waiting, .. } = pod.attaching.swap_remove(at);
        let Waiting { peer, operation } = waiting;
        let Some(container) = pod.containers.iter_mut().find(|known| known.id == container) else {
            self.peers.answer(peer, operation, Answer::Refused { why: Refusal::Unknown }, &[]);
            return;
        };
        if !taken {
            if container.input_of == Some(number) {
                container.input_of = None;
            }
            self.peers.answer(peer, operation, Answer::Refused { why: Refusal::Full }, &[]);
            return;
        }
        let terminal = container.terminal.as_ref();
        // The terminal also for its size; it is the daemon's to write to it only for those who want the input.
        let given = terminal.or(if stdin { container.stdin.as_ref() } else { None });
        let answer = Answer::Attached { input: given.is_some(), terminal: terminal.is_some() };
        match given {
            Some(given) => self.peers.answer(peer, operation, answer, &[given.as_fd()]),
            None => self.peers.answer(peer, operation, answer, &[]),
        };
    }

    pub(super) fn close_stdin(&mut self, id: &Id) -> Answer {
        let Some(pod) = &mut self.pod else { return Answer::Refused { why: Refusal::Order } };
        match pod.find(id) {
            Some(container) => {
                container.stdin = None;
                Answer::Done
            }
            None => Answer::Refused { why: Refusal::Unknown },
        }
    }
}

impl Pod {
    /// An attachment is over.
    pub(super) fn left(&mut self, key: Key, number: Number) {
        let container = self.containers.iter_mut().find(|known| known.slot == key);
        if let Some(container) = container.filter(|known| known.input_of == Some(number)) {
            // `input_of` stays: nobody else gets it.
            container.stdin = None;
        }
    }
}
