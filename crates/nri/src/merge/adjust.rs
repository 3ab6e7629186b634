//! One plugin's adjustment of a container that is being made.

use bowline_nri_proto::v1alpha1::{
    Container, ContainerAdjustment, Field, Hooks, KeyValue, LinuxContainer, LinuxContainerAdjustment,
    LinuxRdt,
};

use super::owners::Claims;
use super::{MergeError, entries, resources};

/// Takes `wanted` into the collected adjustment, and shows what came of it in the container.
pub(super) fn take(
    container: &mut Container,
    collected: &mut ContainerAdjustment,
    wanted: ContainerAdjustment,
    claims: &mut Claims<'_>,
) -> Result<(), MergeError> {
    let ContainerAdjustment { annotations, mounts, env, hooks, linux, rlimits, cdi_devices, args } = wanted;
    entries::take_map(
        Field::Annotations,
        annotations,
        &mut collected.annotations,
        &mut container.annotations,
        claims,
    )?;
    entries::take(Field::Mounts, mounts, &mut collected.mounts, &mut container.mounts, claims)?;
    environment(container, collected, env, claims)?;
    arguments(container, collected, args, claims)?;
    if let Some(wanted) = hooks.filter(|hooks| *hooks != Hooks::default()) {
        claims.share(Field::OciHooks);
        add_hooks(collected.hooks.get_or_insert_default(), &wanted);
        add_hooks(container.hooks.get_or_insert_default(), &wanted);
    }
    entries::take(Field::Rlimits, rlimits, &mut collected.rlimits, &mut container.rlimits, claims)?;
    // Names of CDI devices are only added, and stay names: what they stand for is looked up at the end.
    entries::take(
        Field::CdiDevices,
        cdi_devices,
        &mut collected.cdi_devices,
        &mut container.cdi_devices,
        claims,
    )?;
    match linux {
        Some(wanted) => linux_part(
            container.linux.get_or_insert_default(),
            collected.linux.get_or_insert_default(),
            wanted,
            claims,
        ),
        None => Ok(()),
    }
}

/// The container holds lines, the adjustment pairs.
fn environment(
    container: &mut Container,
    collected: &mut ContainerAdjustment,
    wanted: Vec<KeyValue>,
    claims: &mut Claims<'_>,
) -> Result<(), MergeError> {
    if wanted.is_empty() {
        return Ok(());
    }
    let pair = |line: &String| {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        KeyValue { key: key.to_owned(), value: value.to_owned() }
    };
    let mut shown = container.env.iter().map(pair).collect();
    entries::take(Field::Env, wanted, &mut collected.env, &mut shown, claims)?;
    container.env = shown.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect();
    Ok(())
}

/// An empty first argument takes the arguments away from whoever has set them.
fn arguments(
    container: &mut Container,
    collected: &mut ContainerAdjustment,
    mut wanted: Vec<String>,
    claims: &mut Claims<'_>,
) -> Result<(), MergeError> {
    if wanted.first().is_some_and(String::is_empty) {
        claims.clear(Field::Args);
        wanted.remove(0);
    }
    if wanted.is_empty() {
        return Ok(());
    }
    claims.field(Field::Args)?;
    collected.args.clone_from(&wanted);
    container.args = wanted;
    Ok(())
}

fn add_hooks(into: &mut Hooks, from: &Hooks) {
    let Hooks { prestart, create_runtime, create_container, start_container, poststart, poststop } = from;
    into.prestart.extend_from_slice(prestart);
    into.create_runtime.extend_from_slice(create_runtime);
    into.create_container.extend_from_slice(create_container);
    into.start_container.extend_from_slice(start_container);
    into.poststart.extend_from_slice(poststart);
    into.poststop.extend_from_slice(poststop);
}

fn linux_part(
    shown: &mut LinuxContainer,
    collected: &mut LinuxContainerAdjustment,
    wanted: LinuxContainerAdjustment,
    claims: &mut Claims<'_>,
) -> Result<(), MergeError> {
    entries::take(Field::Devices, wanted.devices, &mut collected.devices, &mut shown.devices, claims)?;
    if let Some(limits) = &wanted.resources {
        let mut targets =
            [shown.resources.get_or_insert_default(), collected.resources.get_or_insert_default()];
        resources::take(limits, &mut targets, claims)?;
    }
    if !wanted.cgroups_path.is_empty() {
        claims.field(Field::CgroupsPath)?;
        shown.cgroups_path.clone_from(&wanted.cgroups_path);
        collected.cgroups_path = wanted.cgroups_path;
    }
    /// Fields of one value.
    macro_rules! value {
        ($($field:ident: $owner:ident),*) => {$(
            if wanted.$field.is_some() {
                claims.field(Field::$owner)?;
                shown.$field.clone_from(&wanted.$field);
                collected.$field = wanted.$field;
            }
        )*};
    }
    value!(oom_score_adj: OomScoreAdj, io_priority: IoPriority, seccomp_policy: SeccompPolicy, scheduler: LinuxSched);
    if wanted.memory_policy.is_some() {
        claims.field(Field::MemoryPolicy)?;
        collected.memory_policy = wanted.memory_policy;
    }
    entries::take(
        Field::Namespace,
        wanted.namespaces,
        &mut collected.namespaces,
        &mut shown.namespaces,
        claims,
    )?;
    entries::take_map(Field::Sysctl, wanted.sysctl, &mut collected.sysctl, &mut shown.sysctl, claims)?;
    entries::take_map(
        Field::LinuxNetDevices,
        wanted.net_devices,
        &mut collected.net_devices,
        &mut shown.net_devices,
        claims,
    )?;
    match wanted.rdt {
        Some(rdt) => take_rdt(collected.rdt.get_or_insert_default(), rdt, claims),
        None => Ok(()),
    }
}

fn take_rdt(collected: &mut LinuxRdt, wanted: LinuxRdt, claims: &mut Claims<'_>) -> Result<(), MergeError> {
    if wanted.remove {
        for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
            claims.clear(field);
        }
        *collected = LinuxRdt { remove: true, ..LinuxRdt::default() };
    }
    macro_rules! value {
        ($($field:ident: $owner:ident),*) => {$(
            if wanted.$field.is_some() {
                claims.field(Field::$owner)?;
                collected.$field = wanted.$field;
                collected.remove = false;
            }
        )*};
    }
    value!(clos_id: RdtClosId, schemata: RdtSchemata, enable_monitoring: RdtEnableMonitoring);
    Ok(())
}
