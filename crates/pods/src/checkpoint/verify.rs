//! Looking at processes themselves: at those that are to be written, and at those that criu has brought back, before they
//! are let go.
//!
//! The second is the look that counts. Whatever an archive's images say, what runs afterwards has the namespaces, the mounts
//! and the rights of the request, because the kernel says so here.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use bowline_launch_plan::{LaunchPlan, Step};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxFlags, openat2};

use crate::mount_table;

/// A mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub id: u64,
    pub point: String,
    pub kind: String,
}

/// A container as its first process sees it.
pub(super) struct Tree {
    pid: i32,
    root: OwnedFd,
    mounts: Vec<Mount>,
}

/// `STATX_ATTR_MOUNT_ROOT` (Linux 5.8).
const MOUNT_ROOT: u64 = 0x2000;

impl Tree {
    pub(super) fn of(pid: i32) -> io::Result<Tree> {
        let root = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("/proc/{pid}/root"), root, Mode::empty())?;
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
        let mounts = mounts.lines().map(parse).collect::<Option<_>>();
        let mounts = mounts.ok_or_else(|| io::Error::other("mountinfo makes no sense"))?;
        Ok(Tree { pid, root, mounts })
    }

    pub(super) fn mounts(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    /// The mount whose root a path inside the container leads to; `None` if the path leads nowhere, or into one.
    pub(super) fn mount_at(&self, path: &CStr) -> io::Result<Option<&Mount>> {
        let Some(place) = self.find(path)? else { return Ok(None) };
        let facts = rustix::fs::statx(&place, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        if facts.stx_attributes.bits() & MOUNT_ROOT == 0 {
            return Ok(None);
        }
        Ok(self.mounts.iter().find(|mount| mount.id == facts.stx_mnt_id))
    }

    fn find(&self, path: &CStr) -> io::Result<Option<OwnedFd>> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside) {
            Ok(found) => Ok(Some(found)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Files that the container holds open and that lie on no mount of its own, in criu's words. That is the host's
    /// /dev/null, its standard input.
    pub(super) fn foreign_files(&self) -> io::Result<Vec<String>> {
        let own: BTreeSet<u64> = self.mounts.iter().map(|mount| mount.id).collect();
        let mut found = BTreeSet::new();
        for pid in descendants(self.pid)? {
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let number = entry.file_name().to_string_lossy().into_owned();
                let Ok(meta) = fs::metadata(entry.path()) else { continue };
                let Some(mount) = field(&format!("/proc/{pid}/fdinfo/{number}"), "mnt_id:") else { continue };
                let is_null = FileType::from_raw_mode(meta.mode()) == FileType::CharacterDevice
                    && meta.rdev() == rustix::fs::makedev(1, 3);
                if is_null && mount.parse().is_ok_and(|mount: u64| !own.contains(&mount)) {
                    found.insert(key(&mount, meta.ino()));
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    /// criu's names for the container's terminal: of the device behind /dev/console, and of /dev/tty, by which shells reach it.
    pub(super) fn terminals(&self) -> io::Result<Vec<String>> {
        // Linux' Documentation/admin-guide/devices.txt: the slaves of Unix 98 terminals, and /dev/tty.
        const SLAVES: std::ops::RangeInclusive<u32> = 136..=143;
        const OWN: (u32, u32) = (5, 0);
        let mut found = Vec::new();
        for path in [c"/dev/console", c"/dev/tty"] {
            let Some(place) = self.find(path)? else { continue };
            let stat = rustix::fs::fstat(&place)?;
            let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && (SLAVES.contains(&number.0) || number == OWN)
            {
                found.push(format!("tty[{:x}:{:x}]", stat.st_rdev, stat.st_dev));
            }
        }
        Ok(found)
    }

    /// criu's name for a standard stream that leads out of the container; empty for one that does not.
    pub(super) fn stream(&self, number: i32, foreign: &[String]) -> String {
        let path = format!("/proc/{}/fd/{number}", self.pid);
        let target = fs::read_link(&path).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        if target.starts_with("pipe:[") {
            return target;
        }
        let mount = field(&format!("/proc/{}/fdinfo/{number}", self.pid), "mnt_id:");
        let inode = fs::metadata(&path).map(|meta| meta.ino());
        match (mount, inode) {
            (Some(mount), Ok(inode)) if foreign.contains(&key(&mount, inode)) => key(&mount, inode),
            _ => String::new(),
        }
    }
}

fn key(mount: &str, inode: u64) -> String {
    format!("file[{:x}:{inode:x}]", mount.parse::<u64>().unwrap_or(0))
}

/// A line of mountinfo: id, parent, device, root, point, options, optional fields, `-`, type, source, options.
fn parse(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ');
    let id = front.next()?.parse().ok()?;
    let point = mount_table::unescape(front.nth(3)?);
    Some(Mount { id, point, kind: back.split(' ').next()?.to_owned() })
}

/// A process and those below it.
fn descendants(first: i32) -> io::Result<Vec<i32>> {
    let mut found = vec![first];
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        at += 1;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    Ok(found)
}

/// The value behind a word of a file of procfs.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

/// Whether what criu has brought back is what the plan would have started. `pids` are the processes of its cgroup, criu's
/// own left out; `monitor` is its parent, whose network, IPC and UTS namespace it must have. The reason if it is not.
pub(super) fn check(first: i32, pids: &[i32], monitor: i32, plan: &LaunchPlan) -> Result<(), String> {
    let seen = |error: io::Error| format!("its processes cannot be looked at: {error}");
    let tree = Tree::of(first).map_err(seen)?;
    if !pids.contains(&first) {
        return Err("its first process is not in its cgroup".into());
    }
    let namespace =
        |pid: i32, name: &str| fs::metadata(format!("/proc/{pid}/ns/{name}")).map(|meta| meta.ino());
    let own = |name| fs::metadata(format!("/proc/self/ns/{name}")).map(|meta| meta.ino());
    for pid in pids {
        for name in ["net", "ipc", "uts", "user", "cgroup", "mnt", "pid"] {
            // The cgroup namespace is made by the launcher, before criu.
            let is = namespace(*pid, name).map_err(seen)?;
            let fits = match name {
                "net" | "ipc" | "uts" | "user" => is == namespace(monitor, name).map_err(seen)?,
                _ => is != own(name).map_err(seen)? && is == namespace(first, name).map_err(seen)?,
            };
            let made = name != "cgroup" || plan.new_namespaces & bowline_linux::clone::ns::CGROUP != 0;
            if !fits && made {
                return Err(format!("process {pid} has another {name} namespace than it should"));
            }
        }
        rights(*pid, plan)?;
    }
    mounts(&tree, plan)
}

fn rights(pid: i32, plan: &LaunchPlan) -> Result<(), String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|error| format!("process {pid} cannot be looked at: {error}"))?;
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or("");
    if value("State:").starts_with('Z') {
        return Ok(());
    }
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let set = u64::from_str_radix(value(name), 16)
            .map_err(|_| format!("{name} of process {pid} makes no sense"))?;
        if set & !plan.credentials.bounding != 0 {
            return Err(format!(
                "process {pid} has more capabilities than the request gives ({name} {set:x})"
            ));
        }
    }
    if plan.credentials.no_new_privs && value("NoNewPrivs:") != "1" {
        return Err(format!("process {pid} may gain privileges"));
    }
    if plan.seccomp.is_some() && value("Seccomp:") != "2" {
        return Err(format!("process {pid} has no seccomp filter"));
    }
    if let Some(label) = &plan.selinux
        && !has_label(pid, &label.to_string_lossy())
    {
        return Err(format!("process {pid} has another SELinux label than {}", label.to_string_lossy()));
    }
    match &plan.apparmor {
        Some(profile) if !is_confined(pid, &profile.to_string_lossy()) => Err(format!(
            "process {pid} is not confined by the AppArmor profile {}",
            profile.to_string_lossy()
        )),
        _ => Ok(()),
    }
}

/// Whether SELinux, where it is on the only module with labels in this file, says this one of a process.
fn has_label(pid: i32, label: &str) -> bool {
    let said = fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap_or_default();
    said.trim_end_matches(['\n', '\0']) == label
}

/// Whether AppArmor says `<profile> (<mode>)` of a process.
fn is_confined(pid: i32, profile: &str) -> bool {
    // The first since Linux 5.1; the second is whichever module comes first.
    let said = fs::read_to_string(format!("/proc/{pid}/attr/apparmor/current"));
    let said = said.or_else(|_| fs::read_to_string(format!("/proc/{pid}/attr/current"))).unwrap_or_default();
    let said = said.trim_end_matches(['\n', '\0']);
    said == profile || said.rsplit_once(" (").is_some_and(|(name, _)| name == profile)
}

/// Every mount of the plan is there, no more writable than asked for.
fn mounts(tree: &Tree, plan: &LaunchPlan) -> Result<(), String> {
    let wrong = |path: &CStr, what: &str| Err(format!("{} {what}", path.to_string_lossy()));
    let flags_at = |path: &CStr| -> io::Result<Option<(bool, StatVfsMountFlags)>> {
        let Some(place) = tree.find(path)? else { return Ok(None) };
        let is_mount = tree.mount_at(path)?.is_some();
        Ok(Some((is_mount, rustix::fs::fstatvfs(&place)?.f_flag)))
    };
    let seen = |error: io::Error| format!("its mounts cannot be looked at: {error}");
    for step in &plan.steps {
        match step {
            Step::Mount { target, attr_set, optional, .. } => match flags_at(target).map_err(seen)? {
                None if *optional => {}
                None | Some((false, _)) => return wrong(target, "is not mounted"),
                Some((true, flags)) => {
                    // MOUNT_ATTR_RDONLY, NOSUID, NODEV and NOEXEC have the values of statvfs' flags.
                    let wanted = StatVfsMountFlags::from_bits_truncate(attr_set & 0xf);
                    if !flags.contains(wanted) {
                        return wrong(target, "is mounted with fewer restrictions than the request has");
                    }
                }
            },
            Step::Attributes { path, attr_set, .. } => match flags_at(path).map_err(seen)? {
                Some((_, flags)) if flags.contains(StatVfsMountFlags::from_bits_truncate(attr_set & 0xf)) => {
                }
                _ => return wrong(path, "is mounted with fewer restrictions than the request has"),
            },
            Step::ReadOnly { path } => match flags_at(path).map_err(seen)? {
                None => {}
                Some((true, flags)) if flags.contains(StatVfsMountFlags::RDONLY) => {}
                Some(_) => return wrong(path, "is not read-only"),
            },
            Step::Mask { path } if !is_masked(tree, path).map_err(seen)? => {
                return wrong(path, "is not masked");
            }
            _ => {}
        }
    }
    if plan.readonly_root {
        match flags_at(c"/").map_err(seen)? {
            Some((_, flags)) if flags.contains(StatVfsMountFlags::RDONLY) => {}
            _ => return wrong(c"/", "is not read-only"),
        }
    }
    Ok(())
}

/// What hides a path is /dev/null, or an empty tmpfs that is read-only; and what is not there needs no hiding.
fn is_masked(tree: &Tree, path: &CStr) -> io::Result<bool> {
    let Some(place) = tree.find(path)? else { return Ok(true) };
    let stat = rustix::fs::fstat(&place)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    let read_only = rustix::fs::fstatvfs(&place)?.f_flag.contains(StatVfsMountFlags::RDONLY);
    let mount = tree.mount_at(path)?;
    Ok(mount.is_some_and(|mount| is_null || (mount.kind == "tmpfs" && read_only)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo() {
        let line = "54 45 0:32 /a /var/x\\040y rw,relatime shared:3 - overlay overlay rw,lowerdir=a";
        assert_eq!(parse(line), Some(Mount { id: 54, point: "/var/x y".into(), kind: "overlay".into() }));
        assert_eq!(parse("54 45"), None);
    }

    #[test]
    fn what_is_a_mount_is_told_from_what_lies_in_one() {
        let tree = Tree::of(rustix::process::getpid().as_raw_nonzero().get()).unwrap();
        assert_eq!(tree.mount_at(c"/proc").unwrap().unwrap().kind, "proc");
        assert_eq!(tree.mount_at(c"/proc/self").unwrap(), None);
        assert_eq!(tree.mount_at(c"/there/is/nothing").unwrap(), None);
    }
}
