//! What a container may do.

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;

use super::case::{Case, case, same};
use crate::container::{CtrSpec, Report};
use crate::images::SETUID_PROGRAM;
use crate::node::Node;

pub(super) const CASES: &[Case] = &[
    case!("privilege/privileged", "CP", privileged).quick(),
    case!("privilege/unprivileged", "C", unprivileged).quick(),
    case!("privilege/add-drop", "C", add_drop),
    case!("privilege/ambient", "K", ambient),
    case!("privilege/no-new-privs", "C", no_new_privs),
    case!("privilege/readonly-rootfs", "C", readonly_rootfs),
    case!("privilege/masked-paths", "CK", masked_paths),
];

/// The usual fourteen: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW,
/// SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const DEFAULT: u64 = 0xa804_25fb;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const NET_BIND_SERVICE: u64 = 1 << 10;

fn capability(report: &Report, set: &str) -> Result<u64> {
    Ok(u64::from_str_radix(report.get(&format!("cap.{set}"))?, 16)?)
}

fn capabilities(spec: CtrSpec, add: &[&str], drop: &[&str]) -> CtrSpec {
    let words = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
    let asked =
        v1::Capability { add_capabilities: words(add), drop_capabilities: words(drop), ..Default::default() };
    spec.security(|security| security.capabilities = Some(asked))
}

async fn privileged(node: Node) -> Result<()> {
    let pod = node.pod("privileged").privileged().run().await?;
    let words = [
        "link-up",
        ";",
        "ids",
        ";",
        "stat",
        "/dev/kmsg",
        ";",
        "open",
        "r",
        "/dev/kmsg",
        ";",
        "mounts",
        ";",
        "read",
        "/proc/kcore-none",
    ];
    let report =
        pod.container("main").cmd(&words).security(|security| security.privileged = true).report().await?;
    report.is("link-up", "ok").context("managing interfaces")?;
    report.get("stat./dev/kmsg").context("the host's devices")?;
    let mounts = report.all("mount.");
    let sys = mounts.iter().map(|(_, line)| *line).find(|line| line.contains(" /sys ")).context("no /sys")?;
    let flags = sys.split(' ').nth(5).unwrap_or_default();
    ensure!(flags.split(',').any(|flag| flag == "rw"), "/sys is not writable: {sys}");
    let masks: Vec<_> = mounts.iter().filter(|(_, line)| line.contains(" /proc/")).collect();
    ensure!(masks.is_empty(), "masked or read-only paths below /proc: {masks:?}");
    let plain = node.pod("plain").run().await?;
    let spec = plain.container("main").security(|security| security.privileged = true);
    spec.refused("a privileged container in an unprivileged sandbox").await?;
    Ok(())
}

async fn unprivileged(node: Node) -> Result<()> {
    let pod = node.pod("unprivileged").run().await?;
    let report = pod.report("main", &["link-up", ";", "ids", ";", "raw-socket"]).await?;
    report.failed("link-up", &["EPERM"])?;
    let effective = capability(&report, "effective")?;
    same!(effective & !DEFAULT, 0, "capabilities beyond the default ones");
    same!(capability(&report, "bounding")?, effective, "the bounding set");
    Ok(())
}

async fn add_drop(node: Node) -> Result<()> {
    let pod = node.pod("caps").run().await?;
    let host = u64::from_str_radix(own_bounding()?.trim(), 16)?;
    type Words = &'static [&'static str];
    let cases: [(&str, Words, Words, u64, u64); 4] = [
        ("added", &["NET_ADMIN"], &[], NET_ADMIN, 0),
        ("dropped", &[], &["NET_RAW"], 0, NET_RAW),
        ("all-added", &["ALL"], &[], host, 0),
        ("all-dropped", &[], &["ALL"], 0, u64::MAX),
    ];
    for (name, add, drop, there, gone) in cases {
        let container =
            capabilities(pod.container(name).cmd(&["ids", ";", "link-up", ";", "pause"]), add, drop)
                .start()
                .await?;
        let (own, exec) = (container.says("pid").await?, container.exec(&["ids", ";", "link-up"]).await?);
        for (what, report) in [("process", &own), ("exec", &exec)] {
            for set in ["effective", "permitted", "bounding"] {
                let got = capability(report, set)?;
                ensure!(got & there == there && got & gone == 0, "{set} of the {what}, {name}: {got:x}");
            }
        }
        same!(
            exec.find("link-up").is_some(),
            there & NET_ADMIN != 0,
            "whether it can manage interfaces, {name}"
        );
    }
    Ok(())
}

/// What the host itself has to give.
fn own_bounding() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    Ok(line.context("no CapBnd")?.to_owned())
}

async fn ambient(node: Node) -> Result<()> {
    let pod = node.pod("ambient").run().await?;
    let asked = |name: &str| {
        let add = v1::Capability { add_ambient_capabilities: vec![name.to_owned()], ..Default::default() };
        pod.container(name).cmd(&["ids"]).user(1000).security(|security| security.capabilities = Some(add))
    };
    let report = asked("NET_BIND_SERVICE").report().await?;
    for set in ["ambient", "effective"] {
        let got = capability(&report, set)?;
        ensure!(got & NET_BIND_SERVICE != 0, "the {set} set is {got:x}");
    }
    asked("NO_SUCH_THING").refused("an unknown capability").await?;
    Ok(())
}

async fn no_new_privs(node: Node) -> Result<()> {
    let pod = node.pod("privs").run().await?;
    for (name, set, effective) in [("set", true, "1000"), ("unset", false, "0")] {
        let spec = pod.container(name).user(1000).security(|security| security.no_new_privs = set);
        let words = vec![SETUID_PROGRAM.to_owned(), "ids".to_owned()];
        let report = spec.edit(|config| config.command = words).report().await?;
        let uids = report.get("uids")?;
        same!(uids.split(' ').nth(1), Some(effective), "the effective uid of a setuid program, {name}");
        report.is("no_new_privs", if set { "1" } else { "0" })?;
    }
    Ok(())
}

async fn readonly_rootfs(node: Node) -> Result<()> {
    let volume = node.folder("volume")?;
    let pod = node.pod("rootfs").run().await?;
    for (name, readonly) in [("readonly", true), ("writable", false)] {
        let words = ["write", "/tmp/x", "1", ";", "append", "/vol/log", "1", ";", "mounts"];
        let spec = pod.container(name).cmd(&words).mount(&volume, "/vol");
        let report = spec.security(|security| security.readonly_rootfs = readonly).report().await?;
        match readonly {
            true => report.failed("write", &["EROFS"])?,
            false => report.worked("write")?,
        }
    }
    let pod_mount = pod
        .container("shm")
        .cmd(&["write", "/dev/shm/x", "1", ";", "mkdir", "/vol/sub"])
        .mount(&volume, "/vol");
    let report = pod_mount.security(|security| security.readonly_rootfs = true).report().await?;
    report.worked("write").context("/dev/shm")?;
    report.worked("mkdir").context("a volume")
}

async fn masked_paths(node: Node) -> Result<()> {
    let pod = node.pod("masked").run().await?;
    let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let words = [
        "read",
        "/data/shipped",
        "file",
        ";",
        "list",
        "/etc",
        ";",
        "write",
        "/home/x",
        "1",
        ";",
        "read",
        "/proc/sys/kernel/pid_max",
        "sys",
    ];
    let spec = pod.container("named").cmd(&words).security(|security| {
        security.masked_paths = list(&["/data/shipped", "/etc", "/no/such/path"]);
        security.readonly_paths = list(&["/home", "/proc/sys"]);
    });
    let report = spec.report().await?;
    same!(report.find("read.file").unwrap_or_default(), "", "the content of a masked file");
    report.is("list./etc", "").context("a masked folder")?;
    report.failed("write", &["EROFS"]).context("a read-only path")?;
    let none = pod.container("none").cmd(&["mounts", ";", "read", "/data/shipped"]).report().await?;
    none.is("read", "from the image")?;
    let masks: Vec<_> = none.all("mount.").into_iter().filter(|(_, line)| line.contains(" /proc/")).collect();
    ensure!(masks.is_empty(), "an empty list means none, but: {masks:?}");
    Ok(())
}
