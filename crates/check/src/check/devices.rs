//! Devices.

use std::os::unix::fs::symlink;

use anyhow::{Context as _, Result};
use bowline_cri_proto::v1::Device;

use super::case::{Case, case};
use crate::node::Node;

pub(super) const CASES: &[Case] = &[case!("devices/node", "K", node_).quick()];

/// /dev/kmsg is on every host, answers to opening, and is not among a container's default devices.
async fn node_(node: Node) -> Result<()> {
    let pod = node.pod("devices").run().await?;
    let device = |host: &str, inside: &str, permissions: &str| Device {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        permissions: permissions.to_owned(),
    };
    let words = ["open", "r", "/dev/given", ";", "stat", "/dev/given"];
    let given = pod.container("given").cmd(&words).edit(|c| c.devices.push(device("/dev/kmsg", "/dev/given", "rw")));
    let report = given.report().await?;
    report.worked("open")?;
    report.get("stat./dev/given")?;
    let reads = pod.container("reads").cmd(&["open", "w", "/dev/given"]);
    let report = reads.edit(|config| config.devices.push(device("/dev/kmsg", "/dev/given", "r"))).report().await?;
    report.failed("open", &["EPERM"]).context("writing what may be read")?;
    // Made by hand: what was not given is denied by the kernel, not by a missing name.
    let denied = pod.container("denied").cmd(&["mknod", "/tmp/own", "1", "11", ";", "open", "r", "/tmp/own"]).report().await?;
    denied.worked("mknod")?;
    denied.failed("open", &["EPERM"])?;
    let link = node.folder("links")?.join("kmsg");
    symlink("/dev/kmsg", &link)?;
    let path = link.to_string_lossy().into_owned();
    let linked = pod.container("linked").cmd(&["open", "r", "/dev/given"]);
    let report = linked.edit(|config| config.devices.push(device(&path, "/dev/given", "rwm"))).report().await?;
    report.worked("open").context("by a symlink")?;
    let folder = pod.container("folder").cmd(&["list", "/dev/all"]);
    let report = folder.edit(|config| config.devices.push(device("/dev/net", "/dev/all", "rwm")));
    if std::path::Path::new("/dev/net").is_dir() {
        report.report().await?.is("list./dev/all", "tun").context("a folder of devices")?;
    }
    Ok(())
}
