//! What the next pod needs and does not depend on which pod that is, made in advance.
//!
//! | part | what it takes while somebody waits (6.18) |
//! |---|---|
//! | network namespace | 0.7 ms |
//! | links in it, where the network is the built-in bridge | 1.2 to 1.5 ms |
//! | monitor, up to its event loop | 0.5 ms |
//!
//! Links and monitors are named after the pod's id, so that is drawn here. Nothing is written down, and nothing need be
//! cleared up: only descriptors of this process keep the namespace, only the namespace keeps the links, and a monitor that
//! was not committed ends when its socket does. Kernel parameters of the host that new namespaces copy are those of the
//! moment when it was made.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bowline_linux::clone::Cloned;
use bowline_model::SandboxId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::sync::oneshot;

use crate::driver::CgroupDriver;
use crate::error::doing;
use crate::shared::{Shared, random_id};
use crate::{PodError, netns};

/// How long a monitor whose socket is closed may take to end before it is killed.
const END: Duration = Duration::from_secs(1);

/// What is ready for the next pod, or being made for it; one at a time.
#[derive(Default)]
pub struct Spare {
    state: Mutex<State>,
    wishes: AtomicU64,
}

#[derive(Default)]
enum State {
    #[default]
    Empty,
    /// Somebody makes one with this id; for a pod that has come meanwhile, if it has.
    Making(SandboxId, Option<oneshot::Sender<Ready>>),
    Ready(SandboxId, Ready),
}

/// The parts for one pod.
pub struct Ready {
    /// Its network namespace.
    pub network: OwnedFd,
    /// Its monitor, which has heard nothing yet.
    pub monitor: Option<Waiting>,
}

/// What a pod took.
pub enum Taken {
    /// It was ready.
    Ready(Ready),
    /// It is being made. To make another beside it would take longer: both wait for the kernel's locks of links and
    /// namespaces.
    Coming(oneshot::Receiver<Ready>),
}

impl Taken {
    /// The parts, once they are made; nothing if they could not be.
    pub async fn arrived(self) -> Option<Ready> {
        match self {
            Taken::Ready(ready) => Some(ready),
            Taken::Coming(coming) => coming.await.ok(),
        }
    }
}

impl Spare {
    /// What is ready or being made, with the id that it is for.
    pub fn take(&self) -> Option<(SandboxId, Taken)> {
        let mut state = self.state();
        match std::mem::take(&mut *state) {
            State::Ready(id, ready) => Some((id, Taken::Ready(ready))),
            State::Making(id, None) => {
                let (send, coming) = oneshot::channel();
                *state = State::Making(id.clone(), Some(send));
                Some((id, Taken::Coming(coming)))
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// The process that waits to be a pod's monitor.
    pub fn monitor(&self) -> Option<i32> {
        match &*self.state() {
            State::Ready(_, ready) => ready.monitor.as_ref().and_then(Waiting::pid),
            _ => None,
        }
    }

    /// Somebody wants it filled at another time than those before.
    pub fn wish(&self) -> u64 {
        self.wishes.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether nobody has wished anything else since. What an earlier pod's start had meant for the pod that has come by
    /// now would be made beside that one's calls.
    pub fn is_last(&self, wish: u64) -> bool {
        self.wishes.load(Ordering::Relaxed) == wish
    }

    /// Makes a set, unless there is one, or somebody makes it; links only if `links` says so. Failures are for those who need
    /// a part: the next pod tries itself, and says why not.
    pub fn fill(&self, shared: &Shared, links: bool) {
        let id = {
            let mut state = self.state();
            let State::Empty = *state else { return };
            let id = SandboxId::from_bytes(random_id());
            *state = State::Making(id.clone(), None);
            id
        };
        // Whatever happens, nobody waits for it in vain.
        let _unmade = Unmade(self);
        let Ok(network) = netns::make() else { return };
        let name = id.to_string();
        if links && let Err(error) = shared.cni.prepare(&name, netns::IF_NAME, network.as_fd()) {
            tracing::debug!(error = %crate::chain(&error), "the next pod's links could not be made in advance");
        }
        let monitor = Waiting::start(shared, &name).ok();
        let ready = Ready { network, monitor };
        let mut state = self.state();
        if let State::Making(_, Some(pod)) = std::mem::take(&mut *state) {
            drop(state);
            // A pod that is gone already has used up the id; what is dropped here ends.
            let _ = pod.send(ready);
        } else {
            *state = State::Ready(id, ready);
        }
    }

    /// Gives up what is ready.
    pub fn clear(&self, shared: &Shared) {
        drop(self.take());
        shared.cni.forget_spare();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of making a set, whether or not it was made.
struct Unmade<'a>(&'a Spare);

impl Drop for Unmade<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if let State::Making(..) = *state {
            *state = State::Empty;
        }
    }
}

/// A monitor that waits for its pod. Dropped, it ends.
pub struct Waiting(Option<(Cloned, OwnedFd)>);

impl Waiting {
    /// Starts one.
    pub fn start(shared: &Shared, id: &str) -> Result<Waiting, PodError> {
        let cgroup = match shared.config.cgroup_driver.driver {
            // systemd takes it from where we are into its scope.
            CgroupDriver::Systemd => None,
            CgroupDriver::Cgroupfs => shared.monitors_folder().map_err(doing("open the monitors' cgroup"))?,
        };
        let cgroup = cgroup.as_ref().map(|folder| folder.as_fd());
        let started = shared.program.start(id, shared.null.as_fd(), cgroup);
        Ok(Waiting(Some(started.map_err(doing("start the pod's monitor"))?)))
    }

    fn pid(&self) -> Option<i32> {
        self.0.as_ref().map(|(process, _)| process.pid)
    }

    /// The process and its socket, for whoever goes on with it; nothing if it has died meanwhile.
    pub fn go_on(mut self) -> Option<(Cloned, OwnedFd)> {
        let (process, socket) = self.0.take()?;
        if has_ended(&process, Duration::ZERO) {
            reap(&process);
            return None;
        }
        Some((process, socket))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((process, socket)) = self.0.take() else { return };
        drop(socket);
        if !has_ended(&process, END) {
            let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
        }
        reap(&process);
    }
}

/// Waits for the end of a process, at most so long.
fn has_ended(process: &Cloned, limit: Duration) -> bool {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    poll(&mut [PollFd::new(&process.pidfd, PollFlags::IN)], Some(&limit)).is_ok_and(|ended| ended > 0)
}

fn reap(process: &Cloned) {
    let _ = waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED);
}
