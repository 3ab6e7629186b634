//! Kernel parameters of a pod.

use std::fs;

use anyhow::Result;
use bowline_cri_proto::v1::NamespaceMode;

use super::case::{Case, case, same};
use crate::node::{Node, refused};

pub(super) const CASES: &[Case] = &[
    case!("sysctls/safe-and-unsafe", "C", safe_and_unsafe).quick(),
    case!("sysctls/net", "KP", net),
    case!("sysctls/refused", "KP", refusals),
];

fn path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

async fn safe_and_unsafe(node: Node) -> Result<()> {
    let asked = [("kernel.shm_rmid_forced", "1"), ("fs.mqueue.msg_max", "77")];
    let before: Vec<_> = asked.iter().map(|(name, _)| fs::read_to_string(path(name)).ok()).collect();
    let mut spec = node.pod("sysctls");
    for (name, value) in asked {
        spec = spec.sysctl(name, value);
    }
    let pod = spec.run().await?;
    for (index, (name, value)) in asked.into_iter().enumerate() {
        let report = pod.report(&format!("c{index}"), &["read", &path(name)]).await?;
        report.is("read", value)?;
    }
    let after: Vec<_> = asked.iter().map(|(name, _)| fs::read_to_string(path(name)).ok()).collect();
    same!(after, before, "the host's values");
    Ok(())
}

async fn net(node: Node) -> Result<()> {
    let asked = [("net.ipv4.ip_unprivileged_port_start", "79"), ("net/ipv4/ping_group_range", "0\t1000")];
    let mut spec = node.pod("net");
    for (name, value) in asked {
        spec = spec.sysctl(name, value);
    }
    let pod = spec.run().await?;
    for (index, (name, value)) in asked.into_iter().enumerate() {
        let report = pod.report(&format!("c{index}"), &["read", &path(name)]).await?;
        report.is("read", &value.replace('\t', "\\t"))?;
    }
    Ok(())
}

async fn refusals(node: Node) -> Result<()> {
    for name in ["kernel.panic", "vm.swappiness", "fs.file-max"] {
        let answer = node.pod("plain").sysctl(name, "10").try_run().await;
        refused(answer, &[], &format!("{name}, which has no namespace,"))?;
    }
    let host = node.pod("host").host_network().sysctl("net.ipv4.ip_forward", "1");
    refused(host.try_run().await, &[], "net.* with the host's network")?;
    let ipc = node.pod("ipc").namespaces(|options| options.ipc = NamespaceMode::Node as i32);
    refused(
        ipc.sysctl("kernel.shm_rmid_forced", "1").try_run().await,
        &[],
        "an IPC parameter with the host's IPC",
    )?;
    Ok(())
}
