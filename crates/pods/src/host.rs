//! What this machine offers, found out once at start by looking and trying, never by version.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bowline_model::cgroup::{CgroupLayout, Hierarchy};
use bowline_oci::{HostDevice, NodeFacts, SeccompArch};
use bowline_plan::seccomp::Arch;
use rustix::fs::{Mode, OFlags};

/// The machine.
pub struct Host {
    /// Its cgroup hierarchies.
    pub layout: CgroupLayout,
    /// Their root folders, in the same order.
    pub roots: Vec<OwnedFd>,
    /// What specs are made from.
    pub facts: NodeFacts,
    /// For compiled filters.
    pub arch: Arch,
    /// Names this boot.
    pub boot: String,
    /// The node's name.
    pub hostname: String,
}

impl Host {
    /// Looks at the machine.
    pub fn discover() -> io::Result<Host> {
        let (layout, roots) = cgroups()?;
        let facts = facts(&layout)?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Host { layout, roots, facts, arch: arch()?, boot, hostname })
    }

    /// The hierarchy of the memory controller.
    pub fn memory(&self) -> Option<u8> {
        self.layout.find("memory").map(|(number, _)| number)
    }
}

fn arch() -> io::Result<Arch> {
    let name = match std::env::consts::ARCH {
        "x86_64" => "SCMP_ARCH_X86_64",
        "aarch64" => "SCMP_ARCH_AARCH64",
        other => return Err(io::Error::other(format!("no seccomp tables for {other}"))),
    };
    Arch::parse(name).map_err(io::Error::other)
}

/// One mounted hierarchy of /proc/self/mountinfo.
struct Mounted {
    path: PathBuf,
    unified: bool,
    /// Only a folder of it is mounted there: of a container's tree that shows among the host's mounts, say.
    part: bool,
    options: Vec<String>,
}

/// Hierarchies in the order of their mount points, so that the order is the same after every restart of the daemon;
/// the v2 tree last. Where v2 is mounted nowhere, a detached mount serves.
pub fn cgroups() -> io::Result<(CgroupLayout, Vec<OwnedFd>)> {
    let known = controllers()?;
    let mounted = mounted(&fs::read_to_string("/proc/self/mountinfo")?);
    let mut layout = CgroupLayout::default();
    let mut roots: Vec<OwnedFd> = Vec::new();
    for mount in &mounted {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let Ok(root) = rustix::fs::open(&mount.path, flags, Mode::empty()) else { continue };
        let hierarchy = if mount.unified {
            let offered = fs::read_to_string(mount.path.join("cgroup.controllers")).unwrap_or_default();
            Hierarchy {
                unified: true,
                controllers: offered.split_whitespace().map(str::to_owned).collect(),
                name: None,
                folder: folder_name(&mount.path),
            }
        } else {
            let name =
                mount.options.iter().find_map(|option| option.strip_prefix("name=")).map(str::to_owned);
            let controllers =
                mount.options.iter().filter(|option| known.contains_key(option.as_str())).cloned();
            Hierarchy {
                unified: false,
                controllers: controllers.collect(),
                name,
                folder: folder_name(&mount.path),
            }
        };
        // The same hierarchy mounted twice counts once. There is one of v2, whatever a part of it offers.
        if layout.hierarchies.iter().any(|seen| {
            seen.unified == hierarchy.unified
                && (seen.unified || seen.controllers == hierarchy.controllers && seen.name == hierarchy.name)
        }) {
            continue;
        }
        layout.hierarchies.push(hierarchy);
        roots.push(root);
    }
    if layout.unified().is_none()
        && let Ok(root) = detached_unified()
    {
        layout.hierarchies.push(Hierarchy { unified: true, ..Hierarchy::default() });
        roots.push(root);
    }
    if roots.is_empty() {
        return Err(io::Error::other("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup"));
    }
    Ok((layout, roots))
}

fn folder_name(path: &Path) -> String {
    match path.strip_prefix("/sys/fs/cgroup") {
        Ok(rest) => rest.to_string_lossy().into_owned(),
        Err(_) => String::new(),
    }
}

fn detached_unified() -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// Controllers that the kernel knows (/proc/cgroups) and whether each is on.
fn controllers() -> io::Result<BTreeMap<String, bool>> {
    let text = fs::read_to_string("/proc/cgroups")?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    Ok(lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.to_owned(), fields.nth(2)? == "1"))
        })
        .collect())
}

/// What the table of mounts has of cgroups, v1 first; of both, those that are mounted whole come first, in the order of their
/// mount points.
fn mounted(table: &str) -> Vec<Mounted> {
    let of = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let mut places = front.split(' ').skip(3);
        let (part, path) = (places.next()? != "/", places.next()?);
        let mut fields = back.split(' ');
        let kind = fields.next()?;
        let options = fields.nth(1)?;
        let unified = match kind {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let options = options.split(',').map(str::to_owned).collect();
        Some(Mounted { path: PathBuf::from(path), unified, part, options })
    };
    let mut all: Vec<Mounted> = table.lines().filter_map(of).collect();
    all.sort_by(|a, b| (a.unified, a.part, &a.path).cmp(&(b.unified, b.part, &b.path)));
    all
}

fn facts(layout: &CgroupLayout) -> io::Result<NodeFacts> {
    let last_cap = fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse().unwrap_or(40);
    let (_, permitted, bounding) = bowline_linux::process::capabilities::current(last_cap)?;
    Ok(NodeFacts {
        cgroup_mode: layout.mode(),
        capabilities: permitted & bounding,
        last_cap,
        // These are set when the modules are set up.
        apparmor: false,
        apparmor_default: None,
        selinux: false,
        seccomp_arch: seccomp_arch(),
        host_devices: host_devices(),
        privileged_without_host_devices: false,
        hugetlb_sizes: hugetlb_sizes(layout),
        recursive_read_only: recursive_read_only(),
        swap: swap_limits(layout),
        default_ulimits: Vec::new(),
    })
}

fn seccomp_arch() -> SeccompArch {
    match std::env::consts::ARCH {
        "aarch64" => SeccompArch::Aarch64,
        _ => SeccompArch::X86_64,
    }
}

/// Device nodes below /dev that a privileged container sees: all but terminals, shared memory and queues, which it
/// has of its own.
fn host_devices() -> Vec<HostDevice> {
    let mut found = Vec::new();
    let mut folders = vec![(PathBuf::from("/dev"), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let kind = meta.file_type();
            let name = entry.file_name();
            if kind.is_dir() {
                let own = depth == 0
                    && ["pts", "shm", "mqueue", "fd", "lxc", "lxd-fuse", ".lxc"]
                        .iter()
                        .any(|own| name == *own);
                if !own && depth < 8 && found.len() < 4096 {
                    folders.push((path, depth + 1));
                }
                continue;
            }
            let kind = if kind.is_char_device() {
                'c'
            } else if kind.is_block_device() {
                'b'
            } else {
                continue;
            };
            if path == Path::new("/dev/console") || path == Path::new("/dev/ptmx") {
                continue;
            }
            found.push(HostDevice {
                path: path.to_string_lossy().into_owned(),
                kind,
                major: rustix::fs::major(meta.rdev()),
                minor: rustix::fs::minor(meta.rdev()),
                mode: meta.mode() & 0o7777,
                uid: meta.uid(),
                gid: meta.gid(),
                permissions: String::new(),
            });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn hugetlb_sizes(layout: &CgroupLayout) -> Vec<String> {
    if layout.find("hugetlb").is_none() {
        return Vec::new();
    }
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(if kib >= 1 << 20 {
            format!("{}GB", kib >> 20)
        } else if kib >= 1 << 10 {
            format!("{}MB", kib >> 10)
        } else {
            format!("{kib}KB")
        })
    });
    sizes.collect()
}

/// Tries a recursive read-only change on a mount of our own.
fn recursive_read_only() -> bool {
    use bowline_linux::mount::{Change, attr, change};
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let try_it = || -> io::Result<()> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        use std::os::fd::AsFd as _;
        change(tree.as_fd(), &Change { set: attr::RDONLY, recursive: true, ..Change::default() })
    };
    try_it().is_ok()
}

fn swap_limits(layout: &CgroupLayout) -> bool {
    match layout.find("memory") {
        Some((_, hierarchy)) if hierarchy.unified => true,
        Some((_, hierarchy)) => {
            Path::new("/sys/fs/cgroup").join(&hierarchy.folder).join("memory.memsw.limit_in_bytes").exists()
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_of_a_container_is_not_the_hosts() {
        let table = "\
            40 30 0:30 /bowline/1/2 /a/rootfs/sys/fs/cgroup ro shared:2 - cgroup2 cgroup2 rw\n\
            41 30 0:31 /x /a/memory rw - cgroup cgroup rw,memory\n\
            25 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n\
            26 24 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            27 24 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
        let places: Vec<(String, bool)> =
            mounted(table).into_iter().map(|mount| (mount.path.display().to_string(), mount.part)).collect();
        let wanted = [
            ("/sys/fs/cgroup/memory", false),
            ("/a/memory", true),
            ("/sys/fs/cgroup", false),
            ("/a/rootfs/sys/fs/cgroup", true),
        ];
        assert_eq!(places, wanted.map(|(path, part)| (path.to_owned(), part)));
    }
}
