//! Whole folders within a layer: removing one, moving one's content into another. Iterative, for the depth is the archive's choice.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, RenameFlags, openat2, renameat_with, unlinkat};
use rustix::io::Errno;

use super::extract::{BENEATH, FOLDER};
use super::job::Failure;

/// Removes a folder and all below it. Iterative: the depth is the archive's choice.
pub(super) fn remove_folder(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Failure> {
    let failed = |error| Failure::sys("replace a folder", error);
    let open =
        |at: BorrowedFd<'_>, name: &[u8]| openat2(at, name, FOLDER, Mode::empty(), BENEATH).map_err(failed);
    let mut stack: Vec<(Vec<u8>, OwnedFd)> = vec![(name.to_vec(), open(parent, name)?)];
    while let Some((_, folder)) = stack.last() {
        let mut deeper = None;
        for item in Dir::read_from(folder).map_err(failed)? {
            let item = item.map_err(failed)?;
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            match unlinkat(folder, name, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    deeper = Some((name.to_vec(), open(folder.as_fd(), name)?));
                    break;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        if let Some(deeper) = deeper {
            stack.push(deeper);
            continue;
        }
        if let Some((name, _)) = stack.pop() {
            let above = stack.last().map_or(parent, |(_, fd)| fd.as_fd());
            unlinkat(above, name.as_slice(), AtFlags::REMOVEDIR).map_err(failed)?;
        }
    }
    Ok(())
}

/// Moves what lies in `from` into `to`. Where both hold a folder of one name, these are merged in turn.
pub(super) fn move_content(from: OwnedFd, to: OwnedFd) -> Result<(), Failure> {
    let failed = |error| Failure::sys("move a folder's content", error);
    let mut todo = vec![(from, to)];
    let mut emptied: Vec<(OwnedFd, Vec<u8>)> = Vec::new();
    while let Some((from, to)) = todo.pop() {
        let mut names = Vec::new();
        for item in Dir::read_from(&from).map_err(failed)? {
            let name = item.map_err(failed)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        for name in names {
            match renameat_with(&from, name.as_slice(), &to, name.as_slice(), RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    let open =
                        |at: BorrowedFd<'_>| openat2(at, name.as_slice(), FOLDER, Mode::empty(), BENEATH);
                    let (Ok(inner), Ok(other)) = (open(from.as_fd()), open(to.as_fd())) else {
                        let name = String::from_utf8_lossy(&name).into_owned();
                        return Err(Failure::Corrupt(format!("`{name}` is there by two ways")));
                    };
                    todo.push((inner, other));
                    emptied.push((
                        from.try_clone().map_err(|e| Failure::io("move a folder's content", e))?,
                        name,
                    ));
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
    // Deeper ones were found later.
    for (parent, name) in emptied.iter().rev() {
        unlinkat(parent, name.as_slice(), AtFlags::REMOVEDIR).map_err(failed)?;
    }
    Ok(())
}
