//! User namespaces: what a pod may ask for, and whether this node can give it.
//!
//! Design: docs/design/user-namespaces.md.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use bowline_linux::clone::{self, CloneOptions, ns};
use bowline_linux::exec;
use bowline_linux::mount::{self, Change, attr};
use bowline_model::spec::{ContainerSpec, IdMapping, PodSpec, UserNamespace};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsmount, fsopen, mount_change, move_mount, open_tree,
};

use crate::PodError;
use crate::shared::Shared;

/// The pod's user namespace, if it has one of its own.
pub(crate) fn of_pod(spec: &PodSpec) -> Option<&UserNamespace> {
    spec.security.namespaces.user.as_ref().filter(|user| !user.node)
}

/// An id of the pod's as the host has it; one that is not mapped stays nobody's.
pub(crate) fn outside(range: &IdMapping, id: u32) -> u32 {
    match id.checked_sub(range.container_id) {
        Some(offset) if offset < range.length => range.host_id + offset,
        _ => 65534,
    }
}

/// A node that cannot must say so before anything is made.
pub(crate) fn check_pod(shared: &Shared, spec: &PodSpec) -> Result<(), PodError> {
    match (of_pod(spec), &shared.user_namespaces) {
        (Some(_), Err(why)) => Err(PodError::Unsupported(format!(
            "security_context.namespace_options.userns_options: this node has no user namespaces for pods: {why}"
        ))),
        _ => Ok(()),
    }
}

/// Mounts have the pod's mappings or none.
pub(crate) fn check_container(pod: &PodSpec, spec: &ContainerSpec) -> Result<(), PodError> {
    let user = of_pod(pod);
    if user.is_some() && spec.security.privileged {
        let text = "security_context.privileged: not in a pod with a user namespace of its own";
        return Err(PodError::Invalid(text.into()));
    }
    for (index, mount) in spec.mounts.iter().enumerate() {
        let (uids, gids) = (mount.uid_mappings.as_slice(), mount.gid_mappings.as_slice());
        let fits = match user {
            _ if uids.is_empty() && gids.is_empty() => true,
            Some(user) => uids == [user.uids] && gids == [user.gids],
            None => false,
        };
        if !fits {
            return Err(PodError::Invalid(format!(
                "mounts[{index}].uid_mappings: must be the mappings of the pod's user namespace, or none"
            )));
        }
    }
    Ok(())
}

/// Shows a detached tree with owners as the user namespace has them.
pub(crate) fn idmap(tree: BorrowedFd<'_>, user: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    mount::change(tree, &Change { set: attr::IDMAP, user_ns: Some(user), recursive, ..Change::default() })
}

/// Tries all that pods with user namespaces need, on the file system of `root` and `state`; the error says what failed.
pub(crate) fn probe(root: &Path, state: &Path) -> Result<(), String> {
    let (root, state) = (root.to_owned(), state.to_owned());
    let thread = std::thread::Builder::new().name("probe-user".into()).spawn(move || attempt(&root, &state));
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err("the thread that tries them panicked".into()),
        Err(error) => Err(format!("no thread to try them on: {error}")),
    }
}

fn attempt(root: &Path, state: &Path) -> Result<(), String> {
    let doing = |what: &'static str| move |error: io::Error| format!("could not {what}: {error}");
    let user = namespace().map_err(doing("make a user namespace"))?;
    clone::unshare(ns::MOUNT).map_err(doing("make a mount namespace"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| doing("make mounts private")(errno.into()))?;
    let mapped = |path: &Path| -> io::Result<OwnedFd> {
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, path, clone)?;
        idmap(tree.as_fd(), user.as_fd(), false)?;
        Ok(tree)
    };
    mapped(state).map_err(doing("idmap the state folder's file system"))?;
    let layers = mapped(root).map_err(doing("idmap the root folder's file system"))?;
    let memory = tmpfs().map_err(doing("mount a tmpfs"))?;
    // Another one, not a clone: before Linux 6.15 a mount that is attached nowhere cannot be cloned.
    let again = tmpfs().and_then(|tree| idmap(tree.as_fd(), user.as_fd(), false));
    again.map_err(doing("idmap a tmpfs"))?;
    overlay(root, &memory, &layers).map_err(doing("mount an overlay over idmapped layers"))
}

/// A user namespace that lives by its descriptor.
fn namespace() -> io::Result<OwnedFd> {
    let (gate, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let options = CloneOptions { namespaces: ns::USER, ..CloneOptions::default() };
    let child = clone::clone_process(&options, || {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        let mut byte = [0u8; 1];
        let _ = rustix::io::read(&gate, &mut byte);
        exec::exit_now(0)
    })?;
    let made = (|| {
        for name in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{name}", child.pid), "0 65536 65536\n")?;
        }
        let path = format!("/proc/{}/ns/user", child.pid);
        Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    })();
    let _ = rustix::io::write(&ours, b"0");
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    made
}

fn tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// On the thread's own mount namespace: a tmpfs over `place`, in it the layers, an upper folder and the overlay.
fn overlay(place: &Path, memory: &OwnedFd, layers: &OwnedFd) -> io::Result<()> {
    for folder in ["layers", "upper", "work", "root"] {
        rustix::fs::mkdirat(memory, folder, Mode::from_raw_mode(0o755))?;
    }
    move_mount(memory, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let lower = place.join("layers");
    move_mount(layers, "", CWD, &lower, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let below = |name: &str| place.join(name).to_string_lossy().into_owned();
    let data = format!("lowerdir={},upperdir={},workdir={}", below("layers"), below("upper"), below("work"));
    let (target, data) = (CString::new(below("root"))?, CString::new(data)?);
    mount::mount(c"overlay", &target, c"overlay", 0, &data)
}
