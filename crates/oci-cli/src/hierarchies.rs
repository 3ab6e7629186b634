//! The cgroup hierarchies of this machine.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bowline_model::cgroup::{CgroupLayout, Hierarchy};
use rustix::fs::{Mode, OFlags};

/// What there is, and the root folder of each.
pub(crate) struct Hierarchies {
    pub(crate) layout: CgroupLayout,
    pub(crate) roots: Vec<OwnedFd>,
}

impl Hierarchies {
    /// Those that are mounted, in the order of their mount points, the v2 tree last; where v2 is mounted nowhere, a
    /// detached mount of it.
    pub(crate) fn discover() -> Result<Hierarchies> {
        let known = controllers()?;
        let mut mounted = mounted()?;
        mounted.sort_by(|a, b| (a.unified, &a.path).cmp(&(b.unified, &b.path)));
        let mut found = Hierarchies { layout: CgroupLayout::default(), roots: Vec::new() };
        for mount in &mounted {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let Ok(root) = rustix::fs::open(&mount.path, flags, Mode::empty()) else { continue };
            let hierarchy = mount.hierarchy(&known);
            // The same one mounted twice counts once.
            if !found.layout.hierarchies.iter().any(|seen| is_same(seen, &hierarchy)) {
                found.layout.hierarchies.push(hierarchy);
                found.roots.push(root);
            }
        }
        if found.layout.unified().is_none()
            && let Ok(root) = detached_unified()
        {
            found.layout.hierarchies.push(Hierarchy { unified: true, ..Hierarchy::default() });
            found.roots.push(root);
        }
        if found.roots.is_empty() {
            bail!("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup");
        }
        Ok(found)
    }

    /// In the order of a layout from before, which a container's plan counts by.
    pub(crate) fn ordered_as(self, before: &CgroupLayout) -> Result<Hierarchies> {
        let mut found: Vec<(Hierarchy, OwnedFd)> =
            self.layout.hierarchies.into_iter().zip(self.roots).collect();
        let mut ordered = Hierarchies { layout: before.clone(), roots: Vec::new() };
        for wanted in &before.hierarchies {
            let at = found.iter().position(|(hierarchy, _)| is_same(hierarchy, wanted));
            let at = at.with_context(|| format!("the cgroup hierarchy {wanted:?} is no longer mounted"))?;
            ordered.roots.push(found.swap_remove(at).1);
        }
        Ok(ordered)
    }
}

/// There is one v2 tree, whatever its controllers are just now.
fn is_same(one: &Hierarchy, other: &Hierarchy) -> bool {
    match (one.unified, other.unified) {
        (true, true) => true,
        (false, false) => one.controllers == other.controllers && one.name == other.name,
        _ => false,
    }
}

struct Mounted {
    path: PathBuf,
    unified: bool,
    options: Vec<String>,
}

impl Mounted {
    fn hierarchy(&self, known: &[String]) -> Hierarchy {
        let folder = match self.path.strip_prefix("/sys/fs/cgroup") {
            Ok(rest) => rest.to_string_lossy().into_owned(),
            Err(_) => String::new(),
        };
        if self.unified {
            let offered = fs::read_to_string(self.path.join("cgroup.controllers")).unwrap_or_default();
            let controllers = offered.split_whitespace().map(str::to_owned).collect();
            return Hierarchy { unified: true, controllers, name: None, folder };
        }
        let name = self.options.iter().find_map(|option| option.strip_prefix("name=")).map(str::to_owned);
        let controllers = self.options.iter().filter(|option| known.contains(option)).cloned().collect();
        Hierarchy { unified: false, controllers, name, folder }
    }
}

fn mounted() -> Result<Vec<Mounted>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let line = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let path = front.split(' ').nth(4)?;
        let mut fields = back.split(' ');
        let unified = match fields.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let options = fields.nth(1)?.split(',').map(str::to_owned).collect();
        Some(Mounted { path: Path::new(path).to_owned(), unified, options })
    };
    Ok(text.lines().filter_map(line).collect())
}

/// The names of all controllers of this kernel.
fn controllers() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/cgroups").context("read /proc/cgroups")?;
    let names =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

fn detached_unified() -> rustix::io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}
