//! What a layer leaves to the layers below it: folders that it names only by what lies in them, and hard links out of it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
    fsetxattr, fstat, futimens, linkat, openat2, readlinkat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::extract::{BENEATH, Extractor, FOLDER, MAX_SYMLINKS, times};
use super::folders::move_content;
use super::job::Failure;
use super::union::{Found, Stack};

const MAX_XATTR_VALUE: usize = 64 << 10;

/// Completes the tree from `below`.
pub(super) fn from_parents(tree: &mut Extractor, below: &Stack) -> Result<(), Failure> {
    let mut moves = 0;
    while let Some(path) = tree.implied.pop_first() {
        let shown = String::from_utf8_lossy(&path).into_owned();
        let symlink = describe_implied(tree.root(), &path, below).map_err(|failure| failure.at(&shown))?;
        if let Some(target) = symlink {
            moves += 1;
            if moves > MAX_SYMLINKS {
                return Err(Failure::Corrupt(
                    "its folders lead through too many symlinks of the layers below".to_owned(),
                ));
            }
            relocate(tree, &path, &target).map_err(|failure| failure.at(&shown))?;
        }
    }
    let mut copied: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for (path, target) in std::mem::take(&mut tree.pending) {
        let shown = String::from_utf8_lossy(&path).into_owned();
        match copied.get(&target) {
            Some(first) => {
                link_again(tree.root(), first, &path).map_err(|e| Failure::sys("make a hard link", e))?
            }
            None => {
                let size = copy_from_below(tree.root(), &path, &target, below).map_err(|f| f.at(&shown))?;
                tree.count(size)?;
                copied.insert(target, path);
            }
        }
    }
    Ok(())
}

/// Gives an implied folder the looks of the one below it. If that is a symlink, says where it points.
fn describe_implied(root: BorrowedFd<'_>, path: &[u8], below: &Stack) -> Result<Option<Vec<u8>>, Failure> {
    let found = below.find(path, false).map_err(|e| Failure::io("look into the layers below", e))?;
    match found {
        // New with this layer: root's, 0755, as made.
        None => Ok(None),
        Some(Found::Folder(folders)) => {
            let Some(model) = folders.first() else { return Ok(None) };
            let ours = openat2(root, path, FOLDER, Mode::empty(), BENEATH)
                .map_err(|e| Failure::sys("open a folder", e))?;
            like(ours.as_fd(), model.as_fd()).map_err(|e| Failure::sys("describe a folder", e))?;
            Ok(None)
        }
        Some(Found::Other { parent, name, stat })
            if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink =>
        {
            let target = readlinkat(&parent, name.as_slice(), Vec::new());
            Ok(Some(target.map_err(|e| Failure::sys("read a symlink", e))?.into_bytes()))
        }
        // A file below becomes a folder here; overlayfs shows the folder.
        Some(Found::Other { .. }) => Ok(None),
    }
}

/// Moves an implied folder's content to where the symlink of that name below leads (`lib/x` on a merged-/usr base means
/// `usr/lib/x`). Left as a folder it would hide the symlink, and with it everything behind.
fn relocate(tree: &mut Extractor, path: &[u8], target: &[u8]) -> Result<(), Failure> {
    let failed = |error| Failure::sys("follow a symlink of the layers below", error);
    let from = openat2(tree.root(), path, FOLDER, Mode::empty(), BENEATH).map_err(failed)?;
    let base = match target.starts_with(b"/") || !path.contains(&b'/') {
        true => &[][..],
        false => split(path).0,
    };
    let parts: Vec<&[u8]> = base
        .split(|&b| b == b'/')
        .chain(target.split(|&b| b == b'/'))
        .filter(|p| !p.is_empty() && *p != b".")
        .collect();
    // What it leads to may itself be implied, and described or moved on in its turn.
    let real = tree.enter(&parts)?.join(&b'/');
    if real == path || real.starts_with(&[path, b"/"].concat()) {
        return Err(Failure::Corrupt("its folder is a symlink to itself below".to_owned()));
    }
    let to = openat2(tree.top(), ".", FOLDER, Mode::empty(), BENEATH).map_err(failed)?;
    move_content(from, to)?;
    unlinkat(parent_of(tree.root(), path).map_err(failed)?, split(path).1, AtFlags::REMOVEDIR)
        .map_err(failed)?;
    tree.moved(path, &real);
    Ok(())
}

/// Owner, attributes, mode and times of `model` for `ours`.
fn like(ours: BorrowedFd<'_>, model: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let stat = fstat(model)?;
    fchown(ours, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    copy_xattrs(ours, model)?;
    fchmod(ours, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    futimens(ours, &mtime(&stat))
}

fn mtime(stat: &Stat) -> rustix::fs::Timestamps {
    times((stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)))
}

fn copy_xattrs(ours: BorrowedFd<'_>, model: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut names = vec![0u8; MAX_XATTR_VALUE];
    let length = match flistxattr(model, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in names[..length].split(|&b| b == 0) {
        if name != b"security.capability" && !name.starts_with(b"user.") {
            continue;
        }
        let mut value = vec![0u8; MAX_XATTR_VALUE];
        let length = fgetxattr(model, name, &mut value[..])?;
        fsetxattr(ours, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b".", path),
    }
}

fn parent_of(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(root, split(path).0, flags, Mode::empty(), BENEATH)
}

fn link_again(root: BorrowedFd<'_>, first: &[u8], path: &[u8]) -> rustix::io::Result<()> {
    let (from, to) = (parent_of(root, first)?, parent_of(root, path)?);
    linkat(&from, split(first).1, &to, split(path).1, AtFlags::empty())
}

/// Copies the file that a link of this layer names in the layers below. A link to another folder of the store would tie the two
/// layers' lives together.
fn copy_from_below(root: BorrowedFd<'_>, path: &[u8], target: &[u8], below: &Stack) -> Result<u64, Failure> {
    let lost = || Failure::Corrupt(format!("its target `{}` is nowhere", String::from_utf8_lossy(target)));
    let found = below.find(target, false).map_err(|e| Failure::io("look into the layers below", e))?;
    let (parent, name, stat) = match found {
        Some(Found::Other { parent, name, stat }) => (parent, name, stat),
        Some(Found::Folder(_)) => return Err(Failure::Corrupt("a hard link to a folder".to_owned())),
        None => return Err(lost()),
    };
    let failed = |error| Failure::sys("copy a hard link's target", error);
    let into = parent_of(root, path).map_err(failed)?;
    let base = split(path).1;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => {
            let text = readlinkat(&parent, name.as_slice(), Vec::new()).map_err(failed)?;
            symlinkat(text, &into, base).map_err(failed)?;
            return Ok(0);
        }
        _ => return Err(Failure::Corrupt("a hard link to a device of a lower layer".to_owned())),
    }
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let model = openat2(&parent, name.as_slice(), read, Mode::empty(), BENEATH).map_err(failed)?;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let ours = openat2(&into, base, write, Mode::from_raw_mode(0o600), BENEATH).map_err(failed)?;
    let (mut from, mut to) = (std::fs::File::from(model), std::fs::File::from(ours));
    let size = io::copy(&mut from, &mut to).map_err(|e| Failure::io("copy a hard link's target", e))?;
    like(to.as_fd(), from.as_fd()).map_err(failed)?;
    Ok(size)
}
