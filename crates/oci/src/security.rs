//! Seccomp, AppArmor and SELinux.

use bowline_model::runtime_spec::{CapabilitySets, Seccomp};
use bowline_model::spec::SecurityProfile;

use crate::{ContainerInputs, Note, SpecError, default_seccomp, labels};

/// The seccomp profile. A privileged container has none, whatever it asks for: that is what privileged means to
/// the kubelet's API.
pub(crate) fn seccomp(
    inputs: &ContainerInputs<'_>,
    sets: &CapabilitySets,
) -> Result<Option<Seccomp>, SpecError> {
    let security = &inputs.container.security;
    if security.privileged {
        return Ok(None);
    }
    match &security.seccomp {
        SecurityProfile::Unset | SecurityProfile::Unconfined => Ok(None),
        SecurityProfile::RuntimeDefault => {
            Ok(Some(default_seccomp(inputs.node.seccomp_arch, &sets.bounding)))
        }
        SecurityProfile::Localhost(path) => {
            let field = "security_context.seccomp.localhost_ref";
            let profile = inputs
                .seccomp_profile
                .ok_or_else(|| SpecError::invalid(field, format!("the profile {path} could not be read")))?;
            serde_json::from_slice(profile.json)
                .map(Some)
                .map_err(|error| SpecError::invalid(field, format!("{path} is no seccomp profile: {error}")))
        }
    }
}

/// The name of the AppArmor profile; empty: none. A profile that was asked for by name is honoured in a privileged
/// container too, as containerd does; only the default one gives way.
pub(crate) fn apparmor(inputs: &ContainerInputs<'_>, notes: &mut Vec<Note>) -> Result<String, SpecError> {
    let security = &inputs.container.security;
    match &security.apparmor {
        SecurityProfile::Unconfined => {
            Ok(if inputs.node.apparmor { "unconfined".into() } else { String::new() })
        }
        SecurityProfile::Localhost(name) => {
            let field = "security_context.apparmor.localhost_ref";
            let name = name.strip_prefix("localhost/").unwrap_or(name);
            if name.is_empty() || name.contains(char::is_control) {
                return Err(SpecError::invalid(field, format!("{name:?} is no name of a profile")));
            }
            if !inputs.node.apparmor {
                return Err(SpecError::invalid(
                    field,
                    format!("profile {name} cannot be had: this host has no AppArmor"),
                ));
            }
            Ok(name.to_owned())
        }
        SecurityProfile::Unset | SecurityProfile::RuntimeDefault => {
            if !inputs.node.apparmor {
                return Ok(String::new());
            }
            if security.privileged {
                return Ok("unconfined".into());
            }
            let default = inputs.node.apparmor_default.clone();
            if default.is_none() {
                notes.push(Note::new(
                    "security_context.apparmor",
                    "no default profile is loaded; none is used",
                ));
            }
            Ok(default.unwrap_or_default())
        }
    }
}

/// Where there is no SELinux nobody misses a label; where there is, but no defaults to make one from, a container must not run
/// with less than it asked for.
pub(crate) fn selinux(inputs: &ContainerInputs<'_>) -> Result<(), SpecError> {
    let asked = inputs.container.security.selinux.as_ref().or(inputs.pod.security.selinux.as_ref());
    if asked.is_none_or(labels::is_empty) || !inputs.node.selinux || inputs.selinux.is_some() {
        return Ok(());
    }
    Err(SpecError::invalid(
        "security_context.selinux_options",
        "no label can be made: the node's policy has none for containers; install one (container-selinux), or leave it out",
    ))
}
