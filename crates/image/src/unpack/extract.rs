//! Writes the entries of an archive below one folder descriptor.
//!
//! Every path is walked one component at a time with `openat2`, never through a symlink of the kernel's, and everything is created
//! exclusively: there is no moment at which a name could lead elsewhere. A stack of open parents keeps the walk linear (a crafted
//! order of entries must not make it quadratic, GHSA-rp3h-jf77-q9p4).

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat2, readlinkat,
    statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::folders::remove_folder;
use super::job::Failure;
use super::tar::{self, Entry, Kind};
use super::{MAX_UNPACKED, union};

const MAX_DEPTH: usize = 255;
pub(super) const MAX_SYMLINKS: usize = 40;
/// Implied folders and pending links, together.
const MAX_DEFERRED: usize = 100_000;
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
pub(super) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
pub(super) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A tree being written.
pub(crate) struct Extractor {
    root: OwnedFd,
    /// The open folders on the way to the last parent, with their names.
    stack: Vec<(Vec<u8>, OwnedFd)>,
    /// Folders that entries lie in but no entry describes.
    pub(super) implied: BTreeSet<Vec<u8>>,
    /// Hard links whose target is not in this layer: link -> target.
    pub(super) pending: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Times of folders, to be set when nothing more is written into them.
    folder_times: BTreeMap<Vec<u8>, (i64, u32)>,
    bytes: u64,
    inodes: u64,
}

impl Extractor {
    pub(crate) fn new(root: OwnedFd) -> Result<Extractor, Failure> {
        Ok(Extractor {
            root,
            stack: Vec::new(),
            implied: BTreeSet::new(),
            pending: BTreeMap::new(),
            folder_times: BTreeMap::new(),
            bytes: 4096,
            inodes: 1,
        })
    }

    pub(crate) fn needs_parents(&self) -> bool {
        !self.implied.is_empty() || !self.pending.is_empty()
    }

    /// Writes one entry; its content is read from `archive`.
    pub(crate) fn entry<R: BufRead>(
        &mut self,
        entry: Entry,
        archive: &mut tar::Reader<R>,
    ) -> Result<(), Failure> {
        let path = components(&entry.path)?;
        let Some((name, parent)) = path.split_last() else {
            return match entry.kind {
                Kind::Dir => self.describe_root(&entry),
                _ => Err(Failure::Corrupt("the root of a layer must be a folder".to_owned())),
            };
        };
        let parent = self.enter(parent)?;
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(&parent, name, hidden);
        }
        let full = joined(&parent, name);
        self.pending.remove(&full);
        self.count(entry.size)?;
        match entry.kind {
            Kind::Dir => self.folder(&full, name, &entry),
            Kind::File => self.file(name, &entry, archive),
            Kind::Hardlink => self.hardlink(full, name, &entry),
            Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo => self.node(name, &entry),
        }
    }

    /// Sets the folders' times and gives (bytes, inodes).
    pub(crate) fn finish(mut self) -> Result<(u64, u64), Failure> {
        self.stack.clear();
        for (path, time) in &self.folder_times {
            let fd = if path.is_empty() {
                openat2(&self.root, ".", FOLDER, Mode::empty(), BENEATH)
            } else {
                openat2(&self.root, path.as_slice(), FOLDER, Mode::empty(), BENEATH)
            };
            match fd {
                Ok(fd) => futimens(&fd, &times(*time)).map_err(|e| Failure::sys("set a folder's time", e))?,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(Failure::sys("open a folder", error)),
            }
        }
        Ok((self.bytes, self.inodes))
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Forgets the open folders and follows a move of the folder `from` to `to` in the books.
    pub(super) fn moved(&mut self, from: &[u8], to: &[u8]) {
        let renamed = |path: &[u8]| match path.strip_prefix(from) {
            Some(rest) if rest.starts_with(b"/") => [to, rest].concat(),
            _ => path.to_vec(),
        };
        self.stack.clear();
        self.implied = self.implied.iter().map(|path| renamed(path)).collect();
        let pending = std::mem::take(&mut self.pending).into_iter();
        self.pending = pending.map(|(path, target)| (renamed(&path), target)).collect();
        let times = std::mem::take(&mut self.folder_times).into_iter();
        self.folder_times = times.map(|(path, time)| (renamed(&path), time)).collect();
    }

    pub(super) fn count(&mut self, size: u64) -> Result<(), Failure> {
        self.bytes = self.bytes.saturating_add(size.next_multiple_of(4096));
        self.inodes += 1;
        if self.bytes > MAX_UNPACKED {
            return Err(Failure::TooLarge(format!("it unpacks to more than {MAX_UNPACKED} bytes")));
        }
        Ok(())
    }

    pub(super) fn top(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd())
    }

    /// Makes `path` the top of the stack, creating what is missing, and returns where it really is: a component may be a symlink of
    /// this layer, which leads on inside the layer.
    pub(super) fn enter(&mut self, path: &[&[u8]]) -> Result<Vec<Vec<u8>>, Failure> {
        let mut todo: Vec<Vec<u8>> = path.iter().rev().map(|part| part.to_vec()).collect();
        let mut at: Vec<Vec<u8>> = Vec::with_capacity(path.len());
        let mut symlinks = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                at.pop();
                continue;
            }
            if at.len() >= MAX_DEPTH {
                return Err(Failure::TooLarge(format!("it lies deeper than {MAX_DEPTH} folders")));
            }
            let depth = at.len();
            if self.stack.get(depth).is_some_and(|(open, _)| *open == part) {
                at.push(part);
                continue;
            }
            self.stack.truncate(depth);
            match openat2(self.top(), part.as_slice(), FOLDER, Mode::empty(), BENEATH) {
                Ok(fd) => self.stack.push((part.clone(), fd)),
                Err(Errno::NOENT) => self.imply(&at, &part)?,
                Err(Errno::LOOP | Errno::NOTDIR) => match self.symlink_at(&part)? {
                    Some(target) => {
                        symlinks += 1;
                        if symlinks > MAX_SYMLINKS {
                            return Err(Failure::Corrupt(
                                "its folder leads through too many symlinks".to_owned(),
                            ));
                        }
                        if target.starts_with(b"/") {
                            at.clear();
                        }
                        let parts = target.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".");
                        todo.extend(parts.map(<[u8]>::to_vec).rev());
                        continue;
                    }
                    // A file or whiteout where a folder is needed: the later entry wins.
                    None => {
                        self.clear_name(&part)?;
                        self.imply(&at, &part)?;
                        self.mark_opaque(self.top())?;
                    }
                },
                Err(error) => return Err(Failure::sys("open a folder", error)),
            }
            at.push(part);
        }
        self.stack.truncate(at.len());
        Ok(at)
    }

    fn symlink_at(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        match readlinkat(self.top(), name, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::INVAL) => Ok(None),
            Err(error) => Err(Failure::sys("read a symlink", error)),
        }
    }

    fn imply(&mut self, at: &[Vec<u8>], name: &[u8]) -> Result<(), Failure> {
        self.count(4096)?;
        mkdirat(self.top(), name, Mode::from_raw_mode(0o755))
            .map_err(|e| Failure::sys("make a folder", e))?;
        let fd = openat2(self.top(), name, FOLDER, Mode::empty(), BENEATH)
            .map_err(|e| Failure::sys("open a folder", e))?;
        fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(|e| Failure::sys("set a mode", e))?;
        self.stack.push((name.to_vec(), fd));
        self.implied.insert(joined(at, name));
        self.check_deferred()
    }

    fn check_deferred(&self) -> Result<(), Failure> {
        if self.implied.len() + self.pending.len() > MAX_DEFERRED {
            return Err(Failure::TooLarge(format!(
                "it leans on the layers below more than {MAX_DEFERRED} times"
            )));
        }
        Ok(())
    }

    fn describe_root(&mut self, entry: &Entry) -> Result<(), Failure> {
        describe(self.root.as_fd(), entry)?;
        self.folder_times.insert(Vec::new(), (entry.seconds, entry.nanoseconds));
        Ok(())
    }

    fn folder(&mut self, full: &[u8], name: &[u8], entry: &Entry) -> Result<(), Failure> {
        let mut replaced_whiteout = false;
        match mkdirat(self.top(), name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = statat(self.top(), name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| Failure::sys("look at an entry", e))?;
                if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                    replaced_whiteout = union::is_whiteout(&there);
                    self.clear_name(name)?;
                    mkdirat(self.top(), name, Mode::from_raw_mode(0o700))
                        .map_err(|e| Failure::sys("make a folder", e))?;
                }
            }
            Err(error) => return Err(Failure::sys("make a folder", error)),
        }
        let fd = openat2(self.top(), name, FOLDER, Mode::empty(), BENEATH)
            .map_err(|e| Failure::sys("open a folder", e))?;
        describe(fd.as_fd(), entry)?;
        if replaced_whiteout {
            self.mark_opaque(fd.as_fd())?;
        }
        self.implied.remove(full);
        self.folder_times.insert(full.to_vec(), (entry.seconds, entry.nanoseconds));
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        name: &[u8],
        entry: &Entry,
        archive: &mut tar::Reader<R>,
    ) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = match openat2(self.top(), name, flags, mode, BENEATH) {
            Err(Errno::EXIST) => {
                self.clear_name(name)?;
                openat2(self.top(), name, flags, mode, BENEATH)
            }
            other => other,
        }
        .map_err(|e| Failure::sys("make a file", e))?;
        loop {
            let content = archive.content().map_err(|e| Failure::io("read the archive", e))?;
            if content.is_empty() {
                break;
            }
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&fd, content))
                .map_err(|e| Failure::sys("write a file", e))?;
            archive.consume(written);
        }
        describe(fd.as_fd(), entry)?;
        futimens(&fd, &times((entry.seconds, entry.nanoseconds)))
            .map_err(|e| Failure::sys("set a file's time", e))
    }

    fn node(&mut self, name: &[u8], entry: &Entry) -> Result<(), Failure> {
        let make = |top: BorrowedFd<'_>| match entry.kind {
            Kind::Symlink => symlinkat(entry.link.as_slice(), top, name),
            kind => {
                let (file_type, dev) = match kind {
                    Kind::Char => (FileType::CharacterDevice, makedev(entry.major, entry.minor)),
                    Kind::Block => (FileType::BlockDevice, makedev(entry.major, entry.minor)),
                    _ => (FileType::Fifo, 0),
                };
                mknodat(top, name, file_type, Mode::from_raw_mode(0o600), dev)
            }
        };
        if entry.kind == Kind::Symlink && entry.link.is_empty() {
            return Err(Failure::Corrupt("a symlink without a target".to_owned()));
        }
        match make(self.top()) {
            Err(Errno::EXIST) => {
                self.clear_name(name)?;
                make(self.top())
            }
            other => other,
        }
        .map_err(|e| Failure::sys("make a node", e))?;
        let (uid, gid) = owners(entry);
        chownat(self.top(), name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Failure::sys("set an owner", e))?;
        if entry.kind != Kind::Symlink {
            // fchmodat follows symlinks, but this is the node made two calls ago, and nobody else writes here.
            chmodat(self.top(), name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(|e| Failure::sys("set a mode", e))?;
        }
        let time = times((entry.seconds, entry.nanoseconds));
        utimensat(self.top(), name, &time, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Failure::sys("set a time", e))
    }

    fn hardlink(&mut self, full: Vec<u8>, name: &[u8], entry: &Entry) -> Result<(), Failure> {
        let target = components(&entry.link)?.join(&b'/');
        if target.is_empty() {
            return Err(Failure::Corrupt("a hard link to the root".to_owned()));
        }
        if target == full {
            return Err(Failure::Corrupt("a hard link to itself".to_owned()));
        }
        let source = match union::locate(self.root.as_fd(), &target) {
            Ok(Some((parent, base))) => Some((parent, base)),
            Ok(None) => None,
            Err(error) => return Err(Failure::sys("find a link's target", error)),
        };
        let Some((parent, base)) = source else {
            let target = self.pending.get(&target).cloned().unwrap_or(target);
            self.clear_if_there(name)?;
            self.pending.insert(full, target);
            return self.check_deferred();
        };
        let link = |top: BorrowedFd<'_>| linkat(&parent, base.as_slice(), top, name, AtFlags::empty());
        match link(self.top()) {
            Err(Errno::EXIST) => {
                self.clear_name(name)?;
                link(self.top())
            }
            other => other,
        }
        .map_err(|error| match error {
            Errno::PERM => Failure::Corrupt("a hard link to a folder".to_owned()),
            Errno::NOENT => Failure::Corrupt("a hard link to what it replaces".to_owned()),
            other => Failure::sys("make a hard link", other),
        })
    }

    /// `.wh.x` hides `x` of the layers below; `.wh..wh..opq` hides all that they have in this folder. What this layer itself holds
    /// stays, in whichever order the archive lists it.
    fn whiteout(&mut self, parent: &[Vec<u8>], name: &[u8], hidden: &[u8]) -> Result<(), Failure> {
        if name == OPAQUE_MARK {
            return self.mark_opaque(self.top());
        }
        // aufs' own bookkeeping (`.wh..wh.plnk`, `.wh..wh.aufs`) means nothing here.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(Failure::Corrupt("a whiteout of nothing".to_owned()));
        }
        if self.pending.contains_key(&joined(parent, hidden)) {
            return Ok(());
        }
        self.count(0)?;
        match mknodat(self.top(), hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => match openat2(self.top(), hidden, FOLDER, Mode::empty(), BENEATH) {
                Ok(fd) => self.mark_opaque(fd.as_fd()),
                Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(error) => Err(Failure::sys("open a folder", error)),
            },
            Err(error) => Err(Failure::sys("make a whiteout", error)),
        }
    }

    fn mark_opaque(&self, folder: BorrowedFd<'_>) -> Result<(), Failure> {
        fsetxattr(folder, union::OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(|e| Failure::sys("mark a folder opaque", e))
    }

    fn clear_if_there(&mut self, name: &[u8]) -> Result<(), Failure> {
        match statat(self.top(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => self.clear_name(name),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(Failure::sys("look at an entry", error)),
        }
    }

    /// Takes away what an earlier entry put at `name` in the top folder.
    fn clear_name(&mut self, name: &[u8]) -> Result<(), Failure> {
        match unlinkat(self.top(), name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                let at: Vec<Vec<u8>> = self.stack.iter().map(|(part, _)| part.clone()).collect();
                let mut below = joined(&at, name);
                self.implied.remove(&below);
                self.folder_times.remove(&below);
                below.push(b'/');
                self.implied.retain(|path| !path.starts_with(&below));
                self.pending.retain(|path, _| !path.starts_with(&below));
                self.folder_times.retain(|path, _| !path.starts_with(&below));
                remove_folder(self.top(), name)
            }
            Err(error) => Err(Failure::sys("replace an entry", error)),
        }
    }
}

/// Owner, attributes, mode, in this order: chown clears set-id bits and file capabilities.
fn describe(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), Failure> {
    let (uid, gid) = owners(entry);
    fchown(fd, uid, gid).map_err(|e| Failure::sys("set an owner", e))?;
    for (name, value) in &entry.xattrs {
        if !allowed_xattr(name) {
            continue;
        }
        match fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A file system without user.* attributes loses them, as with every other runtime; capabilities must not get lost.
            Err(Errno::OPNOTSUPP) if name != b"security.capability" => {}
            Err(error) => return Err(Failure::sys("set an extended attribute", error)),
        }
    }
    fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(|e| Failure::sys("set a mode", e))
}

/// What an archive may set. `trusted.overlay.*` and `user.overlay.*` steer overlayfs and would let a layer redirect into another;
/// labels and ACLs are the host's.
fn allowed_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn owners(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

pub(super) fn times((tv_sec, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn joined(parent: &[Vec<u8>], name: &[u8]) -> Vec<u8> {
    let mut path = parent.join(&b'/');
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The components of a name in the archive. `..` is refused: no builder writes it, and every reader treats it differently.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Failure> {
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Failure::Corrupt("a name contains `..`".to_owned())),
            part if part.len() > 255 => {
                return Err(Failure::TooLarge(format!(
                    "a name component of {} bytes, the limit is 255",
                    part.len()
                )));
            }
            part => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(Failure::TooLarge(format!("it lies deeper than {MAX_DEPTH} folders")));
    }
    Ok(parts)
}
