//! A pod's scope: made around its monitor, and gone with the pod.
//!
//! ```text
//!   <slice>/bowline-<sandbox id>.scope     systemd's, delegated
//!           |-- monitor                    the monitor, and what it needs for the pod
//!           `-- <container id>             one per container
//! ```
//!
//! The record is written before, with the scope's name in it, so a scope that no record names is nobody's: the daemon
//! died between removing the two, or its root folder went away. [`sweep`] ends those of this daemon, which their
//! descriptions tell.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use bowline_store::PodRecord;
use bowline_systemd::{Scope, slice};
use rustix::fs::{Mode, OFlags};

use crate::PodError;
use crate::driver::{CgroupDriver, scope_name, slice_of};
use crate::error::doing;
use crate::operations::stage;
use crate::shared::{Shared, blocking};
use crate::stop_pod::remove_cgroups;

/// Namespace and name of a pod in a description are cut to this many characters together.
const MOST_NAME: usize = 120;

/// Puts a new monitor into a scope of its own, and there into its leaf: a group that has processes can have no limits
/// for groups below it. Nothing is to be done for a pod whose cgroup is no scope.
pub(crate) async fn enter(shared: &Arc<Shared>, record: &PodRecord, monitor: i32) -> Result<(), PodError> {
    let Some(folder) = slice_of(&record.cgroup, &record.id) else { return Ok(()) };
    let _stage = stage("make the scope");
    let scope = scope_name(&record.id);
    let description = describe(&shared.instance, &record.spec.metadata);
    let request = Scope {
        name: &scope,
        slice: slice::name_of(folder),
        description: &description,
        pid: u32::try_from(monitor).map_err(doing("name the monitor's process"))?,
    };
    {
        // A slice that another pod leaves is forgotten only if nobody is about to be in it.
        let _entering = shared.slices.read().await;
        shared.systemd.start_scope(&request).await.map_err(doing("make the pod's scope"))?;
    }
    let (shared, leaf) = (shared.clone(), format!("{}/monitor", record.cgroup));
    blocking("move the pod's monitor", move || {
        move_process(&shared, &leaf, monitor).map_err(doing(format!("move the pod's monitor to {leaf}")))
    })
    .await
}

/// systemd has just moved the process, so that the kernel need not wait again before it lets it be moved.
fn move_process(shared: &Shared, group: &str, pid: i32) -> io::Result<()> {
    let root = shared.host.layout.unified().and_then(|number| shared.host.roots.get(usize::from(number)));
    let root = root.ok_or_else(|| io::Error::other("this host has no cgroup v2"))?;
    // Not its parents: a scope that is gone already must not come back without systemd.
    rustix::fs::mkdirat(root, group, Mode::from_raw_mode(0o755))?;
    let path = format!("{group}/cgroup.procs");
    let file = rustix::fs::openat(root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, pid.to_string().as_bytes())?;
    Ok(())
}

/// Ends a pod's scope, whatever is in it, and forgets the slices that were made for it if nothing is in them now.
pub(crate) async fn leave(shared: &Arc<Shared>, record: &PodRecord) -> Result<(), PodError> {
    let Some(folder) = slice_of(&record.cgroup, &record.id) else { return Ok(()) };
    // Units go with the boot.
    if record.boot != shared.host.boot || !bowline_systemd::booted() {
        return Ok(());
    }
    end(shared, &scope_name(&record.id), &record.cgroup).await?;
    let mut rest = folder;
    for _ in 0..record.cgroup_made {
        let _leaving = shared.slices.write().await;
        if rest.is_empty() || !is_empty(shared, rest) {
            break;
        }
        let name = slice::name_of(rest);
        shared.systemd.stop_slice(name).await.map_err(doing(format!("forget the slice {name}")))?;
        rest = rest.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    Ok(())
}

/// What is left in it is killed and its groups are removed first: systemd would ask politely, and wait.
async fn end(shared: &Arc<Shared>, scope: &str, cgroup: &str) -> Result<(), PodError> {
    let (owner, path) = (shared.clone(), cgroup.to_owned());
    blocking("empty a scope", move || empty(&owner, &path)).await?;
    shared.systemd.stop(scope).await.map_err(doing("end the pod's scope"))?;
    // systemd removes it; one that it never knew, or knows no more, is ours to remove.
    let (owner, path) = (shared.clone(), cgroup.to_owned());
    blocking("remove a scope's cgroup", move || remove_cgroups(&owner, &path)).await
}

/// Kills what is in it, and removes the groups below it.
fn empty(shared: &Shared, cgroup: &str) -> Result<(), PodError> {
    let Some(number) = shared.host.layout.unified() else { return Ok(()) };
    let Some(root) = shared.host.roots.get(usize::from(number)) else { return Ok(()) };
    let name = CString::new(cgroup).map_err(doing("name a cgroup"))?;
    // Gone is fine, and what lives is seen below.
    let _ = bowline_launch::kill_all(root.as_fd(), &name);
    for group in folders(shared, cgroup) {
        remove_cgroups(shared, &format!("{cgroup}/{group}"))?;
    }
    Ok(())
}

/// Names of the groups in a group; none if it is gone.
fn folders(shared: &Shared, cgroup: &str) -> Vec<String> {
    let Some(root) =
        shared.host.layout.unified().and_then(|number| shared.host.roots.get(usize::from(number)))
    else {
        return Vec::new();
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::openat(root, cgroup, flags, Mode::empty()) else { return Vec::new() };
    let entries = rustix::fs::Dir::new(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type() == rustix::fs::FileType::Directory);
    let names = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "." && name != "..").collect()
}

fn is_empty(shared: &Shared, cgroup: &str) -> bool {
    folders(shared, cgroup).is_empty()
}

/// Ends this daemon's scopes that no pod is in.
pub(crate) async fn sweep(shared: &Arc<Shared>) {
    if shared.config.cgroup_driver.driver != CgroupDriver::Systemd {
        return;
    }
    let found = match strangers(shared, || shared.known_pods()).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(error = %crate::chain(&error), "scopes without a pod could not be looked for");
            return;
        }
    };
    for (scope, cgroup) in found {
        match end(shared, &scope, &cgroup).await {
            Ok(()) => tracing::info!(scope, "a scope without a pod was ended"),
            Err(error) => {
                tracing::warn!(scope, error = %crate::chain(&error), "a scope without a pod could not be ended")
            }
        }
    }
}

/// Scopes of this daemon that stand for none of the pods that are `known`: name, and cgroup.
pub(crate) async fn strangers(
    shared: &Arc<Shared>,
    known: impl FnOnce() -> HashSet<String>,
) -> Result<Vec<(String, String)>, PodError> {
    let units = shared.systemd.units("bowline-*.scope").await.map_err(doing("list the scopes"))?;
    // The units first: whatever was born before is known by now.
    let known = known();
    let ours = mark(&shared.instance);
    let mut found = Vec::new();
    for unit in units {
        let id = unit.name.strip_prefix("bowline-").and_then(|rest| rest.strip_suffix(".scope"));
        if id.is_none_or(|id| known.contains(id)) || !unit.description.starts_with(&ours) {
            continue;
        }
        let cgroup = shared.systemd.cgroup(&unit).await.map_err(doing("ask for a scope's cgroup"))?;
        // A dead one has none. Then there is nothing to empty, and by no means the root.
        let cgroup = Some(cgroup.trim_matches('/')).filter(|path| path.ends_with(&unit.name));
        found.push((unit.name.clone(), cgroup.unwrap_or(&unit.name).to_owned()));
    }
    Ok(found)
}

/// How descriptions of this daemon's scopes begin. Of several daemons on a machine each ends only its own.
fn mark(instance: &str) -> String {
    format!("bowline {instance}: ")
}

fn describe(instance: &str, pod: &bowline_model::spec::PodMetadata) -> String {
    let name: String = format!("{}/{}", pod.namespace, pod.name).chars().take(MOST_NAME).collect();
    let name: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("{}pod {name}", mark(instance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_name_daemon_and_pod() {
        let pod = |namespace: &str, name: &str| bowline_model::spec::PodMetadata {
            namespace: namespace.into(),
            name: name.into(),
            ..Default::default()
        };
        let text = describe("0a1b", &pod("default", "web"));
        assert_eq!(text, "bowline 0a1b: pod default/web");
        assert!(text.starts_with(&mark("0a1b")) && !text.starts_with(&mark("0a1")));
        let text = describe("0a1b", &pod("a\nb", &"x".repeat(1000)));
        assert!(text.len() < 160 && text.contains("a?b"), "{text}");
    }
}
