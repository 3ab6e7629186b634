//! `reset`: gives back what a daemon that has ended keeps on the node for its next start.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use bowline_cni::{Cni, CniConfig, InstanceTag};
use bowline_cri_proto::v1;

use crate::args::{ResetArgs, RmpArgs};
use crate::client::Client;
use crate::failure::{Done, Failure};
use crate::install::remove_tree;
use crate::select::all_pods;

/// Pods of the node.
pub(crate) struct Pods {
    pub count: usize,
    /// Those that are up, or may be.
    pub ready: usize,
}

/// By the daemon's word, else by what is in the state folder.
pub(crate) async fn pods(client: Option<&Client>, state: &Path) -> Result<Pods, Failure> {
    let Some(client) = client else {
        let count = pods_in(state);
        return Ok(Pods { count, ready: count });
    };
    let all = all_pods(client).await?;
    let ready = all.iter().filter(|pod| pod.state() == v1::PodSandboxState::SandboxReady).count();
    Ok(Pods { count: all.len(), ready })
}

/// How many pods have a folder of state: those that are up, or were when the node was.
pub(crate) fn pods_in(state: &Path) -> usize {
    fs::read_dir(state.join("pods")).into_iter().flatten().count()
}

/// Stops and removes all of them, with what `bowline run` made for them.
pub(crate) async fn remove_pods(client: &Client) -> Result<(), Failure> {
    let all = RmpArgs { force: true, all: true, pods: Vec::new() };
    crate::pods::remove(client, &all).await.map(drop)
}

/// Networks and cgroups; records and images too if `all`.
pub(crate) fn reset(args: &ResetArgs) -> Done {
    if !args.root.exists() && !args.state.exists() {
        return Ok(0);
    }
    let _locks = [lock(&args.root)?, lock(&args.state)?];
    match pods_in(&args.state) {
        0 => {}
        count => {
            return Err(Failure::hint(
                format!("pods are left in {} ({count})", args.state.join("pods").display()),
                "start the daemon, then `bowline rmp --all --force`",
            ));
        }
    }
    let cni = Cni::new(CniConfig::below(&args.root));
    cni.and_then(|cni| cni.remove_networks()).map_err(|error| {
        Failure::new(format!("could not remove networks: {}", bowline_pods::chain(&error)))
    })?;
    remove_cgroups(InstanceTag::of_root(&args.root).as_str())?;
    if args.all {
        remove_tree(&args.root)?;
        remove_tree(&args.state)?;
    }
    Ok(0)
}

/// A daemon holds the locks of its folders.
fn lock(folder: &Path) -> Result<Option<fs::File>, Failure> {
    let path = folder.join("lock");
    let Ok(file) = fs::File::options().write(true).open(&path) else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(_) => Err(Failure::hint(
            format!("a daemon uses {}", folder.display()),
            "stop it first (`systemctl stop bowline`); its pods go on until they are removed",
        )),
    }
}

/// The empty groups of an instance, in all hierarchies.
fn remove_cgroups(instance: &str) -> Result<(), Failure> {
    let (_, roots) = bowline_pods::cgroups().map_err(|error| Failure::io("look for cgroups", error))?;
    let group = format!("bowline/{instance}");
    let name = CString::new(group.as_str()).map_err(|error| Failure::io("name a cgroup", error.into()))?;
    for root in roots {
        bowline_launch::remove_cgroups(root.as_fd(), &name)
            .map_err(|error| Failure::io(&format!("remove the cgroups below {group}"), error))?;
        // Another instance may be in it.
        let _ = rustix::fs::unlinkat(&root, "bowline", rustix::fs::AtFlags::REMOVEDIR);
    }
    Ok(())
}
