//! The mount program: folders, mounts with the devices in /dev, hidden and read-only paths.

use std::ffi::CString;

use bowline_launch_plan::{Source, Step, TargetKind};
use bowline_model::cgroup::{CgroupLayout, CgroupMode, Hierarchy};
use bowline_model::runtime_spec::{Linux, Mount, Spec};

use crate::bytes::{absolute, c_string};
use crate::compile::{Descriptor, Descriptors, IdmapText, mkdir};
use crate::namespaces::map_text;
use crate::options::{Attributes, Idmap, Options, attr, ms, propagation};
use crate::{PlanError, devices};

pub(crate) struct MountInputs<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) linux: &'a Linux,
    pub(crate) layout: &'a CgroupLayout,
    pub(crate) in_user_namespace: bool,
    pub(crate) new_cgroup_namespace: bool,
    pub(crate) directories: &'a [String],
}

pub(crate) fn steps(inputs: &MountInputs<'_>, descriptors: &mut Descriptors) -> Result<Vec<Step>, PlanError> {
    let mut steps = Vec::new();
    for path in inputs.directories {
        steps.push(mkdir(c_string("directories", absolute("directories", path)?)?));
    }
    let nodes = devices::nodes(inputs.linux, inputs.in_user_namespace, descriptors)?;
    let mut parsed = Vec::new();
    for (index, mount) in inputs.spec.mounts.iter().enumerate() {
        parsed.push(Parsed::new(index, mount)?);
    }
    // Devices go into /dev as soon as it is there: a volume on /dev/something lies above them.
    match parsed.iter().position(|mount| mount.target == "/dev") {
        // A bound /dev is the host's; nothing is made in it.
        Some(at) if parsed.get(at).is_some_and(|mount| mount.options.bind.is_some()) => {
            for mount in parsed {
                mount.emit(inputs, descriptors, &mut steps)?;
            }
        }
        Some(at) => {
            for (index, mount) in parsed.into_iter().enumerate() {
                mount.emit(inputs, descriptors, &mut steps)?;
                if index == at {
                    steps.extend(nodes.iter().cloned());
                }
            }
        }
        None => {
            steps.extend(nodes);
            for mount in parsed {
                mount.emit(inputs, descriptors, &mut steps)?;
            }
        }
    }
    let field = "linux.readonlyPaths";
    for path in &inputs.linux.readonly_paths {
        steps.push(Step::ReadOnly { path: c_string(field, absolute(field, path)?)? });
    }
    let field = "linux.maskedPaths";
    for path in &inputs.linux.masked_paths {
        steps.push(Step::Mask { path: c_string(field, absolute(field, path)?)? });
    }
    Ok(steps)
}

/// `linux.rootfsPropagation`; 0: private.
pub(crate) fn root_propagation(word: &str) -> Result<u64, PlanError> {
    if word.is_empty() {
        return Ok(0);
    }
    propagation(word).ok_or_else(|| {
        PlanError::invalid("linux.rootfsPropagation", format!("{word:?} is no mode of propagation"))
    })
}

struct Parsed<'a> {
    field: String,
    mount: &'a Mount,
    target: String,
    options: Options,
}

impl<'a> Parsed<'a> {
    fn new(index: usize, mount: &'a Mount) -> Result<Self, PlanError> {
        let field = format!("mounts[{index}]");
        let target = absolute(&format!("{field}.destination"), &mount.destination)?;
        if target == "/" {
            return Err(PlanError::invalid(format!("{field}.destination"), "is the root itself"));
        }
        let mut options = Options::parse(&format!("{field}.options"), &mount.options)?;
        if mount.kind == "bind" && options.bind.is_none() {
            options.bind = Some(false);
        }
        if mount.kind.is_empty() && options.bind.is_none() {
            return Err(PlanError::invalid(format!("{field}.type"), "is missing"));
        }
        Ok(Self { field, mount, target, options })
    }

    fn emit(
        &self,
        inputs: &MountInputs<'_>,
        descriptors: &mut Descriptors,
        steps: &mut Vec<Step>,
    ) -> Result<(), PlanError> {
        if let Some(recursive) = self.options.bind {
            return self.bind(recursive, descriptors, steps);
        }
        if !self.mount.uid_mappings.is_empty() || !self.mount.gid_mappings.is_empty() {
            return Err(PlanError::unsupported(format!(
                "{}.uidMappings of a mount that is not bound",
                self.field
            )));
        }
        match (self.mount.kind.as_str(), inputs.layout.mode()) {
            ("cgroup", CgroupMode::V2) | ("cgroup2", _) => {
                let source = new_source(&self.field, "cgroup2", "cgroup", Vec::new())?;
                self.push(source, TargetKind::Dir, steps)
            }
            ("cgroup", _) => self.cgroup_v1(inputs, steps),
            (kind, _) => {
                let name = if self.mount.source.is_empty() { kind } else { &self.mount.source };
                let mut data = self.options.data.clone();
                // File systems without labels of their own get the container's, as a whole.
                if matches!(kind, "tmpfs" | "ramfs" | "devpts") {
                    data.extend(context(inputs)?);
                }
                let source = new_source(&self.field, kind, name, data)?;
                self.push(source, TargetKind::Dir, steps)
            }
        }
    }

    fn bind(
        &self,
        recursive: bool,
        descriptors: &mut Descriptors,
        steps: &mut Vec<Step>,
    ) -> Result<(), PlanError> {
        if let Some((key, _)) = self.options.data.first() {
            let reason = format!("{key:?} is no option of a bind mount");
            return Err(PlanError::invalid(format!("{}.options", self.field), reason));
        }
        let path = absolute(&format!("{}.source", self.field), &self.mount.source)?;
        let idmap = self.idmap()?;
        let field = format!("{}.source", self.field);
        let fd = descriptors.add(Descriptor::HostTree { path, recursive, follow: true, idmap, field })?;
        self.push(Source::Tree { fd }, TargetKind::LikeSource, steps)
    }

    fn idmap(&self) -> Result<Option<IdmapText>, PlanError> {
        let (uids, gids) = (&self.mount.uid_mappings, &self.mount.gid_mappings);
        if uids.is_empty() && gids.is_empty() {
            return match self.options.idmap {
                Idmap::Unsaid => Ok(None),
                _ => Err(PlanError::Unsupported {
                    field: format!("{}.options: idmap without mappings", self.field),
                    hint: "; give uidMappings and gidMappings",
                }),
            };
        }
        Ok(Some(IdmapText {
            uid_map: map_text(&format!("{}.uidMappings", self.field), uids)?,
            gid_map: map_text(&format!("{}.gidMappings", self.field), gids)?,
            recursive: self.options.idmap == Idmap::Recursive,
        }))
    }

    /// One mount, and a second step where only part of the attributes holds for the mounts below.
    fn push(&self, source: Source, kind: TargetKind, steps: &mut Vec<Step>) -> Result<(), PlanError> {
        let target = c_string(&self.field, self.target.as_str())?;
        let (top, below) = (self.options.top, self.options.recursive);
        let (first, second) = match (top.is_empty(), below.is_empty()) {
            (true, false) => (below, Attributes::default()),
            _ => (top, below),
        };
        // Nothing said about a tree with mounts below it: they are as private as the one on top.
        let propagation = match (self.options.propagation, self.options.bind) {
            (0, Some(true)) => ms::PRIVATE | ms::REC,
            (said, _) => said,
        };
        steps.push(Step::Mount {
            source,
            target: target.clone(),
            kind,
            attr_set: first.set,
            attr_clr: first.clear,
            attr_recursive: top.is_empty() && !below.is_empty(),
            propagation,
            optional: self.mount.kind == "mqueue",
        });
        if !second.is_empty() {
            steps.push(Step::Attributes {
                path: target,
                attr_set: second.set,
                attr_clr: second.clear,
                recursive: true,
            });
        }
        Ok(())
    }

    /// A tmpfs with one mount per hierarchy, and symlinks for the controllers that share one. Mounted inside the new
    /// cgroup namespace, so the container sees its own cgroup as the root.
    fn cgroup_v1(&self, inputs: &MountInputs<'_>, steps: &mut Vec<Step>) -> Result<(), PlanError> {
        if !inputs.new_cgroup_namespace {
            return Err(PlanError::Unsupported {
                field: format!("{}: a cgroup mount on v1 without a new cgroup namespace", self.field),
                hint: "; add a cgroup namespace to linux.namespaces",
            });
        }
        let common = attr::NOSUID | attr::NODEV | attr::NOEXEC;
        let readonly = self.options.top.set & attr::RDONLY;
        let mut mode = vec![(c"mode".into(), Some(c"755".into()))];
        mode.extend(context(inputs)?);
        steps.push(self.at("", new_source(&self.field, "tmpfs", "cgroup", mode)?, common)?);
        for hierarchy in &inputs.layout.hierarchies {
            if hierarchy.folder.is_empty() {
                continue;
            }
            let source = hierarchy_source(&self.field, hierarchy)?;
            steps.push(self.at(&hierarchy.folder, source, common | readonly)?);
            for name in &hierarchy.controllers {
                if *name != hierarchy.folder && !hierarchy.unified {
                    steps.push(Step::Symlink {
                        target: c_string(&self.field, hierarchy.folder.as_str())?,
                        path: c_string(&self.field, format!("{}/{name}", self.target))?,
                    });
                }
            }
        }
        if readonly != 0 {
            // Only now: the mount points had to be made.
            let path = c_string(&self.field, self.target.as_str())?;
            steps.push(Step::Attributes { path, attr_set: attr::RDONLY, attr_clr: 0, recursive: false });
        }
        Ok(())
    }

    fn at(&self, below: &str, source: Source, attr_set: u64) -> Result<Step, PlanError> {
        let target = if below.is_empty() { self.target.clone() } else { format!("{}/{below}", self.target) };
        Ok(Step::Mount {
            source,
            target: c_string(&self.field, target)?,
            kind: TargetKind::Dir,
            attr_set,
            attr_clr: 0,
            attr_recursive: false,
            propagation: self.options.propagation,
            optional: false,
        })
    }
}

/// The option that labels a whole file system.
fn context(inputs: &MountInputs<'_>) -> Result<Option<(CString, Option<CString>)>, PlanError> {
    let label = inputs.linux.mount_label.as_str();
    if label.is_empty() {
        return Ok(None);
    }
    Ok(Some((c"context".into(), Some(c_string("linux.mountLabel", label)?))))
}

fn hierarchy_source(field: &str, hierarchy: &Hierarchy) -> Result<Source, PlanError> {
    if hierarchy.unified {
        return new_source(field, "cgroup2", "cgroup", Vec::new());
    }
    let mut options = Vec::new();
    for name in &hierarchy.controllers {
        options.push((c_string(field, name.as_str())?, None));
    }
    if let Some(name) = &hierarchy.name {
        if hierarchy.controllers.is_empty() {
            options.push((c"none".into(), None));
        }
        options.push((c"name".into(), Some(c_string(field, name.as_str())?)));
    }
    new_source(field, "cgroup", "cgroup", options)
}

fn new_source(
    field: &str,
    fstype: &str,
    name: &str,
    options: Vec<(CString, Option<CString>)>,
) -> Result<Source, PlanError> {
    Ok(Source::New { fstype: c_string(field, fstype)?, name: c_string(field, name)?, options })
}
