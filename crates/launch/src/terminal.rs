//! The terminal of a process that wants one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bowline_linux::{process, terminal};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::child::{Outcome, at, io_at};
use crate::report::{self, Failure, Stage};
use crate::{Prepared, root};

/// Opens a terminal of the container's own devpts, takes it as controlling terminal and standard streams, and hands
/// the other end to the launcher. `root` is the assembled root, or `None` when a container was joined.
pub(crate) fn open(prepared: &Prepared<'_>, root: Option<BorrowedFd<'_>>) -> Outcome {
    let slave = make(prepared, root)?;
    terminal::take_control(slave.as_fd()).map_err(io_at(Stage::Terminal, 6))?;
    for number in 0..3 {
        process::place(slave.as_fd(), number).map_err(io_at(Stage::Terminal, 7))?;
    }
    Ok(())
}

/// The same without the controlling, and without the streams: those are for whoever gets the container's end.
pub(crate) fn make(prepared: &Prepared<'_>, root: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Failure> {
    let failed = |detail| at(Stage::Terminal, detail);
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = match root {
        Some(root) => root::open(root, c"/dev/pts/ptmx", flags),
        None => rustix::fs::open(c"/dev/pts/ptmx", flags, Mode::empty()),
    }
    .map_err(failed(1))?;
    let slave = terminal::open_peer(master.as_fd()).map_err(io_at(Stage::Terminal, 2))?;
    let (rows, columns) = prepared.request.plan.window;
    if (rows, columns) != (0, 0) {
        terminal::set_size(master.as_fd(), rows, columns).map_err(io_at(Stage::Terminal, 3))?;
    }
    if let Some(root) = root {
        bind_console(root, slave.as_fd()).map_err(failed(4))?;
    }
    report::send_console(prepared.sync, master.as_fd()).map_err(io_at(Stage::Terminal, 5))?;
    Ok(slave)
}

/// Shows the terminal at /dev/console. It is bound by descriptor, so a symlink planted at a path leads nowhere.
fn bind_console(root: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<(), Errno> {
    let place = root::find_or_make(root, c"/dev/console", root::Make::File)?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(slave, c"", flags)?;
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, c"", &place, c"", both)
}
