//! seccomp profiles.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use bowline_cri_proto::v1::{Capability, SecurityProfile, security_profile::ProfileType};

use super::case::{Case, case};
use crate::container::CtrSpec;
use crate::node::Node;

pub(super) const CASES: &[Case] = &[
    case!("seccomp/modes", "C", modes).quick(),
    case!("seccomp/localhost", "CK", localhost),
    case!("seccomp/beats-capability", "C", beats_capability),
    case!("seccomp/privileged-ignores", "C", privileged_ignores),
    case!("seccomp/deprecated-field", "K", deprecated_field),
];

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() })
}

fn with(spec: CtrSpec, profile: Option<SecurityProfile>) -> CtrSpec {
    spec.security(|security| security.seccomp = profile)
}

/// A profile that denies some calls; gives its path.
fn denying(node: &Node, name: &str, calls: &[&str]) -> Result<String> {
    let path = node.folder("profiles")?.join(name);
    let text = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": calls, "action": "SCMP_ACT_ERRNO"}],
    });
    fs::write(&path, text.to_string())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Calls that change a mode.
const CHMOD: &[&str] = &["chmod", "fchmod", "fchmodat", "fchmodat2"];

async fn modes(node: Node) -> Result<()> {
    let pod = node.pod("modes").run().await?;
    let kinds = [
        ("nil", None, "0"),
        ("unconfined", profile(ProfileType::Unconfined, ""), "0"),
        ("default", profile(ProfileType::RuntimeDefault, ""), "2"),
    ];
    for (name, profile, mode) in kinds {
        let container = with(pod.container(name).cmd(&["ids", ";", "pause"]), profile).start().await?;
        container.says("pid").await?.is("seccomp", mode).with_context(|| name.to_owned())?;
        container.exec(&["ids"]).await?.is("seccomp", mode).with_context(|| format!("exec, {name}"))?;
    }
    Ok(())
}

async fn localhost(node: Node) -> Result<()> {
    let path = denying(&node, "chmod.json", CHMOD)?;
    let pod = node.pod("localhost").run().await?;
    let words = ["write", "/tmp/x", "1", ";", "chmod", "/tmp/x", "600", ";", "ids"];
    let container = with(
        pod.container("main").cmd(&[&words[..], &[";", "pause"]].concat()),
        profile(ProfileType::Localhost, &path),
    )
    .start()
    .await?;
    for report in [container.says("pid").await?, container.exec(&words).await?] {
        report.worked("write")?;
        report.failed("chmod", &["EPERM"])?;
    }
    let missing = format!("{path}.missing");
    with(pod.container("missing"), profile(ProfileType::Localhost, &missing))
        .refused("a missing profile")
        .await?;
    Ok(())
}

async fn beats_capability(node: Node) -> Result<()> {
    let path = denying(&node, "hostname.json", &["sethostname"])?;
    let pod = node.pod("beats").run().await?;
    let admin = |name: &str| {
        let add = Capability { add_capabilities: vec!["SYS_ADMIN".to_owned()], ..Default::default() };
        pod.container(name)
            .cmd(&["hostname", "changed"])
            .security(|security| security.capabilities = Some(add))
    };
    with(admin("denied"), profile(ProfileType::Localhost, &path))
        .report()
        .await?
        .failed("hostname", &["EPERM"])?;
    with(admin("allowed"), profile(ProfileType::Unconfined, "")).report().await?.worked("hostname")
}

async fn privileged_ignores(node: Node) -> Result<()> {
    let path = denying(&node, "chmod.json", CHMOD)?;
    let pod = node.pod("privileged").privileged().run().await?;
    let words = ["write", "/tmp/x", "1", ";", "chmod", "/tmp/x", "600", ";", "ids"];
    let spec = pod.container("main").cmd(&words).security(|security| security.privileged = true);
    let report = with(spec, profile(ProfileType::Localhost, &path)).report().await?;
    report.is("seccomp", "0")?;
    report.worked("chmod")
}

#[allow(deprecated)]
async fn deprecated_field(node: Node) -> Result<()> {
    let path = denying(&node, "chmod.json", CHMOD)?;
    let pod = node.pod("deprecated").run().await?;
    let old = format!("localhost/{path}");
    let words = ["write", "/tmp/x", "1", ";", "chmod", "/tmp/x", "600"];
    let spec =
        |name: &str| pod.container(name).cmd(&words).security(|s| s.seccomp_profile_path = old.clone());
    spec("old").report().await?.failed("chmod", &["EPERM"])?;
    with(spec("new-wins"), profile(ProfileType::Unconfined, "")).report().await?.worked("chmod")
}
