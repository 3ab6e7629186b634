//! Operations on files and mounts.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use crate::say;

pub(crate) fn perform(name: &str, rest: &[&str]) -> Option<io::Result<()>> {
    Some(match (name, rest) {
        ("write", [path, text]) => fs::write(path, text),
        ("append", [path, text]) => fs::OpenOptions::new()
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes())),
        // The device decides at the write whether it likes it; opening is what a device rule denies.
        ("open", ["r", path]) => fs::File::open(path).map(|_| say("open", b"ok")),
        ("open", ["w", path]) => fs::OpenOptions::new().write(true).open(path).map(|_| say("open", b"ok")),
        ("read", [path]) => fs::read(path).map(|bytes| say("read", bytes.trim_ascii_end())),
        ("read", [path, key]) => {
            fs::read(path).map(|bytes| say(&format!("read.{key}"), bytes.trim_ascii_end()))
        }
        ("fill", [path, bytes]) => fill(path, bytes),
        ("stat", [path]) => stat(path),
        ("list", [path]) => list(path),
        ("mkdir", [path]) => fs::create_dir_all(path),
        ("remove", [path]) => fs::remove_file(path),
        ("chmod", [path, mode]) => chmod(path, mode),
        ("xattr", [path, attribute]) => xattr(path, attribute),
        ("mount", ["tmpfs", target]) => {
            mount("tmpfs", *target, "tmpfs", MountFlags::empty(), None).map_err(Into::into)
        }
        ("mount", ["proc", target]) => {
            mount("proc", *target, "proc", MountFlags::empty(), None).map_err(Into::into)
        }
        ("make-shared", [path]) => mount_change(*path, MountPropagationFlags::SHARED).map_err(Into::into),
        ("umount", [path]) => unmount(*path, UnmountFlags::DETACH).map_err(Into::into),
        ("mknod", [path, major, minor]) => mknod(path, FileType::CharacterDevice, major, minor),
        ("mknod", ["b", path, major, minor]) => mknod(path, FileType::BlockDevice, major, minor),
        ("sync", []) => {
            rustix::fs::sync();
            Ok(())
        }
        _ => return None,
    })
}

fn stat(path: &str) -> io::Result<()> {
    let data = fs::symlink_metadata(path)?;
    let kind = match data.file_type() {
        kind if kind.is_dir() => "dir",
        kind if kind.is_symlink() => "link",
        kind if kind.is_file() => "file",
        _ => "other",
    };
    let (mode, links) = (data.mode() & 0o7777, data.nlink());
    let text =
        format!("{kind} {mode:04o} {} {} {} {links} {:#x}", data.uid(), data.gid(), data.len(), data.rdev());
    say(&format!("stat.{path}"), text.as_bytes());
    Ok(())
}

fn list(path: &str) -> io::Result<()> {
    let mut names = fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.file_name().as_bytes().to_vec()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    say(&format!("list.{path}"), &names.join(&b' '));
    Ok(())
}

fn fill(path: &str, bytes: &str) -> io::Result<()> {
    let total: usize = bytes.parse().map_err(io::Error::other)?;
    let mut file = fs::File::create(path)?;
    let block = vec![0x5a; 64 << 10];
    let mut left = total;
    while left > 0 {
        let part = left.min(block.len());
        file.write_all(&block[..part])?;
        left -= part;
    }
    file.sync_all()
}

fn chmod(path: &str, mode: &str) -> io::Result<()> {
    let mode = u32::from_str_radix(mode, 8).map_err(io::Error::other)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn xattr(path: &str, attribute: &str) -> io::Result<()> {
    let mut value = [0u8; 256];
    let length = rustix::fs::getxattr(path, attribute, &mut value[..])?;
    let hex: String = value[..length].iter().map(|byte| format!("{byte:02x}")).collect();
    say(&format!("xattr.{attribute}"), hex.as_bytes());
    Ok(())
}

fn mknod(path: &str, kind: FileType, major: &str, minor: &str) -> io::Result<()> {
    let number = |word: &str| word.parse::<u32>().map_err(io::Error::other);
    let device = makedev(number(major)?, number(minor)?);
    let path = CString::new(path)?;
    mknodat(CWD, path.as_c_str(), kind, Mode::from_raw_mode(0o600), device)?;
    Ok(())
}
