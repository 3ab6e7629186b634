//! What a new daemon does with the pods of the one before.
//!
//! Every pod by itself: its record says what was meant, its monitor what runs, its exits file what ended. A pod whose
//! record cannot be read is left alone and said so. Calls are answered only after this, so it is bounded: a monitor
//! that does not answer within [`ANSWER_LIMIT`] counts as lost.

use std::sync::Arc;
use std::time::Duration;

use bowline_image::LayerName;
use bowline_model::ContainerId;
use bowline_model::container::{Exit, Life};
use bowline_monitor_proto::{self as proto, Answer, Request, VERSION};
use bowline_store::{ContainerRecord, ExitRecord, LifeRecord, PodLife, PodRecord};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::actor::{self, exit_without_monitor, kill_leftovers};
use crate::driver::{self, CgroupDriver};
use crate::error::doing;
use crate::monitor::{Heard, Monitor};
use crate::shared::{Shared, blocking, now};
use crate::{PodError, files, run_pod};

/// How long a monitor may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Takes all pods over.
pub(crate) async fn recover(shared: &Arc<Shared>) -> Result<(), PodError> {
    let owner = shared.clone();
    let loaded =
        blocking("read the records", move || owner.store.load().map_err(doing("read the records"))).await?;
    for bad in &loaded.bad {
        tracing::error!(error = %crate::chain(bad), "a record cannot be read; what it stands for is left alone");
    }
    shared.unreadable.store(!loaded.bad.is_empty(), std::sync::atomic::Ordering::Relaxed);
    warn_of_another_driver(shared, &loaded.pods);
    let mut pods = JoinSet::new();
    for (record, containers) in loaded.pods {
        shared.seen_created(record.created_at);
        shared.selinux.seen(&record);
        shared.events.seen(record.created_at);
        for container in &containers {
            shared.seen_created(container.created_at);
            shared.events.seen(last_time(container));
            hold(shared, container);
            if matches!(container.life, LifeRecord::Starting) {
                crate::hooks::kill_group(shared, &container.cgroup);
            }
        }
        let shared = shared.clone();
        pods.spawn(async move { take_over(&shared, record, containers).await });
    }
    while let Some(result) = pods.join_next().await {
        if let Err(error) = result {
            tracing::error!(%error, "a pod could not be taken over");
        }
    }
    if loaded.unreadable.is_empty() {
        sweep(shared).await;
    }
    Ok(())
}

/// They are managed as any, but the kubelet makes the groups above them in the way of one driver.
fn warn_of_another_driver(shared: &Shared, pods: &[(PodRecord, Vec<ContainerRecord>)]) {
    let driver = shared.config.cgroup_driver.driver;
    let other = pods.iter().filter(|(record, _)| {
        let scope = driver::slice_of(&record.cgroup, &record.id).is_some();
        record.boot == shared.host.boot && !record.cleaned && scope != (driver == CgroupDriver::Systemd)
    });
    match other.count() {
        0 => {}
        count => tracing::warn!(
            count,
            "pods of another cgroup driver than {driver} are still there; drain the node when the driver changes"
        ),
    }
}

/// What stands in the state folder or on the network for no pod at all.
async fn sweep(shared: &Arc<Shared>) {
    let shared = shared.clone();
    crate::scope::sweep(&shared).await;
    let swept = tokio::task::spawn_blocking(move || {
        let known = shared.known_pods();
        for entry in std::fs::read_dir(shared.config.state.join("pods")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(id) = bowline_model::SandboxId::parse(&name) else { continue };
            if !known.contains(&name)
                && let Err(error) = files::remove(&shared.config.state, &id)
            {
                tracing::warn!(pod = %id, %error, "a state folder without a pod could not be removed");
            }
        }
        let valid: Vec<&str> = known.iter().map(String::as_str).collect();
        match shared.cni.gc(&valid) {
            Ok(gone) if !gone.is_empty() => {
                tracing::info!(count = gone.len(), "network attachments without a pod were removed")
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "network attachments without a pod could not be looked for")
            }
        }
        crate::hooks::sweep(&shared);
        shared.dying_links.notify_one();
    });
    let _ = swept.await;
}

/// The last time that a record knows of.
fn last_time(container: &ContainerRecord) -> i64 {
    let changed = match &container.life {
        LifeRecord::Created | LifeRecord::Starting => 0,
        LifeRecord::Running { started_at, .. } => *started_at,
        LifeRecord::Exited(exit) => exit.finished_at,
    };
    changed.max(container.created_at)
}

fn hold(shared: &Shared, container: &ContainerRecord) {
    let layers: Vec<LayerName> =
        container.image.layers.iter().filter_map(|name| LayerName::parse(name)).collect();
    if let Err(error) = shared.images.hold_layers(&container.id.to_string(), &layers) {
        tracing::error!(container = %container.id, error = %crate::chain(&error), "a container's layers are gone");
    }
    crate::volumes::hold_again(shared, container);
}

async fn take_over(shared: &Arc<Shared>, mut record: PodRecord, containers: Vec<ContainerRecord>) {
    if record.boot != shared.host.boot {
        after_reboot(shared, &mut record, &containers).await;
        let lives = containers.into_iter().map(|container| {
            let life = life_without_monitor(&container, |_| Exit {
                code: 255,
                finished_at: now(),
                reason: Some("Rebooted"),
                message: "the node was started anew while the container ran".into(),
                ..Exit::default()
            });
            (container, life)
        });
        let lives: Vec<_> = lives.collect();
        actor::adopt(shared.clone(), record, None, write_back(shared, lives));
        return;
    }
    match record.life {
        PodLife::Creating => {
            // Its client never heard of it: undone, as far as it had come.
            if let Ok((monitor, _)) = connect(shared, &record).await {
                let _ = tokio::time::timeout(ANSWER_LIMIT, monitor.call(Request::Shutdown, &[])).await;
            }
            if let Some(record) = run_pod::undo(shared, record).await {
                actor::adopt(shared.clone(), record, None, Vec::new());
            }
        }
        PodLife::Ready => match ask(shared, &record).await {
            Ok((monitor, heard, states)) => {
                let lives: Vec<_> = containers
                    .into_iter()
                    .map(|container| {
                        let life = life_by_monitor(shared, &container, &states);
                        (container, life)
                    })
                    .collect();
                actor::adopt(shared.clone(), record, Some((monitor, heard)), write_back(shared, lives));
            }
            Err(error) => {
                tracing::error!(pod = %record.id, error = %crate::chain(&error), "the pod's monitor is gone");
                without_monitor(shared, record, containers);
            }
        },
        PodLife::NotReady => without_monitor(shared, record, containers),
    }
}

fn without_monitor(shared: &Arc<Shared>, mut record: PodRecord, containers: Vec<ContainerRecord>) {
    if record.life == PodLife::Ready {
        record.life = PodLife::NotReady;
        if let Err(error) = shared.store.write_pod(&record) {
            tracing::error!(pod = %record.id, error = %crate::chain(&error), "the pod could not be recorded");
        }
    }
    let lives: Vec<_> = containers
        .into_iter()
        .map(|container| {
            if !record.cleaned {
                kill_leftovers(shared, &container.cgroup);
            }
            let life = life_without_monitor(&container, |container| exit_without_monitor(shared, container));
            (container, life)
        })
        .collect();
    actor::adopt(shared.clone(), record, None, write_back(shared, lives));
}

/// The kernel objects went with the boot; what stays on disk is given back.
async fn after_reboot(shared: &Arc<Shared>, record: &mut PodRecord, containers: &[ContainerRecord]) {
    let cgroups: Vec<String> = containers.iter().map(|container| container.cgroup.clone()).collect();
    record.life = PodLife::NotReady;
    match crate::stop_pod::take_down(shared, record, None, &cgroups).await {
        Ok(()) => record.cleaned = true,
        Err(error) => {
            tracing::warn!(pod = %record.id, error = %crate::chain(&error), "a pod from before the reboot could not be taken down yet")
        }
    }
    record.boot = shared.host.boot.clone();
    if let Err(error) = shared.store.write_pod(record) {
        tracing::error!(pod = %record.id, error = %crate::chain(&error), "the pod could not be recorded");
    }
}

/// Brings the records up to what was found.
fn write_back(shared: &Shared, lives: Vec<(ContainerRecord, Life)>) -> Vec<(ContainerRecord, Life)> {
    lives
        .into_iter()
        .map(|(mut record, life)| {
            let found = LifeRecord::from(&life);
            if found != record.life {
                record.life = found;
                if let Err(error) = shared.store.write_container(&record) {
                    tracing::error!(container = %record.id, error = %crate::chain(&error), "the container could not be recorded");
                }
            }
            (record, life)
        })
        .collect()
}

async fn connect(
    shared: &Arc<Shared>,
    record: &PodRecord,
) -> Result<(Arc<Monitor>, mpsc::Receiver<Heard>), PodError> {
    let socket =
        files::connect(&shared.config.state, &record.id).map_err(doing("reach the pod's monitor"))?;
    let (send, heard) = mpsc::channel(64);
    Ok((Monitor::attach(socket, send, false).map_err(doing("talk to the pod's monitor"))?, heard))
}

type Asked = (Arc<Monitor>, mpsc::Receiver<Heard>, Vec<proto::ContainerState>);

async fn ask(shared: &Arc<Shared>, record: &PodRecord) -> Result<Asked, PodError> {
    let (monitor, heard) = connect(shared, record).await?;
    let conversation = async {
        match monitor
            .call(Request::Hello { version: VERSION }, &[])
            .await
            .map_err(doing("greet the pod's monitor"))?
            .0
        {
            Answer::Hello { version: VERSION, .. } => {}
            other => {
                return Err(PodError::failed("greet the pod's monitor", format!("it answered {other:?}")));
            }
        }
        match monitor.call(Request::State, &[]).await.map_err(doing("ask the pod's monitor"))?.0 {
            Answer::State { containers } => Ok(containers),
            other => Err(PodError::failed("ask the pod's monitor", format!("it answered {other:?}"))),
        }
    };
    let late = |_| PodError::Deadline("the pod's monitor does not answer".into());
    let states = tokio::time::timeout(ANSWER_LIMIT, conversation).await.map_err(late)??;
    Ok((monitor, heard, states))
}

fn life_by_monitor(shared: &Shared, record: &ContainerRecord, states: &[proto::ContainerState]) -> Life {
    let state = states.iter().find(|state| ContainerId::from_bytes(state.container) == record.id);
    match (state, &record.life) {
        // What was recorded as ended stays as recorded: it may hold a reason that no monitor knows.
        (_, LifeRecord::Exited(exit)) => exited(exit),
        (Some(state), _) => match state.exit {
            Some(exit) => Life::Exited {
                started_at: state.started_at,
                exit: Exit {
                    code: exit.code,
                    oom: exit.oom,
                    finished_at: exit.finished_at,
                    ..Exit::default()
                },
            },
            // On its way to exec as well: the monitor tells of its end like of any other's.
            None => Life::Running {
                pid: state.pid,
                started_at: if state.started_at == 0 { now() } else { state.started_at },
            },
        },
        (None, LifeRecord::Created) => Life::Created,
        // The monitor never heard of it; the actor settles it.
        (None, LifeRecord::Starting) => Life::Starting { stop_by: None },
        (None, LifeRecord::Running { started_at, .. }) => {
            Life::Exited { started_at: *started_at, exit: exit_without_monitor(shared, record) }
        }
    }
}

fn life_without_monitor(record: &ContainerRecord, end: impl FnOnce(&ContainerRecord) -> Exit) -> Life {
    match &record.life {
        LifeRecord::Created => Life::Created,
        LifeRecord::Starting => Life::Exited { started_at: 0, exit: end(record) },
        LifeRecord::Running { started_at, .. } => Life::Exited { started_at: *started_at, exit: end(record) },
        LifeRecord::Exited(exit) => exited(exit),
    }
}

fn exited(record: &ExitRecord) -> Life {
    // Reasons are a closed set; one from a newer version reads as what its code says.
    let known =
        ["Completed", "Error", "OOMKilled", "StartError", "MonitorLost", "Rebooted", "ContainerCannotRun"];
    let reason = known.into_iter().find(|reason| *reason == record.reason);
    Life::Exited {
        started_at: record.started_at,
        exit: Exit {
            code: record.code,
            oom: record.reason == "OOMKilled",
            finished_at: record.finished_at,
            reason,
            message: record.message.clone(),
        },
    }
}
