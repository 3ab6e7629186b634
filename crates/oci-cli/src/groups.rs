//! The cgroups of a container: which are its own, who is in them, and their end.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bowline_launch_plan::CgroupStep;
use bowline_model::cgroup::CgroupLayout;
use bowline_model::signal::Signal;
use rustix::fs::{AtFlags, unlinkat};
use serde::{Deserialize, Serialize};

use crate::hierarchies::Hierarchies;
use crate::process;

/// Where containers go whose spec names no cgroup.
const DEFAULT_PARENT: &str = "bowline-oci";
/// How long the kernel may take to let go of a group whose processes have ended.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// The cgroups of a container: one path in every hierarchy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Groups {
    /// What the numbers of hierarchies mean.
    pub(crate) layout: CgroupLayout,
    path: String,
    /// For each hierarchy, how many leading parts of the path were there before: they are somebody else's.
    found: Vec<usize>,
}

/// For a spec without `linux.cgroupsPath`.
pub(crate) fn default_path(id: &str) -> String {
    format!("/{DEFAULT_PARENT}/{id}")
}

impl Groups {
    /// Looks at what is there before a launch makes the rest.
    pub(crate) fn look(hierarchies: &Hierarchies, steps: &[CgroupStep]) -> Result<Groups> {
        let path = steps.first().map(|step| step.path.to_string_lossy().into_owned()).unwrap_or_default();
        let groups = Groups { layout: hierarchies.layout.clone(), path, found: Vec::new() };
        let found = hierarchies.roots.iter().map(|root| groups.count_existing(root)).collect();
        for root in &hierarchies.roots {
            if let Some(pid) = members(&folder(root, &groups.path)).first() {
                bail!("linux.cgroupsPath: {} is in use, by process {pid} for one", groups.path);
            }
        }
        Ok(Groups { found, ..groups })
    }

    fn prefixes(&self) -> Vec<&str> {
        let ends = self.path.match_indices('/').map(|(at, _)| at).chain([self.path.len()]);
        ends.map(|end| &self.path[..end]).collect()
    }

    fn count_existing(&self, root: &OwnedFd) -> usize {
        self.prefixes().iter().take_while(|prefix| folder(root, prefix).is_dir()).count()
    }

    /// Signals every process of the container; tells whether there was one.
    pub(crate) fn signal(&self, hierarchies: &Hierarchies, signal: Signal) -> Result<bool> {
        // All hierarchies have the same processes; the v2 tree kills them at one stroke.
        let at = self.layout.unified().map_or(0, usize::from);
        let root = hierarchies.roots.get(at).context("the container has no cgroup")?;
        let place = folder(root, &self.path);
        if signal == Signal::KILL && self.layout.unified().is_some() {
            let any = !members(&place).is_empty();
            if bowline_launch::kill_all(root.as_fd(), &CString::new(self.path.as_str())?).is_ok() {
                return Ok(any);
            }
        }
        let mut any = false;
        for pid in members(&place) {
            let Some(pidfd) = process::open(pid)? else { continue };
            // Still here, so the descriptor names the process that was listed, not a later one of its number.
            if members(&place).contains(&pid) {
                let sent = process::signal(&pidfd, signal.number());
                any |= sent.with_context(|| format!("signal process {pid}"))?;
            }
        }
        Ok(any)
    }

    /// Removes what the container made, with what it made below it.
    pub(crate) fn remove(&self, hierarchies: &Hierarchies) -> Result<()> {
        let end = Instant::now() + REMOVE_LIMIT;
        let prefixes = self.prefixes();
        for (root, found) in hierarchies.roots.iter().zip(&self.found) {
            if *found >= prefixes.len() {
                continue;
            }
            let path = CString::new(self.path.as_str())?;
            let mut pause = Duration::from_micros(200);
            while let Err(error) = bowline_launch::remove_cgroups(root.as_fd(), &path) {
                if Instant::now() > end {
                    return Err(error).with_context(|| format!("remove cgroup {}", self.path));
                }
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            // Parents that others use by now are busy, and stay.
            for (index, parent) in prefixes[..prefixes.len() - 1].iter().enumerate().rev() {
                if index >= *found || *parent == DEFAULT_PARENT {
                    let _ = unlinkat(root, *parent, AtFlags::REMOVEDIR);
                }
            }
        }
        Ok(())
    }
}

/// A path below a folder that may be mounted nowhere.
fn folder(root: &OwnedFd, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{path}", root.as_raw_fd()))
}

/// The processes of a group and of those below it.
fn members(folder: &Path) -> Vec<i32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    // 0: a process that this PID namespace does not see.
    let mut pids: Vec<i32> =
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(members(&entry.path()));
        }
    }
    pids
}
