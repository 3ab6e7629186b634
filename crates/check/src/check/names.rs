//! Names: resolv.conf, the host's name, /etc/hosts.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;

use super::case::{Case, case, same};
use crate::node::Node;

pub(super) const CASES: &[Case] = &[
    case!("names/dns-config", "CK", dns_config).quick(),
    case!("names/dns-empty", "CK", dns_empty),
    case!("names/hostname", "CK", hostname).quick(),
    case!("names/hostname-host-network", "K", hostname_host_network),
    case!("names/hosts-mount-wins", "K", hosts_mount_wins),
];

/// The words of a resolv.conf, line by line, comments left out.
fn resolver_lines(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

/// What the helper printed of a file, its escapes undone.
fn unescape(text: &str) -> String {
    text.replace("\\n", "\n")
        .replace("\\t", "\t")
        .replace("\\'", "'")
        .replace("\\\"", "\"")
        .replace("\\\\", "\\")
}

async fn dns_config(node: Node) -> Result<()> {
    let words = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let dns = v1::DnsConfig {
        servers: words(&["10.10.10.10", "10.10.10.11"]),
        searches: words(&["one.example", "two.example"]),
        options: words(&["ndots:5", "attempts:3"]),
    };
    let pod = node.pod("dns").edit(|config| config.dns_config = Some(dns)).run().await?;
    for name in ["first", "later"] {
        let report = pod.report(name, &["read", "/etc/resolv.conf"]).await?;
        let lines = resolver_lines(&unescape(report.get("read")?));
        for line in [
            &["nameserver", "10.10.10.10"][..],
            &["nameserver", "10.10.10.11"],
            &["search", "one.example", "two.example"],
            &["options", "ndots:5", "attempts:3"],
        ] {
            ensure!(lines.iter().any(|got| got == line), "no line {line:?} in {lines:?} of {name}");
        }
    }
    Ok(())
}

async fn dns_empty(node: Node) -> Result<()> {
    let expected = resolver_lines(&fs::read_to_string("/etc/resolv.conf").context("the host's resolv.conf")?);
    for dns in [None, Some(v1::DnsConfig::default())] {
        let given = dns.is_some();
        let pod = node.pod("dns").edit(|config| config.dns_config = dns).run().await?;
        let report = pod.report("main", &["read", "/etc/resolv.conf"]).await?;
        same!(resolver_lines(&unescape(report.get("read")?)), expected, "resolv.conf, config given: {given}");
    }
    Ok(())
}

async fn hostname(node: Node) -> Result<()> {
    let pod = node.pod("name").edit(|config| config.hostname = "given-name".to_owned()).run().await?;
    let report = pod.report("main", &["host", ";", "env"]).await?;
    report.is("hostname", "given-name")?;
    report.is("env.HOSTNAME", "given-name")?;
    let none = node.pod("none").edit(|config| config.hostname = String::new()).run().await?;
    ensure!(!none.report("main", &["host"]).await?.get("hostname")?.is_empty(), "an empty name");
    Ok(())
}

async fn hostname_host_network(node: Node) -> Result<()> {
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let pod = node.pod("host").host_network().run().await?;
    pod.report("main", &["host"]).await?.is("hostname", &own)
}

async fn hosts_mount_wins(node: Node) -> Result<()> {
    let folder = node.folder("files")?;
    let pod = node.pod("wins").run().await?;
    for (index, target) in ["/etc/hosts", "/etc/resolv.conf"].into_iter().enumerate() {
        let source = folder.join(format!("f{index}"));
        fs::write(&source, "# from the kubelet\n")?;
        let words = ["read", target, ";", "mounts"];
        let report = pod.container(&format!("c{index}")).cmd(&words).mount(&source, target).report().await?;
        report.is("read", "# from the kubelet")?;
        let mounts =
            report.all("mount.").iter().filter(|(_, line)| line.contains(&format!(" {target} "))).count();
        same!(mounts, 1, "mounts at {target}");
    }
    Ok(())
}
