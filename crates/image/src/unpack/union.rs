//! Looking things up in a stack of layers as overlayfs would show them, without a mount.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, openat2, readlinkat, statat,
};
use rustix::io::Errno;

pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const MAX_SYMLINKS: usize = 40;
const MAX_STEPS: usize = 4096;
const ONE_STEP: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether a node is overlayfs' mark for "not here".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Layers, top first, each by a descriptor of its folder.
pub(crate) struct Stack {
    layers: Vec<OwnedFd>,
}

/// What stands at a path.
pub(crate) enum Found {
    /// A folder, as the layers that contribute to it, top first.
    Folder(Vec<OwnedFd>),
    /// Anything else: the folder that holds it, and its name there.
    Other { parent: OwnedFd, name: Vec<u8>, stat: Box<Stat> },
}

impl Stack {
    pub(crate) fn new(layers: Vec<OwnedFd>) -> Stack {
        Stack { layers }
    }

    /// Finds `path`. Symlinks on the way lead on inside the stack; the last component is followed if `follow`.
    pub(crate) fn find(&self, path: &[u8], follow: bool) -> io::Result<Option<Found>> {
        let mut todo: Vec<Vec<u8>> = parts(path);
        let mut at: Vec<Vec<OwnedFd>> =
            vec![self.layers.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?];
        let (mut symlinks, mut steps) = (0, 0);
        while let Some(part) = todo.pop() {
            steps += 1;
            if steps > MAX_STEPS {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the path has too many components"));
            }
            if part == b".." {
                if at.len() > 1 {
                    at.pop();
                }
                continue;
            }
            let here = at.last().map(Vec::as_slice).unwrap_or_default();
            match step(here, &part)? {
                None => return Ok(None),
                Some(Found::Folder(folder)) => at.push(folder),
                Some(Found::Other { parent, name, stat }) => {
                    let symlink = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
                    if symlink && (follow || !todo.is_empty()) {
                        symlinks += 1;
                        if symlinks > MAX_SYMLINKS {
                            return Err(Errno::LOOP.into());
                        }
                        let target = readlinkat(&parent, name.as_slice(), Vec::new())?.into_bytes();
                        if target.starts_with(b"/") {
                            at.truncate(1);
                        }
                        todo.extend(parts(&target));
                    } else if todo.is_empty() {
                        return Ok(Some(Found::Other { parent, name, stat }));
                    } else {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(at.pop().map(Found::Folder))
    }
}

/// Components, last first, without `.` and empty ones.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".").map(<[u8]>::to_vec).rev().collect()
}

/// One name in one merged folder.
fn step(here: &[OwnedFd], name: &[u8]) -> io::Result<Option<Found>> {
    let mut folder = Vec::new();
    for layer in here {
        let stat = match statat(layer, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        if is_whiteout(&stat) {
            break;
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            if folder.is_empty() {
                let parent = layer.try_clone()?;
                return Ok(Some(Found::Other { parent, name: name.to_vec(), stat: Box::new(stat) }));
            }
            break;
        }
        let fd = openat2(layer, name, FOLDER, Mode::empty(), ONE_STEP)?;
        let opaque = is_opaque(fd.as_fd())?;
        folder.push(fd);
        if opaque {
            break;
        }
    }
    Ok((!folder.is_empty()).then_some(Found::Folder(folder)))
}

fn is_opaque(folder: BorrowedFd<'_>) -> io::Result<bool> {
    let mut value = [0u8; 1];
    match fgetxattr(folder, OPAQUE_XATTR, &mut value[..]) {
        Ok(length) => Ok(length == 1 && value[0] == b'y'),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Finds a hard link's target within one layer: the folder that holds it and its name there. Symlinked folders of the layer are
/// followed, the target itself is not. `None`: not in this layer.
pub(super) fn locate(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<Option<(OwnedFd, Vec<u8>)>> {
    let (folder, name) = match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b"."[..], path),
    };
    // In-root resolution cannot leave the layer, and nobody changes it under our feet.
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match openat2(root, folder, flags, Mode::empty(), inside) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_whiteout(&stat) => Ok(None),
        Ok(_) => Ok(Some((parent, name.to_vec()))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
