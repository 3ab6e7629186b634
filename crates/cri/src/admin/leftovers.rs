//! What carries this daemon's mark and belongs to no pod. Read only; sweeping is the business of the daemon's start.
//!
//! A pod that is being brought up or taken down has objects but no view. Such things pass: only what two looks a
//! second apart both find is reported.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_cni::InstanceTag;
use bowline_cri_proto::admin::{Leftover, LeftoversResponse};
use bowline_pods::{Pods, chain};
use tonic::Status;

/// Between the two looks.
const PASSING: Duration = Duration::from_secs(1);
/// Nobody reads more; the answer must fit its message.
const MOST: usize = 5_000;

/// (kind, name, detail)
type Found = BTreeSet<(&'static str, String, String)>;

#[derive(Default)]
struct Look {
    found: Found,
    unseen: Vec<String>,
}

/// Looks, and once more at what it found.
pub(super) async fn leftovers(pods: &Pods) -> Result<LeftoversResponse, Status> {
    let mut look = look_at(pods).await?;
    if !look.found.is_empty() {
        tokio::time::sleep(PASSING).await;
        let again = look_at(pods).await?;
        // A detail may change (who is inside); the thing is the same.
        let still = |found: &(&str, String, String)| {
            again.found.iter().any(|(kind, name, _)| (*kind, name) == (found.0, &found.1))
        };
        look.found.retain(still);
        look.unseen = again.unseen;
    }
    let config = pods.config();
    let found = look.found.into_iter().take(MOST);
    Ok(LeftoversResponse {
        leftovers: found
            .map(|(kind, name, detail)| Leftover { kind: kind.to_owned(), name, detail })
            .collect(),
        unseen: look.unseen,
        instance: instance(pods),
        root: config.root.to_string_lossy().into_owned(),
        state: config.state.to_string_lossy().into_owned(),
        cni_conf_dir: String::new(),
    })
}

fn instance(pods: &Pods) -> String {
    InstanceTag::of_root(&pods.config().root).as_str().to_owned()
}

async fn look_at(pods: &Pods) -> Result<Look, Status> {
    let scopes = pods.scopes_without_a_pod().await;
    let pods = pods.clone();
    let look = tokio::task::spawn_blocking(move || look(&pods));
    let look = look.await.map_err(|error| Status::internal(format!("the look around died: {error}")));
    let mut look = look?;
    match scopes {
        Ok(scopes) => look.found.extend(scopes.into_iter().map(|scope| ("scope", scope, String::new()))),
        Err(error) => look.unseen.push(format!("scopes: {}", chain(&error))),
    }
    Ok(look)
}

fn look(pods: &Pods) -> Look {
    let mut look = Look::default();
    // The objects first, the views after: what is born in between is known by then.
    let cgroups = cgroups(pods, &mut look);
    let (root, state) = (pods.config().root.join("pods"), pods.config().state.join("pods"));
    let (records, states) = (folders(&root, &mut look), folders(&state, &mut look));
    let mounts = mounts(pods, &mut look);
    let known = Known::of(pods);
    for (name, detail, monitors) in cgroups {
        let last = name.rsplit('/').next().unwrap_or_default();
        if !known.has(last) && !monitors {
            look.found.insert(("cgroup", name, detail));
        }
    }
    for (kind, paths) in [("record", records), ("state", states)] {
        for path in paths {
            let last = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !known.has(&last) {
                look.found.insert((kind, path.to_string_lossy().into_owned(), String::new()));
            }
        }
    }
    for (path, kind) in mounts {
        if !path.components().any(|part| known.has(&part.as_os_str().to_string_lossy())) {
            look.found.insert(("mount", path.to_string_lossy().into_owned(), kind));
        }
    }
    for (pid, detail) in monitors(pods, &mut look) {
        if !known.monitors.contains(&pid) {
            look.found.insert(("process", pid.to_string(), detail));
        }
    }
    network(pods, &known, &mut look);
    look
}

/// Ids of pods and containers.
struct Known {
    pods: Vec<String>,
    ids: BTreeSet<String>,
    monitors: BTreeSet<i32>,
}

impl Known {
    fn of(pods: &Pods) -> Known {
        let views = pods.views().pods();
        let names: Vec<String> = views.iter().map(|pod| pod.id.to_string()).collect();
        let containers = pods.views().containers();
        let ids = names.iter().cloned().chain(containers.iter().map(|container| container.id.to_string()));
        let monitors = views.iter().map(|pod| pod.monitor).chain(pods.spare_monitor());
        Known { ids: ids.collect(), monitors: monitors.collect(), pods: names }
    }

    fn has(&self, name: &str) -> bool {
        self.ids.contains(name)
    }
}

/// Groups below `bowline/<instance>` of each hierarchy, two levels deep: pods and their containers. What a container
/// makes inside its own group is its own. (path, processes inside, is the monitors')
fn cgroups(pods: &Pods, look: &mut Look) -> Vec<(String, String, bool)> {
    let mut all = Vec::new();
    for (root, hierarchy) in pods.host().roots.iter().zip(&pods.host().layout.hierarchies) {
        let base =
            PathBuf::from(format!("/proc/self/fd/{}/bowline/{}", root.as_fd().as_raw_fd(), instance(pods)));
        let label = match hierarchy.unified {
            true => "unified".to_owned(),
            false => {
                hierarchy.controllers.iter().chain(&hierarchy.name).cloned().collect::<Vec<_>>().join(",")
            }
        };
        for pod in folders(&base, look) {
            let is_monitors = pod.file_name().is_some_and(|name| name == "monitors");
            for group in std::iter::once(pod.clone()).chain(folders(&pod, look)) {
                let below = group.strip_prefix(&base).unwrap_or(&group).to_string_lossy().into_owned();
                let inside = pids(&group).len();
                let name = format!("{label}:/bowline/{}/{below}", instance(pods));
                all.push((name, format!("{inside} processes"), is_monitors));
            }
        }
    }
    all
}

fn pids(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Processes in the monitors' group.
fn monitors(pods: &Pods, look: &mut Look) -> Vec<(i32, String)> {
    let Some(root) = pods.host().roots.first() else {
        look.unseen.push("processes: there is no cgroup hierarchy".to_owned());
        return Vec::new();
    };
    let group = format!("/proc/self/fd/{}/bowline/{}/monitors", root.as_fd().as_raw_fd(), instance(pods));
    let named = |pid: i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        (pid, format!("{} in the monitors' cgroup", name.trim()))
    };
    pids(Path::new(&group)).into_iter().map(named).collect()
}

fn folders(path: &Path, look: &mut Look) -> Vec<PathBuf> {
    match fs::read_dir(path) {
        Ok(entries) => {
            let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.map(|entry| entry.path()).collect()
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                look.unseen.push(format!("{}: {error}", path.display()));
            }
            Vec::new()
        }
    }
}

/// Mounts below our folders, as this process sees them.
fn mounts(pods: &Pods, look: &mut Look) -> Vec<(PathBuf, String)> {
    let text = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(text) => text,
        Err(error) => {
            look.unseen.push(format!("mounts: {error}"));
            return Vec::new();
        }
    };
    let (root, state) = (&pods.config().root, &pods.config().state);
    let mount = |line: &str| {
        let path = PathBuf::from(unescape(line.split(' ').nth(4)?));
        let ours = |folder: &Path| path.starts_with(folder) && path != folder;
        let kind = line.split_once(" - ")?.1.split(' ').next()?.to_owned();
        // Where our folders themselves lie is the operator's business.
        (ours(&root.join("pods")) || ours(&root.join("images")) || ours(&state.join("pods")))
            .then_some((path, kind))
    };
    text.lines().filter_map(mount).collect()
}

/// The kernel writes blanks and the like as three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn network(pods: &Pods, known: &Known, look: &mut Look) {
    let valid: Vec<&str> = known.pods.iter().map(String::as_str).collect();
    match pods.cni().leftovers(&valid) {
        Ok(found) => {
            for leftover in found {
                let detail = format!("of pod {}", leftover.sandbox_id);
                look.found.insert(("network", leftover.description, detail));
            }
        }
        Err(error) => look.unseen.push(format!("network: {}", chain(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_the_kernel_writes_them() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\9"), r"/a\9");
    }
}
