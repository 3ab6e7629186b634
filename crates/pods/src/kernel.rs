//! Features of the kernel, found out by using them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bowline_linux::clone::{self, CloneOptions, Cloned, ns};
use bowline_linux::exec::exit_now;
use bowline_linux::mount::{Change, attr, change};
use bowline_linux::netlink::{NetlinkFamily, open_netlink};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, ResolveFlags, SealFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
    open_tree,
};
use rustix::process::{WaitId, WaitIdOptions};

const KILL: i32 = 9;

/// Something of the kernel that pods use.
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    /// Whether the daemon refuses to start without it.
    pub required: bool,
    /// What is off without it.
    pub without: &'static str,
    probe: fn() -> io::Result<String>,
}

impl Feature {
    /// Tries it; what is seen is for people.
    pub fn try_out(&self) -> io::Result<String> {
        // A probe may enter namespaces or load a filter: its thread ends with it.
        let thread = std::thread::Builder::new().name("probe".to_owned()).spawn(self.probe)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the probe died")))
    }
}

const fn needed(name: &'static str, probe: fn() -> io::Result<String>, without: &'static str) -> Feature {
    Feature { name, required: true, without, probe }
}

const fn optional(name: &'static str, probe: fn() -> io::Result<String>, without: &'static str) -> Feature {
    Feature { name, required: false, without, probe }
}

/// All that is tried.
pub const FEATURES: &[Feature] = &[
    needed("clone3 and pidfd", processes, "no container can be started"),
    needed("pidfd_open", open_process, "no process can be watched"),
    needed("pidfd_send_signal", signal_process, "no process can be ended for certain"),
    needed("namespaces", namespaces, "no pod can be isolated"),
    needed("openat2", beneath, "paths inside images cannot be followed safely"),
    needed("close_range", descriptors, "descriptors could leak into containers"),
    needed("fsopen", new_file_system, "no mount can be made"),
    needed("open_tree and move_mount", mounts, "no volume can be given to a container"),
    needed("mount_setattr", read_only, "no mount can be made read-only"),
    needed("overlay", || overlay(&[]), "no image can be used"),
    needed("seccomp", seccomp, "system calls cannot be filtered"),
    needed("memfd seals", sealed_memory, "plans cannot be handed over safely"),
    needed("netlink", || open_netlink(NetlinkFamily::Route).map(done), "no network for pods"),
    optional("overlay volatile", || overlay(&["volatile"]), "removing a container flushes the whole disk"),
    optional("memfd execution", program_memory, "monitors run from the installed file"),
    optional(
        "bridge and veth",
        || bowline_cni::try_link_drivers().map(done),
        "no pods by the built-in bridge plugin",
    ),
    optional("nf_tables", packet_filter, "no masquerade and no host ports by the built-in plugins"),
    optional("user namespaces", user_namespace, "no pods with users of their own (hostUsers: false)"),
    optional("idmapped mounts", idmapped, "no pods with users of their own (hostUsers: false)"),
    optional("pressure", pressure, "no pressure in statistics"),
];

/// Tries what pods cannot do without. The error names all that is missing and why, so that nobody learns it from a pod
/// that fails.
pub fn require() -> Result<(), String> {
    let missing: Vec<String> = FEATURES
        .iter()
        .filter(|feature| feature.required)
        .filter_map(|feature| {
            let error = feature.try_out().err()?;
            Some(format!("{}: {} ({error})", feature.name, feature.without))
        })
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}

fn done<T>(_: T) -> String {
    String::new()
}

fn reap(child: &Cloned) -> io::Result<()> {
    rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    Ok(())
}

fn processes() -> io::Result<String> {
    let child = clone::clone_process(&CloneOptions::default(), || exit_now(0))?;
    reap(&child).map(done)
}

fn open_process() -> io::Result<String> {
    let pid = rustix::process::getpid();
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).map(done)?)
}

fn signal_process() -> io::Result<String> {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?;
    // Signal 0 is sent to nobody.
    bowline_linux::process::signal_by_pidfd(own.as_fd(), 0).map(done)
}

fn namespaces() -> io::Result<String> {
    let namespaces = ns::MOUNT | ns::NET | ns::IPC | ns::UTS | ns::PID | ns::CGROUP;
    let child =
        clone::clone_process(&CloneOptions { namespaces, ..CloneOptions::default() }, || exit_now(0))?;
    reap(&child).map(done)
}

fn beneath() -> io::Result<String> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).map(done)?)
}

fn descriptors() -> io::Result<String> {
    // Beyond all that are open: nothing changes.
    bowline_linux::process::close_on_exec_from(1 << 30).map(done)
}

fn tmpfs() -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn new_file_system() -> io::Result<String> {
    tmpfs().map(done)
}

/// Moves this thread to a mount namespace that ends with it, and puts a tmpfs on the folder for temporary files.
fn private_tmpfs() -> io::Result<OwnedFd> {
    clone::unshare(ns::MOUNT)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let tmpfs = tmpfs()?;
    move_mount(&tmpfs, "", CWD, std::env::temp_dir(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(tmpfs)
}

fn mounts() -> io::Result<String> {
    let tmpfs = private_tmpfs()?;
    let tree = open_tree(&tmpfs, ".", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    rustix::fs::mkdirat(&tmpfs, "target", Mode::RWXU)?;
    Ok(move_mount(&tree, "", &tmpfs, "target", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map(done)?)
}

fn read_only() -> io::Result<String> {
    let tree = tmpfs()?;
    let wanted = Change { set: attr::RDONLY, recursive: true, ..Change::default() };
    change(tree.as_fd(), &wanted).map(done)
}

fn overlay(flags: &[&str]) -> io::Result<String> {
    let _tmpfs = private_tmpfs()?;
    let folder = std::env::temp_dir();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (option, name) in [("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")] {
        let path = folder.join(name);
        std::fs::create_dir(&path)?;
        fsconfig_set_string(context.as_fd(), option, path.as_path())?;
    }
    for flag in flags {
        fsconfig_set_flag(context.as_fd(), *flag)?;
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map(done)?)
}

/// Loads "allow everything" on this thread.
fn seccomp() -> io::Result<String> {
    // BPF_RET | BPF_K, SECCOMP_RET_ALLOW
    let mut filter = [0u8; 8];
    filter[..2].copy_from_slice(&0x06u16.to_ne_bytes());
    filter[4..].copy_from_slice(&0x7fff_0000u32.to_ne_bytes());
    bowline_linux::seccomp::load(&filter, 0)?;
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    Ok(actions.trim().to_owned())
}

fn sealed_memory() -> io::Result<String> {
    let memory = rustix::fs::memfd_create("doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    Ok(rustix::fs::fcntl_add_seals(&memory, seals).map(done)?)
}

fn program_memory() -> io::Result<String> {
    let policy = std::fs::read_to_string("/proc/sys/vm/memfd_noexec").unwrap_or_default();
    match policy.trim() {
        "2" => Err(io::Error::other("vm.memfd_noexec is 2")),
        "" => Ok("before Linux 6.3".to_owned()),
        other => {
            rustix::fs::memfd_create("doctor", MemfdFlags::CLOEXEC | MemfdFlags::EXEC)?;
            Ok(format!("vm.memfd_noexec is {other}"))
        }
    }
}

/// Asks nf_tables for its generation number.
fn packet_filter() -> io::Result<String> {
    use rustix::net::{RecvFlags, SendFlags};
    const REQUEST: u16 = 1;
    const ERROR: u16 = 2;
    // Subsystem nf_tables, NFT_MSG_GETGEN.
    const GET_GENERATION: u16 = 10 << 8 | 16;
    let socket = open_netlink(NetlinkFamily::Netfilter)?;
    let mut message = Vec::new();
    message.extend_from_slice(&20u32.to_ne_bytes());
    message.extend_from_slice(&GET_GENERATION.to_ne_bytes());
    message.extend_from_slice(&REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 12]);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0u8; 4096];
    let (len, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let (Some(kind), Some(code)) = (answer.get(4..6), answer.get(16..20)) else { return Ok(String::new()) };
    if len >= 20 && u16::from_ne_bytes([kind[0], kind[1]]) == ERROR {
        let code = i32::from_ne_bytes([code[0], code[1], code[2], code[3]]);
        if code != 0 {
            return Err(io::Error::from_raw_os_error(-code));
        }
    }
    Ok(String::new())
}

/// Runs `look` while a process in a user namespace of its own exists.
fn with_user_namespace<T>(look: impl FnOnce(&Cloned) -> io::Result<T>) -> io::Result<T> {
    let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let options = CloneOptions { namespaces: ns::USER, ..CloneOptions::default() };
    // It holds a writer of its own, so it waits until it is killed.
    let child = clone::clone_process(&options, || {
        let _ = rustix::io::read(&reader, &mut [0u8; 1][..]);
        exit_now(0)
    })?;
    let result = look(&child);
    bowline_linux::process::signal_by_pidfd(child.pidfd.as_fd(), KILL)?;
    reap(&child)?;
    result
}

fn user_namespace() -> io::Result<String> {
    with_user_namespace(|child| {
        std::fs::write(format!("/proc/{}/uid_map", child.pid), "0 100000 65536\n")?;
        let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
        Ok(format!("at most {}", most.trim()))
    })
}

fn idmapped() -> io::Result<String> {
    with_user_namespace(|child| {
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{map}", child.pid), "0 100000 65536\n")?;
        }
        let users = std::fs::File::open(format!("/proc/{}/ns/user", child.pid))?;
        let tree = tmpfs()?;
        let wanted = Change { set: attr::IDMAP, user_ns: Some(users.as_fd()), ..Change::default() };
        change(tree.as_fd(), &wanted).map(|()| "on tmpfs".to_owned())
    })
}

fn pressure() -> io::Result<String> {
    std::fs::read_to_string("/proc/pressure/io").map(done)
}
