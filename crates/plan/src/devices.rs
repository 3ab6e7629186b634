//! Devices: the nodes in /dev, and who may use which (cgroup v1 lines, cgroup v2 program).
//!
//! Rules are read in order and the last one that matches counts, for each of read, write and mknod by itself.
//! Where no rule matches, nothing is allowed. To the spec's rules come those of the devices that every container
//! has, and mknod of any node: making one is harmless where opening it is not allowed (runc does the same).

mod program;

use bowline_launch_plan::wire::Blob;
use bowline_launch_plan::{CgroupWrite, Source, Step, TargetKind};
use bowline_model::cgroup::CgroupLayout;
use bowline_model::runtime_spec::{DeviceRule, Linux, LinuxDevice, LinuxResources};

use crate::PlanError;
use crate::bytes::{absolute, c_string};
use crate::compile::{Descriptor, Descriptors, mkdir};

pub use program::{Rule, program};

/// How the field of a descriptor begins that is the node of a device.
pub const DEVICES_FIELD: &str = "linux.devices";

/// Major and minor number of what every container has.
const USUAL: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
/// Terminals: /dev/console, /dev/ptmx, /dev/pts/*.
const TERMINALS: [(u32, Option<u32>); 3] = [(5, Some(1)), (5, Some(2)), (136, None)];
const SYMLINKS: [(&str, &str); 6] = [
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFIFO: u32 = 0o010_000;

/// Read, write and mknod, as the kernel's device filter has them.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ANY: u32 = MKNOD | READ | WRITE;

/// The nodes and symlinks below /dev. In a user namespace nobody may make nodes; the host's are bound instead.
pub(crate) fn nodes(
    linux: &Linux,
    in_user_namespace: bool,
    descriptors: &mut Descriptors,
) -> Result<Vec<Step>, PlanError> {
    let mut steps = Vec::new();
    let mut own = Vec::new();
    for (index, device) in linux.devices.iter().enumerate() {
        let field = format!("linux.devices[{index}]");
        let path = absolute(&format!("{field}.path"), &device.path)?;
        own.push(node(&field, &path, device)?);
    }
    let usual = USUAL.iter().filter(|(path, ..)| own.iter().all(|node| node.path != *path));
    let mut nodes: Vec<Node> = usual
        .map(|(path, major, minor)| Node {
            path: (*path).to_owned(),
            mode: S_IFCHR | 0o666,
            major: *major,
            minor: *minor,
            uid: 0,
            gid: 0,
        })
        .collect();
    nodes.append(&mut own);

    let mut parents = vec!["/dev".to_owned()];
    for node in nodes {
        let parent = match node.path.rsplit_once('/') {
            Some((parent, _)) if !parent.is_empty() => parent.to_owned(),
            _ => "/dev".to_owned(),
        };
        if !parents.contains(&parent) {
            steps.push(mkdir(c_string("linux.devices", parent.as_str())?));
            parents.push(parent);
        }
        steps.push(node.step(in_user_namespace, descriptors)?);
    }
    for (target, path) in SYMLINKS {
        steps.push(Step::Symlink { target: c_string("", target)?, path: c_string("", path)? });
    }
    Ok(steps)
}

struct Node {
    path: String,
    mode: u32,
    major: u32,
    minor: u32,
    uid: u32,
    gid: u32,
}

impl Node {
    fn step(self, in_user_namespace: bool, descriptors: &mut Descriptors) -> Result<Step, PlanError> {
        let path = c_string("linux.devices", self.path.as_str())?;
        if !in_user_namespace || self.mode & S_IFIFO == S_IFIFO {
            let Node { mode, major, minor, uid, gid, .. } = self;
            return Ok(Step::Mknod { path, mode, major, minor, uid, gid });
        }
        let field = format!("{DEVICES_FIELD} {}", self.path);
        let fd = descriptors.add(Descriptor::HostTree {
            path: self.path,
            recursive: false,
            follow: true,
            idmap: None,
            field,
        })?;
        Ok(Step::Mount {
            source: Source::Tree { fd },
            target: path,
            kind: TargetKind::File,
            attr_set: 0,
            attr_clr: 0,
            attr_recursive: false,
            propagation: 0,
            optional: false,
        })
    }
}

fn node(field: &str, path: &str, device: &LinuxDevice) -> Result<Node, PlanError> {
    let kind = match device.kind.as_str() {
        "c" | "u" => S_IFCHR,
        "b" => S_IFBLK,
        "p" => S_IFIFO,
        other => {
            let reason = format!("{other:?} is no kind of device; c, b, u and p are");
            return Err(PlanError::invalid(format!("{field}.type"), reason));
        }
    };
    let mode = device.file_mode.unwrap_or(0o666);
    // Go's os.FileMode has type bits of its own above the permissions; only the latter are meant.
    let number = |name: &str, value: i64| match (kind, u32::try_from(value)) {
        (S_IFIFO, _) => Ok(0),
        (_, Ok(number)) => Ok(number),
        (_, Err(_)) => {
            Err(PlanError::invalid(format!("{field}.{name}"), format!("{value} is no device number")))
        }
    };
    Ok(Node {
        path: path.to_owned(),
        mode: kind | (mode & 0o7777),
        major: number("major", device.major)?,
        minor: number("minor", device.minor)?,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
    })
}

/// The spec's rules with those of the usual devices.
pub fn rules(limits: &LinuxResources) -> Result<Vec<Rule>, PlanError> {
    let mut rules = Vec::new();
    for (index, rule) in limits.devices.iter().enumerate() {
        rules.push(rule_of(&format!("linux.resources.devices[{index}]"), rule)?);
    }
    let char_device = |major, minor, access| Rule { allow: true, kind: Some('c'), major, minor, access };
    rules.push(char_device(None, None, MKNOD));
    rules.push(Rule { kind: Some('b'), ..char_device(None, None, MKNOD) });
    rules.extend(USUAL.iter().map(|(_, major, minor)| char_device(Some(*major), Some(*minor), ANY)));
    rules.extend(TERMINALS.iter().map(|(major, minor)| char_device(Some(*major), *minor, ANY)));
    Ok(rules)
}

fn rule_of(field: &str, rule: &DeviceRule) -> Result<Rule, PlanError> {
    let kind = match rule.kind.as_str() {
        "" | "a" => None,
        "c" => Some('c'),
        "b" => Some('b'),
        other => return Err(PlanError::invalid(field, format!("{other:?} is no kind; a, b and c are"))),
    };
    let mut access = 0;
    for letter in rule.access.chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => {
                return Err(PlanError::invalid(field, format!("{other:?} is no access; r, w and m are")));
            }
        };
    }
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => match u32::try_from(value) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(PlanError::invalid(field, format!("{value} is no device number"))),
        },
    };
    let (major, minor) = (number(rule.major)?, number(rule.minor)?);
    Ok(Rule { allow: rule.allow, kind, major, minor, access: if access == 0 { ANY } else { access } })
}

/// Where the rules start to count: behind the last one that says the same of everything.
fn from_last_blanket(rules: &[Rule]) -> (bool, &[Rule]) {
    match rules.iter().rposition(Rule::is_blanket) {
        Some(at) => match rules.split_at_checked(at + 1) {
            Some((_, rest)) => (rules.get(at).is_some_and(|rule| rule.allow), rest),
            None => (false, rules),
        },
        None => (false, rules),
    }
}

/// The filter for the v2 tree, where that is what counts (on hybrid hosts it is the v1 controller); `None` where
/// everything is allowed.
pub(crate) fn filter_for(limits: &LinuxResources, layout: &CgroupLayout) -> Result<Option<Blob>, PlanError> {
    if layout.unified().is_none() || layout.find("devices").is_some() {
        return Ok(None);
    }
    let rules = rules(limits)?;
    let (allow, rest) = from_last_blanket(&rules);
    if allow && rest.iter().all(|rule| rule.allow) {
        return Ok(None);
    }
    Ok(Some(Blob(program(&rules))))
}

/// Lines for `devices.allow` and `devices.deny` of the hierarchy that has the controller. A new cgroup starts with
/// its parent's rules, so the first line is always a blanket one.
pub(crate) fn v1_writes(
    limits: &LinuxResources,
    layout: &CgroupLayout,
) -> Result<Option<(u8, Vec<CgroupWrite>)>, PlanError> {
    let Some((number, _)) = layout.find("devices").filter(|(_, hierarchy)| !hierarchy.unified) else {
        return Ok(None);
    };
    let rules = rules(limits)?;
    Ok(Some((
        number,
        v1_lines(&rules)
            .into_iter()
            .map(|(file, line)| CgroupWrite {
                file: file.into(),
                value: Blob(line.into_bytes()),
                optional: false,
            })
            .collect(),
    )))
}

/// (file, line) in the order in which they are written, one write each.
pub fn v1_lines(rules: &[Rule]) -> Vec<(&'static std::ffi::CStr, String)> {
    let (allow, rest) = from_last_blanket(rules);
    let file = |allow: bool| if allow { c"devices.allow" } else { c"devices.deny" };
    let mut lines = vec![(file(allow), "a".to_owned())];
    for rule in rest.iter().filter(|rule| !(allow && rule.allow)) {
        // "a" with numbers would be taken as "everything" by the kernel, so both kinds are named.
        let kinds: &[char] = match rule.kind {
            Some('b') => &['b'],
            Some(_) => &['c'],
            None => &['c', 'b'],
        };
        for kind in kinds {
            lines.push((file(rule.allow), rule.line(*kind)));
        }
    }
    lines
}
