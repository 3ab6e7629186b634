//! What happens to pods and containers, told to whoever listens.
//!
//! An event is told after the change is recorded and shown, so a reader that looks finds at least what the event says.
//! All events have one order and strictly increasing times; each holds the pod and its containers as they were when it
//! was told. Nobody waits for a reader: one that falls [`WAITING`] events behind loses its place and is told so. A new
//! reader gets what happens from then on; what was before is in the lists. Without a reader nothing is kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bowline_model::{ContainerId, SandboxId};
use tokio::sync::broadcast;

use crate::shared::now;
use crate::view::{ContainerView, PodView, Views};

/// How many events may wait for a reader. A node at the kubelet's limit of 110 pods makes about a thousand events when
/// all of it is replaced.
const WAITING: usize = 4096;

/// What happened. A sandbox has the same four as a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodEventKind {
    /// It is there.
    Created,
    /// It runs, or is ready.
    Started,
    /// It has ended, or is not ready any more.
    Stopped,
    /// It is gone.
    Deleted,
}

/// One event.
#[derive(Debug, Clone)]
pub struct PodEvent {
    /// What.
    pub kind: PodEventKind,
    /// To what; none means the sandbox itself.
    pub container: Option<ContainerId>,
    /// When, nanoseconds since the epoch; later than every event before.
    pub at: i64,
    /// The pod as it is now; of one that is gone, as it was last.
    pub pod: Arc<PodView>,
    /// Its containers as they are now, oldest first.
    pub containers: Vec<Arc<ContainerView>>,
}

/// What a reader is given.
#[derive(Debug)]
pub enum NextEvent {
    /// The next one.
    Event(Arc<PodEvent>),
    /// The reader was too slow: so many are lost, and it has to look at the lists again.
    Lost(u64),
    /// The daemon goes down.
    End,
}

/// A reader's place.
pub struct Subscription(Option<broadcast::Receiver<Arc<PodEvent>>>);

impl Subscription {
    /// Waits for the next event.
    pub async fn next(&mut self) -> NextEvent {
        let Some(receiver) = &mut self.0 else { return NextEvent::End };
        match receiver.recv().await {
            Ok(event) => NextEvent::Event(event),
            Err(broadcast::error::RecvError::Lagged(lost)) => NextEvent::Lost(lost),
            Err(broadcast::error::RecvError::Closed) => NextEvent::End,
        }
    }
}

/// The hub of all events.
#[derive(Default)]
pub(crate) struct Events {
    hub: Mutex<Hub>,
    told: AtomicU64,
}

#[derive(Default)]
struct Hub {
    last: i64,
    /// There while somebody listens.
    sender: Option<broadcast::Sender<Arc<PodEvent>>>,
    closed: bool,
}

impl Events {
    fn hub(&self) -> std::sync::MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> Subscription {
        let mut hub = self.hub();
        if hub.closed {
            return Subscription(None);
        }
        let sender = hub.sender.get_or_insert_with(|| broadcast::channel(WAITING).0);
        Subscription(Some(sender.subscribe()))
    }

    /// Ends all readers' streams, for ever.
    pub fn close(&self) {
        let mut hub = self.hub();
        hub.closed = true;
        hub.sender = None;
    }

    /// A time from before this daemon: events are later.
    pub fn seen(&self, at: i64) {
        let mut hub = self.hub();
        hub.last = hub.last.max(at);
    }

    /// How many events there were.
    pub fn count(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// How many listen.
    pub fn readers(&self) -> usize {
        self.hub().sender.as_ref().map_or(0, broadcast::Sender::receiver_count)
    }

    /// Tells of a container, after its view was changed.
    pub fn container(&self, views: &Views, kind: PodEventKind, pod: &SandboxId, id: &ContainerId) {
        self.tell(views, kind, Some(id), || views.pod(&pod.to_string()).ok());
    }

    /// Tells of a sandbox, after its view was changed; `last` is what it was when it is gone.
    pub fn pod(&self, views: &Views, kind: PodEventKind, pod: &SandboxId, last: Option<Arc<PodView>>) {
        self.tell(views, kind, None, || last.or_else(|| views.pod(&pod.to_string()).ok()));
    }

    fn tell(
        &self,
        views: &Views,
        kind: PodEventKind,
        container: Option<&ContainerId>,
        pod: impl FnOnce() -> Option<Arc<PodView>>,
    ) {
        self.told.fetch_add(1, Ordering::Relaxed);
        let mut hub = self.hub();
        hub.last = now().max(hub.last + 1);
        if hub.sender.as_ref().is_some_and(|sender| sender.receiver_count() == 0) {
            hub.sender = None;
        }
        let Some(sender) = &hub.sender else { return };
        let Some(pod) = pod() else { return };
        let containers = views.containers_of(&pod.id);
        let event = PodEvent { kind, container: container.cloned(), at: hub.last, pod, containers };
        // The last reader may have gone just now.
        let _ = sender.send(Arc::new(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_pod(ready: bool) -> PodView {
        PodView {
            id: SandboxId::from_bytes([1; 32]),
            spec: Arc::default(),
            ready,
            created_at: 1,
            ips: Vec::new(),
            cni_result: "".into(),
            monitor: 0,
            cgroup: "".into(),
            resources: Default::default(),
            selinux: None,
        }
    }

    #[tokio::test]
    async fn events_are_in_order_and_without_history() {
        let (views, events) = (Views::default(), Events::default());
        views.put_pod(a_pod(true));
        let id = SandboxId::from_bytes([1; 32]);
        events.pod(&views, PodEventKind::Created, &id, None);
        events.seen(i64::MAX - 1000);
        let mut reader = events.subscribe();
        for kind in [PodEventKind::Started, PodEventKind::Stopped] {
            events.pod(&views, kind, &id, None);
        }
        let mut last = i64::MAX - 1000;
        for kind in [PodEventKind::Started, PodEventKind::Stopped] {
            let NextEvent::Event(event) = reader.next().await else { panic!("no event") };
            assert_eq!(event.kind, kind);
            assert!(event.at > last, "{} after {last}", event.at);
            last = event.at;
        }
        events.close();
        assert!(matches!(reader.next().await, NextEvent::End));
        assert!(matches!(events.subscribe().next().await, NextEvent::End));
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_and_holds_up_nobody() {
        let (views, events) = (Views::default(), Events::default());
        views.put_pod(a_pod(true));
        let id = SandboxId::from_bytes([1; 32]);
        let mut reader = events.subscribe();
        for _ in 0..WAITING + 7 {
            events.pod(&views, PodEventKind::Started, &id, None);
        }
        assert!(matches!(reader.next().await, NextEvent::Lost(7)));
        assert_eq!(events.count(), WAITING as u64 + 7);
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let (views, events) = (Views::default(), Events::default());
        views.put_pod(a_pod(true));
        drop(events.subscribe());
        events.pod(&views, PodEventKind::Started, &SandboxId::from_bytes([1; 32]), None);
        assert!(events.hub().sender.is_none());
        assert_eq!(events.readers(), 0);
    }
}
