//! The other role of this program: opening paths of the host for the daemon.
//!
//! A path may lie on a file system that hangs (a server of NFS that is gone), and whoever touches it then waits, maybe
//! for ever. So the daemon never does: it asks one of these processes, each of which does one thing at a time, and
//! which it kills when its patience ends. It is in the host's mount namespace, holds nothing and knows nothing.
//!
//! Protocol: docs/design/path-workers.md.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;

use bowline_launch_plan::wire::Blob;
use bowline_linux::{message, process};
use bowline_monitor_proto::paths::{Opened, PathRequest, Wish};
use bowline_monitor_proto::{MAX_MESSAGE, decode, encode};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::relabel::{ATTRIBUTE, relabel};

/// Serves the channel at descriptor 0 until its end.
pub fn serve() -> ExitCode {
    let Ok(channel) = process::take_stdin() else { return ExitCode::FAILURE };
    // The daemon's thread that started us may end before the daemon; it hears of its own end by the channel.
    let _ = rustix::io::ioctl_fionbio(&channel, false);
    let mut buffer = vec![0u8; MAX_MESSAGE];
    loop {
        let (len, _) = match message::receive(channel.as_fd(), &mut buffer) {
            Ok((0, _)) => return ExitCode::SUCCESS,
            Ok(received) => received,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return ExitCode::FAILURE,
        };
        let Ok(request) = decode::<PathRequest>(&buffer[..len]) else { return ExitCode::FAILURE };
        let (answer, opened) = match perform(&request.wish) {
            Ok((real, opened)) => (Opened { errno: 0, real: Blob(real) }, opened),
            Err((errno, why)) => (Opened { errno: errno.raw_os_error(), real: Blob(why.into_bytes()) }, None),
        };
        let descriptors: Vec<_> = opened.iter().map(|opened| opened.as_fd()).collect();
        if message::send(channel.as_fd(), &encode(&answer), &descriptors).is_err() {
            return ExitCode::FAILURE;
        }
    }
}

type Found = (Vec<u8>, Option<OwnedFd>);

/// An error comes with a text where its number does not say enough.
fn perform(wish: &Wish) -> Result<Found, (Errno, String)> {
    let plain = |errno| (errno, String::new());
    match wish {
        Wish::Tree { path, recursive, follow, label } => {
            let tree = tree(path, *recursive, *follow).map_err(plain)?;
            if let Some(label) = label {
                // What is going to be mounted, whatever is at the path by now.
                relabel(tree.as_fd(), ATTRIBUTE, label).map_err(|error| (error.errno, error.why))?;
            }
            Ok((Vec::new(), Some(tree)))
        }
        Wish::Log { path } => Ok((Vec::new(), Some(log(path).map_err(plain)?))),
        Wish::Folder { path } => Ok((folder(path).map_err(plain)?, None)),
    }
}

/// A detached copy of a mount tree. A source that is missing is made as a folder, as at the container's creation.
fn tree(path: &CStr, recursive: bool, follow: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !follow {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    match open_tree(CWD, path, flags) {
        Err(Errno::NOENT) => {
            make_folders(path.to_bytes())?;
            open_tree(CWD, path, flags)
        }
        other => other,
    }
}

/// A log to append to; an existing one is never cut short.
fn log(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
    // Readers on the node run as other users; the kubelet keeps the folder to itself.
    let mode = Mode::from_raw_mode(0o640);
    match rustix::fs::open(path, flags, mode) {
        Err(Errno::NOENT) => {
            let bytes = path.to_bytes();
            let parent = bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            make_folders(&bytes[..parent])?;
            rustix::fs::open(path, flags, mode)
        }
        other => other,
    }
}

/// Makes a folder unless something is there; the path without symlinks.
fn folder(path: &CStr) -> Result<Vec<u8>, Errno> {
    let look = OFlags::PATH | OFlags::CLOEXEC;
    let found = match rustix::fs::open(path, look, Mode::empty()) {
        Err(Errno::NOENT) => {
            make_folders(path.to_bytes())?;
            rustix::fs::open(path, look, Mode::empty())?
        }
        other => other?,
    };
    use std::os::fd::AsRawFd as _;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(rustix::fs::readlink(link, Vec::new())?.into_bytes())
}

fn make_folders(path: &[u8]) -> Result<(), Errno> {
    let ends = path.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0).map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        match rustix::fs::mkdir(&path[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // A folder above may be on a file system that can only be read.
            Err(Errno::ROFS) if end < path.len() => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
