//! A plugin that is connected: who it is, what it wants to be asked, and what happens when it does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bowline_nri_proto::v1alpha1::{Container, Empty, Event, FailurePolicy, PodSandbox, StateChangeEvent};
use tokio::sync::{Mutex, MutexGuard};

use crate::NriError;
use crate::link::{CallError, Link, code};

/// The service that plugins serve.
pub(crate) const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";

/// A plugin.
pub(crate) struct Plugin {
    /// Two digits.
    pub(crate) index: String,
    pub(crate) base: String,
    /// We started its program.
    pub(crate) launched: bool,
    pub(crate) link: Arc<Link>,
    /// What it wants to be asked: bit N-1 is event N.
    pub(crate) events: u32,
    pub(crate) policy: FailurePolicy,
    /// It is asked one thing at a time.
    pub(crate) queue: Arc<Mutex<()>>,
    /// Events whose calls it does not know; it is asked by StateChange.
    old: AtomicU32,
    pub(crate) asked: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// Counts of all plugins together.
#[derive(Default)]
pub(crate) struct Dropped(AtomicU64);

impl Dropped {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Plugin {
    pub(crate) fn new(
        (index, base): (String, String),
        launched: bool,
        link: Arc<Link>,
        events: u32,
        policy: FailurePolicy,
    ) -> Plugin {
        Plugin {
            index,
            base,
            launched,
            link,
            events,
            policy,
            queue: Arc::default(),
            old: AtomicU32::new(0),
            asked: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// `NN-name`.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }

    /// It wants to be asked about this.
    pub(crate) fn wants(&self, event: Event) -> bool {
        self.events & bit(event) != 0
    }

    /// Asks it, when its turn comes. `None`: it does not want to be asked, it is gone, or it has failed in a way that
    /// its policy forgives.
    pub(crate) async fn ask<A: prost::Message + Default>(
        &self,
        event: Event,
        request: &impl prost::Message,
        limit: Duration,
        dropped: &Dropped,
    ) -> Result<Option<A>, NriError> {
        let Some(_turn) = self.turn(event).await else { return Ok(None) };
        let answer = self.link.call(PLUGIN_SERVICE, method(event), request, limit).await;
        self.judge(event, answer, dropped)
    }

    /// Tells it something that it can at most refuse. Plugins from before 0.10 have one call for all of these.
    pub(crate) async fn tell(
        &self,
        event: Event,
        request: &impl prost::Message,
        about: (&PodSandbox, Option<&Container>),
        limit: Duration,
        dropped: &Dropped,
    ) -> Result<Option<Empty>, NriError> {
        let Some(_turn) = self.turn(event).await else { return Ok(None) };
        if self.old.load(Ordering::Relaxed) & bit(event) == 0 {
            // Its answer has no fields.
            match self.link.call(PLUGIN_SERVICE, method(event), request, limit).await {
                Err(CallError::Refused { code: code::UNIMPLEMENTED, .. }) => {}
                answer => return self.judge(event, answer, dropped),
            }
            self.old.fetch_or(bit(event), Ordering::Relaxed);
            tracing::info!(
                plugin = self.name(),
                call = method(event),
                "an NRI plugin is told by StateChange"
            );
        }
        let change =
            StateChangeEvent { event: event as i32, pod: Some(about.0.clone()), container: about.1.cloned() };
        match self.link.call(PLUGIN_SERVICE, "StateChange", &change, limit).await {
            // It wants to be told, and has no ear for it: nothing is lost on it.
            Err(CallError::Refused { code: code::UNIMPLEMENTED, .. }) => Ok(None),
            answer => self.judge(event, answer, dropped),
        }
    }

    /// Waits for its turn; none comes if it does not want to be asked, or is gone.
    async fn turn(&self, event: Event) -> Option<MutexGuard<'_, ()>> {
        if !self.wants(event) {
            return None;
        }
        let turn = self.queue.lock().await;
        if self.link.is_closed() {
            return None;
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        Some(turn)
    }

    fn judge<A>(
        &self,
        event: Event,
        answer: Result<A, CallError>,
        dropped: &Dropped,
    ) -> Result<Option<A>, NriError> {
        let call = method(event);
        let error = match answer {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => error,
        };
        self.failed.fetch_add(1, Ordering::Relaxed);
        let plugin = self.name();
        // It has answered, or was not even asked.
        if matches!(error, CallError::Refused { .. } | CallError::TooLong(_)) {
            return Err(NriError::Plugin { plugin, call, source: error });
        }
        let keep = matches!(error, CallError::Timeout(_)) && self.policy.keep_connected;
        if !keep {
            dropped.0.fetch_add(1, Ordering::Relaxed);
            tracing::error!(plugin, call, %error, "an NRI plugin has failed and is dropped");
            self.link.close();
        }
        if self.policy.fail_request {
            return Err(NriError::Plugin { plugin, call, source: error });
        }
        tracing::warn!(plugin, call, %error, "going on without the answer of an NRI plugin");
        Ok(None)
    }
}

/// The bit of an event in a mask.
pub(crate) fn bit(event: Event) -> u32 {
    match event as i32 {
        number @ 1..=31 => 1 << (number - 1),
        _ => 0,
    }
}

/// All events that there are.
pub(crate) const ALL_EVENTS: u32 = (1 << (Event::Last as u32 - 1)) - 1;

/// The method of an event.
pub(crate) fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

/// Whether a name can be a plugin's.
pub(crate) fn check_name(base: &str) -> Result<(), String> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "-_.+".contains(letter);
    if !base.is_empty() && base.len() <= 128 && base.chars().all(fits) {
        return Ok(());
    }
    Err(format!("{base:?} is no name of a plugin: 1 to 128 letters, digits and -_.+"))
}

/// Whether an index can be a plugin's.
pub(crate) fn check_index(index: &str) -> Result<(), String> {
    if index.len() == 2 && index.bytes().all(|digit| digit.is_ascii_digit()) {
        return Ok(());
    }
    Err(format!("{index:?} is no index of a plugin: two digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_bits_of_the_interface() {
        assert_eq!(bit(Event::RunPodSandbox), 1);
        assert_eq!(bit(Event::ValidateContainerAdjustment), 1 << 13);
        assert_eq!(ALL_EVENTS, 0x3fff);
        assert_eq!(bit(Event::Unknown), 0);
    }

    #[test]
    fn names_and_indices() {
        assert!(check_name("device-injector_1.2+x").is_ok());
        for bad in ["", "a/b", "ä", "a b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_index("07").is_ok());
        for bad in ["", "7", "007", "0x"] {
            assert!(check_index(bad).is_err(), "{bad}");
        }
    }
}
