//! Devices of the host, as containers get them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use bowline_model::spec::ContainerSpec;
use bowline_oci::HostDevice;
use bowline_plan::devices::DEVICES_FIELD;
use bowline_plan::{Compiled, Descriptor};

use crate::PodError;
use crate::error::doing;

/// Looks the wanted device nodes up on the host; a folder stands for all nodes below it.
pub(crate) fn of_host(spec: &ContainerSpec) -> Result<Vec<HostDevice>, PodError> {
    let mut found = Vec::new();
    for device in &spec.devices {
        let permissions = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        if !permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(PodError::Invalid(format!(
                "devices.permissions: `{permissions}` has more than r, w and m"
            )));
        }
        let what = || format!("look at the device {}", device.host_path);
        let real = fs::canonicalize(&device.host_path).map_err(doing(what()))?;
        let inside =
            if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        collect_devices(&real, Path::new(inside), permissions, 0, &mut found).map_err(doing(what()))?;
    }
    Ok(found)
}

fn collect_devices(
    host: &Path,
    inside: &Path,
    permissions: &str,
    depth: u32,
    found: &mut Vec<HostDevice>,
) -> io::Result<()> {
    if depth > 8 || found.len() > 4096 {
        return Err(io::Error::other("there are too many devices below it"));
    }
    let meta = fs::symlink_metadata(host)?;
    let kind = meta.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(host)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() || kind.is_char_device() || kind.is_block_device() {
                collect_devices(
                    &entry.path(),
                    &inside.join(entry.file_name()),
                    permissions,
                    depth + 1,
                    found,
                )?;
            }
        }
        return Ok(());
    }
    let device =
        node(&meta).ok_or_else(|| io::Error::other("it is neither a device nor a folder of devices"))?;
    let path = inside.to_string_lossy().into_owned();
    found.push(HostDevice { path, permissions: permissions.to_owned(), ..device });
    Ok(())
}

/// The node at a path of the host, symlinks followed.
pub(crate) fn host_device(path: &str) -> io::Result<HostDevice> {
    let device = node(&fs::metadata(path)?).ok_or_else(|| io::Error::other("it is no device"))?;
    Ok(HostDevice { path: path.to_owned(), ..device })
}

fn node(meta: &fs::Metadata) -> Option<HostDevice> {
    let kind = meta.file_type();
    let kind = if kind.is_char_device() {
        'c'
    } else if kind.is_block_device() {
        'b'
    } else if kind.is_fifo() {
        'p'
    } else {
        return None;
    };
    Some(HostDevice {
        kind,
        major: rustix::fs::major(meta.rdev()),
        minor: rustix::fs::minor(meta.rdev()),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        ..HostDevice::default()
    })
}

/// Devices that the client wants at another path, or below another folder, than the host has them.
pub(crate) fn elsewhere(spec: &ContainerSpec) -> BTreeMap<String, String> {
    let moved = spec
        .devices
        .iter()
        .filter(|device| !device.container_path.is_empty() && device.container_path != device.host_path);
    moved.map(|device| (device.container_path.clone(), device.host_path.clone())).collect()
}

/// The planner binds the host's nodes of the same paths.
pub(crate) fn bind(compiled: &mut Compiled, sources: &BTreeMap<String, String>) {
    for descriptor in &mut compiled.descriptors {
        let Descriptor::HostTree { path, field, .. } = descriptor else { continue };
        if !field.starts_with(DEVICES_FIELD) {
            continue;
        }
        let found = sources.iter().find_map(|(inside, host)| {
            let rest = path.strip_prefix(inside.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then(|| format!("{host}{rest}"))
        });
        if let Some(host) = found {
            *path = host;
        }
    }
}
