//! Who a container runs as.

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;

use super::case::{Case, case, same};
use crate::container::Report;
use crate::node::{Node, refused, skip};

pub(super) const CASES: &[Case] = &[
    case!("identity/run-as-user", "CK", run_as_user).quick(),
    case!("identity/run-as-group", "C", run_as_group),
    case!("identity/supplemental", "C", supplemental),
    case!("identity/groups-merge-strict", "CK", groups_merge_strict),
    case!("identity/image-user", "K", image_user),
];

fn number(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

/// uid and gid must be these, in all their forms.
fn is(report: &Report, uid: u32, gid: u32) -> Result<()> {
    report.is("uids", &format!("{uid} {uid} {uid} {uid}"))?;
    report.is("gids", &format!("{gid} {gid} {gid} {gid}"))
}

fn groups(report: &Report) -> Result<Vec<u32>> {
    let mut groups: Vec<u32> =
        report.get("groups")?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    groups.sort_unstable();
    Ok(groups)
}

async fn run_as_user(node: Node) -> Result<()> {
    let pod = node.pod("user").run().await?;
    let no_entry = pod.container("none").cmd(&["ids"]).user(4321).report().await?;
    is(&no_entry, 4321, 0)?;
    let entry = pod.container("entry").cmd(&["ids"]).user(1001).report().await?;
    is(&entry, 1001, 1002).context("a number with an entry")?;
    let name = |user: &'static str| {
        pod.container(user).cmd(&["ids"]).security(|s| s.run_as_username = user.to_owned())
    };
    is(&name("grouped").report().await?, 1001, 1002).context("a name")?;
    name("stranger").refused("an unknown user name").await?;
    Ok(())
}

async fn run_as_group(node: Node) -> Result<()> {
    let pod = node.pod("group").run().await?;
    let both = pod.container("both").cmd(&["ids"]).user(1001).security(|s| s.run_as_group = number(4322));
    is(&both.report().await?, 1001, 4322)?;
    let alone = pod.container("alone").security(|security| security.run_as_group = number(4322));
    refused(alone.try_create().await, &[], "a group without a user")?;
    Ok(())
}

async fn supplemental(node: Node) -> Result<()> {
    let spec = node.pod("groups").run().await?.container("main").cmd(&["ids", ";", "pause"]);
    let container = spec.security(|security| security.supplemental_groups = vec![1234, 5678]).start().await?;
    let (own, exec) = (container.says("pid").await?, container.exec(&["ids"]).await?);
    for (what, report) in [("process", own), ("exec", exec)] {
        let groups = groups(&report)?;
        ensure!(groups.contains(&1234) && groups.contains(&5678), "the {what} has {groups:?}");
    }
    Ok(())
}

async fn groups_merge_strict(node: Node) -> Result<()> {
    if !node.feature(|features| features.supplemental_groups_policy) {
        return skip("supplemental_groups_policy is not declared");
    }
    let pod = node.pod("policy").run().await?;
    let policies = [
        (v1::SupplementalGroupsPolicy::Merge, vec![1002, 1234, 50000]),
        (v1::SupplementalGroupsPolicy::Strict, vec![1002, 1234]),
    ];
    for (policy, expected) in policies {
        let spec =
            pod.container(policy.as_str_name()).cmd(&["ids", ";", "pause"]).user(1001).security(|security| {
                security.supplemental_groups = vec![1234];
                security.supplemental_groups_policy = policy as i32;
            });
        let container = spec.start().await?;
        let own = groups(&container.says("pid").await?)?;
        let with_main = |mut groups: Vec<u32>| {
            groups.push(1002);
            groups.sort_unstable();
            groups.dedup();
            groups
        };
        same!(with_main(own), expected, "the groups with {policy:?}");
        let status =
            container.status().await?.user.and_then(|user| user.linux).context("no user in the status")?;
        same!((status.uid, status.gid), (1001, 1002), "uid and gid in the status");
        let mut told: Vec<u32> =
            status.supplemental_groups.iter().map(|group| u32::try_from(*group)).collect::<Result<_, _>>()?;
        told.sort_unstable();
        same!(told, expected, "the groups in the status with {policy:?}");
    }
    Ok(())
}

async fn image_user(node: Node) -> Result<()> {
    let pod = node.pod("image").run().await?;
    let forms = [
        ("1001", 1001, 1002),
        ("grouped", 1001, 1002),
        ("4321", 4321, 0),
        ("1001:50000", 1001, 50000),
        ("grouped:extra", 1001, 50000),
        ("4321:4322", 4321, 4322),
        ("", 0, 0),
    ];
    for (index, (user, uid, gid)) in forms.into_iter().enumerate() {
        let built = node.run.workshop.image(&format!("user{index}")).user(user).build();
        let reference = node.pull_built(&format!("user{index}"), &built).await?;
        let spec = pod.container(&format!("c{index}")).image(&reference).cmd(&["ids"]);
        let report = spec.report().await.with_context(|| format!("USER {user}"))?;
        is(&report, uid, gid).with_context(|| format!("USER {user}"))?;
    }
    Ok(())
}
