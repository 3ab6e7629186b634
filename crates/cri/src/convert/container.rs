//! What a container should be.

use std::collections::BTreeMap;

use bowline_cri_proto::v1;
use bowline_model::spec::{ContainerSpec, Device};

use super::{Refused, check, image, invalid, mount, resources, security, signal};

/// Annotations that ask for CDI devices, as device plugins did before there was a field.
const CDI_ANNOTATIONS: &str = "cdi.k8s.io/";

/// The spec of a container, from its config.
pub(crate) fn spec(config: Option<v1::ContainerConfig>) -> Result<ContainerSpec, Refused> {
    let config = config.ok_or_else(|| invalid("config", "must be set"))?;
    let metadata = config.metadata.ok_or_else(|| invalid("config.metadata", "must be set"))?;
    check::name("config.metadata.name", &metadata.name)?;
    check::below("config.log_path", &config.log_path)?;
    check::no_nul("config.working_dir", &config.working_dir)?;
    config.command.iter().try_for_each(|word| check::no_nul("config.command", word))?;
    config.args.iter().try_for_each(|word| check::no_nul("config.args", word))?;
    check::pairs("config.labels", &config.labels)?;
    check::pairs("config.annotations", &config.annotations)?;
    let cdi_devices = cdi_devices(config.cdi_devices, &config.annotations)?;
    let linux = config.linux.unwrap_or_default();
    let mounts = config.mounts.into_iter().enumerate();
    Ok(ContainerSpec {
        name: metadata.name,
        attempt: metadata.attempt,
        image: image::reference("config.image", config.image)?,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        envs: config.envs.into_iter().map(env).collect::<Result<_, _>>()?,
        mounts: mounts
            .map(|(index, mount)| mount::mount(&format!("config.mounts[{index}]"), mount))
            .collect::<Result<_, _>>()?,
        devices: config.devices.into_iter().enumerate().map(device).collect::<Result<_, _>>()?,
        cdi_devices,
        labels: config.labels,
        annotations: config.annotations,
        log_path: config.log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: signal::signal("config.stop_signal", config.stop_signal)?,
        resources: resources::resources("config.linux.resources", linux.resources.unwrap_or_default())?,
        security: security::of_container(
            "config.linux.security_context",
            linux.security_context.unwrap_or_default(),
        )?,
    })
}

/// CDI devices by the field and by annotations, as far as they can be names; a device is given once.
fn cdi_devices(
    devices: Vec<v1::CdiDevice>,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<String>, Refused> {
    let mut names = Vec::new();
    let mut add = |field: String, name: &str| {
        match name.split_once('=') {
            Some((kind, device)) if kind.contains('/') && !device.is_empty() => {}
            _ => {
                let reason = format!("`{}` does not read vendor.com/class=device", check::brief(name));
                return Err(invalid(field, reason));
            }
        }
        check::no_nul(&field, name)?;
        if !names.iter().any(|there| there == name) {
            names.push(name.to_owned());
        }
        Ok(())
    };
    for device in devices {
        add("config.CDI_devices".to_owned(), &device.name)?;
    }
    for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(CDI_ANNOTATIONS)) {
        for name in value.split(',') {
            add(format!("config.annotations[{}]", check::brief(key)), name.trim())?;
        }
    }
    Ok(names)
}

/// Values are bytes and need not be UTF-8.
fn env(asked: v1::KeyValue) -> Result<(String, Vec<u8>), Refused> {
    let field = "config.envs";
    check::name(field, &asked.key)?;
    if asked.key.contains('=') {
        return Err(invalid(field, format!("the name `{}` must not contain `=`", check::brief(&asked.key))));
    }
    check::no_nul(&format!("{field}[{}]", check::brief(&asked.key)), &asked.value)?;
    Ok((asked.key, asked.value))
}

fn device((index, asked): (usize, v1::Device)) -> Result<Device, Refused> {
    let field = |name: &str| format!("config.devices[{index}].{name}");
    check::absolute(&field("container_path"), &asked.container_path)?;
    check::absolute(&field("host_path"), &asked.host_path)?;
    if asked.permissions.contains(|c| !"rwm".contains(c)) {
        let reason = format!("`{}` has more than `r`, `w` and `m`", check::brief(&asked.permissions));
        return Err(invalid(field("permissions"), reason));
    }
    Ok(Device {
        container_path: asked.container_path,
        host_path: asked.host_path,
        permissions: asked.permissions,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bowline_model::Signal;

    fn config() -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "C".into(), attempt: 1 }),
            image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn with(change: impl FnOnce(&mut v1::ContainerConfig)) -> Option<v1::ContainerConfig> {
        let mut config = config();
        change(&mut config);
        Some(config)
    }

    #[track_caller]
    fn refused(config: Option<v1::ContainerConfig>, named: &str) {
        match spec(config) {
            Err(Refused::Invalid { field, .. }) => assert_eq!(field, named),
            other => panic!("{named}: {other:?}"),
        }
    }

    #[test]
    fn name_and_image_are_enough() {
        let spec = spec(Some(config())).unwrap();
        assert_eq!((spec.name.as_str(), spec.attempt, spec.image.image.as_str()), ("C", 1, "busybox"));
        assert_eq!(spec.stop_signal, None);
    }

    #[test]
    fn fields_at_fault_are_named() {
        let device = |container: &str, host: &str, permissions: &str| {
            vec![v1::Device {
                container_path: container.into(),
                host_path: host.into(),
                permissions: permissions.into(),
            }]
        };
        let env = |key: &str, value: &[u8]| vec![v1::KeyValue { key: key.into(), value: value.to_vec() }];
        refused(None, "config");
        refused(with(|c| c.metadata = None), "config.metadata");
        refused(with(|c| c.metadata.as_mut().unwrap().name.clear()), "config.metadata.name");
        refused(with(|c| c.image = None), "config.image.image");
        refused(with(|c| c.log_path = "../0.log".into()), "config.log_path");
        refused(with(|c| c.log_path = "a/../../0.log".into()), "config.log_path");
        refused(with(|c| c.log_path = "/0.log".into()), "config.log_path");
        refused(with(|c| c.command = vec!["a\0b".into()]), "config.command");
        refused(with(|c| c.envs = env("", b"")), "config.envs");
        refused(with(|c| c.envs = env("A=B", b"")), "config.envs");
        refused(with(|c| c.envs = env("A", b"x\0y")), "config.envs[A]");
        refused(with(|c| c.devices = device("dev", "/dev/null", "")), "config.devices[0].container_path");
        refused(with(|c| c.devices = device("/dev/a", "", "")), "config.devices[0].host_path");
        refused(with(|c| c.devices = device("/dev/a", "/dev/a", "rx")), "config.devices[0].permissions");
        refused(with(|c| c.stop_signal = 99), "config.stop_signal");
        refused(with(|c| c.cdi_devices = vec![v1::CdiDevice { name: "v/c".into() }]), "config.CDI_devices");
        refused(
            with(|c| c.annotations = [("cdi.k8s.io/x".to_owned(), "v/c=d,c=d".to_owned())].into()),
            "config.annotations[cdi.k8s.io/x]",
        );
        refused(with(|c| c.mounts = vec![v1::Mount::default()]), "config.mounts[0].container_path");
    }

    #[test]
    fn cdi_devices_come_by_field_and_by_annotation() {
        let spec = spec(with(|c| {
            c.cdi_devices = vec![v1::CdiDevice { name: "v/c=a".into() }];
            c.annotations = [("cdi.k8s.io/x".to_owned(), "v/c=b, v/c=a".to_owned())].into();
        }));
        assert_eq!(spec.unwrap().cdi_devices, ["v/c=a", "v/c=b"]);
    }

    #[test]
    fn environments_are_bytes() {
        let value = vec![0xff, b'\n', b'='];
        let envs = vec![v1::KeyValue { key: "A".into(), value: value.clone() }];
        assert_eq!(spec(with(|c| c.envs = envs)).unwrap().envs, [("A".to_owned(), value)]);
    }

    #[test]
    fn stop_signals_have_cris_numbers() {
        let spec = spec(with(|c| c.stop_signal = v1::Signal::Sigkill.into())).unwrap();
        assert_eq!(spec.stop_signal, Some(Signal::KILL));
    }
}
