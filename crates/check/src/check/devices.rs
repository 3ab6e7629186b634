//! Devices.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1::{self, Device};

use super::case::{Case, case};
use crate::node::{Node, skip};

pub(super) const CASES: &[Case] = &[
    case!("devices/node", "K", node_).quick(),
    case!("devices/block", "K", block),
    case!("devices/cdi", "K", cdi),
    case!("devices/users", "K", users),
];

/// Where vendors' tools announce devices for as long as the machine is up.
const CDI_FOLDER: &str = "/var/run/cdi";

/// A file that goes with the case.
struct Announced(PathBuf);

impl Announced {
    fn new(node: &Node, ending: &str, text: &str) -> Result<Announced> {
        fs::create_dir_all(CDI_FOLDER)?;
        let path = Path::new(CDI_FOLDER).join(format!("{}.{ending}", node.unique("check")));
        fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        Ok(Announced(path))
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A block device of the host that opens for reading.
fn block_candidate() -> Result<(String, String, String)> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/block")
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    names.sort();
    for name in names {
        let path = format!("/dev/{name}");
        let opens = fs::File::open(&path).and_then(|file| file.metadata());
        let Some(data) = opens.ok().filter(|data| data.file_type().is_block_device()) else { continue };
        let device = data.rdev();
        return Ok((path, rustix::fs::major(device).to_string(), rustix::fs::minor(device).to_string()));
    }
    skip("the host has no block device that opens")
}

async fn block(node: Node) -> Result<()> {
    let (host, major, minor) = block_candidate()?;
    let pod = node.pod("block").run().await?;
    let words = ["open", "r", "/dev/given", ";", "stat", "/dev/given"];
    let given = pod.container("given").cmd(&words).edit(|config| {
        config.devices.push(Device {
            host_path: host.clone(),
            container_path: "/dev/given".to_owned(),
            permissions: "r".to_owned(),
        });
    });
    given.report().await?.worked("open")?;
    let own = ["mknod", "b", "/tmp/own", &major, &minor, ";", "open", "r", "/tmp/own"];
    let denied = pod.report("denied", &own).await?;
    denied.worked("mknod")?;
    denied.failed("open", &["EPERM"]).context("a block device that was not given")?;
    // The same numbers mean another device among those of characters.
    let given =
        pod.container("other-kind").cmd(&["mknod", "/tmp/own", &major, &minor, ";", "open", "r", "/tmp/own"]);
    let report = given.edit(|config| {
        config.devices.push(Device {
            host_path: host.clone(),
            container_path: "/dev/given".to_owned(),
            permissions: "rwm".to_owned(),
        });
    });
    report
        .report()
        .await?
        .failed("open", &["EPERM"])
        .context("a character device of the block device's numbers")
}

async fn cdi(node: Node) -> Result<()> {
    let (host, ..) = candidate()?;
    let folder = node.folder("given")?;
    fs::write(folder.join("word"), "from the vendor")?;
    // A vendor of this run's own: others may have devices of theirs.
    let vendor = format!("v{}.check", node.run.name.replace(|c: char| !c.is_ascii_alphanumeric(), ""));
    let volume = folder.display();
    let json = format!(
        r#"{{"cdiVersion": "0.5.0", "kind": "{vendor}/device",
            "containerEdits": {{"env": ["CDI_ALL=yes"]}},
            "devices": [
              {{"name": "one", "containerEdits": {{
                "env": ["CDI_ONE=1"],
                "deviceNodes": [{{"path": "/dev/cdi-one", "hostPath": "{host}", "permissions": "rw"}}],
                "mounts": [{{"hostPath": "{volume}", "containerPath": "/cdi", "options": ["ro", "bind"]}}]}}}},
              {{"name": "two", "containerEdits": {{"env": ["CDI_TWO=2"]}}}}]}}"#
    );
    // It finds the root as vendors' tools do: by the bundle that the state on its standard input names.
    let script = r#"cd "$(sed 's/.*"bundle": *"//; s/".*//')" && echo by the hook > rootfs/hooked"#;
    let script = serde_json::to_string(script)?;
    let yaml = format!(
        "cdiVersion: 1.0.0\nkind: {vendor}/other\ndevices:\n- name: hooked\n  containerEdits:\n    hooks:\n    \
         - hookName: createContainer\n      path: /bin/sh\n      args: [sh, -c, {script}]\n      \
         env: [\"PATH=/usr/bin:/bin\"]\n"
    );
    let announced = [Announced::new(&node, "json", &json)?, Announced::new(&node, "yaml", &yaml)?];
    let pod = node.pod("cdi").run().await?;
    let named = |device: &str| v1::CdiDevice { name: format!("{vendor}/device={device}") };
    let words =
        ["env", ";", "open", "w", "/dev/cdi-one", ";", "read", "/cdi/word", ";", "write", "/cdi/no", "x"];
    for way in ["field", "annotation"] {
        let spec = pod.container(way).cmd(&words).edit(|config| match way {
            "field" => config.cdi_devices.extend([named("one"), named("two")]),
            _ => {
                let names = format!("{vendor}/device=one,{vendor}/device=two");
                config.annotations.insert(format!("cdi.k8s.io/check-{way}"), names);
            }
        });
        let report = spec.report().await.with_context(|| format!("by {way}"))?;
        report.worked("open").with_context(|| format!("by {way}"))?;
        report.is("read", "from the vendor")?;
        report.failed("write", &["EROFS"])?;
        for (name, value) in [("CDI_ALL", "yes"), ("CDI_ONE", "1"), ("CDI_TWO", "2")] {
            report.is(&format!("env.{name}"), value)?;
        }
    }
    for (what, name) in [
        ("a device that nobody announced", format!("{vendor}/device=three")),
        ("a vendor that nobody knows", format!("no.{vendor}/device=one")),
        ("no name of a device", "one".to_owned()),
    ] {
        let spec =
            pod.container("unresolved").edit(|c| c.cdi_devices.push(v1::CdiDevice { name: name.clone() }));
        let status = spec.refused(what).await?;
        ensure!(status.message().contains(&name), "{what}: the text is {}", status.message());
    }
    // A runtime may run hooks; one that does not must not leave them out.
    let hooked = |name: &str| {
        let spec = pod.container(name).cmd(&["read", "/hooked"]);
        spec.edit(|c| c.cdi_devices.push(v1::CdiDevice { name: format!("{vendor}/other=hooked") }))
    };
    match hooked("tried").try_create().await {
        Err(status) => ensure!(status.message().contains("hook"), "the text is {}", status.message()),
        Ok(_) => {
            hooked("hooked").report().await?.is("read", "by the hook").context("a createContainer hook")?
        }
    }
    drop(announced);
    let gone = pod.container("gone").edit(|config| config.cdi_devices.push(named("one")));
    gone.refused("a device that is announced no more").await.map(drop)
}

/// Devices in a user namespace: bound, since nobody makes nodes there.
async fn users(node: Node) -> Result<()> {
    if !node.handler_feature(|features| features.user_namespaces) {
        return skip("user_namespaces is not declared");
    }
    let (host, ..) = candidate()?;
    let pod = node.pod("users").own_users().run().await?;
    let given = pod.container("given").cmd(&["stat", "/dev/given", ";", "open", "r", "/dev/null"]);
    let given = given.edit(|config| {
        config.devices.push(Device {
            host_path: host.to_owned(),
            container_path: "/dev/given".to_owned(),
            permissions: "rw".to_owned(),
        });
    });
    let report = given.report().await?;
    let expected = format!("{:#x}", fs::metadata(host)?.rdev());
    let stat = report.get("stat./dev/given")?;
    ensure!(stat.ends_with(&expected), "the node is {stat}, and not the host's {expected}");
    report.worked("open")
}

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
