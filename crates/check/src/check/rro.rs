//! Recursive read-only mounts.

use anyhow::{Result, ensure};
use bowline_cri_proto::v1::{Mount, MountPropagation};
use tonic::Code;

use super::case::{Case, case};
use crate::node::{Node, refused, skip};

pub(super) const CASES: &[Case] = &[
    case!("rro/enforced", "CK", enforced).quick(),
    case!("rro/refused-combinations", "CK", refused_combinations),
    case!("rro/unsupported", "K", unsupported),
];

fn declared(node: &Node) -> bool {
    node.handler_feature(|features| features.recursive_read_only_mounts)
}

fn recursive(mount: &mut Mount) {
    (mount.readonly, mount.recursive_read_only) = (true, true);
}

async fn enforced(node: Node) -> Result<()> {
    if !declared(&node) {
        return skip("recursive_read_only_mounts is not declared");
    }
    let folder = node.folder("volume")?;
    node.tmpfs(&folder.join("below"))?;
    let words = ["write", "/vol/below/word", "x", ";", "mkdir", "/vol/below/folder"];
    let spec =
        node.pod("rro").run().await?.container("main").cmd(&words).mount_as(&folder, "/vol", recursive);
    let report = spec.report().await?;
    report.failed("write", &["EROFS"])?;
    report.failed("mkdir", &["EROFS"])
}

async fn refused_combinations(node: Node) -> Result<()> {
    if !declared(&node) {
        return skip("recursive_read_only_mounts is not declared");
    }
    let folder = node.folder("volume")?;
    let pod = node.pod("rro").privileged().run().await?;
    let combinations = [
        ("not read-only", false, MountPropagation::PropagationPrivate),
        ("rslave", true, MountPropagation::PropagationHostToContainer),
        ("rshared", true, MountPropagation::PropagationBidirectional),
    ];
    for (what, readonly, propagation) in combinations {
        let spec = pod.container("main").security(|security| security.privileged = true);
        let spec = spec.mount_as(&folder, "/vol", |mount| {
            recursive(mount);
            (mount.readonly, mount.propagation) = (readonly, propagation as i32);
        });
        refused(
            spec.try_create().await,
            &[Code::InvalidArgument, Code::Unknown],
            &format!("a recursive mount, {what},"),
        )?;
    }
    Ok(())
}

async fn unsupported(node: Node) -> Result<()> {
    if declared(&node) {
        return skip("recursive_read_only_mounts is declared");
    }
    let folder = node.folder("volume")?;
    let spec = node.pod("rro").run().await?.container("main").mount_as(&folder, "/vol", recursive);
    let status = refused(spec.try_create().await, &[], "a recursive mount")?;
    ensure!(status.message().starts_with("RROUnsupported"), "the text is {}", status.message());
    Ok(())
}
