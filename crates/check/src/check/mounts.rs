//! Mounts of host paths.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1::{self, MountPropagation};
use tonic::Code;

use super::case::{Case, case, same};
use crate::container::Ctr;
use crate::images::PROGRAM;
use crate::node::{Found, Node, refused, skip, until};

pub(super) const CASES: &[Case] = &[
    case!("mounts/directory", "C", directory).quick(),
    case!("mounts/symlinked-source", "C", symlinked_source),
    case!("mounts/sub-mounts", "C", sub_mounts),
    case!("mounts/private", "C", private),
    case!("mounts/host-to-container", "CK", host_to_container),
    case!("mounts/bidirectional", "CK", bidirectional),
    case!("mounts/propagation-source", "S", propagation_source),
    case!("mounts/status-exact", "CK", status_exact).quick(),
    case!("mounts/relabel-tolerated", "C", relabel_tolerated),
    case!("mounts/missing-source", "P", missing_source),
    case!("mounts/stay-inside", "S", stay_inside),
    case!("mounts/nested", "K", nested),
    case!("mounts/options", "K", options),
];

async fn directory(node: Node) -> Result<()> {
    let folder = node.folder("volume")?;
    fs::write(folder.join("word"), "from the host")?;
    fs::write(folder.join("single"), "one file")?;
    let words = [
        "read",
        "/vol/word",
        ";",
        "write",
        "/vol/answer",
        "from inside",
        ";",
        "read",
        "/single",
        "file",
        ";",
        "append",
        "/single",
        "!",
    ];
    let pod = node.pod("volume").run().await?;
    let spec =
        pod.container("main").cmd(&words).mount(&folder, "/vol").mount(&folder.join("single"), "/single");
    let report = spec.report().await?;
    report.is("read", "from the host")?;
    report.is("read.file", "one file")?;
    same!(fs::read_to_string(folder.join("answer"))?, "from inside", "what was written inside");
    same!(fs::read_to_string(folder.join("single"))?, "one file!", "the single file");
    let reader = pod.container("reader").cmd(&["write", "/vol/no", "x"]);
    reader
        .mount_as(&folder, "/vol", |mount| mount.readonly = true)
        .report()
        .await?
        .failed("write", &["EROFS"])
}

async fn symlinked_source(node: Node) -> Result<()> {
    let folder = node.folder("real")?;
    fs::write(folder.join("word"), "behind the link")?;
    let link = node.scratch().join("link");
    symlink(&folder, &link)?;
    let spec =
        node.pod("link").run().await?.container("main").cmd(&["read", "/vol/word"]).mount(&link, "/vol");
    let container = spec.start().await?;
    container.exited().await?;
    container.output()?.is("read", "behind the link")?;
    let mounts = container.status().await?.mounts;
    same!(mounts.first().map(|mount| mount.host_path.as_str()), link.to_str(), "status.mounts");
    Ok(())
}

async fn sub_mounts(node: Node) -> Result<()> {
    let folder = node.folder("volume")?;
    node.tmpfs(&folder.join("below"))?;
    fs::write(folder.join("below/word"), "deep")?;
    let pod = node.pod("sub").run().await?;
    let words = [
        "read",
        "/vol/below/word",
        ";",
        "write",
        "/vol/below/more",
        "x",
        ";",
        "sync",
        ";",
        "mkdir",
        "/vol/no",
    ];
    let spec = pod.container("main").cmd(&words).mount_as(&folder, "/vol", |mount| mount.readonly = true);
    let report = spec.report().await?;
    report.is("read", "deep")?;
    report.worked("write").context("below a read-only bind")?;
    report.failed("mkdir", &["EROFS"])
}

/// A privileged container with a mount of a propagation, that waits.
async fn propagating(node: &Node, source: &Path, propagation: MountPropagation) -> Result<Ctr> {
    let pod = node.pod("propagation").privileged().run().await?;
    let container = pod
        .container("main")
        .security(|security| security.privileged = true)
        .mount_as(source, "/vol", |mount| mount.propagation = propagation as i32)
        .start()
        .await?;
    Ok(container)
}

/// Mounts on the host below the source and inside below the target; gives who sees what: (inside, host).
async fn exchange(node: &Node, source: &Path, container: &Ctr) -> Result<(bool, bool)> {
    for name in ["host", "inside"] {
        fs::create_dir_all(source.join(name))?;
    }
    node.tmpfs(&source.join("host"))?;
    fs::write(source.join("host/word"), "late")?;
    let seen = container.exec(&["read", "/vol/host/word"]).await?;
    let made =
        container.exec(&["mount", "tmpfs", "/vol/inside", ";", "write", "/vol/inside/word", "x"]).await?;
    made.worked("mount")?;
    Ok((seen.find("read") == Some("late"), source.join("inside/word").exists()))
}

async fn private(node: Node) -> Result<()> {
    let source = node.shared_tmpfs("volume")?;
    let container = propagating(&node, &source, MountPropagation::PropagationPrivate).await?;
    same!(exchange(&node, &source, &container).await?, (false, false), "seen (inside, on the host)");
    Ok(())
}

async fn host_to_container(node: Node) -> Result<()> {
    let source = node.shared_tmpfs("volume")?;
    let container = propagating(&node, &source, MountPropagation::PropagationHostToContainer).await?;
    same!(exchange(&node, &source, &container).await?, (true, false), "seen (inside, on the host)");
    Ok(())
}

async fn bidirectional(node: Node) -> Result<()> {
    let source = node.shared_tmpfs("volume")?;
    let container = propagating(&node, &source, MountPropagation::PropagationBidirectional).await?;
    same!(exchange(&node, &source, &container).await?, (true, true), "seen (inside, on the host)");
    let inside = source.join("inside");
    rustix::mount::unmount(&inside, rustix::mount::UnmountFlags::empty())
        .context("unmounting on the host")?;
    until("the folder's removal on the host", Duration::from_secs(3), async || {
        Ok(match fs::remove_dir(&inside) {
            Ok(()) => Found::Yes(()),
            Err(error) => Found::Not(error.to_string()),
        })
    })
    .await
}

async fn propagation_source(node: Node) -> Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    let source = node.shared_tmpfs("volume")?;
    mount_change(&source, MountPropagationFlags::PRIVATE)?;
    let pod = node.pod("source").privileged().run().await?;
    for mode in [MountPropagation::PropagationHostToContainer, MountPropagation::PropagationBidirectional] {
        let spec = pod.container(mode.as_str_name()).security(|security| security.privileged = true);
        let spec = spec.mount_as(&source, "/vol", |mount| mount.propagation = mode as i32);
        spec.refused(&format!("{} of a private source", mode.as_str_name())).await?;
    }
    Ok(())
}

async fn status_exact(node: Node) -> Result<()> {
    let folder = node.folder("volume")?;
    let spec = node.pod("exact").run().await?.container("main").mount(&folder, "/one");
    let spec = spec.mount_as(&folder, "/two/", |mount| mount.readonly = true);
    let container = spec.create().await?;
    let plain = |mounts: &[v1::Mount]| {
        let pairs =
            mounts.iter().map(|m| (m.container_path.clone(), m.host_path.clone(), m.readonly, m.propagation));
        pairs.collect::<Vec<_>>()
    };
    let expected = plain(&container.config.mounts);
    let sorted = |mut mounts: Vec<(String, String, bool, i32)>| {
        mounts.sort();
        mounts
    };
    same!(
        sorted(plain(&container.status().await?.mounts)),
        sorted(expected.clone()),
        "status.mounts in CREATED"
    );
    container.start().await?;
    same!(sorted(plain(&container.status().await?.mounts)), sorted(expected), "status.mounts in RUNNING");
    Ok(())
}

async fn relabel_tolerated(node: Node) -> Result<()> {
    if crate::host::has_lsm("selinux") {
        return skip("the host has SELinux");
    }
    let folder = node.folder("volume")?;
    let spec = node.pod("relabel").run().await?.container("main").cmd(&["list", "/vol"]);
    spec.mount_as(&folder, "/vol", |mount| mount.selinux_relabel = true).report().await?.is("list./vol", "")
}

async fn missing_source(node: Node) -> Result<()> {
    let missing = node.scratch().join("not-there");
    let spec =
        node.pod("missing").run().await?.container("main").mount(&missing, "/vol").cmd(&["list", "/vol"]);
    match spec.try_create().await {
        Ok(id) => {
            node.start(&id).await?;
            ensure!(missing.is_dir(), "neither an error nor a folder");
        }
        Err(status) => {
            let path = missing.to_string_lossy().into_owned();
            ensure!(status.message().contains(&path), "the error does not name it: {}", status.message());
            ensure!(!missing.exists(), "an error, and yet something was made");
        }
    }
    Ok(())
}

async fn stay_inside(node: Node) -> Result<()> {
    let workshop = &node.run.workshop;
    let marker = node.folder("marker")?;
    let layer = bowline_testkit::Layer::new()
        .symlink("escape", "/")
        .symlink("up", "../../../../../../../..")
        .symlink("far", &marker.to_string_lossy());
    let image = workshop.image("hostile").layer(layer).entrypoint(&[PROGRAM]).build();
    let reference = node.pull_built("hostile", &image).await?;
    let volume = node.folder("volume")?;
    let pod = node.pod("inside").run().await?;
    let inner = node.unique("target");
    for (index, target) in ["/escape", "/up", "/far"].into_iter().enumerate() {
        let target = format!("{target}/{inner}");
        let spec = pod.container(&format!("c{index}")).image(&reference).mount(&volume, &target);
        if let Ok(id) = spec.try_create().await {
            let _ = node.start(&id).await;
        }
        for place in [Path::new("/").join(&inner), marker.join(&inner)] {
            ensure!(!place.exists(), "{target} made {} on the host", place.display());
        }
    }
    Ok(())
}

async fn nested(node: Node) -> Result<()> {
    let (outer, inner) = (node.folder("outer")?, node.folder("inner")?);
    fs::create_dir_all(outer.join("sub"))?;
    fs::write(outer.join("word"), "outer")?;
    fs::write(inner.join("word"), "inner")?;
    let pod = node.pod("nested").run().await?;
    let words = ["read", "/vol/word", "outer", ";", "read", "/vol/sub/word", "inner"];
    let spec = pod.container("main").cmd(&words).mount(&inner, "/vol/sub").mount(&outer, "/vol");
    let report = spec.report().await?;
    report.is("read.outer", "outer")?;
    report.is("read.inner", "inner")
}

async fn options(node: Node) -> Result<()> {
    if !node.feature(|features| features.mount_options) {
        return skip("mount_options is not declared");
    }
    let folder = node.folder("volume")?;
    let pod = node.pod("options").run().await?;
    let with = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let spec = pod.container("main").cmd(&["mounts"]).mount_as(&folder, "/vol", |mount| {
        mount.mount_options = with(&["noexec", "nodev", "nosuid"]);
    });
    let report = spec.report().await?;
    let line = report
        .all("mount.")
        .into_iter()
        .map(|(_, line)| line.to_owned())
        .find(|line| line.contains(" /vol "));
    let line = line.context("no mount at /vol")?;
    ensure!(
        ["noexec", "nodev", "nosuid"].iter().all(|word| line.contains(word)),
        "not all in effect: {line}"
    );
    let odd = pod.container("odd").mount_as(&folder, "/vol", |mount| mount.mount_options = with(&["bogus"]));
    refused(odd.try_create().await, &[Code::InvalidArgument], "an unknown mount option")?;
    Ok(())
}
