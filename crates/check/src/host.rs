//! The node as the kernel shows it: processes, mounts, cgroups.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Processes whose environment holds `NAME=value`, oldest first.
pub(crate) fn processes_with(variable: &str) -> Vec<u32> {
    let mut found: Vec<(u64, u32)> = pids()
        .into_iter()
        .filter(|pid| {
            let block = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            block.split(|byte| *byte == 0).any(|item| item == variable.as_bytes())
        })
        .map(|pid| (start_time(pid), pid))
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, pid)| pid).collect()
}

/// Every process there is.
pub(crate) fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn start_time(pid: u32) -> u64 {
    stat_field(pid, 19).and_then(|field| field.parse().ok()).unwrap_or(u64::MAX)
}

/// A field of /proc/PID/stat, counted from the state (0).
pub(crate) fn stat_field(pid: u32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(index).map(str::to_owned)
}

/// Whether it lives: it is there and no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    stat_field(pid, 0).is_some_and(|state| state != "Z" && state != "X")
}

/// Children of a process that ended and that nobody has asked for.
pub(crate) fn zombies_of(parents: &[u32]) -> usize {
    let is_ours = |pid: u32| {
        stat_field(pid, 1).and_then(|parent| parent.parse().ok()).is_some_and(|p| parents.contains(&p))
    };
    pids().into_iter().filter(|pid| stat_field(*pid, 0).as_deref() == Some("Z") && is_ours(*pid)).count()
}

/// Lines of our mount table that speak of any of these words.
pub(crate) fn mounts_naming(words: &[String]) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter(|line| words.iter().any(|word| line.contains(word.as_str())))
        .map(str::to_owned)
        .collect()
}

/// Folders below the cgroup file systems whose name speaks of any of these words.
pub(crate) fn cgroups_naming(words: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            if words.iter().any(|word| name.contains(word.as_str())) {
                found.push(entry.path());
            }
            open.push(entry.path());
        }
    }
    found
}

/// Where a process sits, by controller; the unified hierarchy under the empty name.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    places: BTreeMap<String, String>,
}

impl Cgroup {
    /// Of a process.
    pub(crate) fn of(pid: u32) -> Option<Cgroup> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mut places = BTreeMap::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            for controller in controllers.split(',') {
                places.insert(controller.to_owned(), path.to_owned());
            }
        }
        Some(Cgroup { places })
    }

    /// The path below the hierarchy of a controller.
    pub(crate) fn path(&self, controller: &str) -> Option<&str> {
        let name = if is_unified() { "" } else { controller };
        self.places.get(name).map(String::as_str)
    }

    /// The folder of a controller.
    pub(crate) fn folder(&self, controller: &str) -> Option<PathBuf> {
        let path = self.path(controller)?.trim_start_matches('/');
        let top = Path::new("/sys/fs/cgroup");
        Some(if is_unified() { top.join(path) } else { top.join(controller).join(path) })
    }

    /// A file's text.
    pub(crate) fn read(&self, controller: &str, file: &str) -> Option<String> {
        let text = fs::read_to_string(self.folder(controller)?.join(file)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// The memory limit; `None` if there is none.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        let file = if is_unified() { "memory.max" } else { "memory.limit_in_bytes" };
        self.read("memory", file)?.parse().ok()
    }

    /// Quota and period of the cpu, in microseconds.
    pub(crate) fn cpu_quota(&self) -> Option<(i64, i64)> {
        if is_unified() {
            let text = self.read("cpu", "cpu.max")?;
            let (quota, period) = text.split_once(' ')?;
            return Some((quota.parse().unwrap_or(-1), period.parse().ok()?));
        }
        let quota = self.read("cpu", "cpu.cfs_quota_us")?.parse().ok()?;
        Some((quota, self.read("cpu", "cpu.cfs_period_us")?.parse().ok()?))
    }

    /// The shares (v1) or the weight (v2).
    pub(crate) fn cpu_weight(&self) -> Option<u64> {
        self.read("cpu", if is_unified() { "cpu.weight" } else { "cpu.shares" })?.parse().ok()
    }

    /// The cpus it may run on.
    pub(crate) fn cpuset(&self) -> Option<String> {
        self.read("cpuset", "cpuset.cpus")
    }
}

/// Whether the node has cgroup v2 alone.
pub(crate) fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether the node has IPv6.
pub(crate) fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

/// Whether a security module runs.
pub(crate) fn has_lsm(name: &str) -> bool {
    match name {
        "apparmor" => fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.starts_with('Y')),
        _ => Path::new("/sys/fs/selinux/enforce").exists(),
    }
}
