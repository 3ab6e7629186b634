//! Archives on disk: written whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::facts;
use crate::PodError;
use crate::error::doing;

/// Deeper than this nobody nests folders; the unpacker's limit as well.
const MAX_DEPTH: usize = 255;
const BUFFER: usize = 1 << 20;

/// Writes a container's parts as one archive. It has its name only once it is complete and on the disk; one of that name
/// that is there is replaced.
pub(super) fn write(parts: &Path, location: &Path) -> Result<(), PodError> {
    let what = || format!("write the archive {}", location.display());
    check_room(parts, location).map_err(doing(what()))??;
    let file = Nameless::new(location).map_err(doing(what()))?;
    fill(parts, &file.file).and_then(|()| file.name(location)).map_err(doing(what()))
}

fn fill(parts: &Path, file: &File) -> io::Result<()> {
    let mut out = tar::Builder::new(io::BufWriter::with_capacity(BUFFER, file));
    out.sparse(false);
    out.append_dir(facts::IMAGES, parts.join(facts::IMAGES))?;
    let mut names: Vec<_> = fs::read_dir(parts.join(facts::IMAGES))?.collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        out.append_path_with_name(entry.path(), Path::new(facts::IMAGES).join(entry.file_name()))?;
    }
    // Where checkpointctl and the peers look for it.
    let log = parts.join(facts::IMAGES).join("dump.log");
    if log.exists() {
        out.append_path_with_name(log, "dump.log")?;
    }
    for name in facts::FILES.into_iter().chain([facts::DIFF]) {
        out.append_path_with_name(parts.join(name), name)?;
    }
    out.into_inner()?.flush()?;
    file.sync_all()
}

/// An error, or a refusal.
type Checked = io::Result<Result<(), PodError>>;

fn check_room(parts: &Path, location: &Path) -> Checked {
    let mut size = fs::metadata(parts.join(facts::DIFF))?.len();
    for entry in fs::read_dir(parts.join(facts::IMAGES))? {
        size += entry?.metadata()?.len() + 1024;
    }
    let disk = rustix::fs::statvfs(location.parent().unwrap_or(Path::new("/")))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(match free < size {
        true => Err(PodError::Full(format!(
            "the archive has {size} bytes, and the file system of {} has {free} free",
            location.display()
        ))),
        false => Ok(()),
    })
}

/// A file that has no name yet: if we die it is gone.
struct Nameless {
    file: File,
    /// A name all the same, where the file system knows no other way; removed with it.
    named: Option<PathBuf>,
}

impl Nameless {
    fn new(location: &Path) -> io::Result<Nameless> {
        let folder = location.parent().unwrap_or(Path::new("/"));
        let mode = Mode::from_raw_mode(0o600);
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, mode) {
            Ok(file) => Ok(Nameless { file: file.into(), named: None }),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
                let named = beside(location);
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = rustix::fs::open(&named, flags, mode)?;
                Ok(Nameless { file: file.into(), named: Some(named) })
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn name(mut self, location: &Path) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;
        let named = match self.named.take() {
            Some(named) => named,
            None => {
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                // What is there is not replaced by a link, so that comes in two steps.
                let named = beside(location);
                rustix::fs::linkat(CWD, own, CWD, &named, AtFlags::SYMLINK_FOLLOW)?;
                named
            }
        };
        fs::rename(&named, location).inspect_err(|_| {
            let _ = fs::remove_file(&named);
        })
    }
}

impl Drop for Nameless {
    fn drop(&mut self) {
        if let Some(named) = &self.named {
            let _ = fs::remove_file(named);
        }
    }
}

fn beside(location: &Path) -> PathBuf {
    let name = location.file_name().unwrap_or_default().to_string_lossy();
    location.with_file_name(format!(".{name}.bowline-{}", crate::shared::now()))
}

/// Writes what lies in the writable layer of an overlay as a layer of an image: whiteouts have OCI's names. Sockets, which
/// no archive holds, are left out; so are extended attributes.
pub(super) fn write_diff(upper: &Path, to: &Path) -> io::Result<()> {
    let mut out = tar::Builder::new(io::BufWriter::with_capacity(BUFFER, File::create_new(to)?));
    out.follow_symlinks(false);
    out.sparse(false);
    append(&mut out, upper, Path::new(""), 0)?;
    out.into_inner()?.flush()
}

fn append(
    out: &mut tar::Builder<impl io::Write>,
    folder: &Path,
    name: &Path,
    depth: usize,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("folders are nested more than {MAX_DEPTH} deep")));
    }
    if is_opaque(folder) {
        mark(out, &name.join(".wh..wh..opq"))?;
    }
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, file_name) = (entry.path(), entry.file_name());
        let meta = fs::symlink_metadata(&path)?;
        let kind = meta.file_type();
        let inside = name.join(&file_name);
        if kind.is_char_device() && meta.rdev() == 0 {
            let mut whiteout = std::ffi::OsString::from(".wh.");
            whiteout.push(&file_name);
            mark(out, &name.join(whiteout))?;
        } else if kind.is_dir() {
            out.append_dir(&inside, &path)?;
            append(out, &path, &inside, depth + 1)?;
        } else if !kind.is_socket() {
            out.append_path_with_name(&path, &inside)?;
        }
    }
    Ok(())
}

fn mark(out: &mut tar::Builder<impl io::Write>, name: &Path) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o600);
    out.append_data(&mut header, name, io::empty())
}

fn is_opaque(folder: &Path) -> bool {
    let mut value = [0u8; 8];
    let read = rustix::fs::lgetxattr(folder, "trusted.overlay.opaque", &mut value);
    read.is_ok_and(|len| &value[..len] == b"y")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(archive: &Path) -> Vec<String> {
        let mut archive = tar::Archive::new(File::open(archive).unwrap());
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn changed_files_become_a_layer() {
        let folder = tempfile::tempdir().unwrap();
        let upper = folder.path().join("upper");
        fs::create_dir_all(upper.join("etc/new")).unwrap();
        fs::write(upper.join("etc/new/file"), "text").unwrap();
        std::os::unix::fs::symlink("/etc/shadow", upper.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
        // Root alone can make a whiteout; elsewhere the rest is still tried.
        let whiteout = rustix::fs::mknodat(
            CWD,
            upper.join("etc/gone"),
            rustix::fs::FileType::CharacterDevice,
            Mode::empty(),
            0,
        );
        let to = folder.path().join("diff.tar");
        write_diff(&upper, &to).unwrap();
        let mut wanted = vec!["etc", "etc/new", "etc/new/file", "link"];
        if whiteout.is_ok() {
            wanted.insert(1, "etc/.wh.gone");
        }
        assert_eq!(names(&to), wanted);
    }

    #[test]
    fn an_archive_appears_whole_and_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("parts");
        fs::create_dir_all(parts.join(facts::IMAGES)).unwrap();
        fs::write(parts.join(facts::IMAGES).join("inventory.img"), "x").unwrap();
        for name in facts::FILES.into_iter().chain([facts::DIFF]) {
            fs::write(parts.join(name), "{}").unwrap();
        }
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        let location = out.join("archive.tar");
        fs::write(&location, "old").unwrap();
        write(&parts, &location).unwrap();
        assert!(names(&location).contains(&"checkpoint/inventory.img".to_owned()));
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "nothing is left beside it");
        fs::remove_file(parts.join(facts::CONFIG)).unwrap();
        let before = fs::metadata(&location).unwrap().len();
        write(&parts, &location).unwrap_err();
        assert_eq!(fs::metadata(&location).unwrap().len(), before, "a failure leaves what was there");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }
}
