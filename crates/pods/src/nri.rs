//! Plugins: what they see of pods and containers, and what their answers do. When they are asked: docs/design/nri.md.
//!
//! - [`message`]: pods and containers, as plugins see them
//! - [`adjust`]: what they want of a container that is being made, onto its spec
//! - [`limits`]: limits, to and fro
//! - [`runtime`]: what they want of pods without having been asked
//! - [`turns`]: the events of one pod, one after the other

mod adjust;
mod limits;
mod message;
mod runtime;
mod turns;

use std::sync::Arc;

use bowline_model::container::Life;
use bowline_nri::api::{Container, Event, PodSandbox};
use bowline_nri::{NriError, Ticket};
use bowline_store::{ContainerRecord, PodRecord};

pub(crate) use limits::{Change, keep, overlay};
pub(crate) use runtime::PluginsRuntime;
pub(crate) use turns::{Settled, Turn, Turns};

use crate::PodError;
use crate::create::Stored;
use crate::shared::Shared;
use message::{ContainerFacts, PodFacts};

/// A container on its way to be, as plugins know of it.
pub(crate) struct Making {
    /// Held until it is visible.
    pub ticket: Ticket,
    /// Events of its pod that come before it.
    pub before: Option<Settled>,
    /// Plugins have been asked about it.
    told: Option<Box<(PodSandbox, Container)>>,
}

impl Making {
    pub fn begin(shared: &Shared, before: Option<Settled>) -> Making {
        Making { ticket: shared.nri.begin(), before, told: None }
    }

    /// Has plugins adjust what is about to be made. Called on a thread that may block.
    pub fn adjust(
        &mut self,
        shared: &Shared,
        pod: &PodRecord,
        record: &mut ContainerRecord,
        stored: &mut Stored,
    ) -> Result<(), PodError> {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return Ok(()) };
        if let Some(before) = self.before.take() {
            runtime.block_on(before.come());
        }
        let mut told = None;
        let describe = || {
            let pod = message::pod(shared, &PodFacts::from(pod));
            let container = message::container(
                shared,
                &ContainerFacts::of(record, &Life::Created, Some(&stored.spec)),
                &pod,
            );
            told = Some(Box::new((pod.clone(), container.clone())));
            (pod, container)
        };
        let outcome = runtime.block_on(shared.nri.create_container(&self.ticket, describe));
        self.told = told;
        match outcome.map_err(refused("make the container"))? {
            Some(wanted) => adjust::apply(shared, pod, &wanted, record, stored),
            None => Ok(()),
        }
    }

    /// It will not be made after all. Called on a thread that may block.
    pub fn undo(&mut self, shared: &Shared) {
        let (Some(told), Ok(runtime)) = (self.told.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let (pod, container) = *told;
        runtime.block_on(async {
            shared.nri.stop_container(pod.clone(), container.clone()).await;
            shared.nri.tell(Event::RemoveContainer, &pod, Some(&container)).await;
        });
    }
}

/// Asks plugins about a pod that is up and that nobody has seen yet.
pub(crate) async fn run_pod(shared: &Shared, ticket: &Ticket, record: &PodRecord) -> Result<(), PodError> {
    let describe = || message::pod(shared, &PodFacts::from(record));
    shared.nri.run_pod(ticket, describe).await.map_err(refused("run the pod"))
}

/// A pod that plugins were told of goes again.
pub(crate) async fn undo_pod(shared: &Shared, record: &PodRecord) {
    if shared.nri.active() {
        let pod = message::pod(shared, &PodFacts::from(record));
        shared.nri.tell(Event::StopPodSandbox, &pod, None).await;
        shared.nri.tell(Event::RemovePodSandbox, &pod, None).await;
    }
}

/// A pod and one of its containers, as an event tells of them.
pub(crate) struct Told {
    shared: Arc<Shared>,
    pod: PodRecord,
    container: Option<(ContainerRecord, Life)>,
    turn: Turn,
}

impl Told {
    pub fn new(
        shared: &Arc<Shared>,
        pod: &PodRecord,
        container: Option<(ContainerRecord, Life)>,
        turn: Turn,
    ) -> Told {
        Told { shared: shared.clone(), pod: pod.clone(), container, turn }
    }

    async fn messages(&self) -> (PodSandbox, Option<Container>) {
        self.turn.come().await;
        let pod = message::pod(&self.shared, &PodFacts::from(&self.pod));
        let Some((record, life)) = &self.container else { return (pod, None) };
        let stored = message::read_spec(&self.shared, &record.pod, &record.id).await;
        let facts = ContainerFacts::of(record, life, stored.as_ref());
        let container = message::container(&self.shared, &facts, &pod);
        (pod, Some(container))
    }

    /// It has happened.
    pub async fn tell(self, event: Event) {
        let (pod, container) = self.messages().await;
        match (event, container) {
            (Event::StopContainer, Some(container)) => self.shared.nri.stop_container(pod, container).await,
            (_, container) => self.shared.nri.tell(event, &pod, container.as_ref()).await,
        }
    }

    /// A container goes; one that never ran is stopped first.
    pub async fn tell_removal(self, stop: bool) {
        let (pod, container) = self.messages().await;
        if let (true, Some(container)) = (stop, &container) {
            self.shared.nri.stop_container(pod.clone(), container.clone()).await;
        }
        self.shared.nri.tell(Event::RemoveContainer, &pod, container.as_ref()).await;
    }

    /// It is about to happen, unless a plugin minds.
    pub async fn ask(self, event: Event, what: &'static str) -> Result<(), PodError> {
        let (pod, container) = self.messages().await;
        self.shared.nri.ask_leave(event, &pod, container.as_ref()).await.map_err(refused(what))
    }

    /// A client wants other limits for the container; what it gets.
    pub async fn ask_limits(self, wanted: &bowline_model::spec::Resources) -> Result<Change, PodError> {
        let (pod, container) = self.messages().await;
        let shown = message::cri_limits(&self.shared, wanted)?;
        let limits = self
            .shared
            .nri
            .update_container(pod, container.unwrap_or_default(), shown.clone())
            .await
            .map_err(refused("change the container's limits"))?;
        let mut change = limits::change(&limits)?;
        if limits.memory == shown.memory {
            // Nobody touched it: what the client left open stays open.
            change.asked.memory_limit = wanted.memory_limit;
            change.asked.memory_swap_limit = wanted.memory_swap_limit;
        }
        Ok(change)
    }

    /// A client wants other limits for the pod.
    pub async fn ask_pod_limits(
        self,
        overhead: &bowline_model::spec::Resources,
        sum: &bowline_model::spec::Resources,
    ) -> Result<(), PodError> {
        let (pod, _) = self.messages().await;
        let (overhead, sum) =
            (message::cri_limits(&self.shared, overhead)?, message::cri_limits(&self.shared, sum)?);
        let asked = self.shared.nri.update_pod(pod, overhead, sum).await;
        asked.map_err(refused("change the pod's limits"))
    }
}

fn refused(what: &'static str) -> impl FnOnce(NriError) -> PodError {
    move |error| PodError::failed(what, error)
}
