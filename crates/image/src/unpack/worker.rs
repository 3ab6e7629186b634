//! `bowline unpack`: one layer, confined, then gone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    Scope,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::job::{Failure, Job, Link, Reply};

/// Room for buffers, stacks and zstd's largest window (128 MiB), many times over; a bomb ends here, not in the node's memory.
const ADDRESS_SPACE: u64 = 1 << 30;
/// Parents (at most 200), the stack of open folders (at most 255), and their copies during a look-up.
const DESCRIPTORS: u64 = 4096;

/// The whole of `bowline unpack`. Descriptor 0 is the socket to the daemon; call it first thing in `main`, before any thread.
pub fn unpack_worker_main() -> ExitCode {
    let socket = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("bowline unpack: descriptor 0 is not usable: {error}");
            return ExitCode::FAILURE;
        }
    };
    if rustix::net::sockopt::socket_type(&socket) != Ok(rustix::net::SocketType::SEQPACKET) {
        eprintln!("bowline unpack is started by the daemon; to load an archive use `bowline image import`");
        return ExitCode::FAILURE;
    }
    match serve(socket, true) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bowline unpack: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes one job from `socket`, does it, reports.
pub(crate) fn serve(socket: OwnedFd, confined: bool) -> io::Result<()> {
    let link = Link::new(socket);
    let (job, fds) = link.receive::<Job>()?;
    let [stream, tree, layers] = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|fds| io::Error::other(format!("{} descriptors came with the job", fds.len())))?;
    if confined && let Err(failure) = confine(tree.as_fd(), layers.as_fd()) {
        return link.send(&Reply::Failed(failure), &[]);
    }
    drop(layers);
    let parents = || {
        link.send(&Reply::NeedParents, &[])?;
        link.receive::<()>().map(|((), parents)| parents)
    };
    let reply = match super::unpack(job.compression, File::from(stream), tree, parents) {
        Ok(report) => Reply::Done(report),
        Err(failure) => Reply::Failed(failure),
    };
    link.send(&reply, &[])
}

/// Gives up everything that unpacking does not need. In this order: Landlock needs no_new_privs or SYS_ADMIN, and the bounding set
/// needs SETPCAP, which goes last.
fn confine(tree: BorrowedFd<'_>, layers: BorrowedFd<'_>) -> Result<(), Failure> {
    let failed = |what: &'static str| move |error: rustix::io::Errno| Failure::sys(what, error);
    rustix::process::umask(rustix::fs::Mode::empty());
    rustix::thread::set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    let limit = |value| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::As, limit(ADDRESS_SPACE)).map_err(failed("limit the memory"))?;
    setrlimit(Resource::Core, limit(0)).map_err(failed("forbid core files"))?;
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    let files = hard.map_or(DESCRIPTORS, |hard| hard.min(DESCRIPTORS));
    setrlimit(Resource::Nofile, limit(files)).map_err(failed("limit the descriptors"))?;
    restrict(tree, layers)
        .map_err(|error| Failure::Io(format!("could not enter the Landlock domain: {error}")))?;
    drop_capabilities().map_err(failed("drop capabilities"))
}

/// The layer's folder may be written, the layers below may be read, the rest of the machine is not there. Best effort where the
/// kernel lacks Landlock or parts of it: descriptors and openat2 already keep every path inside.
fn restrict(tree: BorrowedFd<'_>, layers: BorrowedFd<'_>) -> Result<(), landlock::RulesetError> {
    let abi = ABI::V6;
    Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rule(PathBeneath::new(tree, AccessFs::from_all(abi)))?
        .add_rule(PathBeneath::new(layers, AccessFs::from_read(abi)))?
        .restrict_self()?;
    Ok(())
}

fn drop_capabilities() -> rustix::io::Result<()> {
    let keep = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        // For trusted.overlay.opaque; there is no smaller one.
        | CapabilitySet::SYS_ADMIN;
    let held = rustix::thread::capabilities(None)?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in (CapabilitySet::all() - keep).iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // Newer than this kernel.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let kept = held.permitted & keep;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}
