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

use bowline_cni::Prepared;
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
    place: Place<Ready>,
    wishes: AtomicU64,
}

/// The parts for one pod.
pub struct Ready {
    /// Its network namespace.
    pub network: OwnedFd,
    /// The links in it, if the network is one that can have them made in advance.
    pub links: Option<Prepared>,
    /// Its monitor, which has heard nothing yet.
    pub monitor: Option<Waiting>,
}

/// What a pod took.
pub enum Taken<T = Ready> {
    /// It was ready.
    Ready(T),
    /// It is being made. To make another beside it would take longer: both wait for the kernel's locks of links and
    /// namespaces.
    Coming(oneshot::Receiver<T>),
}

impl<T> Taken<T> {
    /// The parts, once they are made; nothing if they could not be.
    pub async fn arrived(self) -> Option<T> {
        match self {
            Taken::Ready(ready) => Some(ready),
            Taken::Coming(coming) => coming.await.ok(),
        }
    }
}

impl Spare {
    /// What is ready or being made, with the id that it is for.
    pub fn take(&self) -> Option<(SandboxId, Taken)> {
        self.place.take()
    }

    /// The process that waits to be a pod's monitor.
    pub fn monitor(&self) -> Option<i32> {
        match &*self.place.state() {
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
        let Some(making) = self.place.begin(|| SandboxId::from_bytes(random_id())) else { return };
        let Ok(network) = netns::make() else { return };
        let name = making.id.to_string();
        let prepare = || shared.cni.prepare(&name, netns::IF_NAME, network.as_fd());
        let links = if links { prepare() } else { Ok(None) };
        let links = links.unwrap_or_else(|error| {
            tracing::debug!(error = %crate::chain(&error), "the next pod's links could not be made in advance");
            None
        });
        let monitor = Waiting::start(shared, &name).ok();
        // What nobody takes in, because its pod has gone meanwhile, ends here.
        drop(making.end(Ready { network, links, monitor }));
    }

    /// Gives up what is ready.
    pub fn clear(&self, shared: &Shared) {
        if let Some((_, Taken::Ready(Ready { links: Some(links), .. }))) = self.take() {
            shared.cni.give_up(links);
        }
    }
}

/// A place for one thing, with the id that it is for. An id leaves it once.
struct Place<T>(Mutex<State<T>>);

enum State<T> {
    Empty,
    /// Somebody makes it; for a pod that has come meanwhile, if it has.
    Making(SandboxId, Option<oneshot::Sender<T>>),
    Ready(SandboxId, T),
}

impl<T> Default for Place<T> {
    fn default() -> Place<T> {
        Place(Mutex::new(State::Empty))
    }
}

impl<T> Place<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<(SandboxId, Taken<T>)> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Empty) {
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

    /// Begins to make one, if there is none and nobody does.
    fn begin(&self, id: impl FnOnce() -> SandboxId) -> Option<Making<'_, T>> {
        let mut state = self.state();
        let State::Empty = *state else { return None };
        let id = id();
        *state = State::Making(id.clone(), None);
        Some(Making { place: self, id })
    }
}

/// A thing on its way to its place. However this ends, nobody waits for it in vain.
struct Making<'a, T> {
    place: &'a Place<T>,
    id: SandboxId,
}

impl<T> Making<'_, T> {
    /// Hands it to the pod that waits for it, or puts it there. It comes back if that pod is gone, since its id is used up.
    fn end(self, made: T) -> Option<T> {
        let mut state = self.place.state();
        match std::mem::replace(&mut *state, State::Empty) {
            State::Making(id, pod) if id == self.id => match pod {
                Some(pod) => pod.send(made).err(),
                None => {
                    *state = State::Ready(id, made);
                    None
                }
            },
            // Nobody else ends what we began.
            other => {
                *state = other;
                Some(made)
            }
        }
    }
}

impl<T> Drop for Making<'_, T> {
    fn drop(&mut self) {
        let mut state = self.place.state();
        // By then somebody else may have begun.
        if matches!(&*state, State::Making(id, _) if *id == self.id) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> SandboxId {
        SandboxId::from_bytes([byte; 32])
    }

    fn ready<T>(taken: Option<(SandboxId, Taken<T>)>) -> Option<(SandboxId, T)> {
        match taken {
            Some((id, Taken::Ready(thing))) => Some((id, thing)),
            _ => None,
        }
    }

    #[test]
    fn what_was_made_is_taken_once() {
        let place = Place::default();
        assert!(place.take().is_none());
        assert!(place.begin(|| id(1)).unwrap().end("one").is_none());
        assert!(place.begin(|| id(2)).is_none(), "there is one");
        assert_eq!(ready(place.take()), Some((id(1), "one")));
        assert!(place.take().is_none());
    }

    #[tokio::test]
    async fn who_comes_while_it_is_made_gets_it_and_nobody_else_does() {
        let place = Place::default();
        let making = place.begin(|| id(1)).unwrap();
        let (taken, coming) = place.take().unwrap();
        assert_eq!(taken, id(1));
        assert!(place.take().is_none(), "it is promised");
        assert!(making.end("one").is_none());
        assert_eq!(coming.arrived().await, Some("one"));
        assert!(place.take().is_none());
    }

    #[tokio::test]
    async fn one_that_fails_is_waited_for_by_nobody() {
        let place = Place::<&str>::default();
        let making = place.begin(|| id(1)).unwrap();
        let (_, coming) = place.take().unwrap();
        drop(making);
        assert_eq!(coming.arrived().await, None);
        assert!(place.begin(|| id(2)).is_some());
    }

    #[test]
    fn an_id_whose_pod_has_gone_is_not_given_again() {
        let place = Place::default();
        let making = place.begin(|| id(1)).unwrap();
        drop(place.take());
        assert_eq!(making.end("one"), Some("one"));
        assert!(place.take().is_none());
    }

    /// The end of one and the beginning of the next overlap: the first one's last step came after the second's first, and
    /// took it for its own; an id was given to two pods.
    #[tokio::test]
    async fn the_end_of_one_leaves_the_next_alone() {
        let place = Place::default();
        let first = place.begin(|| id(1)).unwrap();
        let (_, coming) = place.take().unwrap();
        let late = Making { place: &place, id: id(1) };
        assert!(first.end("one").is_none());
        let second = place.begin(|| id(2)).unwrap();
        drop(late);
        assert!(place.begin(|| id(3)).is_none(), "the second is still being made");
        assert_eq!(coming.arrived().await, Some("one"));
        assert!(second.end("two").is_none());
        assert_eq!(ready(place.take()), Some((id(2), "two")));
    }
}
