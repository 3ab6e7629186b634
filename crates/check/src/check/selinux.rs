//! SELinux.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1::{self, SeLinuxOption};

use super::case::{Case, case, same};
use crate::container::Report;
use crate::host;
use crate::node::{Node, refused, skip};
use crate::pod::PodSpec;

pub(super) const CASES: &[Case] = &[
    case!("selinux/labels", "C", labels).quick(),
    case!("selinux/categories", "C", categories),
    case!("selinux/mounts", "C", mounts),
    case!("selinux/exec", "C", exec).quick(),
    case!("selinux/separation", "C", separation),
    case!("selinux/relabel", "K", relabel),
    case!("selinux/relabel-system", "S", relabel_system),
    case!("selinux/host-namespaces", "C", host_namespaces),
    case!("selinux/user-namespace", "K", user_namespace),
    case!("selinux/image-volume", "K", image_volume),
    case!("selinux/info", "K", info),
    case!("selinux/restart", "S", restart).serial(),
];

/// The kernel has it, and the endpoint uses it.
async fn with_labels(node: &Node) -> Result<()> {
    if !host::has_lsm("selinux") {
        return skip("the host has no SELinux");
    }
    let attr = node.pod("probe").run().await?.report("probe", &["attr"]).await?.get("attr")?.to_owned();
    match attr.contains(":container_t:") {
        true => Ok(()),
        false => skip(format!("the endpoint gives no labels here: {attr}")),
    }
}

fn level(text: &str) -> Option<SeLinuxOption> {
    Some(SeLinuxOption { level: text.to_owned(), ..Default::default() })
}

/// The level at the end of a label.
fn level_of(label: &str) -> &str {
    label.splitn(4, ':').nth(3).unwrap_or_default()
}

impl PodSpec {
    fn level(self, text: &str) -> PodSpec {
        self.edit(|config| {
            let linux = config.linux.get_or_insert_default();
            linux.security_context.get_or_insert_default().selinux_options = level(text);
        })
    }
}

/// The label of a file of the host, or of a file in a container by the helper's `xattr`.
fn label_of(path: &Path) -> Result<String> {
    let mut value = [0u8; 256];
    let len = rustix::fs::lgetxattr(path, "security.selinux", &mut value[..])
        .with_context(|| format!("read the label of {}", path.display()))?;
    Ok(String::from_utf8_lossy(&value[..len]).trim_end_matches('\0').to_owned())
}

fn xattr(report: &Report) -> Result<String> {
    let hex = report.get("xattr.security.selinux")?;
    let digits: Vec<u8> =
        hex.bytes().filter_map(|digit| (digit as char).to_digit(16)).map(|d| d as u8).collect();
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

async fn labels(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let pod = node.pod("labels").privileged().run().await?;
    let alone = pod.container("level").cmd(&["attr"]).security(|s| s.selinux_options = level("s0:c1,c2"));
    let attr = alone.report().await?.get("attr")?.to_owned();
    ensure!(attr.ends_with(":container_t:s0:c1,c2"), "with a level alone: {attr}");
    let full = SeLinuxOption {
        user: "system_u".to_owned(),
        role: "system_r".to_owned(),
        r#type: "container_t".to_owned(),
        level: "s0:c3,c4".to_owned(),
    };
    let spec =
        pod.container("full").cmd(&["attr"]).security(|security| security.selinux_options = Some(full));
    spec.report().await?.is("attr", "system_u:system_r:container_t:s0:c3,c4")?;
    let spec = pod.container("privileged").cmd(&["attr"]).security(|security| security.privileged = true);
    let attr = spec.report().await?.get("attr")?.to_owned();
    ensure!(attr.contains(":spc_t:s0"), "privileged: {attr}");
    ensure!(!level_of(&attr).contains(','), "a pair of categories for a privileged container: {attr}");
    Ok(())
}

async fn categories(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let (one, two) = (node.pod("one").run().await?, node.pod("two").run().await?);
    let asked = node.pod("asked").level("s0:c7,c9").run().await?;
    let mut seen = Vec::new();
    for (pod, name) in [(&one, "a"), (&one, "b"), (&two, "a"), (&asked, "a")] {
        seen.push(pod.report(name, &["attr"]).await?.get("attr")?.to_owned());
    }
    same!(seen[0], seen[1], "the labels within a pod");
    ensure!(seen[0] != seen[2], "one label for two pods: {}", seen[0]);
    same!(level_of(&seen[3]), "s0:c7,c9", "the level that the pod asked for");
    for text in ["s0,c4,c5", "s0:c1,c2:bogus:x", "s0:c1024,c1"] {
        let bad = one.container("bad").security(|security| security.selinux_options = level(text));
        let error = refused(bad.try_create().await, &[], "a malformed level")?;
        ensure!(error.message().contains("level") || error.message().contains(text), "{}", error.message());
        refused(node.pod("bad").level(text).try_run().await, &[], "a malformed level of a pod")?;
    }
    Ok(())
}

/// All that is mounted for a container alone has the categories of its pod.
async fn mounts(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let pod = node.pod("mounts").run().await?;
    let report = pod.report("main", &["attr", ";", "mounts"]).await?;
    let level = level_of(report.get("attr")?).to_owned();
    let context = format!(":object_r:container_file_t:{level}");
    for point in ["/", "/dev", "/dev/shm", "/dev/pts"] {
        let lines = report.all("mount.");
        let line = lines.iter().find(|(_, line)| line.split(' ').nth(4) == Some(point));
        let (_, line) = line.with_context(|| format!("nothing is mounted on {point}"))?;
        // The kernel writes it in quotes, which the helper escapes.
        ensure!(line.contains("context=") && line.contains(&context), "{point}: {line}");
    }
    // With one PID namespace for all, somebody's process is its first, and its mounts are seen.
    let shared = node.pod("shared").shared_pid().run().await?;
    let words = ["attr", ";", "read", "/proc/1/mountinfo", "mounts"];
    let report = shared.report("main", &words).await?;
    let (own, mounts) = (level_of(report.get("attr")?), report.get("read.mounts")?);
    ensure!(
        mounts.contains(&format!(":object_r:container_file_t:{own}")),
        "mounts of the first process: {mounts}"
    );
    for (name, path) in [("hosts", "/etc/hosts"), ("queue", "/dev/mqueue"), ("root", "/")] {
        let label = xattr(&pod.report(name, &["xattr", path, "security.selinux"]).await?)?;
        ensure!(label.contains(":container_file_t:s0"), "{path}: {label}");
    }
    let files = pod.report(
        "files",
        &["write", "/etc/hosts", "1", ";", "write", "/dev/shm/x", "1", ";", "write", "/x", "1"],
    );
    files.await?.worked("write")
}

async fn exec(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let pod = node.pod("exec").privileged().run().await?;
    for privileged in [false, true] {
        let spec = pod.container(&format!("main-{privileged}")).cmd(&["attr", ";", "pause"]);
        let container = spec.security(|security| security.privileged = privileged).start().await?;
        let label = container.says("attr").await?.get("attr")?.to_owned();
        same!(container.exec(&["attr"]).await?.get("attr")?, label.as_str(), "the label of an exec");
        if privileged {
            // Others are not shown this file.
            let report = container.exec(&["read", "/proc/keys", "keys"]).await?;
            let keys = report.get("read.keys")?;
            ensure!(keys.contains(" _ses"), "no session keyring of its own: {keys}");
        }
    }
    Ok(())
}

/// What carries one pod's categories, another pod may not touch.
async fn separation(node: Node) -> Result<()> {
    with_labels(&node).await?;
    if std::fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|mode| mode.trim() != "1") {
        return skip("SELinux is permissive");
    }
    let folder = node.folder("volume")?;
    std::fs::write(folder.join("secret"), "1")?;
    let words = ["read", "/vol/secret", ";", "write", "/vol/new", "1"];
    let (one, two) = (
        node.pod("one").level("s0:c101,c102").run().await?,
        node.pod("two").level("s0:c103,c104").run().await?,
    );
    let owner =
        one.container("owner").mount_as(&folder, "/vol", |mount| mount.selinux_relabel = true).cmd(&words);
    let report = owner.report().await?;
    report.is("read", "1")?;
    report.worked("write")?;
    let report = two.container("other").mount(&folder, "/vol").cmd(&words).report().await?;
    report.failed("read", &["EACCES"])?;
    report.failed("write", &["EACCES"])?;
    // A privileged one may.
    let three = node.pod("three").privileged().run().await?;
    let spec = three.container("main").mount(&folder, "/vol").cmd(&words);
    spec.security(|security| security.privileged = true).report().await?.is("read", "1")
}

/// All of a volume gets the label, and nothing that symlinks in it lead to.
async fn relabel(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let (folder, outside) = (node.folder("volume")?, node.folder("outside")?);
    std::fs::create_dir(folder.join("below"))?;
    for path in [folder.join("below/file"), outside.join("file")] {
        std::fs::write(path, "1")?;
    }
    std::os::unix::fs::symlink(&outside, folder.join("link"))?;
    std::os::unix::fs::symlink(outside.join("file"), folder.join("below/link"))?;
    let pod = node.pod("relabel").run().await?;
    let words = ["read", "/vol/below/file", ";", "write", "/vol/below/new", "1"];
    let plain = pod.container("plain").mount(&folder, "/vol").cmd(&words);
    plain.report().await?;
    ensure!(
        !label_of(&folder)?.contains("container_file_t"),
        "a volume was relabelled although nobody asked"
    );
    let spec = pod.container("main").cmd(&words);
    let report = spec.mount_as(&folder, "/vol", |mount| mount.selinux_relabel = true).report().await?;
    report.is("read", "1")?;
    report.worked("write")?;
    for name in ["", "below", "below/file", "below/new", "link", "below/link"] {
        let label = label_of(&folder.join(name))?;
        ensure!(label.contains(":container_file_t:"), "{name}: {label}");
    }
    for path in [outside.clone(), outside.join("file")] {
        // Where the file system's default shows there may be no attribute at all.
        let label = label_of(&path).unwrap_or_default();
        ensure!(!label.contains("container_file_t"), "a symlink led to {}: {label}", path.display());
    }
    // A privileged container needs none of it.
    let privileged = node.pod("privileged").privileged().run().await?;
    let spec = privileged.container("main").cmd(&["list", "/vol"]);
    let spec = spec.security(|security| security.privileged = true);
    spec.mount_as(&outside, "/vol", |mount| mount.selinux_relabel = true).report().await?;
    ensure!(
        !label_of(&outside).unwrap_or_default().contains("container_file_t"),
        "a volume was relabelled for a privileged container"
    );
    Ok(())
}

/// CVE-2021-43816 and its like: nobody has the system relabelled.
async fn relabel_system(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let pod = node.pod("system").run().await?;
    let link = node.folder("volume")?.join("link");
    std::os::unix::fs::symlink("/etc", &link)?;
    let before = label_of(Path::new("/etc")).unwrap_or_default();
    for (name, path) in [("etc", Path::new("/etc")), ("root", Path::new("/")), ("link", &link)] {
        let spec = pod.container(name).mount_as(path, "/vol", |mount| mount.selinux_relabel = true);
        spec.refused(&format!("a new label for {}", path.display())).await?;
    }
    // What replaces the pod's own files is the client's, and is not touched either.
    let hosts = node.folder("volume")?.join("hosts");
    std::fs::write(&hosts, "1")?;
    let spec = pod.container("hosts").mount(&hosts, "/etc/hosts").cmd(&["list", "/etc"]);
    spec.report().await?;
    ensure!(
        !label_of(&hosts).unwrap_or_default().contains("container_file_t"),
        "a file of the client's was relabelled"
    );
    same!(label_of(Path::new("/etc")).unwrap_or_default(), before, "the label of /etc");
    Ok(())
}

/// Categories would keep a container from the processes that it was shown.
async fn host_namespaces(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let host = v1::NamespaceMode::Node as i32;
    let pids = node.pod("pids").namespaces(|namespaces| namespaces.pid = host).run().await?;
    let ipc = node.pod("ipc").namespaces(|namespaces| namespaces.ipc = host).run().await?;
    for pod in [pids, ipc] {
        let attr = pod.report("main", &["attr"]).await?.get("attr")?.to_owned();
        ensure!(!attr.contains(":container_t:"), "{attr}");
    }
    Ok(())
}

async fn user_namespace(node: Node) -> Result<()> {
    with_labels(&node).await?;
    if !node.handler_feature(|features| features.user_namespaces) {
        return skip("user_namespaces is not declared");
    }
    let pod = node.pod("users").own_users().run().await?;
    let words = ["attr", ";", "write", "/dev/shm/x", "1", ";", "write", "/x", "1", ";", "pause"];
    let container = pod.container("main").cmd(&words).start().await?;
    let report = container.says("attr").await?;
    let label = report.get("attr")?.to_owned();
    ensure!(label.contains(":container_t:s0:c"), "{label}");
    report.worked("write")?;
    same!(container.exec(&["attr"]).await?.get("attr")?, label.as_str(), "the label of an exec");
    Ok(())
}

/// The layers of an image keep the label that they have on the node; containers see another.
async fn image_volume(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let image = node.run.image.clone();
    let pod = node.pod("image").run().await?;
    let spec = pod.container("main").cmd(&["list", "/vol", ";", "xattr", "/vol", "security.selinux"]);
    let spec = spec.edit(|config| {
        config.mounts.push(v1::Mount {
            container_path: "/vol".to_owned(),
            image: Some(crate::node::image(&image)),
            readonly: true,
            ..Default::default()
        });
    });
    let report = spec.report().await?;
    report.worked("list")?;
    let label = xattr(&report)?;
    ensure!(label.contains(":container_file_t:"), "{label}");
    Ok(())
}

/// A pod keeps its categories over a restart of the daemon, and no later pod gets them.
async fn restart(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let pod = node.pod("before").run().await?;
    let before = pod.report("before", &["attr"]).await?.get("attr")?.to_owned();
    super::restart::restart(&node).await?;
    same!(pod.report("after", &["attr"]).await?.get("attr")?, before.as_str(), "the label after a restart");
    for name in ["one", "two", "three"] {
        let label = node.pod(name).run().await?.report("main", &["attr"]).await?.get("attr")?.to_owned();
        ensure!(label != before, "{label} for another pod");
    }
    Ok(())
}

/// `crictl inspect` shows the labels.
async fn info(node: Node) -> Result<()> {
    with_labels(&node).await?;
    let container =
        node.pod("info").run().await?.container("main").cmd(&["attr", ";", "pause"]).start().await?;
    let label = container.says("attr").await?.get("attr")?.to_owned();
    let request = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
    let answer = node.runtime().container_status(crate::endpoint::ask(request)).await?.into_inner();
    let info = answer.info.get("info").context("no verbose info")?;
    let info: serde_json::Value = serde_json::from_str(info).context("the verbose info is no JSON")?;
    same!(info["runtimeSpec"]["process"]["selinuxLabel"], label.as_str(), "process.selinuxLabel");
    let mount = info["runtimeSpec"]["linux"]["mountLabel"].as_str().unwrap_or_default();
    ensure!(mount.ends_with(&format!(":{}", level_of(&label))), "linux.mountLabel: {mount}");
    Ok(())
}
