//! AppArmor.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1::{SecurityProfile, security_profile::ProfileType};

use super::case::{Case, case, same};
use crate::host;
use crate::node::{Node, refused, skip};

pub(super) const CASES: &[Case] = &[
    case!("apparmor/enforced", "C", enforced).quick(),
    case!("apparmor/unloaded", "C", unloaded),
    case!("apparmor/default", "C", default).quick(),
    case!("apparmor/default-rules", "S", default_rules),
    case!("apparmor/user-namespace", "K", user_namespace),
];

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

/// What a container is told that asks for the runtime's own profile.
fn by_default() -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, ..Default::default() })
}

/// Who gets the runtime's profile, in the container's own process and in those that come later.
async fn default(node: Node) -> Result<()> {
    if !host::has_lsm("apparmor") {
        return skip("the host has no AppArmor");
    }
    let pod = node.pod("default").privileged().run().await?;
    let attr = ["attr", ";", "pause"];
    let unset = pod.container("unset").cmd(&attr).start().await?;
    let label = unset.says("attr").await?.get("attr")?.to_owned();
    if label.starts_with("unconfined") {
        return skip("the endpoint has no default profile on this host: is there no apparmor_parser?");
    }
    ensure!(label.ends_with("(enforce)"), "the default profile is not enforced: {label}");
    same!(unset.exec(&["attr"]).await?.get("attr")?, label.as_str(), "the label of an exec");
    let asked = pod.container("asked").cmd(&["attr"]).security(|s| {
        s.apparmor = by_default();
        s.no_new_privs = true;
    });
    same!(asked.report().await?.get("attr")?, label.as_str(), "RuntimeDefault with no_new_privs");
    let none = SecurityProfile { profile_type: ProfileType::Unconfined as i32, ..Default::default() };
    let free = pod.container("unconfined").cmd(&["attr"]).security(|s| s.apparmor = Some(none));
    ensure!(free.report().await?.get("attr")?.starts_with("unconfined"), "Unconfined is confined");
    let free = pod.container("privileged").cmd(&["attr"]).security(|s| s.privileged = true);
    ensure!(free.report().await?.get("attr")?.starts_with("unconfined"), "privileged is confined");
    // The profile must let the runtime's signals through.
    unset.stop(0).await?;
    Ok(())
}

/// What the default profile holds back when mounts and capabilities do not.
async fn default_rules(node: Node) -> Result<()> {
    if !host::has_lsm("apparmor") {
        return skip("the host has no AppArmor");
    }
    let pod = node.pod("rules").run().await?;
    // Nothing is masked and /sys is the host's, writable: only the profile is in the way.
    let spec = pod.container("open").cmd(&["attr", ";", "pause"]).mount(Path::new("/sys"), "/sys");
    let container = spec.security(|s| s.apparmor = by_default()).start().await?;
    if container.says("attr").await?.get("attr")?.starts_with("unconfined") {
        return skip("the endpoint has no default profile on this host: is there no apparmor_parser?");
    }
    // Should a write succeed all the same, it changes nothing.
    for path in ["/proc/sys/vm/swappiness", "/sys/module/printk/parameters/time"] {
        let value = std::fs::read_to_string(path)?;
        container.exec(&["write", path, value.trim()]).await?.failed("write", &["EACCES"]).context(path)?;
    }
    container.exec(&["write", "/proc/sysrq-trigger", "h"]).await?.failed("write", &["EACCES"])?;
    container.exec(&["open", "r", "/proc/kcore"]).await?.failed("open", &["EACCES"])?;
    for path in ["/proc/self/oom_score_adj", "/tmp/x"] {
        container.exec(&["write", path, "900"]).await?.worked("write").context(path)?;
    }
    Ok(())
}

/// Whoever is root only inside can be given a profile too.
async fn user_namespace(node: Node) -> Result<()> {
    if !host::has_lsm("apparmor") {
        return skip("the host has no AppArmor");
    }
    if !node.handler_feature(|features| features.user_namespaces) {
        return skip("user_namespaces is not declared");
    }
    let pod = node.pod("users").own_users().run().await?;
    let container = pod.container("main").cmd(&["attr", ";", "pause"]).start().await?;
    let label = container.says("attr").await?.get("attr")?.to_owned();
    if label.starts_with("unconfined") {
        return skip("the endpoint has no default profile on this host: is there no apparmor_parser?");
    }
    same!(container.exec(&["attr"]).await?.get("attr")?, label.as_str(), "the label of an exec");
    Ok(())
}
