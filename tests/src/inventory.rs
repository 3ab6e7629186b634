//! What the machine holds that a container runtime might leave behind.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::wait_for;

/// Mounts, cgroups, network namespaces, links, processes and files, each as a line.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Looks at everything of one daemon: its folder tells whose processes, cgroups and files are meant.
    pub fn take(folder: &Path) -> Inventory {
        let mut lines = BTreeSet::new();
        let tag = bowline_cni::InstanceTag::of_root(&folder.join("root"));
        let instance = tag.as_str();
        mounts(folder, &mut lines);
        cgroups(instance, &mut lines);
        scopes(instance, &mut lines);
        links(instance, folder, &mut lines);
        processes(folder, &mut lines);
        files(folder, &mut lines);
        Inventory(lines)
    }

    /// Waits until the machine holds what it held then. The kernel removes some things a little later.
    pub fn wait_equal(&self, folder: &Path) {
        let mut last = Inventory::default();
        let same = |last: &mut Inventory| {
            *last = Inventory::take(folder);
            last == self
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the inventory is as before", Duration::from_secs(60), || same(&mut last));
        }));
        if outcome.is_err() {
            let left: Vec<_> = last.0.difference(&self.0).collect();
            let gone: Vec<_> = self.0.difference(&last.0).collect();
            panic!("left behind: {left:#?}\nmissing: {gone:#?}");
        }
    }
}

impl fmt::Debug for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.0).finish()
    }
}

pub(crate) fn hierarchies() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains(" - cgroup"));
    lines.filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}

fn mounts(folder: &Path, lines: &mut BTreeSet<String>) {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let folder = folder.display().to_string();
    for line in text.lines().filter(|line| line.contains(&folder)) {
        lines.insert(format!("mount {line}"));
    }
}

fn cgroups(instance: &str, lines: &mut BTreeSet<String>) {
    for hierarchy in hierarchies() {
        let mut folders = vec![Path::new(&hierarchy).join("bowline").join(instance)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "monitors" {
                    lines.insert(format!("cgroup {}", entry.path().display()));
                    folders.push(entry.path());
                }
            }
        }
    }
}

/// Pods' scopes, where systemd makes them. Their descriptions say whose they are.
fn scopes(instance: &str, lines: &mut BTreeSet<String>) {
    if !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let ours = format!("bowline {instance}:");
    let args = ["list-units", "--all", "--full", "--plain", "--no-legend", "bowline-*.scope"];
    let listed = std::process::Command::new("systemctl").args(args).output().expect("run systemctl");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    lines.extend(text.lines().filter(|line| line.contains(&ours)).map(|line| format!("scope {line}")));
}

/// Links of pods name their sandbox; the bridge stays for the next pod. A daemon has one pair in advance, for a sandbox
/// that has no record yet; which one that is only the daemon knows (`bowline doctor`), but a second one is a leak.
fn links(instance: &str, folder: &Path, lines: &mut BTreeSet<String>) {
    let prefix = format!("bowline:{instance}:");
    let mut unknown = Vec::new();
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let alias = fs::read_to_string(entry.path().join("ifalias")).unwrap_or_default();
        let Some(sandbox) = alias.trim().strip_prefix(&prefix).filter(|name| name.len() == 64) else {
            continue;
        };
        let line = format!("link {} {sandbox}", entry.file_name().to_string_lossy());
        match folder.join("root/pods").join(sandbox).exists() {
            true => drop(lines.insert(line)),
            false => unknown.push(line),
        }
    }
    if unknown.len() > 1 {
        lines.extend(unknown);
    }
}

/// Processes whose command line or working directory lies in the folder, and monitors of its pods.
fn processes(folder: &Path, lines: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(command) = fs::read_to_string(entry.path().join("cmdline")) else { continue };
        let mut words = command.split('\0');
        let program = words.next().unwrap_or_default();
        let sandbox = words.next().unwrap_or_default();
        if program == "bowline-monitor"
            && sandbox.len() == 64
            && folder.join("root/pods").join(sandbox).exists()
        {
            lines.insert(format!("monitor {name} {sandbox}"));
        }
    }
}

/// Records, writable layers, sockets, reservations of addresses.
fn files(folder: &Path, lines: &mut BTreeSet<String>) {
    for part in ["root/pods", "root/trash", "root/cni", "state/pods", "networks"] {
        let mut folders = vec![folder.join(part)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("last_reserved_ip") || name == "lock" {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                }
                lines.insert(format!("file {}", entry.path().display()));
            }
        }
    }
    // The folder of a network's reservations stays, empty.
    lines.retain(|line| {
        !(line.starts_with("file ")
            && line.contains("/networks/")
            && !line.rsplit('/').next().is_some_and(|name| name.contains('.') || name.contains(':')))
    });
}
