//! SELinux.

use anyhow::{Result, ensure};
use bowline_cri_proto::v1::SeLinuxOption;

use super::case::{Case, case, same};
use crate::host;
use crate::node::{Node, refused, skip};

pub(super) const CASES: &[Case] =
    &[case!("selinux/labels", "C", labels).quick(), case!("selinux/categories", "C", categories)];

fn level(text: &str) -> Option<SeLinuxOption> {
    Some(SeLinuxOption { level: text.to_owned(), ..Default::default() })
}

async fn labels(node: Node) -> Result<()> {
    if !host::has_lsm("selinux") {
        return skip("the host has no SELinux");
    }
    let pod = node.pod("labels").privileged().run().await?;
    let alone = pod.container("level").cmd(&["attr"]).security(|s| s.selinux_options = level("s0:c1,c2"));
    let attr = alone.report().await?.get("attr")?.to_owned();
    ensure!(attr.contains("s0:c1,c2"), "with a level alone: {attr}");
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
    ensure!(attr.contains("spc_t"), "privileged: {attr}");
    Ok(())
}

async fn categories(node: Node) -> Result<()> {
    if !host::has_lsm("selinux") {
        return skip("the host has no SELinux");
    }
    let (one, two) = (node.pod("one").run().await?, node.pod("two").run().await?);
    let mut seen = Vec::new();
    for (pod, name) in [(&one, "a"), (&one, "b"), (&two, "a")] {
        seen.push(pod.report(name, &["attr"]).await?.get("attr")?.to_owned());
    }
    same!(seen[0], seen[1], "the labels within a pod");
    ensure!(seen[0] != seen[2], "one label for two pods: {}", seen[0]);
    let bad = one.container("bad").security(|security| security.selinux_options = level("s0:c1,c2:bogus:x"));
    refused(bad.try_create().await, &[], "a malformed level")?;
    Ok(())
}
