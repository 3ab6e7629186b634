//! The control thread: one epoll, one event at a time, no lock held over anything.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use bowline_linux::{message, process};
use bowline_monitor_proto::{Answer, Call, MAX_MESSAGE, Refusal, Request, VERSION, decode};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use crate::children::{Container, Exec, Waiting};
use crate::log::LogThread;
use crate::peers::{PeerId, Peers};
use crate::setup::{self, Surroundings};

mod attach;
mod exit;
mod held;
mod hooked;
mod restore;
mod start;

/// What an event is about; its number travels in the epoll event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Signals,
    Listener,
    Log,
    Peer(PeerId),
    /// Reports of the child with this pid.
    Child(u32),
}

impl Token {
    fn data(self) -> EventData {
        let (kind, number) = match self {
            Token::Signals => (0u64, 0),
            Token::Listener => (1, 0),
            Token::Log => (2, 0),
            Token::Peer(id) => (3, id),
            Token::Child(pid) => (4, pid),
        };
        EventData::new_u64(kind << 32 | u64::from(number))
    }

    fn of(data: EventData) -> Option<Token> {
        let number = data.u64() as u32;
        match data.u64() >> 32 {
            0 => Some(Token::Signals),
            1 => Some(Token::Listener),
            2 => Some(Token::Log),
            3 => Some(Token::Peer(number)),
            4 => Some(Token::Child(number)),
            _ => None,
        }
    }
}

/// Everything the monitor knows.
pub struct Control {
    epoll: OwnedFd,
    signals: OwnedFd,
    peers: Peers,
    /// The connection that started us; its end before `Commit` is ours.
    parent: PeerId,
    committed: bool,
    pod: Option<Pod>,
    ending: bool,
}

/// The pod, once it is set up.
pub(crate) struct Pod {
    surroundings: Surroundings,
    unified: Option<u8>,
    memory: Option<u8>,
    /// The pod's cgroup, if it is still to be made.
    group: CString,
    log: LogThread,
    containers: Vec<Container>,
    execs: Vec<Exec>,
    /// Who waits for a log to be exchanged, in order.
    reopening: Vec<(crate::log::Key, crate::children::Waiting)>,
    /// Who waits for an attachment.
    attaching: Vec<crate::children::Attaching>,
    next_attachment: crate::attach::Number,
}

impl Control {
    /// Takes the channel over that the daemon put at descriptor 0.
    pub fn new() -> io::Result<Control> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let signals = process::signal_descriptor(&[process::SIGCHLD])?;
        let channel = process::take_stdin()?;
        epoll::add(&epoll, &signals, Token::Signals.data(), EventFlags::IN)?;
        let mut peers = Peers::default();
        let parent = peers.add(channel).ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(socket) = peers.socket(parent) {
            epoll::add(&epoll, socket, Token::Peer(parent).data(), EventFlags::IN)?;
        }
        Ok(Control { epoll, signals, peers, parent, committed: false, pod: None, ending: false })
    }

    /// Serves until `Shutdown`, or until the daemon goes before `Commit`.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(16);
        while !self.ending {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                match Token::of(event.data) {
                    Some(Token::Signals) => self.reap(),
                    Some(Token::Listener) => self.accept(),
                    Some(Token::Log) => self.hear_log(),
                    Some(Token::Peer(id)) => self.hear_peer(id),
                    Some(Token::Child(pid)) => self.hear_child(pid as i32),
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        let Some(pod) = &self.pod else { return };
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(&pod.surroundings.listener, flags) else { return };
        // The folder is root's alone already; this holds even if somebody opens it up.
        if message::peer_uid(&socket).ok() != Some(0) {
            return;
        }
        let Some(id) = self.peers.add(socket) else { return };
        if let Some(socket) = self.peers.socket(id) {
            let _ = epoll::add(&self.epoll, socket, Token::Peer(id).data(), EventFlags::IN);
        }
    }

    fn hear_peer(&mut self, id: PeerId) {
        // One message an event: a busy daemon must not keep an exit waiting.
        let Some(socket) = self.peers.socket(id) else { return };
        // As much as there is, which is seldom a page: to have the longest message's room mapped, cleared and unmapped took
        // longer than to receive one. Where it is not known (nothing: the end, as a rule) there is room for any.
        let waiting = rustix::io::ioctl_fionread(socket).ok().and_then(|bytes| usize::try_from(bytes).ok());
        let room = waiting.filter(|bytes| *bytes > 0).unwrap_or(MAX_MESSAGE).min(MAX_MESSAGE);
        let mut buffer = vec![0; room];
        let received = message::receive(socket, &mut buffer);
        match received {
            Ok((0, _)) => self.lose(id),
            Ok((len, descriptors)) => match decode::<Call>(&buffer[..len]) {
                Ok(call) => self.serve(id, call, descriptors),
                Err(_) => self.lose(id),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.lose(id),
        }
    }

    fn lose(&mut self, id: PeerId) {
        self.peers.remove(id);
        self.end_unseen(id);
        if id == self.parent && !self.committed {
            self.ending = true;
        }
    }

    fn serve(&mut self, peer: PeerId, call: Call, descriptors: Vec<OwnedFd>) {
        let operation = call.operation;
        let answer = match call.request {
            Request::Hello { .. } => {
                let pid = rustix::process::getpid().as_raw_nonzero().get();
                Some(Answer::Hello { version: VERSION, pid })
            }
            Request::Setup { setup } => Some(self.set_up(&setup, descriptors)),
            Request::Commit => {
                self.committed = true;
                self.peers.answer(peer, operation, Answer::Done, &[]);
                self.make_group();
                None
            }
            Request::Launch { launch } => self.launch(peer, operation, &launch, descriptors),
            Request::Exec { exec } => self.exec(peer, operation, &exec, descriptors),
            Request::Kill { container, signal, everyone } => Some(self.kill(&container, signal, everyone)),
            Request::KillExec { exec } => Some(self.kill_exec(exec)),
            Request::ReopenLog { container } => self.reopen_log(peer, operation, &container, descriptors),
            Request::Attach { attach } => self.attach(peer, operation, &attach, descriptors),
            Request::CloseStdin { container } => Some(self.close_stdin(&container)),
            Request::State => Some(self.state()),
            Request::Namespaces => self.namespaces(peer, operation),
            Request::Forget { container } => Some(self.forget(&container)),
            Request::Run => self.run_program(peer, operation, descriptors),
            Request::Restore { restore } => self.restore(peer, operation, &restore, descriptors),
            Request::Restored { container, pid } => Some(self.restored(&container, pid)),
            Request::Hold { launch } => self.hold(peer, operation, &launch, descriptors),
            Request::Release { container } => self.release(&container, Waiting { peer, operation }),
            Request::LaunchHooked { hooked } => self.launch_hooked(peer, operation, &hooked, descriptors),
            Request::Shutdown => {
                self.kill_everything();
                self.ending = true;
                Some(Answer::Done)
            }
        };
        if let Some(answer) = answer {
            self.peers.answer(peer, operation, answer, &[]);
        }
    }

    fn set_up(&mut self, wish: &bowline_monitor_proto::Setup, descriptors: Vec<OwnedFd>) -> Answer {
        if self.pod.is_some() {
            return Answer::Refused { why: Refusal::Order };
        }
        let built = setup::build(wish, descriptors).and_then(|surroundings| {
            let log = LogThread::start()?;
            epoll::add(&self.epoll, log.wakeup(), Token::Log.data(), EventFlags::IN)?;
            epoll::add(&self.epoll, &surroundings.listener, Token::Listener.data(), EventFlags::IN)?;
            Ok(Pod {
                surroundings,
                unified: wish.unified,
                memory: wish.memory,
                group: wish.group.clone(),
                log,
                containers: Vec::new(),
                execs: Vec::new(),
                reopening: Vec::new(),
                attaching: Vec::new(),
                next_attachment: 1,
            })
        });
        match built {
            Ok(pod) => {
                let pid = pod.surroundings.init.as_ref().map_or(0, |init| init.pid);
                self.pod = Some(pod);
                Answer::Launched { pid, started_at: crate::record::now() }
            }
            Err(error) => failed_early("setting up the pod", &error),
        }
    }

    /// Makes the pod's cgroup while nobody waits for it. What fails is tried again, and told of, by the first launch.
    fn make_group(&mut self) {
        let Some(pod) = &mut self.pod else { return };
        let group = std::mem::take(&mut pod.group);
        if !group.is_empty() {
            for root in &pod.surroundings.hierarchies {
                let _ = bowline_launch::make_parent_cgroup(root.as_fd(), &group);
            }
        }
    }

    fn namespaces(&mut self, peer: PeerId, operation: u64) -> Option<Answer> {
        let Some(user) = self.pod.as_ref().and_then(|pod| pod.surroundings.user.as_ref()) else {
            return Some(Answer::Refused { why: Refusal::Unknown });
        };
        self.peers.answer(peer, operation, Answer::Done, &[user.user.as_fd(), user.network.as_fd()]);
        None
    }

    fn state(&self) -> Answer {
        let containers = self.pod.iter().flat_map(|pod| &pod.containers);
        // Of one that is held nobody has been told that it runs, and perhaps nobody ever asks it to.
        let told = containers.filter(|container| !container.is_held());
        Answer::State { containers: told.map(Container::state).collect() }
    }
}

/// An answer for what failed before there was a process.
fn failed_early(doing: &str, error: &io::Error) -> Answer {
    Answer::Failed {
        stage: u8::MAX,
        detail: 0,
        errno: error.raw_os_error().unwrap_or(0),
        text: format!("{doing}: {error}"),
    }
}

/// Opens a pipe: (read end, write end).
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}
