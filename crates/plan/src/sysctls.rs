//! Kernel parameters: only those that belong to a namespace of the container.

use std::ffi::CString;

use bowline_model::runtime_spec::{Linux, NamespaceType};

use crate::PlanError;
use crate::bytes::c_string;
use crate::namespaces::flag;

/// Parameters of the IPC namespace below `kernel/`.
const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];

/// Paths below /proc/sys with their values. One that belongs to no namespace of the container would change the
/// host (CVE-2022-0811), so it is refused. Namespaces that the launcher is in already are the container's too.
pub(crate) fn sysctls(linux: &Linux, inherited: u64) -> Result<Vec<(CString, CString)>, PlanError> {
    linux
        .sysctl
        .iter()
        .map(|(name, value)| {
            let field = format!("linux.sysctl.{name}");
            let path = path(name);
            let needed = owner(&path).ok_or_else(|| {
                PlanError::invalid(&field, "belongs to no namespace; it can only be set on the host")
            })?;
            let listed = linux.namespaces.iter().any(|namespace| namespace.kind == needed);
            if !listed && inherited & flag(needed.clone()) == 0 {
                let reason = format!("needs a {} namespace; add one to linux.namespaces", needed.as_str());
                return Err(PlanError::invalid(&field, reason));
            }
            Ok((c_string(&field, path)?, c_string(&field, value.as_str())?))
        })
        .collect()
}

/// sysctl(8): the first separator decides; with dots, a slash stands for a dot inside a name (`net.ipv4.conf.eth0/1`).
fn path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn owner(path: &str) -> Option<NamespaceType> {
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return None;
    }
    let (first, rest) = path.split_once('/')?;
    match first {
        "net" => Some(NamespaceType::Network),
        "fs" if rest.starts_with("mqueue/") => Some(NamespaceType::Ipc),
        "kernel" if IPC.contains(&rest) => Some(NamespaceType::Ipc),
        "kernel" if rest == "domainname" || rest == "hostname" => Some(NamespaceType::Uts),
        _ => None,
    }
}
