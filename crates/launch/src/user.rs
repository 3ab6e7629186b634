//! The way into a user namespace.
//!
//! ```text
//!   launcher        helper                             container
//!   --------        ------                             ---------
//!   clone3 -------> oom score, v1 cgroups, limits,
//!                   streams to the container's user,
//!                   overlays as detached trees
//!                   joins the PID namespace, if there
//!                   is one, and the user namespace
//!                   clone3 (CLONE_PARENT) -----------> waits
//!   <-- Became ---- a byte, and ends ----------------> becomes root of the namespace,
//!                                                      then as every child
//! ```
//!
//! It waits so that nothing of it is heard before its number is: a helper may be kept from the processor for so long after
//! `clone3` that a short program has ended meanwhile, and the launcher would reap a process that it has never heard of.
//!
//! Overlays are mounted outside, since inside nobody may read what their layers say about hidden files
//! (`trusted.overlay.*`); mount, PID and cgroup namespaces are made from inside, since the user namespace must own
//! them. The helper's mount namespace is a copy that ends with it; the container's is a copy of that.
//!
//! The rules of [`crate::child`] hold here too.

use std::convert::Infallible;
use std::os::fd::AsFd;

use bowline_launch_plan::{Source, Step};
use bowline_linux::clone::{self, ns};
use bowline_linux::{exec, process};
use rustix::fs::{FileType, Gid, Uid};
use rustix::io::{dup2, read, retry_on_intr, write};
use rustix::mount::{UnmountFlags, unmount};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::child::{self, Outcome, at, io_at};
use crate::report::{self, Stage};
use crate::{Prepared, UserSpace, volume};

/// The helper's whole way.
pub(crate) fn run(prepared: &Prepared<'_>) -> Infallible {
    if let Err(failure) = walk(prepared) {
        report::send_failure(prepared.sync, failure);
        exec::exit_now(127);
    }
    exec::exit_now(0)
}

fn walk(prepared: &Prepared<'_>) -> Outcome {
    let Some(user) = prepared.launcher.user else {
        return Err(at(Stage::Namespace, 0)(rustix::io::Errno::INVAL));
    };
    process::reset_signals();
    die_with_launcher(prepared)?;
    child::join_cgroups(prepared)?;
    before_entering(prepared)?;
    mount_outside(prepared)?;
    if let Some(pids) = prepared.request.pid_namespace {
        clone::join(pids, ns::PID).map_err(io_at(Stage::Namespace, 1))?;
    }
    clone::join(user.namespace, ns::USER).map_err(io_at(Stage::Namespace, 2))?;
    let options = clone::CloneOptions {
        namespaces: prepared.request.plan.new_namespaces,
        sibling: true,
        ..clone::CloneOptions::default()
    };
    let (wait, mut go) = pipe_with(PipeFlags::CLOEXEC).map_err(at(Stage::Namespace, 5))?;
    let born = clone::clone_process(&options, || {
        // Our own copy of the writing end: if the helper dies, the pipe ends.
        let told = dup2(&wait, &mut go).and_then(|()| retry_on_intr(|| read(&wait, &mut [0u8; 1])));
        match told {
            Ok(1) => child::run_inside(prepared),
            _ => exec::exit_now(127),
        }
    });
    let born = born.map_err(io_at(Stage::Namespace, 3))?;
    report::send_became(prepared.sync, born.pid, born.pidfd.as_fd()).map_err(io_at(Stage::Namespace, 4))?;
    write(&go, b"0").map(drop).map_err(at(Stage::Namespace, 6))
}

/// What only the launcher's own user namespace may do: hard limits above those inherited, streams of the host's.
pub(crate) fn before_entering(prepared: &Prepared<'_>) -> Outcome {
    let Some(user) = prepared.launcher.user else { return Ok(()) };
    let plan = prepared.request.plan;
    for (index, limit) in plan.rlimits.iter().enumerate() {
        process::set_limit(limit.resource, limit.soft, limit.hard).map_err(io_at(Stage::Limit, index))?;
    }
    crate::scheduling::apply(plan)?;
    if !plan.terminal {
        own_streams(prepared, user);
    }
    Ok(())
}

/// Gives pipes to the container's user, so that it can open /dev/stdout anew. Root, too, is somebody else here.
fn own_streams(prepared: &Prepared<'_>, user: UserSpace<'_>) {
    let Some(uid) = user.first_uid.checked_add(prepared.request.plan.credentials.uid) else { return };
    for stream in &prepared.request.streams {
        let Ok(stat) = rustix::fs::fstat(stream) else { continue };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            // Not being allowed to is no reason not to run.
            let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>);
        }
    }
}

/// The helper must not outlive its launcher either.
fn die_with_launcher(prepared: &Prepared<'_>) -> Outcome {
    if prepared.launcher_process.is_none() {
        return Ok(());
    }
    let kill = rustix::process::Signal::KILL;
    rustix::process::set_parent_process_death_signal(Some(kill)).map_err(at(Stage::Orphaned, 0))
}

/// Mounts the overlays, and keeps each as a tree that is attached nowhere: what was mounted when a mount namespace is
/// copied into a lesser user namespace is locked there, and pivot_root refuses it.
fn mount_outside(prepared: &Prepared<'_>) -> Outcome {
    let failed = |detail| at(Stage::Root, detail);
    if let Some(options) = &prepared.overlay {
        let place = prepared.launcher.mount_point;
        bowline_linux::mount::mount(c"overlay", place, c"overlay", 0, options)
            .map_err(io_at(Stage::Root, 0))?;
        let tree = crate::root::detached(place).map_err(failed(1))?;
        unmount(place, UnmountFlags::DETACH).map_err(failed(2))?;
        let _ = prepared.outside.root.set(tree);
    }
    for (volume, tree) in prepared.volumes.iter().zip(&prepared.outside.volumes) {
        let step = &prepared.request.plan.steps[volume.step];
        let Step::Mount { source: Source::Layers { lower, sub_path }, .. } = step else { continue };
        let made = volume::make(prepared, volume, lower, sub_path).map_err(at(Stage::Step, volume.step))?;
        let _ = tree.set(made);
    }
    Ok(())
}
