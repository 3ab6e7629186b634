//! Giving a volume, with all that is in it, an SELinux label.
//!
//! Everything is reached by descriptor from the tree that is going to be mounted, name by name, and no symlink is followed: what
//! the path says by now, and what a container has put into the volume, leads nowhere else (CVE-2021-43816 was about labels
//! that reached files of the host). Symlinks are labelled themselves.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use bowline_monitor_proto::paths::SYSTEM;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// The attribute that holds a file's label.
pub const ATTRIBUTE: &CStr = c"security.selinux";

/// How deep folders may lie in one another: each level holds a descriptor.
const MAX_DEPTH: usize = 256;
/// The longest label that the kernel takes is shorter.
const MAX_LABEL: usize = 4096;

/// Why a volume could not be labelled.
#[derive(Debug, PartialEq, Eq)]
pub struct Unlabelled {
    /// The kernel's error, or the one that comes nearest.
    pub errno: Errno,
    /// What was the matter, for people.
    pub why: String,
}

/// Labels the tree at `root`. What has the label already is not touched, what vanishes meanwhile is passed over.
pub fn relabel(root: BorrowedFd<'_>, attribute: &CStr, label: &CStr) -> Result<(), Unlabelled> {
    let failed = |doing: &str, errno: Errno| Unlabelled { errno, why: format!("{doing}: {errno}") };
    let stat =
        rustix::fs::statat(root, c"", AtFlags::EMPTY_PATH).map_err(|errno| failed("look at it", errno))?;
    if is_system(&stat) {
        let why =
            "SELinux labels of the system's own folders are not changed; give the container another folder"
                .into();
        return Err(Unlabelled { errno: Errno::PERM, why });
    }
    match set(root, attribute, label) {
        // Nothing on this file system has a label of its own.
        Err(Errno::NOTSUP) => return Ok(()),
        other => other.map_err(|errno| failed("set its SELinux label", errno))?,
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(root, c".", flags, Mode::empty()).and_then(Dir::new);
    let mut folders = vec![top.map_err(|errno| failed("read the folder", errno))?];
    while let Some(folder) = folders.last_mut() {
        let entry = match folder.next() {
            None => {
                folders.pop();
                continue;
            }
            Some(entry) => entry.map_err(|errno| failed("read a folder in it", errno))?,
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let doing = || format!("set the SELinux label of `{}` in it", name.to_string_lossy());
        let below = folder.fd().and_then(|folder| visit(folder, name, attribute, label));
        match below {
            Ok(None) => {}
            Ok(Some(below)) if folders.len() < MAX_DEPTH => {
                folders.push(Dir::new(below).map_err(|errno| failed(&doing(), errno))?);
            }
            Ok(Some(_)) => {
                let why =
                    format!("folders lie more than {MAX_DEPTH} deep in it, and their labels are not changed");
                return Err(Unlabelled { errno: Errno::LOOP, why });
            }
            Err(errno) => return Err(failed(&doing(), errno)),
        }
    }
    Ok(())
}

/// Labels an entry; if it is a folder, here it is.
fn visit(
    folder: BorrowedFd<'_>,
    name: &CStr,
    attribute: &CStr,
    label: &CStr,
) -> Result<Option<OwnedFd>, Errno> {
    // A descriptor for the name alone: neither a device nor a queue notices, and no link is followed.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    match set(found.as_fd(), attribute, label) {
        Ok(()) | Err(Errno::NOTSUP) => {}
        Err(errno) => return Err(errno),
    }
    let stat = rustix::fs::statat(&found, c"", AtFlags::EMPTY_PATH)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&found, c".", flags, Mode::empty()).map(Some)
}

/// By the descriptor's name in procfs, since the calls that take descriptors want them opened for more than the name.
fn set(file: BorrowedFd<'_>, attribute: &CStr, label: &CStr) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut there = [0u8; MAX_LABEL];
    let found = rustix::fs::getxattr(&path, attribute, &mut there[..]);
    // The kernel gives labels with the NUL at their end.
    let is_there = |len: usize| there[..len].strip_suffix(&[0]).unwrap_or(&there[..len]) == label.to_bytes();
    if found.is_ok_and(is_there) {
        return Ok(());
    }
    rustix::fs::setxattr(&path, attribute, label.to_bytes(), XattrFlags::empty())
}

/// By what they are, not by name: a bind mount or a symlink is no way around.
fn is_system(stat: &rustix::fs::Stat) -> bool {
    SYSTEM.iter().any(|path| {
        rustix::fs::stat(*path).is_ok_and(|known| (known.st_dev, known.st_ino) == (stat.st_dev, stat.st_ino))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// As `security.selinux`: on every kind of file, for root alone. A kernel without SELinux takes it.
    const TEST: &CStr = c"trusted.bowline-test";
    const LABEL: &CStr = c"system_u:object_r:container_file_t:s0";

    fn tree(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn label(path: &Path) -> Option<String> {
        let mut text = [0u8; 256];
        let len = rustix::fs::lgetxattr(path, TEST, &mut text[..]).ok()?;
        Some(String::from_utf8_lossy(&text[..len]).into_owned())
    }

    #[test]
    fn all_of_a_tree_and_nothing_that_links_lead_to() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "").unwrap();
        let volume = tempfile::tempdir().unwrap();
        let at = |name: &str| volume.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/file"), "").unwrap();
        symlink(outside.path(), at("a/folder-link")).unwrap();
        symlink(outside.path().join("secret"), at("file-link")).unwrap();
        symlink("/nowhere", at("dangling")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("queue"), Mode::from_raw_mode(0o600)).unwrap();

        relabel(tree(volume.path()).as_fd(), TEST, LABEL).unwrap();

        let expected = LABEL.to_str().unwrap();
        for name in ["", "a", "a/b", "a/b/file", "a/folder-link", "file-link", "dangling", "queue"] {
            assert_eq!(label(&at(name)).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(label(outside.path()), None);
        assert_eq!(label(&outside.path().join("secret")), None);
        // Once more: everything is there already.
        relabel(tree(volume.path()).as_fd(), TEST, LABEL).unwrap();
    }

    #[test]
    fn a_file_is_a_volume_too() {
        let folder = tempfile::tempdir().unwrap();
        let (file, beside) = (folder.path().join("file"), folder.path().join("beside"));
        std::fs::write(&file, "").unwrap();
        std::fs::write(&beside, "").unwrap();
        relabel(tree(&file).as_fd(), TEST, LABEL).unwrap();
        assert_eq!((label(&file).is_some(), label(&beside), label(folder.path())), (true, None, None));
    }

    #[test]
    fn the_system_is_left_alone_by_whatever_way_it_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        symlink("/etc", &link).unwrap();
        for path in [Path::new("/"), Path::new("/etc"), Path::new("/usr/../var"), &link] {
            let error = relabel(tree(path).as_fd(), TEST, LABEL).unwrap_err();
            assert_eq!(error.errno, Errno::PERM, "{}", path.display());
        }
        assert_eq!(label(Path::new("/etc")), None);
    }

    #[test]
    fn folders_without_end_are_refused() {
        let volume = tempfile::tempdir().unwrap();
        let mut path = volume.path().to_owned();
        for _ in 0..=MAX_DEPTH {
            path.push("d");
        }
        std::fs::create_dir_all(&path).unwrap();
        let error = relabel(tree(volume.path()).as_fd(), TEST, LABEL).unwrap_err();
        assert_eq!(error.errno, Errno::LOOP);
    }
}
