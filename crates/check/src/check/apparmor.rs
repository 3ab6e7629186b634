//! AppArmor.

use anyhow::Result;
use bowline_cri_proto::v1::{SecurityProfile, security_profile::ProfileType};

use super::case::{Case, case};
use crate::host;
use crate::node::{Node, refused, skip};

pub(super) const CASES: &[Case] =
    &[case!("apparmor/enforced", "C", enforced).quick(), case!("apparmor/unloaded", "C", unloaded)];

/// Loading a profile takes the host's own parser; without it there is nothing to enforce.
#[allow(deprecated)]
async fn enforced(node: Node) -> Result<()> {
    if !host::has_lsm("apparmor") {
        return skip("the host has no AppArmor");
    }
    let pod = node.pod("enforced").run().await?;
    let (deny, audit) = (load(&node, "deny", "deny /** w,")?, load(&node, "audit", "audit /** w,")?);
    let words = ["write", "/tmp/x", "1"];
    let new = |name: &str| {
        Some(SecurityProfile { profile_type: ProfileType::Localhost as i32, localhost_ref: name.to_owned() })
    };
    let long = format!("localhost/{deny}");
    for (index, name) in [&deny, &long].into_iter().enumerate() {
        let spec = pod.container(&format!("new{index}")).cmd(&words);
        spec.security(|security| security.apparmor = new(name))
            .report()
            .await?
            .failed("write", &["EACCES"])?;
    }
    let old = |name: &str, profile: &str| {
        let profile = format!("localhost/{profile}");
        pod.container(name).cmd(&words).security(move |security| security.apparmor_profile = profile)
    };
    old("old", &deny).report().await?.failed("write", &["EACCES"])?;
    old("audit", &audit).report().await?.worked("write")?;
    let both = old("both", &deny).security(|security| security.apparmor = new(&audit));
    both.report().await?.worked("write")
}

fn load(node: &Node, name: &str, rule: &str) -> Result<String> {
    let profile = node.unique(name);
    let path = node.folder("profiles")?.join(name);
    let text = format!(
        "#include <tunables/global>\nprofile {profile} flags=(attach_disconnected) {{\n  file,\n  {rule}\n}}\n"
    );
    std::fs::write(&path, text)?;
    match std::process::Command::new("apparmor_parser").arg("-r").arg(&path).status() {
        Ok(status) if status.success() => Ok(profile),
        _ => skip("the host cannot load AppArmor profiles"),
    }
}

async fn unloaded(node: Node) -> Result<()> {
    if !host::has_lsm("apparmor") {
        return skip("the host has no AppArmor");
    }
    let profile =
        SecurityProfile { profile_type: ProfileType::Localhost as i32, localhost_ref: node.unique("none") };
    let spec = node.pod("unloaded").run().await?.container("main");
    let spec = spec.security(|security| security.apparmor = Some(profile));
    refused(spec.try_create().await, &[], "an unknown profile")?;
    Ok(())
}
