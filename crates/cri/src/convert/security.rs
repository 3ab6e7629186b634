//! Security settings of pods and containers.

use bowline_cri_proto::v1;
use bowline_cri_proto::v1::security_profile::ProfileType;
use bowline_model::spec::{
    Capabilities, ContainerSecurity, GroupsPolicy, PodSecurity, SecurityProfile, SelinuxOptions,
};

use super::{Refused, check, invalid, namespaces};

/// Whose profile it is, for the rules differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Seccomp,
    Apparmor,
}

/// The settings of a sandbox.
#[allow(deprecated)] // The strings of old profiles are still sent.
pub(crate) fn of_pod(field: &str, asked: v1::LinuxSandboxSecurityContext) -> Result<PodSecurity, Refused> {
    let seccomp = profile(
        &format!("{field}.seccomp"),
        Kind::Seccomp,
        asked.seccomp,
        (&format!("{field}.seccomp_profile_path"), &asked.seccomp_profile_path),
    )?;
    // A sandbox never had the deprecated field for AppArmor.
    let apparmor = profile(&format!("{field}.apparmor"), Kind::Apparmor, asked.apparmor, ("", ""))?;
    if asked.run_as_group.is_some() && asked.run_as_user.is_none() {
        return Err(invalid(format!("{field}.run_as_group"), "needs run_as_user beside it"));
    }
    Ok(PodSecurity {
        namespaces: namespaces::of_pod(
            &format!("{field}.namespace_options"),
            asked.namespace_options.unwrap_or_default(),
        )?,
        selinux: asked.selinux_options.map(selinux),
        run_as_user: optional_id(&format!("{field}.run_as_user"), asked.run_as_user)?,
        run_as_group: optional_id(&format!("{field}.run_as_group"), asked.run_as_group)?,
        supplemental_groups: check::ids(&format!("{field}.supplemental_groups"), &asked.supplemental_groups)?,
        groups_policy: policy(
            &format!("{field}.supplemental_groups_policy"),
            asked.supplemental_groups_policy,
        )?,
        readonly_rootfs: asked.readonly_rootfs,
        privileged: asked.privileged,
        seccomp,
        apparmor,
    })
}

/// The settings of a container.
#[allow(deprecated)] // The strings of old profiles are still sent.
pub(crate) fn of_container(
    field: &str,
    asked: v1::LinuxContainerSecurityContext,
) -> Result<ContainerSecurity, Refused> {
    if asked.run_as_group.is_some() && asked.run_as_user.is_none() && asked.run_as_username.is_empty() {
        let reason = "needs run_as_user or run_as_username beside it";
        return Err(invalid(format!("{field}.run_as_group"), reason));
    }
    check::no_nul(&format!("{field}.run_as_username"), &asked.run_as_username)?;
    for path in asked.masked_paths.iter().chain(&asked.readonly_paths) {
        check::absolute(&format!("{field}.masked_paths or readonly_paths"), path)?;
    }
    let seccomp = profile(
        &format!("{field}.seccomp"),
        Kind::Seccomp,
        asked.seccomp,
        (&format!("{field}.seccomp_profile_path"), &asked.seccomp_profile_path),
    )?;
    let apparmor = profile(
        &format!("{field}.apparmor"),
        Kind::Apparmor,
        asked.apparmor,
        (&format!("{field}.apparmor_profile"), &asked.apparmor_profile),
    )?;
    let capabilities = asked.capabilities.unwrap_or_default();
    Ok(ContainerSecurity {
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
            add_ambient: capabilities.add_ambient_capabilities,
        },
        privileged: asked.privileged,
        namespaces: namespaces::of_container(
            &format!("{field}.namespace_options"),
            asked.namespace_options.unwrap_or_default(),
        )?,
        selinux: asked.selinux_options.map(selinux),
        run_as_user: optional_id(&format!("{field}.run_as_user"), asked.run_as_user)?,
        run_as_group: optional_id(&format!("{field}.run_as_group"), asked.run_as_group)?,
        run_as_username: asked.run_as_username,
        readonly_rootfs: asked.readonly_rootfs,
        supplemental_groups: check::ids(&format!("{field}.supplemental_groups"), &asked.supplemental_groups)?,
        groups_policy: policy(
            &format!("{field}.supplemental_groups_policy"),
            asked.supplemental_groups_policy,
        )?,
        no_new_privs: asked.no_new_privs,
        masked_paths: asked.masked_paths,
        readonly_paths: asked.readonly_paths,
        seccomp,
        apparmor,
    })
}

fn optional_id(field: &str, asked: Option<v1::Int64Value>) -> Result<Option<u32>, Refused> {
    asked.map(|asked| check::id(field, asked.value)).transpose()
}

fn policy(field: &str, value: i32) -> Result<GroupsPolicy, Refused> {
    Ok(match check::known(field, value)? {
        v1::SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
        v1::SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
    })
}

fn selinux(asked: v1::SeLinuxOption) -> SelinuxOptions {
    SelinuxOptions { user: asked.user, role: asked.role, r#type: asked.r#type, level: asked.level }
}

/// A profile by the field of today, or else by the string of old (field name and text).
fn profile(
    field: &str,
    kind: Kind,
    asked: Option<v1::SecurityProfile>,
    (old_field, old): (&str, &str),
) -> Result<SecurityProfile, Refused> {
    let Some(asked) = asked else { return old_profile(old_field, kind, old) };
    match check::known(&format!("{field}.profile_type"), asked.profile_type)? {
        ProfileType::RuntimeDefault => Ok(SecurityProfile::RuntimeDefault),
        ProfileType::Unconfined => Ok(SecurityProfile::Unconfined),
        ProfileType::Localhost => localhost(&format!("{field}.localhost_ref"), kind, &asked.localhost_ref),
    }
}

fn old_profile(field: &str, kind: Kind, text: &str) -> Result<SecurityProfile, Refused> {
    match (text, text.strip_prefix("localhost/")) {
        ("", _) => Ok(SecurityProfile::Unset),
        ("runtime/default" | "docker/default", _) => Ok(SecurityProfile::RuntimeDefault),
        ("unconfined", _) => Ok(SecurityProfile::Unconfined),
        (_, Some(reference)) => localhost(field, kind, reference),
        (other, None) => {
            let known = "known are `runtime/default`, `unconfined` and `localhost/` with a profile";
            Err(invalid(field, format!("`{}` is no profile; {known}", check::brief(other))))
        }
    }
}

fn localhost(field: &str, kind: Kind, reference: &str) -> Result<SecurityProfile, Refused> {
    match kind {
        Kind::Seccomp => {
            check::absolute(field, reference)?;
            Ok(SecurityProfile::Localhost(reference.to_owned()))
        }
        // Some clients write the prefix of the old string here too.
        Kind::Apparmor => {
            let name = reference.strip_prefix("localhost/").unwrap_or(reference);
            check::name(field, name)?;
            check::one_line(field, name)?;
            Ok(SecurityProfile::Localhost(name.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field_of<T: std::fmt::Debug>(result: Result<T, Refused>) -> String {
        match result {
            Err(Refused::Invalid { field, .. }) => field,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn profiles_of_old() {
        let path = || SecurityProfile::Localhost("/p/a.json".into());
        for (text, expected) in [
            ("", SecurityProfile::Unset),
            ("runtime/default", SecurityProfile::RuntimeDefault),
            ("docker/default", SecurityProfile::RuntimeDefault),
            ("unconfined", SecurityProfile::Unconfined),
            ("localhost//p/a.json", path()),
        ] {
            assert_eq!(profile("f", Kind::Seccomp, None, ("old", text)), Ok(expected), "{text}");
        }
        for text in ["localhost/a.json", "localhost/", "default", "Unconfined"] {
            assert_eq!(field_of(profile("f", Kind::Seccomp, None, ("old", text))), "old", "{text}");
        }
        let apparmor = profile("f", Kind::Apparmor, None, ("old", "localhost/web"));
        assert_eq!(apparmor, Ok(SecurityProfile::Localhost("web".into())));
    }

    #[test]
    fn the_field_of_today_wins() {
        let asked = |profile_type: i32, localhost_ref: &str| {
            Some(v1::SecurityProfile { profile_type, localhost_ref: localhost_ref.into() })
        };
        let seccomp = |asked| profile("f", Kind::Seccomp, asked, ("old", "unconfined"));
        assert_eq!(seccomp(asked(0, "")), Ok(SecurityProfile::RuntimeDefault));
        assert_eq!(seccomp(asked(2, "/p")), Ok(SecurityProfile::Localhost("/p".into())));
        assert_eq!(field_of(seccomp(asked(2, "p"))), "f.localhost_ref");
        assert_eq!(field_of(seccomp(asked(2, ""))), "f.localhost_ref");
        assert_eq!(field_of(seccomp(asked(7, ""))), "f.profile_type");
        let apparmor = profile("f", Kind::Apparmor, asked(2, "localhost/web"), ("", ""));
        assert_eq!(apparmor, Ok(SecurityProfile::Localhost("web".into())));
    }

    #[test]
    fn users_and_groups() {
        let value = |value| Some(v1::Int64Value { value });
        let context = v1::LinuxContainerSecurityContext::default;
        let group_alone = v1::LinuxContainerSecurityContext { run_as_group: value(5), ..context() };
        assert_eq!(field_of(of_container("c", group_alone.clone())), "c.run_as_group");
        let with_name = v1::LinuxContainerSecurityContext { run_as_username: "web".into(), ..group_alone };
        assert_eq!(of_container("c", with_name).unwrap().run_as_group, Some(5));
        for bad in [-1, i64::from(u32::MAX), 1 << 32] {
            let user = v1::LinuxContainerSecurityContext { run_as_user: value(bad), ..context() };
            assert_eq!(field_of(of_container("c", user)), "c.run_as_user");
            let groups = v1::LinuxContainerSecurityContext { supplemental_groups: vec![1, bad], ..context() };
            assert_eq!(field_of(of_container("c", groups)), "c.supplemental_groups");
        }
        let pod = v1::LinuxSandboxSecurityContext { run_as_group: value(5), ..Default::default() };
        assert_eq!(field_of(of_pod("s", pod)), "s.run_as_group");
        let policy = v1::LinuxSandboxSecurityContext { supplemental_groups_policy: 2, ..Default::default() };
        assert_eq!(field_of(of_pod("s", policy)), "s.supplemental_groups_policy");
    }
}
