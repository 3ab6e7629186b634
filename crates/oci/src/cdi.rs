//! CDI: devices by name, and what a container needs for each.
//!
//! Facts are those of the Container Device Interface, versions 0.3.0 to 1.1.0
//! (github.com/cncf-tags/container-device-interface, SPEC.md). Files come in as texts; where they lie and which of two
//! counts is the caller's to say, by the order in which they are added.

use std::collections::BTreeMap;

use bowline_model::runtime_spec::{
    DeviceRule, Hook, Hooks, IntelRdt, LinuxDevice, LinuxNetDevice, LinuxResources, Mount, Process, Spec,
};
use serde::Deserialize;

use crate::{HostDevice, clean_path};

/// Versions whose files we read.
const VERSIONS: [&str; 9] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.0.1", "1.1.0"];

/// One file.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CdiFile {
    /// Its version of the format.
    #[serde(rename = "cdiVersion")]
    pub version: String,
    /// `vendor/class`.
    pub kind: String,
    /// Not read by us.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The devices.
    pub devices: Vec<CdiDevice>,
    /// For every device of the file.
    #[serde(default)]
    pub container_edits: CdiEdits,
}

/// A device of a file.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CdiDevice {
    /// Its name below the kind.
    pub name: String,
    /// Not read by us.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// What it takes.
    pub container_edits: CdiEdits,
}

/// Changes to a container.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CdiEdits {
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<CdiNode>,
    /// Network devices to move.
    pub net_devices: Vec<CdiNetDevice>,
    /// Mounts.
    pub mounts: Vec<CdiMount>,
    /// Programs to run on the way.
    pub hooks: Vec<CdiHook>,
    /// Groups of the process.
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
    /// Cache and memory bandwidth.
    pub intel_rdt: Option<IntelRdt>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CdiNode {
    /// Path in the container.
    pub path: String,
    /// Path on the host; empty: the same.
    pub host_path: String,
    /// `c`, `b`, `u` or `p`; empty: as on the host.
    pub r#type: String,
    /// Major number; with `minor` 0 as on the host.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permissions; absent: as on the host.
    pub file_mode: Option<u32>,
    /// Some of `r`, `w`, `m`; empty: all three.
    pub permissions: String,
    /// Owner; absent: the process'.
    pub uid: Option<u32>,
    /// Group; absent: the process'.
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CdiMount {
    /// Path on the host.
    pub host_path: String,
    /// Path in the container.
    pub container_path: String,
    /// As in fstab.
    pub options: Vec<String>,
    /// File system; empty: a bind mount.
    pub r#type: String,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CdiNetDevice {
    /// Its name on the host.
    pub host_interface_name: String,
    /// Its name in the container.
    pub name: String,
}

/// A hook.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CdiHook {
    /// When.
    pub hook_name: String,
    /// The program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Seconds until it is killed.
    pub timeout: Option<i64>,
}

/// Why a device cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdiError {
    /// No CDI name.
    #[error("`{0}` is no CDI device; a name reads vendor.com/class=device")]
    BadName(String),
    /// In none of the files.
    #[error("there is no CDI device `{name}` in {places}; its vendor's tool writes one there")]
    Unresolved {
        /// The name.
        name: String,
        /// Where was looked.
        places: String,
    },
    /// Two files of one folder have it.
    #[error("the CDI device `{name}` is in {first} and in {second}; remove it from one")]
    Conflict {
        /// The name.
        name: String,
        /// A file.
        first: String,
        /// Another.
        second: String,
    },
    /// A file or a part of it makes no sense.
    #[error("{place}: {reason}")]
    Invalid {
        /// File or device.
        place: String,
        /// What is wrong.
        reason: String,
    },
}

fn invalid(place: impl Into<String>, reason: impl Into<String>) -> CdiError {
    CdiError::Invalid { place: place.into(), reason: reason.into() }
}

/// Reads a file, JSON or YAML: the former is the latter too.
pub fn parse_cdi(place: &str, text: &str) -> Result<CdiFile, CdiError> {
    let file: CdiFile = serde_saphyr::from_str(text).map_err(|error| invalid(place, error.to_string()))?;
    if !VERSIONS.contains(&file.version.as_str()) {
        let reason = format!("cdiVersion {:?} is none of {}", file.version, VERSIONS.join(", "));
        return Err(invalid(place, reason));
    }
    match file.kind.split_once('/') {
        Some((vendor, class)) if is_vendor(vendor) && is_word(class) => {}
        _ => return Err(invalid(place, format!("kind {:?} does not read vendor/class", file.kind))),
    }
    if let Some(bad) = file.devices.iter().find(|device| !is_device(&device.name)) {
        return Err(invalid(place, format!("{:?} is no name of a device", bad.name)));
    }
    Ok(file)
}

/// A qualified name in its parts: kind and device.
pub fn parse_cdi_name(name: &str) -> Result<(&str, &str), CdiError> {
    let bad = || CdiError::BadName(name.to_owned());
    let (kind, device) = name.split_once('=').ok_or_else(bad)?;
    let (vendor, class) = kind.split_once('/').ok_or_else(bad)?;
    if is_vendor(vendor) && is_word(class) && is_device(device) { Ok((kind, device)) } else { Err(bad()) }
}

fn is_vendor(text: &str) -> bool {
    framed(text, |c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn is_word(text: &str) -> bool {
    framed(text, |c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn is_device(text: &str) -> bool {
    framed(text, |c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
}

/// Not empty, of these characters, with a letter or digit at both ends.
fn framed(text: &str, fits: impl Fn(char) -> bool) -> bool {
    let end = |c: char| c.is_ascii_alphanumeric();
    !text.is_empty() && text.chars().all(fits) && text.starts_with(end) && text.ends_with(end)
}

/// All files of the node.
#[derive(Debug, Default)]
pub struct CdiDevices {
    files: Vec<(usize, String, CdiFile)>,
    places: Vec<String>,
}

impl CdiDevices {
    /// A folder that is looked in. Each counts before those named earlier.
    pub fn folder(&mut self, place: &str) {
        self.places.push(place.to_owned());
    }

    /// A file of the folder named last.
    pub fn file(&mut self, place: &str, file: CdiFile) {
        self.files.push((self.places.len(), place.to_owned(), file));
    }

    fn find(&self, name: &str) -> Result<(usize, &CdiDevice), CdiError> {
        let (kind, device) = parse_cdi_name(name)?;
        let mut best: Option<(usize, &CdiDevice)> = None;
        for (index, (folder, place, file)) in self.files.iter().enumerate() {
            if file.kind != kind {
                continue;
            }
            let Some(found) = file.devices.iter().find(|there| there.name == device) else { continue };
            match best {
                Some((before, _)) if self.files[before].0 == *folder => {
                    let first = self.files[before].1.clone();
                    let (name, second) = (name.to_owned(), place.clone());
                    return Err(CdiError::Conflict { name, first, second });
                }
                Some((before, _)) if self.files[before].0 > *folder => {}
                _ => best = Some((index, found)),
            }
        }
        best.ok_or_else(|| CdiError::Unresolved { name: name.to_owned(), places: self.places.join(" and ") })
    }

    /// Applies the named devices, in order; what a file says for all its devices once. `look` finds the node at a path of
    /// the host. Gives the paths of nodes that the host has elsewhere: (in the container, on the host).
    pub fn apply(
        &self,
        names: &[String],
        spec: &mut Spec,
        look: &dyn Fn(&str) -> std::io::Result<HostDevice>,
    ) -> Result<Vec<(String, String)>, CdiError> {
        let (mut seen, mut used) = (Vec::new(), Vec::new());
        let mut elsewhere = Vec::new();
        for name in names {
            if seen.contains(name) {
                continue;
            }
            seen.push(name.clone());
            let (file, device) = self.find(name)?;
            if !used.contains(&file) {
                used.push(file);
                edit(name, &self.files[file].2.container_edits, spec, look, &mut elsewhere)?;
            }
            edit(name, &device.container_edits, spec, look, &mut elsewhere)?;
        }
        if !used.is_empty() {
            // Parents before children, as everywhere.
            spec.mounts
                .sort_by_key(|mount| mount.destination.split('/').filter(|part| !part.is_empty()).count());
        }
        Ok(elsewhere)
    }
}

fn edit(
    name: &str,
    edits: &CdiEdits,
    spec: &mut Spec,
    look: &dyn Fn(&str) -> std::io::Result<HostDevice>,
    elsewhere: &mut Vec<(String, String)>,
) -> Result<(), CdiError> {
    let process = spec.process.get_or_insert_default();
    for line in &edits.env {
        set_variable(name, process, line)?;
    }
    for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
        if !process.user.additional_gids.contains(gid) {
            process.user.additional_gids.push(*gid);
        }
    }
    let owner = (process.user.uid, process.user.gid);
    for node in &edits.device_nodes {
        let (device, access) = resolve_node(name, node, owner, look)?;
        if !node.host_path.is_empty() && node.host_path != device.path {
            elsewhere.push((device.path.clone(), node.host_path.clone()));
        }
        let linux = spec.linux.get_or_insert_default();
        if matches!(device.kind.as_str(), "c" | "b" | "u") {
            let limits = linux.resources.get_or_insert_with(LinuxResources::default);
            limits.devices.push(DeviceRule {
                allow: true,
                kind: if device.kind == "b" { "b".into() } else { "c".into() },
                major: Some(device.major),
                minor: Some(device.minor),
                access,
            });
        }
        linux.devices.retain(|there| there.path != device.path);
        linux.devices.push(device);
    }
    for device in &edits.net_devices {
        let bad = |reason: &str| invalid(format!("CDI device {name}: netDevices"), reason);
        if device.host_interface_name.is_empty() {
            return Err(bad("hostInterfaceName is missing"));
        }
        let devices = &mut spec.linux.get_or_insert_default().net_devices;
        let wanted = LinuxNetDevice { name: device.name.clone() };
        match devices.insert(device.host_interface_name.clone(), wanted.clone()) {
            Some(other) if other != wanted => {
                return Err(bad(&format!("{} is to have two names", device.host_interface_name)));
            }
            _ => {}
        }
    }
    if let Some(rdt) = &edits.intel_rdt {
        // The last one counts, as for a file of the same class.
        spec.linux.get_or_insert_default().intel_rdt = Some(rdt.clone());
    }
    for hook in &edits.hooks {
        add_hook(name, hook, spec.hooks.get_or_insert_default())?;
    }
    for mount in &edits.mounts {
        let mount = resolve_mount(name, mount)?;
        spec.mounts.retain(|there| there.destination != mount.destination);
        spec.mounts.push(mount);
    }
    Ok(())
}

fn add_hook(name: &str, hook: &CdiHook, hooks: &mut Hooks) -> Result<(), CdiError> {
    let bad = |reason: String| invalid(format!("CDI device {name}: hooks {:?}", hook.path), reason);
    let list = hooks.kind_mut(&hook.hook_name);
    let list = list.ok_or_else(|| bad(format!("there is no hookName {:?}", hook.hook_name)))?;
    if !hook.path.starts_with('/') {
        return Err(bad("path is not absolute".to_owned()));
    }
    let timeout = hook.timeout.map(i32::try_from).transpose();
    let timeout = timeout.map_err(|_| bad("timeout is out of range".to_owned()))?;
    list.push(Hook { path: hook.path.clone(), args: hook.args.clone(), env: hook.env.clone(), timeout });
    Ok(())
}

fn set_variable(name: &str, process: &mut Process, line: &str) -> Result<(), CdiError> {
    let Some((key, _)) = line.split_once('=').filter(|(key, _)| !key.is_empty() && !line.contains('\0'))
    else {
        return Err(invalid(format!("CDI device {name}"), format!("env {line:?} does not read NAME=value")));
    };
    let start = format!("{key}=");
    process.env.retain(|there| !there.as_bytes().starts_with(start.as_bytes()));
    process.env.push(line.into());
    Ok(())
}

fn resolve_node(
    name: &str,
    node: &CdiNode,
    owner: (u32, u32),
    look: &dyn Fn(&str) -> std::io::Result<HostDevice>,
) -> Result<(LinuxDevice, String), CdiError> {
    let bad = |reason: String| invalid(format!("CDI device {name}: deviceNodes {:?}", node.path), reason);
    let path = clean_path(&node.path).filter(|path| path != "/");
    let path = path.ok_or_else(|| bad("is not an absolute path".to_owned()))?;
    if !node.permissions.chars().all(|letter| "rwm".contains(letter)) {
        return Err(bad(format!("permissions {:?} has more than r, w and m", node.permissions)));
    }
    let mut device = LinuxDevice {
        path,
        kind: node.r#type.clone(),
        major: node.major,
        minor: node.minor,
        file_mode: node.file_mode.map(|mode| mode & 0o7777),
        uid: node.uid,
        gid: node.gid,
    };
    let numbered = device.kind == "p" || (device.major, device.minor) != (0, 0);
    if device.kind.is_empty() || !numbered {
        let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
        let found = look(host).map_err(|error| bad(format!("could not look at {host}: {error}")))?;
        let kind = found.kind.to_string();
        if !device.kind.is_empty() && device.kind != kind {
            return Err(bad(format!("is said to be of type {}, but {host} is of type {kind}", device.kind)));
        }
        (device.kind, device.major, device.minor) = (kind, found.major.into(), found.minor.into());
        device.file_mode = device.file_mode.or(Some(found.mode & 0o7777));
    }
    if !["c", "b", "u", "p"].contains(&device.kind.as_str()) {
        return Err(bad(format!("type {:?} is none of c, b, u and p", device.kind)));
    }
    // The owner of the process can use what it was given.
    device.uid = device.uid.or(Some(owner.0));
    device.gid = device.gid.or(Some(owner.1));
    let access = if node.permissions.is_empty() { "rwm".to_owned() } else { node.permissions.clone() };
    Ok((device, access))
}

fn resolve_mount(name: &str, mount: &CdiMount) -> Result<Mount, CdiError> {
    let place = || format!("CDI device {name}: mounts {:?}", mount.container_path);
    let destination = clean_path(&mount.container_path).filter(|path| path != "/");
    let destination = destination
        .ok_or_else(|| invalid(place(), "containerPath is not an absolute path below the root"))?;
    let kind = if mount.r#type.is_empty() { "bind" } else { &mount.r#type };
    if kind == "bind" && !mount.host_path.starts_with('/') {
        return Err(invalid(place(), format!("hostPath {:?} is not absolute", mount.host_path)));
    }
    Ok(Mount {
        destination,
        kind: kind.to_owned(),
        source: mount.host_path.clone(),
        options: mount.options.clone(),
        ..Mount::default()
    })
}
