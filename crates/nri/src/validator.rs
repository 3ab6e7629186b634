//! The built-in validator, and plugins that must have seen a container. Pure.

use bowline_nri_proto::v1alpha1::{
    Field, PluginInstance, PodSandbox, ValidateContainerAdjustmentRequest, security_profile::ProfileType,
};

use crate::NriConfig;

/// A pod names plugins here, as a YAML list, that its containers need.
const REQUIRED: &str = "required-plugins.noderesource.dev";

/// Why the container is not made, if it is not.
pub(crate) fn check(config: &NriConfig, request: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
    if config.validator.enable {
        check_owners(config, request)?;
    }
    check_plugins(config, request)
}

fn check_owners(config: &NriConfig, request: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
    let rules = &config.validator;
    let container = request.container.as_ref();
    let id = container.map(|container| container.id.as_str()).unwrap_or_default();
    let owners = request.owners.as_ref().and_then(|owners| owners.owners.get(id));
    let whole = |field: Field| owners.and_then(|owners| owners.simple.get(&(field as i32)));
    let entries = |field: Field| {
        let found = owners.and_then(|owners| owners.compound.get(&(field as i32)));
        let found = found.filter(|found| !found.owners.is_empty());
        found.map(|found| {
            let named: Vec<String> =
                found.owners.iter().map(|(entry, plugin)| format!("{plugin} ({entry})")).collect();
            named.join(", ")
        })
    };
    if let Some(plugins) = whole(Field::OciHooks).filter(|_| rules.reject_oci_hooks) {
        return Err(format!("{plugins} may not add OCI hooks"));
    }
    if let Some(plugin) = whole(Field::SeccompPolicy) {
        let profile = container.and_then(|container| container.linux.as_ref()?.seccomp_profile.as_ref());
        let (rejected, kind) = match profile.map(|profile| profile.profile_type()) {
            None | Some(ProfileType::Unconfined) => (rules.reject_unconfined_seccomp, "an unconfined"),
            Some(ProfileType::RuntimeDefault) => (rules.reject_runtime_default_seccomp, "the default"),
            Some(ProfileType::Localhost) => (rules.reject_custom_seccomp, "a custom"),
        };
        if rejected {
            return Err(format!("{plugin} may not replace {kind} seccomp policy"));
        }
    }
    if let Some(plugins) = entries(Field::Namespace).filter(|_| rules.reject_namespaces) {
        return Err(format!("{plugins} may not change namespaces"));
    }
    if let Some(plugins) = entries(Field::Sysctl).filter(|_| rules.reject_sysctls) {
        return Err(format!("{plugins} may not set kernel parameters"));
    }
    Ok(())
}

fn check_plugins(config: &NriConfig, request: &ValidateContainerAdjustmentRequest) -> Result<(), String> {
    let name = request.container.as_ref().map(|container| container.name.as_str()).unwrap_or_default();
    let tolerate = &config.validator.tolerate_missing_annotation;
    if !tolerate.is_empty()
        && let Some(value) = annotation(request.pod.as_ref(), tolerate, name)
    {
        match value.as_str() {
            "true" | "True" | "TRUE" | "t" | "T" | "1" => return Ok(()),
            "false" | "False" | "FALSE" | "f" | "F" | "0" => {}
            other => return Err(format!("the annotation {tolerate} is {other:?}, neither true nor false")),
        }
    }
    let mut required = config.required_plugins.clone();
    if config.validator.enable
        && let Some(value) = annotation(request.pod.as_ref(), REQUIRED, name)
    {
        let listed: Vec<String> = serde_saphyr::from_str(&value)
            .map_err(|error| format!("the annotation {REQUIRED} is no list of names: {error}"))?;
        required.extend(listed);
    }
    let missing: Vec<String> =
        required.into_iter().filter(|name| !request.plugins.iter().any(|plugin| is(plugin, name))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("the required plugins {} have not seen it; see the log for why", missing.join(", ")))
}

fn is(plugin: &PluginInstance, name: &str) -> bool {
    plugin.name == name || format!("{}-{}", plugin.index, plugin.name) == name
}

/// What the annotation says for one container: by container, by pod, or plainly.
fn annotation(pod: Option<&PodSandbox>, key: &str, container: &str) -> Option<String> {
    let annotations = &pod?.annotations;
    let keys = [format!("{key}/container.{container}"), format!("{key}/pod"), key.to_owned()];
    keys.iter().find_map(|key| annotations.get(key).cloned())
}

#[cfg(test)]
mod tests {
    use bowline_nri_proto::v1alpha1::{
        CompoundFieldOwners, Container, FieldOwners, LinuxContainer, OwningPlugins, SecurityProfile,
    };

    use super::*;

    fn a_request() -> ValidateContainerAdjustmentRequest {
        ValidateContainerAdjustmentRequest {
            pod: Some(PodSandbox::default()),
            container: Some(Container { id: "c".into(), name: "app".into(), ..Container::default() }),
            plugins: vec![PluginInstance { name: "one".into(), index: "10".into() }],
            owners: Some(OwningPlugins::default()),
            ..ValidateContainerAdjustmentRequest::default()
        }
    }

    fn owned(simple: Option<Field>, compound: Option<Field>) -> ValidateContainerAdjustmentRequest {
        let mut request = a_request();
        let mut owners = FieldOwners::default();
        if let Some(field) = simple {
            owners.simple.insert(field as i32, "10-one".into());
        }
        if let Some(field) = compound {
            let entries = [("x".to_owned(), "10-one".to_owned())].into();
            owners.compound.insert(field as i32, CompoundFieldOwners { owners: entries });
        }
        request.owners.get_or_insert_default().owners.insert("c".into(), owners);
        request
    }

    #[test]
    fn each_rule_rejects_its_own_field_and_no_other() {
        let rule = |set: fn(&mut crate::ValidatorConfig)| {
            let mut config = NriConfig::new("1");
            config.validator.enable = true;
            set(&mut config.validator);
            config
        };
        let hooks = rule(|rules| rules.reject_oci_hooks = true);
        let namespaces = rule(|rules| rules.reject_namespaces = true);
        let sysctls = rule(|rules| rules.reject_sysctls = true);
        let cases = [
            (&hooks, owned(Some(Field::OciHooks), None)),
            (&namespaces, owned(None, Some(Field::Namespace))),
            (&sysctls, owned(None, Some(Field::Sysctl))),
        ];
        for (at, (config, _)) in cases.iter().enumerate() {
            for (other, (_, request)) in cases.iter().enumerate() {
                let outcome = check(config, request);
                assert_eq!(outcome.is_err(), at == other, "{at} {other} {outcome:?}");
            }
        }
    }

    #[test]
    fn seccomp_is_judged_by_what_the_container_had() {
        let profile = |kind: ProfileType| {
            let mut request = owned(Some(Field::SeccompPolicy), None);
            let profile = SecurityProfile { profile_type: kind as i32, localhost_ref: String::new() };
            let linux = LinuxContainer { seccomp_profile: Some(profile), ..LinuxContainer::default() };
            request.container.get_or_insert_default().linux = Some(linux);
            request
        };
        let mut config = NriConfig::new("1");
        config.validator.enable = true;
        config.validator.reject_runtime_default_seccomp = true;
        assert!(check(&config, &profile(ProfileType::RuntimeDefault)).is_err());
        assert_eq!(check(&config, &profile(ProfileType::Localhost)), Ok(()));
        config.validator.reject_custom_seccomp = true;
        assert!(check(&config, &profile(ProfileType::Localhost)).is_err());
        assert_eq!(check(&config, &owned(Some(Field::SeccompPolicy), None)), Ok(()));
        config.validator.reject_unconfined_seccomp = true;
        assert!(check(&config, &owned(Some(Field::SeccompPolicy), None)).is_err());
    }

    #[test]
    fn required_plugins_must_have_seen_the_container() {
        let mut config = NriConfig::new("1");
        config.required_plugins = vec!["one".into(), "10-one".into()];
        assert_eq!(check(&config, &a_request()), Ok(()));
        config.required_plugins.push("two".into());
        assert!(check(&config, &a_request()).unwrap_err().contains("two"));
        config.validator.tolerate_missing_annotation = "ok.example".into();
        let mut request = a_request();
        let annotations = &mut request.pod.get_or_insert_default().annotations;
        annotations.insert("ok.example/container.app".into(), "true".into());
        assert_eq!(check(&config, &request), Ok(()));
        request
            .pod
            .get_or_insert_default()
            .annotations
            .insert("ok.example/container.app".into(), "perhaps".into());
        assert!(check(&config, &request).is_err());
    }

    #[test]
    fn a_pod_may_require_plugins_itself() {
        let mut config = NriConfig::new("1");
        let mut request = a_request();
        request.pod.get_or_insert_default().annotations.insert(REQUIRED.into(), "[one, three]".into());
        assert_eq!(check(&config, &request), Ok(()), "nobody looks");
        config.validator.enable = true;
        assert!(check(&config, &request).unwrap_err().contains("three"));
    }
}
