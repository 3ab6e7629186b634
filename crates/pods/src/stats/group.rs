//! Files of one cgroup, whichever hierarchies the host has. Formats: Documentation/admin-guide/cgroup-v2.rst and
//! cgroup-v1/ of the kernel.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::files::{Files, Kept};
use crate::host::Host;

/// The longest file that is read, bytes; memory.stat has about two thousand.
const MAX_FILE: usize = 16 << 10;
/// The most processes of one cgroup that are counted.
const MAX_PROCESSES: usize = 65_536;
/// How deep groups that a container made itself are looked into, and how many of them.
const MAX_DEPTH: usize = 8;
const MAX_GROUPS: usize = 1024;

/// Memory, bytes and counts.
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

/// Swap, bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct SwapStats {
    /// In use.
    pub usage: u64,
    /// What may still be used; `None` without a limit.
    pub available: Option<u64>,
}

/// Waiting of some or of all processes, for the three resources that the kernel watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pressure {
    /// For a CPU.
    pub cpu: Option<Psi>,
    /// For memory.
    pub memory: Option<Psi>,
    /// For disks.
    pub io: Option<Psi>,
}

/// Pressure of one resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Psi {
    /// At least one process waited.
    pub some: PsiLine,
    /// All that had something to do waited.
    pub full: PsiLine,
}

/// A line of a pressure file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PsiLine {
    /// Time so far, nanoseconds.
    pub total_ns: u64,
    /// Percent of the last ten seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
}

/// A cgroup, by its path below the root of each hierarchy.
pub(super) struct Group<'a> {
    host: &'a Host,
    path: &'a str,
    /// Files that are kept open; none for a group that is read seldom.
    kept: Option<Arc<Kept>>,
}

impl<'a> Group<'a> {
    pub fn new(host: &'a Host, path: &'a str) -> Group<'a> {
        Group { host, path, kept: None }
    }

    /// For a group that is read again and again.
    pub fn kept(host: &'a Host, path: &'a Arc<str>, files: &Files) -> Group<'a> {
        Group { host, path, kept: files.of(path) }
    }

    /// The hierarchy of a controller, and whether it is the v2 tree.
    pub fn controller(&self, name: &str) -> Option<(&'a OwnedFd, bool)> {
        let (number, hierarchy) = self.host.layout.find(name)?;
        Some((self.host.roots.get(usize::from(number))?, hierarchy.unified))
    }

    pub fn unified(&self) -> Option<&'a OwnedFd> {
        self.host.roots.get(usize::from(self.host.layout.unified()?))
    }

    /// A file of a hierarchy.
    pub fn text(&self, root: &OwnedFd, name: &str) -> Option<String> {
        let mut bytes = [0u8; MAX_FILE];
        let open = || open(root, &format!("{}/{name}", self.path));
        let len = match &self.kept {
            Some(kept) => kept.read(root, name, &mut bytes, open)?,
            // At once: what the kernel gives in one read belongs together.
            None => rustix::io::read(&open()?, &mut bytes).ok()?,
        };
        std::str::from_utf8(bytes.get(..len)?).ok().map(str::to_owned)
    }

    /// A file that holds one number; "max" and what v1 writes for it is `None`.
    pub fn number(&self, root: &OwnedFd, name: &str) -> Option<u64> {
        // Without a limit, files of v1 hold the largest multiple of a page.
        self.text(root, name)?.trim().parse().ok().filter(|number| *number < i64::MAX as u64 / 2)
    }

    /// CPU time so far, nanoseconds. `None` means that the group is gone.
    pub fn cpu_usage_ns(&self) -> Option<u64> {
        match self.controller("cpuacct") {
            Some((root, false)) => self.number(root, "cpuacct.usage"),
            // cpu.stat with the time is in every group of the v2 tree, with the controller or without.
            _ => Some(keyed(&self.text(self.unified()?, "cpu.stat")?, "usage_usec")? * 1000),
        }
    }

    pub fn memory(&self) -> Option<(MemoryStats, Option<SwapStats>)> {
        match self.controller("memory") {
            Some((root, true)) => self.memory_v2(root),
            Some((root, false)) => self.memory_v1(root),
            None => Some(Default::default()),
        }
    }

    fn memory_v1(&self, root: &OwnedFd) -> Option<(MemoryStats, Option<SwapStats>)> {
        let stat = self.text(root, "memory.stat")?;
        let usage = self.number(root, "memory.usage_in_bytes")?;
        let limit = self.number(root, "memory.limit_in_bytes");
        let memory = stats(
            &stat,
            usage,
            limit,
            "total_inactive_file",
            "total_rss",
            "total_pgfault",
            "total_pgmajfault",
        );
        // A kernel without accounting of swap has no such line.
        let swap = keyed(&stat, "total_swap").map(|usage| {
            // The one limit is of memory and swap together.
            let both = limit.and_then(|limit| {
                Some(self.number(root, "memory.memsw.limit_in_bytes")?.saturating_sub(limit))
            });
            SwapStats { usage, available: both.map(|limit| limit.saturating_sub(usage)) }
        });
        Some((memory, swap))
    }

    fn memory_v2(&self, root: &OwnedFd) -> Option<(MemoryStats, Option<SwapStats>)> {
        let stat = self.text(root, "memory.stat")?;
        let usage = self.number(root, "memory.current")?;
        let limit = self.number(root, "memory.max");
        let memory = stats(&stat, usage, limit, "inactive_file", "anon", "pgfault", "pgmajfault");
        let swap = self.number(root, "memory.swap.current").map(|usage| {
            let limit = self.number(root, "memory.swap.max");
            SwapStats { usage, available: limit.map(|limit| limit.saturating_sub(usage)) }
        });
        Some((memory, swap))
    }

    /// Pressure is told by the v2 tree alone, also beside v1 hierarchies.
    pub fn pressure(&self) -> Pressure {
        let one = |name: &str| psi(&self.text(self.unified()?, name)?);
        let cpu = one("cpu.pressure");
        if cpu.is_none() {
            // They are there or not all together (CONFIG_PSI, psi=0, cgroup.pressure).
            return Pressure::default();
        }
        Pressure { cpu, memory: one("memory.pressure"), io: one("io.pressure") }
    }

    /// The processes in the group and in those below it.
    pub fn processes(&self) -> Vec<i32> {
        let root = self.unified().or_else(|| Some(self.controller("cpuacct")?.0));
        let Some(root) = root else { return Vec::new() };
        let mut found = Vec::new();
        let mut groups = vec![(self.path.to_owned(), 0)];
        let mut seen = 0;
        while let Some((path, depth)) = groups.pop() {
            seen += 1;
            // The kernel gives no more than a page at a time; read() takes up the rest.
            let text = read_all(root, &format!("{path}/cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            if found.len() >= MAX_PROCESSES || seen >= MAX_GROUPS {
                break;
            }
            if depth < MAX_DEPTH {
                groups.extend(below(root, &path).into_iter().map(|path| (path, depth + 1)));
            }
        }
        found.truncate(MAX_PROCESSES);
        found
    }
}

fn stats(
    stat: &str,
    usage: u64,
    limit: Option<u64>,
    inactive_file: &str,
    rss: &str,
    faults: &str,
    major_faults: &str,
) -> MemoryStats {
    let of = |key: &str| keyed(stat, key).unwrap_or(0);
    let working_set = usage.saturating_sub(of(inactive_file));
    MemoryStats {
        usage,
        working_set,
        rss: of(rss),
        page_faults: of(faults),
        major_page_faults: of(major_faults),
        available: limit.map(|limit| limit.saturating_sub(working_set)),
    }
}

/// The groups directly below one.
fn below(root: &OwnedFd, path: &str) -> Vec<String> {
    // A folder of a cgroup file system has a link more for each folder in it, so most need not be read.
    let Ok(folder) =
        rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    else {
        return Vec::new();
    };
    if rustix::fs::fstat(&folder).is_ok_and(|meta| meta.st_nlink == 2) {
        return Vec::new();
    }
    let Ok(entries) = rustix::fs::Dir::new(folder) else { return Vec::new() };
    let folders = entries.flatten().filter(|entry| entry.file_type() == rustix::fs::FileType::Directory);
    folders
        .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
        .filter(|name| name != "." && name != "..")
        .map(|name| format!("{path}/{name}"))
        .collect()
}

/// The number after a key at the start of a line.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, microseconds; then `full`, which old kernels do not have for cpu.
fn psi(text: &str) -> Option<Psi> {
    let line = |name: &str| -> Option<PsiLine> {
        let fields = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let field =
            |key: &str| fields.split(' ').find_map(|field| field.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| field(key).and_then(|value| value.parse().ok()).unwrap_or(0.0);
        Some(PsiLine {
            total_ns: field("total")?.parse::<u64>().ok()?.saturating_mul(1000),
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
        })
    };
    Some(Psi { some: line("some")?, full: line("full").unwrap_or_default() })
}

fn read_all(root: &OwnedFd, path: &str) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::from(open(root, path)?);
    // A process number has at most eight bytes with its line break.
    file.take(MAX_PROCESSES as u64 * 8).read_to_string(&mut text).ok()?;
    Some(text)
}

fn open(root: &OwnedFd, path: &str) -> Option<OwnedFd> {
    let path = CString::new(path).ok()?;
    rustix::fs::openat(root, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
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

    #[test]
    fn pressure_is_told_in_nanoseconds() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.05 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let told = psi(text).unwrap();
        assert_eq!((told.some.total_ns, told.full.total_ns), (12_345_000, 7_000));
        assert_eq!((told.some.avg10, told.some.avg60, told.some.avg300), (1.5, 0.25, 0.05));
        let old = psi("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n").unwrap();
        assert_eq!(old.full, PsiLine::default());
        assert_eq!(psi(""), None);
    }
}
