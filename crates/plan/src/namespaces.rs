//! Which namespaces are new, which are joined, which are left as they are.

use std::ffi::CString;

use bowline_launch_plan::{JoinNamespace, UserMaps};
use bowline_model::runtime_spec::{IdMap, Linux, NamespaceType, Spec};

use crate::PlanError;
use crate::bytes::{absolute, c_string};
use crate::compile::{Descriptor, Descriptors};

pub(crate) struct Resolved {
    /// `CLONE_NEW*` of the new ones.
    pub(crate) new: u64,
    pub(crate) join: Vec<JoinNamespace>,
    pub(crate) user_maps: Option<UserMaps>,
    pub(crate) hostname: Option<CString>,
    pub(crate) domainname: Option<CString>,
    /// The process ends up in a user namespace of its own or its pod's.
    pub(crate) user: bool,
    /// The cgroup namespace is new.
    pub(crate) cgroup: bool,
}

/// Namespaces that are not listed are the launcher's; so are those it is in already.
pub(crate) fn resolve(
    spec: &Spec,
    linux: &Linux,
    inherited: u64,
    descriptors: &mut Descriptors,
) -> Result<Resolved, PlanError> {
    let mut new = 0;
    let mut listed = 0;
    let mut join = Vec::new();
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let flag = match (&namespace.kind, namespace.kind.clone_flag()) {
            (NamespaceType::Time, _) | (_, None) => {
                return Err(PlanError::unsupported(format!("{field}.type {:?}", namespace.kind.as_str())));
            }
            (_, Some(flag)) => flag,
        };
        if listed & flag != 0 {
            return Err(PlanError::invalid(field, format!("{} is there twice", namespace.kind.as_str())));
        }
        listed |= flag;
        if namespace.path.is_empty() {
            new |= flag;
        } else if inherited & flag == 0 {
            let path = absolute(&format!("{field}.path"), &namespace.path)?;
            let fd = descriptors.add(Descriptor::Namespace { path, flag })?;
            join.push(JoinNamespace { fd, flags: flag });
        }
    }
    // The user namespace comes first: what it owns may only be joined from inside.
    join.sort_by_key(|namespace| namespace.flags != flag(NamespaceType::User));
    if new & flag(NamespaceType::Mount) == 0 {
        let reason = "has no new mount namespace, which a root file system needs";
        return Err(PlanError::invalid("linux.namespaces", reason));
    }
    let uts = listed & flag(NamespaceType::Uts) != 0;
    Ok(Resolved {
        new,
        join,
        user_maps: user_maps(linux, new, listed)?,
        hostname: uts_name("hostname", &spec.hostname, uts)?,
        domainname: uts_name("domainname", &spec.domainname, uts)?,
        user: (listed | inherited) & flag(NamespaceType::User) != 0,
        cgroup: new & flag(NamespaceType::Cgroup) != 0,
    })
}

pub(crate) fn flag(kind: NamespaceType) -> u64 {
    kind.clone_flag().unwrap_or(0)
}

fn uts_name(field: &str, name: &str, uts: bool) -> Result<Option<CString>, PlanError> {
    match (name.is_empty(), uts) {
        (true, _) => Ok(None),
        (false, true) => c_string(field, name).map(Some),
        // Else it would be the host's name that changes.
        (false, false) => {
            Err(PlanError::invalid(field, "needs a UTS namespace; add one to linux.namespaces"))
        }
    }
}

fn user_maps(linux: &Linux, new: u64, listed: u64) -> Result<Option<UserMaps>, PlanError> {
    let user = flag(NamespaceType::User);
    let none = linux.uid_mappings.is_empty() && linux.gid_mappings.is_empty();
    if listed & user == 0 && !none {
        return Err(PlanError::invalid(
            "linux.uidMappings",
            "needs a user namespace; add one to linux.namespaces",
        ));
    }
    if new & user == 0 {
        return Ok(None);
    }
    Ok(Some(UserMaps {
        uid_map: c_string("linux.uidMappings", map_text("linux.uidMappings", &linux.uid_mappings)?)?,
        gid_map: c_string("linux.gidMappings", map_text("linux.gidMappings", &linux.gid_mappings)?)?,
    }))
}

/// What uid_map or gid_map is given.
pub(crate) fn map_text(field: &str, maps: &[IdMap]) -> Result<String, PlanError> {
    if maps.is_empty() {
        return Err(PlanError::invalid(field, "is empty; map at least one id"));
    }
    let mut text = String::new();
    for map in maps {
        let end = |first: u32| first.checked_add(map.size);
        if map.size == 0 || end(map.container_id).is_none() || end(map.host_id).is_none() {
            return Err(PlanError::invalid(field, format!("{map:?} is no range of ids")));
        }
        text.push_str(&format!("{} {} {}\n", map.container_id, map.host_id, map.size));
    }
    Ok(text)
}
