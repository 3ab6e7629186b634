//! Taking a pod down: network, processes, cgroups, files. Every step may be repeated, and nothing need be there.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bowline_model::spec::NamespaceMode;
use bowline_monitor_proto::Request;
use bowline_store::PodRecord;

use crate::error::doing;
use crate::monitor::Monitor;
use crate::operations::stage;
use crate::shared::{Shared, blocking};
use crate::{PodError, files};

/// How long a cgroup may stay busy after its processes were killed: they are dead, but not all reaped.
const CGROUP_LIMIT: Duration = Duration::from_secs(5);

/// Takes everything of a pod down that is no record: the containers' processes are dead already, or die here.
pub(crate) async fn take_down(
    shared: &Arc<Shared>,
    record: &PodRecord,
    monitor: Option<Arc<Monitor>>,
    containers: &[String],
) -> Result<(), PodError> {
    let network = detach(shared, record);
    let processes = end_processes(shared, record, monitor, containers);
    // Both always run to their end: what one cannot do must not keep the other from doing its part.
    let (network, processes) = tokio::join!(network, processes);
    network?;
    processes
}

async fn detach(shared: &Arc<Shared>, record: &PodRecord) -> Result<(), PodError> {
    if record.spec.security.namespaces.network == NamespaceMode::Node {
        return Ok(());
    }
    let _stage = stage("detach from the network");
    let (shared, record) = (shared.clone(), record.clone());
    blocking("detach the pod from the network", move || {
        let id = record.id.to_string();
        let detached = shared.cni.del(&crate::run_pod::pod_ref(&id, &record.spec));
        shared.dying_links.notify_one();
        detached.map_err(doing("detach the pod from the network"))
    })
    .await
}

async fn end_processes(
    shared: &Arc<Shared>,
    record: &PodRecord,
    monitor: Option<Arc<Monitor>>,
    containers: &[String],
) -> Result<(), PodError> {
    let _stage = stage("end processes");
    keep_namespace(shared, record);
    if let Some(monitor) = monitor {
        // A monitor that is gone already has ended its processes.
        let _ = monitor.call(Request::Shutdown, &[]).await;
    }
    crate::scope::leave(shared, record).await?;
    let (shared, record, containers) = (shared.clone(), record.clone(), containers.to_vec());
    blocking("clean up after the pod", move || {
        for container in &containers {
            remove_cgroups(&shared, container)?;
            remove_hooks_group(&shared, container)?;
        }
        remove_pod_cgroup(&shared, &record)?;
        files::remove(&shared.config.state, &record.id).map_err(doing("remove the pod's state folder"))
    })
    .await
}

/// Keeps the pod's network namespace from going with its monitor, at a moment when the next pod may be starting.
fn keep_namespace(shared: &Shared, record: &PodRecord) {
    if record.monitor <= 0 || record.spec.security.namespaces.network == NamespaceMode::Node {
        return;
    }
    let path = format!("/proc/{}/ns/net", record.monitor);
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    // A monitor that is gone has taken its namespace along, or never had one.
    if let Ok(namespace) = rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
        shared.dying_namespaces.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(namespace);
    }
}

/// Removes the cgroup of a container's hooks on the host, which most have not, and kills what is still in it.
pub(crate) fn remove_hooks_group(shared: &Shared, container: &str) -> Result<(), PodError> {
    let root = shared.host.layout.unified().and_then(|index| shared.host.roots.get(usize::from(index)));
    remove_from(shared, root.into_iter(), &crate::hooks::group(container))
}

/// Removes a cgroup from every hierarchy, killing what is still in it.
pub(crate) fn remove_cgroups(shared: &Shared, path: &str) -> Result<(), PodError> {
    remove_from(shared, shared.host.roots.iter(), path)
}

fn remove_from<'a>(
    shared: &Shared,
    roots: impl Iterator<Item = &'a OwnedFd>,
    path: &str,
) -> Result<(), PodError> {
    let what = || format!("remove the cgroup {path}");
    let name = CString::new(path).map_err(|error| PodError::failed(what(), error))?;
    let unified = shared.host.layout.unified().map(usize::from);
    let deadline = Instant::now() + CGROUP_LIMIT;
    for root in roots {
        let mut pause = Duration::from_micros(200);
        loop {
            match bowline_launch::remove_cgroups(root.as_fd(), &name) {
                Ok(()) => break,
                Err(error) if Instant::now() >= deadline => return Err(PodError::failed(what(), error)),
                Err(_) => {
                    kill(shared, unified, &name);
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
            }
        }
    }
    Ok(())
}

fn kill(shared: &Shared, unified: Option<usize>, name: &CString) {
    if let Some(unified) = unified.and_then(|index| shared.host.roots.get(index)) {
        let _ = bowline_launch::kill_all(unified.as_fd(), name);
    }
}

/// Removes the pod's own cgroup folder. Of a parent that the client named, only what was not there before the pod goes,
/// and only if nobody else has put something there since.
fn remove_pod_cgroup(shared: &Shared, record: &PodRecord) -> Result<(), PodError> {
    if crate::driver::slice_of(&record.cgroup, &record.id).is_some() {
        return Ok(());
    }
    if record.spec.cgroup_parent.trim_matches('/').is_empty() {
        return remove_cgroups(shared, &record.cgroup);
    }
    let mut rest = record.cgroup.as_str();
    for _ in 0..record.cgroup_made {
        for root in &shared.host.roots {
            // Busy: another pod's, or the client's own by now.
            let _ = rustix::fs::unlinkat(root, rest, rustix::fs::AtFlags::REMOVEDIR);
        }
        rest = rest.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    Ok(())
}
