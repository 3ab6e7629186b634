//! Namespaces, both ways.

use bowline_cri_proto::v1;
use bowline_model::spec::{IdMapping, NamespaceMode, Namespaces, UserNamespace};

use super::{Refused, check, invalid};

/// The namespaces of a pod.
pub(crate) fn of_pod(field: &str, asked: v1::NamespaceOption) -> Result<Namespaces, Refused> {
    let pid_field = format!("{field}.pid");
    let pid = mode(&pid_field, asked.pid)?;
    if pid == NamespaceMode::Target {
        return Err(invalid(pid_field, "TARGET is for containers"));
    }
    let namespaces = Namespaces {
        network: pod_or_node(&format!("{field}.network"), asked.network)?,
        pid,
        ipc: pod_or_node(&format!("{field}.ipc"), asked.ipc)?,
        target_id: String::new(),
        user: asked
            .userns_options
            .map(|user| self::user(&format!("{field}.userns_options"), user))
            .transpose()?,
    };
    check_user(field, &namespaces)?;
    Ok(namespaces)
}

/// The namespaces of a container. Only the PID one is its own; whatever else is said, it joins its sandbox's, and
/// clients do say other things (critest's host-network specs).
pub(crate) fn of_container(field: &str, asked: v1::NamespaceOption) -> Result<Namespaces, Refused> {
    mode(&format!("{field}.network"), asked.network)?;
    mode(&format!("{field}.ipc"), asked.ipc)?;
    let pid = mode(&format!("{field}.pid"), asked.pid)?;
    let target_id = match pid {
        NamespaceMode::Target if asked.target_id.is_empty() => {
            return Err(invalid(format!("{field}.target_id"), "must name a container when pid is TARGET"));
        }
        NamespaceMode::Target => asked.target_id,
        _ => String::new(),
    };
    Ok(Namespaces { pid, target_id, ..Namespaces::default() })
}

fn mode(field: &str, value: i32) -> Result<NamespaceMode, Refused> {
    Ok(match check::known(field, value)? {
        v1::NamespaceMode::Pod => NamespaceMode::Pod,
        v1::NamespaceMode::Container => NamespaceMode::Container,
        v1::NamespaceMode::Node => NamespaceMode::Node,
        v1::NamespaceMode::Target => NamespaceMode::Target,
    })
}

fn pod_or_node(field: &str, value: i32) -> Result<NamespaceMode, Refused> {
    match mode(field, value)? {
        mode @ (NamespaceMode::Pod | NamespaceMode::Node) => Ok(mode),
        _ => Err(invalid(field, "can be POD or NODE")),
    }
}

/// The host's user namespace may be asked for in so many words.
fn user(field: &str, asked: v1::UserNamespace) -> Result<UserNamespace, Refused> {
    let mappings = (asked.uids.as_slice(), asked.gids.as_slice());
    match (mode(&format!("{field}.mode"), asked.mode)?, mappings) {
        (NamespaceMode::Node, ([], [])) => Ok(UserNamespace { node: true, ..UserNamespace::default() }),
        (NamespaceMode::Node, _) => Err(invalid(field, "mode NODE has no mappings")),
        (NamespaceMode::Pod, ([uids], [gids])) => {
            let (uids, gids) =
                (mapping(&format!("{field}.uids"), uids)?, mapping(&format!("{field}.gids"), gids)?);
            if uids.length != gids.length {
                return Err(invalid(field, "as many uids as gids must be mapped"));
            }
            Ok(UserNamespace { uids, gids, node: false })
        }
        (NamespaceMode::Pod, _) => {
            Err(invalid(field, "mode POD needs exactly one mapping of uids and one of gids"))
        }
        _ => Err(invalid(format!("{field}.mode"), "can be POD or NODE")),
    }
}

/// A mapping of the pod's. Root must have a number, and not that of the host's root.
fn mapping(field: &str, asked: &v1::IdMapping) -> Result<IdMapping, Refused> {
    if asked.container_id != 0 {
        return Err(invalid(field, format!("container_id must be 0, not {}", asked.container_id)));
    }
    if asked.host_id == 0 {
        return Err(invalid(field, "host_id must not be 0: the pod's root would be the host's"));
    }
    // 4294967295 is no id (setresuid(2)).
    if asked.length == 0 || asked.host_id.checked_add(asked.length).is_none() {
        let reason = format!("{} ids from {} on are no range of ids", asked.length, asked.host_id);
        return Err(invalid(field, reason));
    }
    Ok(id_mapping(asked))
}

/// A range of ids as it stands.
pub(super) fn id_mapping(asked: &v1::IdMapping) -> IdMapping {
    IdMapping { host_id: asked.host_id, container_id: asked.container_id, length: asked.length }
}

/// The user namespace goes with namespaces that it can own.
fn check_user(field: &str, namespaces: &Namespaces) -> Result<(), Refused> {
    if namespaces.user.as_ref().is_none_or(|user| user.node) {
        return Ok(());
    }
    let modes = [("network", namespaces.network), ("pid", namespaces.pid), ("ipc", namespaces.ipc)];
    match modes.into_iter().find(|(_, mode)| *mode == NamespaceMode::Node) {
        Some((name, _)) => {
            let reason = format!("a pod with a user namespace of its own cannot have the host's {name}");
            Err(invalid(format!("{field}.{name}"), reason))
        }
        None => Ok(()),
    }
}

/// What was asked for, as the kubelet compares it.
pub(crate) fn echo(namespaces: &Namespaces) -> v1::NamespaceOption {
    let mode = |mode| match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod.into(),
        NamespaceMode::Container => v1::NamespaceMode::Container.into(),
        NamespaceMode::Node => v1::NamespaceMode::Node.into(),
        NamespaceMode::Target => v1::NamespaceMode::Target.into(),
    };
    v1::NamespaceOption {
        network: mode(namespaces.network),
        pid: mode(namespaces.pid),
        ipc: mode(namespaces.ipc),
        target_id: namespaces.target_id.clone(),
        userns_options: namespaces.user.as_ref().map(|user| {
            let mapping = |map: &bowline_model::spec::IdMapping| v1::IdMapping {
                host_id: map.host_id,
                container_id: map.container_id,
                length: map.length,
            };
            match user.node {
                true => v1::UserNamespace { mode: v1::NamespaceMode::Node.into(), ..Default::default() },
                false => v1::UserNamespace {
                    mode: v1::NamespaceMode::Pod.into(),
                    uids: vec![mapping(&user.uids)],
                    gids: vec![mapping(&user.gids)],
                },
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(network: i32, pid: i32, ipc: i32) -> v1::NamespaceOption {
        v1::NamespaceOption { network, pid, ipc, ..Default::default() }
    }

    fn user_option(mode: i32, uids: usize, gids: usize) -> v1::NamespaceOption {
        let mapping = v1::IdMapping { host_id: 1000, container_id: 0, length: 65536 };
        let userns_options = v1::UserNamespace { mode, uids: vec![mapping; uids], gids: vec![mapping; gids] };
        v1::NamespaceOption { userns_options: Some(userns_options), ..Default::default() }
    }

    #[test]
    fn a_pod_has_its_own_or_the_nodes() {
        for good in [option(0, 0, 0), option(2, 2, 2), option(2, 1, 0), user_option(2, 0, 0)] {
            let namespaces = of_pod("o", good.clone()).unwrap();
            assert_eq!(echo(&namespaces), good, "a status repeats the request");
        }
        for (bad, field) in [
            (option(1, 0, 0), "o.network"),
            (option(3, 0, 0), "o.network"),
            (option(0, 3, 0), "o.pid"),
            (option(0, 0, 1), "o.ipc"),
            (option(9, 0, 0), "o.network"),
            (option(0, 0, -1), "o.ipc"),
            (user_option(1, 1, 1), "o.userns_options.mode"),
            (user_option(3, 1, 1), "o.userns_options.mode"),
            (user_option(0, 0, 1), "o.userns_options"),
            (user_option(0, 2, 1), "o.userns_options"),
            (user_option(2, 1, 1), "o.userns_options"),
        ] {
            match of_pod("o", bad) {
                Err(Refused::Invalid { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_user_namespace_maps_root_to_somebody_else() {
        let good = user_option(0, 1, 1);
        assert_eq!(echo(&of_pod("o", good.clone()).unwrap()), good, "a status repeats the request");
        let with = |change: &dyn Fn(&mut v1::IdMapping)| {
            let mut option = good.clone();
            change(&mut option.userns_options.as_mut().unwrap().uids[0]);
            option
        };
        for (bad, field) in [
            (with(&|map| map.container_id = 1), "o.userns_options.uids"),
            (with(&|map| map.host_id = 0), "o.userns_options.uids"),
            (with(&|map| map.length = 0), "o.userns_options.uids"),
            (with(&|map| map.host_id = u32::MAX), "o.userns_options.uids"),
            (with(&|map| map.length = 10), "o.userns_options"),
            (v1::NamespaceOption { network: 2, ..good.clone() }, "o.network"),
            (v1::NamespaceOption { pid: 2, ..good.clone() }, "o.pid"),
            (v1::NamespaceOption { ipc: 2, ..good.clone() }, "o.ipc"),
        ] {
            match of_pod("o", bad) {
                Err(Refused::Invalid { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }

    #[test]
    fn of_a_container_only_pid_counts() {
        let namespaces = of_container("o", option(2, 1, 2)).unwrap();
        assert_eq!(namespaces, Namespaces { pid: NamespaceMode::Container, ..Namespaces::default() });
        assert!(of_container("o", option(0, 3, 0)).is_err(), "TARGET without a target");
        let target = v1::NamespaceOption { target_id: "abc".into(), ..option(0, 3, 0) };
        assert_eq!(of_container("o", target).unwrap().target_id, "abc");
    }
}
