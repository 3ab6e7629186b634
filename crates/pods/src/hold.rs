//! Launches in advance: from a container's creation on its monitor makes it as far as the hold point, while nobody waits.
//!
//! What fails here is forgotten, unless the start waits for it already: the start begins from the beginning, and tells. So
//! that a volume may still be made between creation and start. A daemon that takes over does not know of holds, and need
//! not: monitors take a launch for the release of what they hold, and a removal for its end.

use std::sync::Arc;

use bowline_linux::clone::ns;
use bowline_model::spec::PodSpec;
use bowline_monitor_proto::{Answer, Pids, Refusal, Request};
use bowline_plan::Compiled;
use bowline_store::ContainerRecord;
use tokio::sync::watch;

use crate::PodError;
use crate::error::doing;
use crate::monitor::Monitor;
use crate::shared::{Shared, blocking, in_place};
use crate::start::{Opening, Started, in_order, launch_error};

/// How far a launch in advance is.
#[derive(Debug, Clone)]
enum Stage {
    /// Its volumes are being opened.
    Opening,
    /// The monitor was asked.
    Asked,
    /// The monitor holds the container.
    Held,
    /// There is none.
    Failed(PodError),
}

/// A launch in advance, for whoever does something with its container meanwhile.
#[derive(Clone)]
pub(crate) struct Hold(watch::Receiver<Stage>);

/// The launch itself.
pub(crate) struct Holding {
    shared: Arc<Shared>,
    monitor: Arc<Monitor>,
    record: ContainerRecord,
    compiled: Arc<Compiled>,
    opening: Opening,
    tell: watch::Sender<Stage>,
}

/// Whether a container may be launched in advance.
///
/// It may not where somebody has a part in its start: hooks, criu, network devices and classes of service that are taken at
/// that time. Nor where a container that runs could see it, as it has all privileges still: only in a PID namespace of its
/// own it is out of sight.
pub(crate) fn may_be(pod: &PodSpec, record: &ContainerRecord, compiled: &Compiled) -> bool {
    let alone = compiled.plan.new_namespaces & ns::PID != 0 && crate::user::of_pod(pod).is_none();
    let plain = !record.restore
        && compiled.hooks.is_none()
        && compiled.intel_rdt.is_none()
        && compiled.net_devices.is_empty();
    alone && plain
}

/// The launch in advance of a container that may have one, whose volumes are being opened.
pub(crate) fn plan(
    shared: &Arc<Shared>,
    monitor: &Arc<Monitor>,
    record: &ContainerRecord,
    compiled: &Arc<Compiled>,
    opening: Opening,
) -> (Hold, Holding) {
    let (tell, told) = watch::channel(Stage::Opening);
    let (shared, monitor) = (shared.clone(), monitor.clone());
    let (record, compiled) = (record.clone(), compiled.clone());
    (Hold(told), Holding { shared, monitor, record, compiled, opening, tell })
}

impl Holding {
    /// Launches as far as the hold point.
    pub(crate) async fn run(self) {
        let Holding { shared, monitor, record, compiled, opening, tell } = self;
        let end = match launch(shared, &monitor, &record, &compiled, opening, &tell).await {
            Ok(()) => Stage::Held,
            Err(error) => {
                tracing::debug!(
                    container = %record.id,
                    error = %crate::chain(&error),
                    "could not be launched in advance"
                );
                Stage::Failed(error)
            }
        };
        tell.send_replace(end);
    }
}

async fn launch(
    shared: Arc<Shared>,
    monitor: &Monitor,
    record: &ContainerRecord,
    compiled: &Arc<Compiled>,
    opening: Opening,
    tell: &watch::Sender<Stage>,
) -> Result<(), PodError> {
    let opened = {
        let (record, compiled) = (record.clone(), compiled.clone());
        let what = "open the container's volumes";
        let is_quick = opening.has_begun();
        let finish = move || opening.finish(&shared, &record, &compiled, None);
        if is_quick { in_place(what, finish).await? } else { blocking(what, finish).await? }
    };
    let launch = opened.launch(record, Pids::Plan);
    let answer = monitor.ask(Request::Hold { launch }, &in_order(opened.borrowed()));
    let answer = answer.map_err(doing("launch the container"))?;
    tell.send_replace(Stage::Asked);
    let (answer, _) = answer.wait().await.map_err(doing("launch the container"))?;
    match answer {
        // Launched, if it was released on its way.
        Answer::Done | Answer::Launched { .. } => Ok(()),
        other => Err(refused(compiled, other)),
    }
}

impl Hold {
    /// Waits until it is clear whether the container is held: whether it has its cgroups, and a process in them.
    pub(crate) async fn held(mut self) -> bool {
        let settled = |stage: &Stage| matches!(stage, Stage::Held | Stage::Failed(_));
        self.0.wait_for(settled).await.is_ok_and(|stage| matches!(*stage, Stage::Held))
    }

    /// Lets the container go on. `None`: there is nothing that could.
    pub(crate) async fn release(
        mut self,
        monitor: &Monitor,
        record: &ContainerRecord,
        compiled: &Compiled,
    ) -> Result<Option<Started>, PodError> {
        if matches!(*self.0.borrow(), Stage::Failed(_)) {
            return Ok(None);
        }
        match self.0.wait_for(|stage| !matches!(stage, Stage::Opening)).await.as_deref() {
            Ok(Stage::Failed(error)) => return Err(error.clone()),
            Ok(_) => {}
            Err(_) => return Ok(None),
        }
        // Behind the request to hold it on the same connection.
        let release = Request::Release { container: *record.id.as_bytes() };
        let answer = monitor.call(release, &[]).await;
        match answer.map_err(doing("launch the container"))?.0 {
            Answer::Launched { pid, started_at } => Ok(Some(Started { pid, at: started_at })),
            Answer::Refused { why: Refusal::Unknown } => Ok(None),
            other => Err(refused(compiled, other)),
        }
    }
}

/// What it means that a monitor has not launched a container.
pub(crate) fn refused(compiled: &Compiled, answer: Answer) -> PodError {
    let what = "launch the container";
    match answer {
        Answer::Failed { stage, detail, errno, text } => {
            launch_error(&compiled.plan, stage, detail, errno, &text)
        }
        Answer::Refused { why } => PodError::failed(what, format!("the monitor refused: {why:?}")),
        other => PodError::failed(what, format!("the monitor answered {other:?}")),
    }
}
