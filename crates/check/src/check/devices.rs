//! Devices.

use std::os::unix::fs::{MetadataExt as _, symlink};

use anyhow::{Context as _, Result};
use bowline_cri_proto::v1::Device;

use super::case::{Case, case};
use crate::node::{Node, skip};

pub(super) const CASES: &[Case] = &[case!("devices/node", "K", node_).quick()];

/// A device that opens for anybody who is let, and that is not among a container's default ones.
fn candidate() -> Result<(&'static str, String, String)> {
    for path in ["/dev/fuse", "/dev/loop-control", "/dev/net/tun"] {
        let opens = std::fs::OpenOptions::new().read(true).write(true).open(path);
        if let Ok(data) = opens.and_then(|file| file.metadata()) {
            let device = data.rdev();
            return Ok((path, rustix::fs::major(device).to_string(), rustix::fs::minor(device).to_string()));
        }
    }
    skip("the host has none of the devices that this is tried with")
}

async fn node_(node: Node) -> Result<()> {
    let (host, major, minor) = candidate()?;
    let pod = node.pod("devices").run().await?;
    let device = |host: &str, inside: &str, permissions: &str| Device {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        permissions: permissions.to_owned(),
    };
    let words = ["open", "r", "/dev/given", ";", "stat", "/dev/given"];
    let given = pod.container("given").cmd(&words).edit(|c| c.devices.push(device(host, "/dev/given", "rw")));
    let report = given.report().await?;
    report.worked("open")?;
    report.get("stat./dev/given")?;
    let reads = pod.container("reads").cmd(&["open", "w", "/dev/given"]);
    let reads = reads.edit(|config| config.devices.push(device(host, "/dev/given", "r")));
    reads.report().await?.failed("open", &["EPERM"]).context("writing what may be read")?;
    // Made by hand: what was not given is denied by the kernel, not by a missing name.
    let denied = pod
        .container("denied")
        .cmd(&["mknod", "/tmp/own", &major, &minor, ";", "open", "r", "/tmp/own"])
        .report()
        .await?;
    denied.worked("mknod")?;
    denied.failed("open", &["EPERM"])?;
    let link = node.folder("links")?.join("device");
    symlink(host, &link)?;
    let path = link.to_string_lossy().into_owned();
    let linked = pod.container("linked").cmd(&["open", "r", "/dev/given"]);
    let report =
        linked.edit(|config| config.devices.push(device(&path, "/dev/given", "rwm"))).report().await?;
    report.worked("open").context("by a symlink")?;
    let folder = pod.container("folder").cmd(&["list", "/dev/all"]);
    let report = folder.edit(|config| config.devices.push(device("/dev/net", "/dev/all", "rwm")));
    if std::path::Path::new("/dev/net").is_dir() {
        report.report().await?.is("list./dev/all", "tun").context("a folder of devices")?;
    }
    Ok(())
}
