//! User namespaces.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1::{self, NamespaceMode};

use super::case::{Case, case, same};
use crate::container::Ctr;
use crate::images::PROGRAM;
use crate::node::{Node, denied, skip};
use crate::pod::PodSpec;

pub(super) const CASES: &[Case] = &[
    case!("userns/pod-mapping", "CK", pod_mapping).quick(),
    case!("userns/node", "C", node_),
    case!("userns/refused", "C", refused),
    case!("userns/volumes", "K", volumes),
    case!("userns/image-volume", "K", image_volume),
    case!("userns/system-files", "K", system_files),
    case!("userns/shared-pids", "K", shared_pids),
    case!("userns/sysctls", "K", sysctls),
];

/// As critest has it: the range need be no multiple of 65536.
const FIRST: u32 = 1000;
const LENGTH: u32 = 100_000;

fn mapping() -> v1::IdMapping {
    v1::IdMapping { host_id: FIRST, container_id: 0, length: LENGTH }
}

fn declared(node: &Node) -> Result<()> {
    match node.handler_feature(|features| features.user_namespaces) {
        true => Ok(()),
        false => skip("user_namespaces is not declared"),
    }
}

fn users(mode: NamespaceMode, uids: Vec<v1::IdMapping>, gids: Vec<v1::IdMapping>) -> v1::UserNamespace {
    v1::UserNamespace { mode: mode as i32, uids, gids }
}

impl PodSpec {
    /// With a user namespace of its own.
    pub(super) fn own_users(self) -> PodSpec {
        let options = users(NamespaceMode::Pod, vec![mapping()], vec![mapping()]);
        self.namespaces(|namespaces| namespaces.userns_options = Some(options))
    }
}

/// The map of a process as the host shows it.
async fn host_map(container: &Ctr, name: &str) -> Result<Vec<String>> {
    let pid = container.host_pid().await?;
    let text = fs::read_to_string(format!("/proc/{pid}/{name}"))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

async fn pod_mapping(node: Node) -> Result<()> {
    declared(&node)?;
    let pod = node.pod("mapped").own_users().run().await?;
    let container = pod.container("main").start().await?;
    for name in ["uid_map", "gid_map"] {
        same!(host_map(&container, name).await?, ["0", "1000", "100000"], "{name}");
    }
    let pid = container.host_pid().await?;
    same!(fs::metadata(format!("/proc/{pid}"))?.uid(), FIRST, "the owner of the process on the host");
    let words = [
        "stat",
        "/",
        ";",
        "stat",
        "/etc/plain",
        ";",
        "write",
        "/new",
        "x",
        ";",
        "stat",
        "/new",
        ";",
        "append",
        "/etc/plain",
        "!",
        ";",
        "stat",
        "/etc/plain",
        ";",
        "chmod",
        "/data/shipped",
        "600",
    ];
    let report = container.exec(&words).await?;
    for path in ["/", "/etc/plain", "/new"] {
        let stat = report.get(&format!("stat.{path}"))?;
        ensure!(stat.contains(" 0 0 "), "{path} is {stat}, and not root's");
    }
    report.worked("write")?;
    report.worked("append")?;
    report.worked("chmod")?;
    let user = pod.container("user").user(1000).cmd(&["ids", ";", "write", "/tmp/x", "y"]);
    let report = user.report().await.context("as a user that is not root")?;
    report.worked("write")?;
    let status = pod.status().await?;
    let options = status.linux.unwrap_or_default().namespaces.unwrap_or_default().options;
    let shown = options.unwrap_or_default().userns_options.unwrap_or_default();
    same!((shown.uids, shown.gids), (vec![mapping()], vec![mapping()]), "the mappings in the status");
    Ok(())
}

async fn node_(node: Node) -> Result<()> {
    let host = fs::read_to_string("/proc/self/uid_map")?;
    let host: Vec<&str> = host.split_whitespace().collect();
    let options = users(NamespaceMode::Node, Vec::new(), Vec::new());
    for (name, options) in [("node", Some(options)), ("nil", None)] {
        let pod = node.pod(name).namespaces(|namespaces| namespaces.userns_options = options).run().await?;
        let container = pod.container("main").start().await?;
        same!(host_map(&container, "uid_map").await?, host, "uid_map with {name}");
    }
    Ok(())
}

async fn refused(node: Node) -> Result<()> {
    let two = vec![mapping(), v1::IdMapping { host_id: 200_000, ..mapping() }];
    let not_root = vec![v1::IdMapping { container_id: 1, ..mapping() }];
    let wishes = [
        ("two mappings", users(NamespaceMode::Pod, two.clone(), two)),
        ("no mapping", users(NamespaceMode::Pod, Vec::new(), Vec::new())),
        ("no mapping of id 0", users(NamespaceMode::Pod, not_root.clone(), not_root)),
        ("mode CONTAINER", users(NamespaceMode::Container, Vec::new(), Vec::new())),
        ("mode TARGET", users(NamespaceMode::Target, Vec::new(), Vec::new())),
    ];
    for (what, options) in wishes {
        let spec = node.pod("refused").namespaces(|namespaces| namespaces.userns_options = Some(options));
        denied(spec.try_run().await, what)?;
    }
    Ok(())
}

async fn volumes(node: Node) -> Result<()> {
    declared(&node)?;
    let folder = node.folder("volume")?;
    fs::write(folder.join("roots"), "r")?;
    fs::write(folder.join("users"), "u")?;
    chown(folder.join("users"), Some(1000), Some(1002))?;
    let memory = node.folder("memory")?;
    node.tmpfs(&memory)?;
    let mapped = |mount: &mut v1::Mount| {
        (mount.uid_mappings, mount.gid_mappings) = (vec![mapping()], vec![mapping()]);
    };
    let pod = node.pod("volumes").own_users().run().await?;
    let words = [
        "stat",
        "/vol/roots",
        ";",
        "stat",
        "/vol/users",
        ";",
        "write",
        "/vol/new",
        "x",
        ";",
        "write",
        "/memory/new",
        "x",
    ];
    let spec = pod.container("main").cmd(&words).mount_as(&folder, "/vol", mapped);
    let report = spec.mount_as(&memory, "/memory", mapped).report().await?;
    let stat = report.get("stat./vol/roots")?;
    ensure!(stat.contains(" 0 0 "), "a file of the host's root is {stat} inside");
    let stat = report.get("stat./vol/users")?;
    ensure!(stat.contains(" 1000 1002 "), "a file of 1000:1002 is {stat} inside");
    report.worked("write")?;
    for path in [folder.join("new"), memory.join("new")] {
        let data = fs::metadata(&path)?;
        same!((data.uid(), data.gid()), (0, 0), "the owner of {} on the host", path.display());
    }
    let other = v1::IdMapping { host_id: 300_000, ..mapping() };
    let strange = pod.container("strange").mount_as(&folder, "/vol", |mount| {
        (mount.uid_mappings, mount.gid_mappings) = (vec![other], vec![other]);
    });
    strange.refused("a mapping that is not the pod's").await?;
    let plain = node.pod("plain").run().await?;
    let stray = plain.container("stray").mount_as(&folder, "/vol", mapped);
    stray.refused("a mapping in a pod without a user namespace").await?;
    // cgroup file systems take no idmapped mounts.
    let stubborn = pod.container("stubborn");
    let stubborn = stubborn.mount_as(std::path::Path::new("/proc/sys/kernel"), "/vol", mapped);
    let status = stubborn.refused("a file system that cannot").await?;
    ensure!(status.message().contains("/proc/sys/kernel"), "the text is {}", status.message());
    Ok(())
}

async fn image_volume(node: Node) -> Result<()> {
    declared(&node)?;
    let upper = bowline_testkit::Layer::new().file("data/more", 0o600, "private\n");
    let built = node.run.workshop.image("mapped").layer(upper).build();
    let reference = node.pull_built("mapped", &built).await?;
    let pod = node.pod("image").own_users().run().await?;
    let spec = pod.container("main").cmd(&["read", "/vol/more", ";", "stat", "/vol/more"]).edit(|config| {
        config.mounts.push(v1::Mount {
            container_path: "/vol".to_owned(),
            readonly: true,
            image: Some(crate::node::image(&reference)),
            image_sub_path: "data".to_owned(),
            ..Default::default()
        });
    });
    let report = spec.report().await?;
    report.is("read", "private")?;
    let stat = report.get("stat./vol/more")?;
    ensure!(stat.contains(" 0 0 "), "a file of the image is {stat}, and not root's");
    Ok(())
}

async fn system_files(node: Node) -> Result<()> {
    declared(&node)?;
    let pod = node.pod("system").own_users().run().await?;
    let words = [
        "append",
        "/etc/hosts",
        "\n",
        ";",
        "read",
        "/etc/resolv.conf",
        "resolv",
        ";",
        "write",
        "/dev/shm/word",
        "x",
        ";",
        "stat",
        "/dev/shm/word",
        ";",
        "open",
        "w",
        "/dev/null",
        ";",
        "append",
        "/dev/stdout",
        "opened=yes\n",
        ";",
        "read",
        "/proc/self/oom_score_adj",
        "oom",
        ";",
        "list",
        "/sys/fs",
    ];
    // Below the runtime's own value only where this machine lets anybody go there.
    let score = if may_lower_scores()? { -100 } else { 200 };
    let spec = pod.container("main").cmd(&words).resources(|resources| resources.oom_score_adj = score);
    let report = spec.report().await?;
    for operation in ["append", "read", "write", "open", "list"] {
        report.worked(operation)?;
    }
    let stat = report.get("stat./dev/shm/word")?;
    ensure!(stat.contains(" 0 0 "), "a new file in /dev/shm is {stat}, and not root's");
    report.is("opened", "yes").context("/dev/stdout opened anew")?;
    report.is("read.oom", &score.to_string()).context("oom_score_adj")?;
    let running = pod.container("running").edit(|config| config.tty = true).start().await?;
    running.exec(&["append", "/dev/stderr", "x"]).await?.worked("append")?;
    let answer = node.exec_sync(&running.id, &[PROGRAM, "read", "/proc/self/uid_map"], 30).await?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    ensure!(text.contains("1000"), "an exec has the map {text}");
    Ok(())
}

/// Whether we have CAP_SYS_RESOURCE, and so, as far as we know, has the runtime.
fn may_lower_scores() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    Ok(u64::from_str_radix(line.trim(), 16)? & (1 << 24) != 0)
}

async fn shared_pids(node: Node) -> Result<()> {
    declared(&node)?;
    let pod = node.pod("shared").own_users().shared_pid().run().await?;
    let first = pod.container("first").start().await?;
    let second = pod.container("second").start().await?;
    for container in [&first, &second] {
        container.exec(&["list", "/proc"]).await?.worked("list")?;
        same!(host_map(container, "uid_map").await?, ["0", "1000", "100000"], "uid_map");
    }
    first.stop(1).await?;
    second.exec(&["write", "/tmp/x", "y"]).await?.worked("write")?;
    let target = node.pod("target").own_users().run().await?;
    let looked_at = target.container("looked-at").start().await?;
    let looker = target.container("looker").security(|security| {
        security.namespace_options = Some(v1::NamespaceOption {
            pid: NamespaceMode::Target as i32,
            target_id: looked_at.id.clone(),
            ..Default::default()
        });
    });
    looker.cmd(&["read", "/proc/1/uid_map"]).report().await?.worked("read")
}

async fn sysctls(node: Node) -> Result<()> {
    declared(&node)?;
    let pod = node.pod("sysctls").own_users();
    let pod = pod.sysctl("kernel.shm_rmid_forced", "1").sysctl("net.ipv4.ip_unprivileged_port_start", "80");
    let pod = pod.run().await?;
    let words = [
        "read",
        "/proc/sys/kernel/shm_rmid_forced",
        "ipc",
        ";",
        "read",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "net",
    ];
    let report = pod.report("main", &words).await?;
    report.is("read.ipc", "1")?;
    report.is("read.net", "80")
}
