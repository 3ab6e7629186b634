//! Handing an assembled root to a program of the host's, which brings a container's processes back into it.
//!
//! The program gets the mounts of the root one by one, each at a place of our own making, and makes from them the mount
//! namespace of what it restores. It never walks a path inside the container: a symlink there could lead it anywhere on the
//! host, with every privilege.
//!
//! The rules of [`crate::child`] hold here too.

use std::cell::OnceCell;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use bowline_linux::clone::{self, ns};
use bowline_linux::exec::{self, StringArray};
use bowline_linux::mount::{self, Change, attr};
use bowline_linux::process;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change, move_mount, open_tree,
};

use crate::child::{Outcome, at, die_with_launcher, io_at};
use crate::report::Stage;
use crate::root::{self, Make, Name};
use crate::{Prepared, Restorer};

/// What the child needs that must be allocated before the clone.
pub(crate) struct Lent {
    argv: StringArray,
    envp: StringArray,
    parts: Vec<OnceCell<OwnedFd>>,
}

impl Lent {
    pub(crate) fn new(restorer: &Restorer<'_>) -> Lent {
        Lent {
            argv: StringArray::new(restorer.argv.to_vec()),
            envp: StringArray::new(vec![
                c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
            ]),
            parts: restorer.parts.iter().map(|_| OnceCell::new()).collect(),
        }
    }
}

/// From the assembled root to the program.
pub(crate) fn hand_over(prepared: &Prepared<'_>, restorer: &Restorer<'_>, root: BorrowedFd<'_>) -> Outcome {
    let failed = |detail| at(Stage::Lend, detail);
    let lent = prepared.lent.as_ref().ok_or(Errno::INVAL).map_err(failed(0))?;
    // Before /dev/console is lent, which shows it.
    let terminal = match prepared.request.plan.terminal {
        true => Some(crate::terminal::make(prepared, Some(root))?),
        false => None,
    };
    for (index, (path, part)) in restorer.parts.iter().zip(&lent.parts).enumerate() {
        let found = root::open(root, path, OFlags::PATH | OFlags::CLOEXEC).map_err(failed(index))?;
        let _ = part.set(detached(found.as_fd()).map_err(failed(index))?);
    }
    let tree = detached(root).map_err(failed(1))?;
    if prepared.request.plan.readonly_root {
        // criu binds the root as it finds it. It pivots by way of /tmp, and would have to make a folder without one.
        root::find_or_make(root, c"/tmp", Make::Dir).map_err(failed(13))?;
        let change = Change { set: attr::RDONLY, ..Change::default() };
        mount::change(tree.as_fd(), &change).map_err(io_at(Stage::Lend, 14))?;
    }

    clone::join(restorer.mounts, ns::MOUNT).map_err(io_at(Stage::Lend, 2))?;
    clone::unshare(ns::MOUNT).map_err(io_at(Stage::Lend, 3))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).map_err(failed(4))?;
    let own = root::new_file_system(c"tmpfs", c"bowline", &[], None, attr::NOSUID | attr::NODEV)
        .map_err(failed(5))?;
    move_mount(&own, c"", CWD, restorer.place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed(6))?;
    lay(own.as_fd(), c"root", tree.as_fd()).map_err(failed(7))?;
    for (index, part) in lent.parts.iter().enumerate() {
        let part = part.get().ok_or(Errno::INVAL).map_err(failed(index))?;
        let mut digits = [0u8; 5];
        let name = Name::new(number(index, &mut digits)).map_err(failed(index))?;
        lay(own.as_fd(), name.as_c_str(), part.as_fd()).map_err(failed(index))?;
    }
    rustix::process::chdir(c"/").map_err(failed(8))?;

    process::place(restorer.service, 0).map_err(io_at(Stage::Lend, 9))?;
    process::place(restorer.output, 1).map_err(io_at(Stage::Lend, 9))?;
    process::place(restorer.output, 2).map_err(io_at(Stage::Lend, 9))?;
    // Not every version of the program brings this back; what it starts cannot lose it.
    if prepared.request.plan.credentials.no_new_privs {
        rustix::thread::set_no_new_privs(true).map_err(failed(10))?;
    }
    die_with_launcher(prepared)?;
    process::close_on_exec_from(3).map_err(io_at(Stage::Exec, 0))?;
    let [_, output, error] = &prepared.request.streams;
    if let Some(terminal) = &terminal {
        // Nobody else wants these numbers, and the launcher knows them.
        for stream in [output, error] {
            process::place(terminal.as_fd(), stream.as_raw_fd()).map_err(io_at(Stage::Lend, 15))?;
        }
    }
    for stream in &prepared.request.streams {
        rustix::io::fcntl_setfd(stream, FdFlags::empty()).map_err(failed(11))?;
    }
    let program = restorer.argv.first().ok_or(Errno::INVAL).map_err(failed(12))?;
    Err(io_at(Stage::Exec, 0)(exec::execve(program, &lent.argv, &lent.envp)))
}

/// What is at a descriptor, without what is mounted below.
fn detached(place: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(place, c"", flags)
}

/// Mounts a tree on a new entry of our own file system.
fn lay(own: BorrowedFd<'_>, name: &CStr, tree: BorrowedFd<'_>) -> Result<(), Errno> {
    match root::like(tree)? {
        Make::Dir => rustix::fs::mkdirat(own, name, Mode::from_raw_mode(0o700))?,
        Make::File => {
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(rustix::fs::openat(own, name, create, Mode::from_raw_mode(0o600))?);
        }
    }
    let place = rustix::fs::openat(own, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    root::attach(tree, place.as_fd())
}

fn number(value: usize, digits: &mut [u8; 5]) -> &[u8] {
    let mut rest = value;
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 || at == 0 {
            return &digits[at..];
        }
    }
}
