//! What containers use, read from their cgroups when somebody asks.
//!
//! Nothing is sampled while nobody asks. The writable layer is measured by a scan in the background; a reader gets the
//! last result with its own time, and starts the next scan if that is older than [`SCAN_AGE`].

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bowline_model::ContainerId;
use rustix::fs::{Mode, OFlags};

use crate::create::upper;
use crate::shared::{Shared, now};
use crate::view::ContainerView;

/// How old a measurement of a writable layer may be before a reader has it renewed.
const SCAN_AGE: Duration = Duration::from_secs(10);
/// How long the first reader waits for the first scan.
const FIRST_SCAN: Duration = Duration::from_millis(100);

/// What a container uses.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// When cpu and memory were read, nanoseconds since the epoch.
    pub timestamp: i64,
    /// CPU time so far, nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory.
    pub memory: MemoryStats,
    /// Swap in use, bytes, where it is counted.
    pub swap_usage: Option<u64>,
    /// The writable layer.
    pub writable: WritableStats,
}

/// Memory of a container, bytes and counts.
#[derive(Debug, Clone, Default)]
pub struct MemoryStats {
    /// All that is charged.
    pub usage: u64,
    /// Usage without file pages that were not used lately: what eviction looks at.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that had to read.
    pub major_page_faults: u64,
    /// Limit less working set; `None` without a limit.
    pub available: Option<u64>,
}

/// The writable layer of a container.
#[derive(Debug, Clone, Default)]
pub struct WritableStats {
    /// When it was measured, nanoseconds since the epoch.
    pub timestamp: i64,
    /// Bytes of blocks.
    pub used_bytes: u64,
    /// Files and folders.
    pub inodes_used: u64,
    /// A folder of the file system that holds it.
    pub mountpoint: String,
}

/// The last measurement of each writable layer.
#[derive(Default)]
pub(crate) struct Usage(Mutex<HashMap<ContainerId, Measured>>);

#[derive(Clone, Default)]
struct Measured {
    at: i64,
    bytes: u64,
    inodes: u64,
    running: bool,
}

impl Usage {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Measured>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn forget(&self, id: &ContainerId) {
        self.lock().remove(id);
    }
}

/// Reads those containers that can be read; one that has ended meanwhile is left out.
pub(crate) async fn stats(
    shared: &Arc<Shared>,
    containers: &[Arc<ContainerView>],
) -> Vec<(Arc<ContainerView>, Stats)> {
    let scans: Vec<_> = containers.iter().filter_map(|view| scan(shared, view)).collect();
    if !scans.is_empty() {
        let all = async {
            for scan in scans {
                let _ = scan.await;
            }
        };
        let _ = tokio::time::timeout(FIRST_SCAN, all).await;
    }
    let (shared, views) = (shared.clone(), containers.to_vec());
    let read = tokio::task::spawn_blocking(move || {
        views
            .into_iter()
            .filter_map(|view| read(&shared, &view).map(|stats| (view, stats)))
            .collect::<Vec<_>>()
    });
    read.await.unwrap_or_default()
}

/// Starts a scan if one is due; the handle is returned only for the first one, which is worth waiting for.
fn scan(shared: &Arc<Shared>, view: &ContainerView) -> Option<tokio::task::JoinHandle<()>> {
    let id = view.id.clone();
    let first = {
        let mut all = shared.usage.lock();
        let measured = all.entry(id.clone()).or_default();
        let fresh = measured.at != 0 && now() - measured.at < SCAN_AGE.as_nanos() as i64;
        if fresh || measured.running {
            return None;
        }
        measured.running = true;
        measured.at == 0
    };
    let (folder, owner) = (upper(shared, &view.pod, &view.id), shared.clone());
    let task = tokio::task::spawn_blocking(move || {
        let (bytes, inodes) = measure(folder);
        if let Some(measured) = owner.usage.lock().get_mut(&id) {
            *measured = Measured { at: now(), bytes, inodes, running: false };
        }
    });
    first.then_some(task)
}

/// Bytes and inodes below a folder, which belongs to a container and may change under us: what vanishes is not counted.
fn measure(folder: PathBuf) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0, 0);
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            bytes += meta.blocks() * 512;
            inodes += 1;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    (bytes, inodes + 1)
}

fn read(shared: &Shared, view: &ContainerView) -> Option<Stats> {
    let cgroup = |controller: &str| {
        let (number, hierarchy) = shared.host.layout.find(controller)?;
        Some((shared.host.roots.get(usize::from(number))?, hierarchy.unified))
    };
    let measured = shared.usage.lock().get(&view.id).cloned().unwrap_or_default();
    let timestamp = now();
    let cpu_usage_ns = match cgroup("cpuacct") {
        Some((root, _)) => file(root, &view.cgroup, "cpuacct.usage")?.trim().parse().ok()?,
        None => {
            let unified = shared.host.roots.get(usize::from(shared.host.layout.unified()?))?;
            keyed(&file(unified, &view.cgroup, "cpu.stat")?, "usage_usec")? * 1000
        }
    };
    let (memory, swap_usage) = match cgroup("memory") {
        Some((root, true)) => memory_v2(root, &view.cgroup)?,
        Some((root, false)) => memory_v1(root, &view.cgroup)?,
        None => (MemoryStats::default(), None),
    };
    Some(Stats {
        timestamp,
        cpu_usage_ns,
        memory,
        swap_usage,
        writable: WritableStats {
            timestamp: if measured.at == 0 { view.created_at } else { measured.at },
            used_bytes: measured.bytes,
            inodes_used: measured.inodes.max(1),
            mountpoint: shared.config.root.to_string_lossy().into_owned(),
        },
    })
}

fn memory_v1(root: &OwnedFd, path: &str) -> Option<(MemoryStats, Option<u64>)> {
    let number = |name: &str| file(root, path, name)?.trim().parse::<u64>().ok();
    let stat = file(root, path, "memory.stat")?;
    let usage = number("memory.usage_in_bytes")?;
    let working_set = usage.saturating_sub(keyed(&stat, "total_inactive_file").unwrap_or(0));
    // Without a limit the file holds the largest multiple of a page.
    let limit = number("memory.limit_in_bytes").filter(|limit| *limit < i64::MAX as u64 / 2);
    let memory = MemoryStats {
        usage,
        working_set,
        rss: keyed(&stat, "total_rss").unwrap_or(0),
        page_faults: keyed(&stat, "total_pgfault").unwrap_or(0),
        major_page_faults: keyed(&stat, "total_pgmajfault").unwrap_or(0),
        available: limit.map(|limit| limit.saturating_sub(working_set)),
    };
    Some((memory, keyed(&stat, "total_swap")))
}

fn memory_v2(root: &OwnedFd, path: &str) -> Option<(MemoryStats, Option<u64>)> {
    let stat = file(root, path, "memory.stat")?;
    let usage: u64 = file(root, path, "memory.current")?.trim().parse().ok()?;
    let working_set = usage.saturating_sub(keyed(&stat, "inactive_file").unwrap_or(0));
    let limit: Option<u64> = file(root, path, "memory.max").and_then(|text| text.trim().parse().ok());
    let memory = MemoryStats {
        usage,
        working_set,
        rss: keyed(&stat, "anon").unwrap_or(0),
        page_faults: keyed(&stat, "pgfault").unwrap_or(0),
        major_page_faults: keyed(&stat, "pgmajfault").unwrap_or(0),
        available: limit.map(|limit| limit.saturating_sub(working_set)),
    };
    Some((memory, file(root, path, "memory.swap.current").and_then(|text| text.trim().parse().ok())))
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

fn file(root: &OwnedFd, path: &str, name: &str) -> Option<String> {
    let path = CString::new(format!("{path}/{name}")).ok()?;
    let file = rustix::fs::openat(root, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = [0u8; 8192];
    let len = rustix::io::read(&file, &mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_words() {
        let text = "pgfault_x 1\npgfault 7\n";
        assert_eq!(keyed(text, "pgfault"), Some(7));
        assert_eq!(keyed(text, "missing"), None);
    }
}
