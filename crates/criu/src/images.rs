//! Judging criu's image files before criu acts on them.
//!
//! criu restores whatever its files say, with every privilege there is: an image may claim that its processes live in
//! criu's own namespaces, hold every capability, run without their filter, or have a disk of the host mounted. What a
//! restored container may be comes from the request; here the files are only compared with that ([`judge`]). Whoever
//! restores also looks at the processes themselves before they run: this is the first of two looks.
//!
//! Formats: `images/*.proto` and criu/include/magic.h of criu 3.17. A file is two magic numbers (`inventory.img` one), then
//! messages, each behind its length in four bytes.

mod thread;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

use self::thread::{Filters, Thread};
use crate::wire::{Malformed, Message};

/// The longest image file that is read here. Memory is in `pages-*.img`, which are not.
const MAX_FILE: u64 = 64 << 20;
/// Files in a folder of images, and processes with their threads in it.
const MAX_FILES: usize = 200_000;
/// Magic number of all images but those of criu's own statistics.
pub(crate) const COMMON: u32 = 0x5456_4319;
/// The only magic number of `inventory.img`.
pub(crate) const INVENTORY: u32 = 0x5831_3116;

/// Names that may be there, up to a number in them. Others describe what is not restored here: networks, host names,
/// users, policies, file systems.
const NAMES: [&str; 35] = [
    "cgroup.img",
    "core-",
    "descriptors.json",
    "dump.log",
    "eventfd.img",
    "eventpoll-tfd.img",
    "eventpoll.img",
    "fdinfo-",
    "fifo-data.img",
    "fifo.img",
    "filelocks.img",
    "files.img",
    "fs-",
    "ghost-file-",
    "ids-",
    "inotify-wd.img",
    "inotify.img",
    "inventory.img",
    "memfd.img",
    "mm-",
    "mountpoints-",
    "pagemap-",
    "pages-",
    "pipes-data.img",
    "pipes.img",
    "pstree.img",
    "reg-files.img",
    "remap-fpath.img",
    "seccomp.img",
    "signalfd.img",
    "sk-queues.img",
    "stats-dump",
    "tcp-stream-",
    "timens-",
    "tty-info.img",
];

/// What a restored container may be; all of it from the request.
#[derive(Debug)]
pub struct Allowed<'a> {
    /// Mount points inside the root, but those of the root and of procfs.
    pub mounts: &'a BTreeSet<String>,
    /// Capabilities that any process may have, by bit.
    pub capabilities: u64,
    /// The one user and group that its processes may have, if they cannot change to others.
    pub ids: Option<(u32, u32)>,
    /// The container's terminal in criu's words (`tty[device:file system]`, hexadecimal), if it has one: it is given to criu. No
    /// other may be open.
    pub terminals: &'a [String],
    /// The seccomp filter that holds for every thread, as the kernel takes it.
    pub filter: Option<&'a [u8]>,
}

/// What was found, beyond that it may be restored.
#[derive(Debug, PartialEq, Eq)]
pub struct Judged {
    /// Mount points that are bound from elsewhere.
    pub mounts: BTreeSet<String>,
    /// How many processes there are.
    pub processes: usize,
}

/// Why images are not restored.
#[derive(Debug, thiserror::Error)]
pub enum Objection {
    /// A file is missing or cannot be read.
    #[error("could not read {file} of the checkpoint")]
    Io {
        /// Which.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no image, or not what it should be.
    #[error("{file} of the checkpoint is damaged")]
    Damaged {
        /// Which.
        file: String,
    },
    /// It asks for what the request does not give.
    #[error("the checkpoint {0}")]
    NotAllowed(String),
}

pub(crate) fn not_allowed<T>(what: impl fmt::Display) -> Result<T, Objection> {
    Err(Objection::NotAllowed(what.to_string()))
}

/// Looks at the images in a folder.
pub fn judge(folder: impl AsFd, allowed: &Allowed<'_>) -> Result<Judged, Objection> {
    let folder = Folder::of(folder)?;
    folder.check_names()?;
    let inventory = folder.one("inventory.img")?;
    let root = within("inventory.img", || {
        Namespaces::of(&Message::parse(&inventory)?.message(3)?.ok_or(Malformed)?)
    })?;
    let tasks = folder.tasks()?;
    let first = tasks.first().ok_or_else(|| damaged("pstree.img"))?;
    if (first.pid, first.parent) != (1, 0) {
        return not_allowed("does not begin with the first process of a PID namespace");
    }
    let own = folder.namespaces(first.pid)?.ok_or_else(|| damaged("ids-1.img"))?;
    own.check(&root)?;
    let filters = Filters::read(&folder, allowed.filter)?;
    for task in &tasks {
        folder.check_task(task, &own, allowed, &filters)?;
    }
    folder.check_files(allowed)?;
    let mounts = folder.check_mounts(own.mount, allowed)?;
    Ok(Judged { mounts, processes: tasks.len() })
}

/// Numbers of namespaces, as an image names them (`task_kobj_ids_entry`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Namespaces {
    pid: u64,
    mount: u64,
    /// Network, IPC, UTS, user: those of criu, which is started in the pod's.
    shared: [u64; 4],
    /// That of time is its own once criu has brought the container back: clocks go on where they were, and that is all.
    time: u64,
}

impl Namespaces {
    fn of(ids: &Message<'_>) -> Result<Namespaces, Malformed> {
        // 0 where this kernel or criu does not know the kind.
        let id = |field| ids.number(field).map(|id| id.unwrap_or(0));
        let shared = [id(6)?, id(7)?, id(8)?, id(10)?];
        Ok(Namespaces { pid: id(5)?, mount: id(9)?, shared, time: id(12)? })
    }

    /// criu makes a namespace where the numbers of the first process and those of the inventory differ; where they are
    /// equal the process lives in criu's own, which for mounts is a copy of the host's.
    fn check(&self, criu: &Namespaces) -> Result<(), Objection> {
        if self.pid == criu.pid || self.mount == criu.mount || self.pid == 0 || self.mount == 0 {
            return not_allowed("wants to run in the host's mount or PID namespace");
        }
        let names = ["network", "IPC", "UTS", "user"];
        let foreign = self.shared.iter().zip(&criu.shared).zip(names).find(|((own, criu), _)| own != criu);
        match foreign {
            None => Ok(()),
            Some((_, name)) => {
                not_allowed(format_args!("brings its own {name} namespace; here it gets its pod's"))
            }
        }
    }
}

pub(crate) struct Task {
    pub(crate) pid: u64,
    parent: u64,
    threads: Vec<u64>,
}

impl Task {
    /// Its threads' numbers, its own first.
    pub(crate) fn threads(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.pid).chain(self.threads.iter().copied().filter(|id| *id != self.pid))
    }
}

pub(crate) struct Folder {
    pub(crate) fd: OwnedFd,
}

impl Folder {
    pub(crate) fn of(folder: impl AsFd) -> Result<Folder, Objection> {
        Ok(Folder { fd: folder.as_fd().try_clone_to_owned().map_err(|source| io_of(".", source))? })
    }

    pub(crate) fn names(&self) -> Result<Vec<String>, Objection> {
        let unreadable = |errno: rustix::io::Errno| io_of(".", errno.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_string_lossy();
            if name == "." || name == ".." {
                continue;
            }
            if names.len() == MAX_FILES {
                return not_allowed(format_args!("has more than {MAX_FILES} files"));
            }
            names.push(name.into_owned());
        }
        Ok(names)
    }

    fn check_names(&self) -> Result<(), Objection> {
        for name in self.names()? {
            if !NAMES.iter().any(|known| name == *known || (known.ends_with('-') && name.starts_with(known)))
            {
                return not_allowed(format_args!("holds {name}, which nothing here restores"));
            }
            // criu opens by name, and would follow a link to wherever.
            self.open(&name)?;
        }
        Ok(())
    }

    pub(crate) fn open(&self, name: &str) -> Result<(OwnedFd, u64), Objection> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let open = |flags| {
            let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = openat2(&self.fd, name, flags, Mode::empty(), resolve);
            file.map_err(|errno| io_of(name, errno.into()))
        };
        // Looked at before it is opened: opening a device can do anything.
        let stat = fstat(open(OFlags::PATH)?).map_err(|errno| io_of(name, errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            return not_allowed(format_args!("holds {name}, which is no plain file"));
        }
        Ok((open(OFlags::RDONLY)?, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Objection> {
        let (file, size) = self.open(name)?;
        if size > MAX_FILE {
            return not_allowed(format_args!("holds {name} with {size} bytes; {MAX_FILE} are the limit"));
        }
        let mut bytes = Vec::new();
        std::fs::File::from(file)
            .take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(|error| io_of(name, error))?;
        Ok(bytes)
    }

    /// The messages of an image.
    pub(crate) fn entries(&self, name: &str) -> Result<Vec<Vec<u8>>, Objection> {
        let bytes = self.read(name)?;
        split(&bytes).ok_or_else(|| damaged(name))
    }

    /// The only message of an image.
    pub(crate) fn one(&self, name: &str) -> Result<Vec<u8>, Objection> {
        let mut entries = self.entries(name)?;
        match (entries.pop(), entries.is_empty()) {
            (Some(entry), true) => Ok(entry),
            _ => Err(damaged(name)),
        }
    }

    fn one_if_there(&self, name: &str) -> Result<Option<Vec<u8>>, Objection> {
        match self.one(name) {
            Ok(entry) => Ok(Some(entry)),
            Err(Objection::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(other) => Err(other),
        }
    }

    pub(crate) fn tasks(&self) -> Result<Vec<Task>, Objection> {
        let entries = self.entries("pstree.img")?;
        within("pstree.img", || {
            let task = |entry: &Vec<u8>| {
                let entry = Message::parse(entry)?;
                let number = |field| entry.number(field)?.ok_or(Malformed);
                Ok(Task { pid: number(1)?, parent: number(2)?, threads: entry.numbers(5)? })
            };
            let tasks: Vec<Task> = entries.iter().map(task).collect::<Result<_, Malformed>>()?;
            let threads: usize = tasks.iter().map(|task| task.threads.len()).sum();
            if threads > MAX_FILES { Err(Malformed) } else { Ok(tasks) }
        })
    }

    fn namespaces(&self, pid: u64) -> Result<Option<Namespaces>, Objection> {
        let name = format!("ids-{pid}.img");
        let Some(ids) = self.one_if_there(&name)? else { return Ok(None) };
        within(&name, || Namespaces::of(&Message::parse(&ids)?)).map(Some)
    }

    fn check_task(
        &self,
        task: &Task,
        own: &Namespaces,
        allowed: &Allowed<'_>,
        filters: &Filters,
    ) -> Result<(), Objection> {
        let name = format!("core-{}.img", task.pid);
        let core = self.one(&name)?;
        // TASK_DEAD, TASK_ZOMBIE: a number that its parent has not asked for yet.
        let dead = within(&name, || {
            let state = Message::parse(&core)?.message(3)?.ok_or(Malformed)?.number(1)?;
            Ok(matches!(state, Some(2 | 6)))
        })?;
        let ids = self.namespaces(task.pid)?;
        if ids.is_some_and(|ids| ids != *own) || (ids.is_none() && !dead) {
            return not_allowed("has processes in namespaces of their own");
        }
        if dead {
            return Ok(());
        }
        for thread in task.threads() {
            let name = format!("core-{thread}.img");
            let core = self.one(&name)?;
            let facts = within(&name, || Thread::of(&Message::parse(&core)?))?;
            facts.check(own, allowed, filters)?;
        }
        Ok(())
    }

    fn check_files(&self, allowed: &Allowed<'_>) -> Result<(), Objection> {
        let raw = allowed.capabilities & NET_RAW != 0;
        let terminals = self.check_terminals(allowed)?;
        for entry in self.entries("files.img")? {
            let (kind, socket) = within("files.img", || {
                let entry = Message::parse(&entry)?;
                let socket = entry.message(4)?.map(|socket| socket.number(4)).transpose()?.flatten();
                Ok((entry.number(1)?, socket))
            })?;
            let what = match kind {
                // Files, pipes, sockets, counters, timers.
                Some(1..=9 | 13 | 17 | 18) if socket != Some(SOCK_RAW) || raw => continue,
                Some(11) if terminals => continue,
                Some(4) => "raw sockets, for which the request gives no capability",
                Some(10) => "packet sockets",
                Some(11) => "terminals",
                _ => "files that only the host's administrator may open",
            };
            return not_allowed(format_args!("has open {what}"));
        }
        Ok(())
    }

    /// Whether there are terminals, all of them the container's own. criu takes those that it was told of for external, by their
    /// numbers, and opens devices for others.
    fn check_terminals(&self, allowed: &Allowed<'_>) -> Result<bool, Objection> {
        let name = "tty-info.img";
        let entries = match self.entries(name) {
            Err(Objection::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(false);
            }
            other => other?,
        };
        for entry in &entries {
            let (kind, key) = within(name, || {
                let entry = Message::parse(entry)?;
                let (device, on) = (entry.number(8)?.ok_or(Malformed)?, entry.number(13)?.ok_or(Malformed)?);
                Ok((entry.number(2)?, format!("tty[{device:x}:{on:x}]")))
            })?;
            if kind != Some(EXTERNAL_TERMINAL) || !allowed.terminals.contains(&key) {
                return not_allowed("has open terminals that are not the container's own");
            }
        }
        Ok(!entries.is_empty())
    }

    fn check_mounts(&self, namespace: u64, allowed: &Allowed<'_>) -> Result<BTreeSet<String>, Objection> {
        let name = format!("mountpoints-{namespace}.img");
        let mut found = BTreeSet::new();
        let mut roots = 0;
        for entry in self.entries(&name)? {
            let mount = within(&name, || Mount::of(&Message::parse(&entry)?))?;
            let place = mount.place.as_str();
            match mount.key {
                None if place == "/" => roots += 1,
                // A procfs shows the PID namespace of whoever mounts it, so that criu has to.
                None if mount.kind == PROC && (place == "/proc" || place.starts_with("/proc/")) => {}
                None => {
                    return not_allowed(format_args!("mounts a file system of its own at {place}"));
                }
                Some(key) if key == place && allowed.mounts.contains(place) => {
                    found.insert(key);
                }
                Some(_) => {
                    return not_allowed(format_args!("has a mount at {place}, which the request has not"));
                }
            }
        }
        if roots != 1 { Err(damaged(&name)) } else { Ok(found) }
    }
}

pub(crate) const PROC: u64 = 1;
const SOCK_RAW: u64 = 3;
const EXTERNAL_TERMINAL: u64 = 5;
const NET_RAW: u64 = 1 << 13;

struct Mount {
    kind: u64,
    place: String,
    key: Option<String>,
}

impl Mount {
    fn of(entry: &Message<'_>) -> Result<Mount, Malformed> {
        // With a plugin somebody else would mount it; a deleted one is looked up by other rules.
        if entry.number(12)?.unwrap_or(0) != 0 || entry.number(16)?.unwrap_or(0) != 0 {
            return Err(Malformed);
        }
        let place = entry.text(7)?.ok_or(Malformed)?;
        let place = place.strip_prefix('.').unwrap_or(place);
        let climbs = place.split('/').any(|part| part == ".." || part == ".");
        if !place.starts_with('/') || climbs || place.contains("//") {
            return Err(Malformed);
        }
        let key = entry.text(18)?.map(str::to_owned);
        // Older forms say only that it is external, and what is bound is found otherwise.
        if entry.number(13)?.unwrap_or(0) != 0 && key.is_none() {
            return Err(Malformed);
        }
        Ok(Mount { kind: entry.number(1)?.ok_or(Malformed)?, place: place.to_owned(), key })
    }
}

/// The messages of an image file; `None` if it is none.
fn split(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut rest = match bytes.strip_prefix(&INVENTORY.to_le_bytes()) {
        Some(rest) => rest,
        None => bytes.strip_prefix(&COMMON.to_le_bytes())?.get(4..)?,
    };
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (len, after) = rest.split_at_checked(4)?;
        let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
        let (entry, after) = after.split_at_checked(len)?;
        entries.push(entry.to_vec());
        rest = after;
    }
    Some(entries)
}

pub(crate) fn within<T>(name: &str, read: impl FnOnce() -> Result<T, Malformed>) -> Result<T, Objection> {
    read().map_err(|Malformed| damaged(name))
}

pub(crate) fn damaged(file: &str) -> Objection {
    Objection::Damaged { file: file.to_owned() }
}

pub(crate) fn io_of(file: &str, source: io::Error) -> Objection {
    Objection::Io { file: file.to_owned(), source }
}
