//! Which capabilities a container gets. Sets are computed from nothing, never by taking away from what we have.

use bowline_model::capability::{all, bit, names};
use bowline_model::runtime_spec::CapabilitySets;
use bowline_model::spec::{Capabilities, ContainerSecurity};

use crate::{NodeFacts, Note, SpecError};

/// What a container gets when nobody says otherwise: the fourteen of containerd and Docker.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The five sets of a container. Inheritable is empty unless ambient capabilities are asked for, which cannot
/// be without it (a non-empty inheritable set was CVE-2022-29162).
pub(crate) fn capability_sets(
    security: &ContainerSecurity,
    node: &NodeFacts,
    notes: &mut Vec<Note>,
) -> Result<CapabilitySets, SpecError> {
    let wanted = Wanted::parse(&security.capabilities)?;
    let known = all(node.last_cap);
    let plain = if security.privileged { known } else { wanted.apply(known) };
    let plain = within_ours("capabilities", plain | wanted.ambient, node, notes);
    let ambient = wanted.ambient & plain;
    Ok(CapabilitySets {
        bounding: names(plain),
        effective: names(plain),
        permitted: names(plain),
        inheritable: names(ambient),
        ambient: names(ambient),
    })
}

/// A request, with names turned to bits.
struct Wanted {
    add_all: bool,
    drop_all: bool,
    add: u64,
    drop: u64,
    ambient: u64,
}

impl Wanted {
    fn parse(capabilities: &Capabilities) -> Result<Wanted, SpecError> {
        let (add_all, add) = parse("security_context.capabilities.add_capabilities", &capabilities.add)?;
        let (drop_all, drop) = parse("security_context.capabilities.drop_capabilities", &capabilities.drop)?;
        let field = "security_context.capabilities.add_ambient_capabilities";
        let (ambient_all, ambient) = parse(field, &capabilities.add_ambient)?;
        if ambient_all {
            return Err(SpecError::invalid(field, "ALL is not possible here; name each capability"));
        }
        Ok(Wanted { add_all, drop_all, add, drop, ambient })
    }

    /// `ALL` first, single names after it: "drop ALL, add X" is X, "add ALL, drop X" is all but X.
    fn apply(&self, known: u64) -> u64 {
        let start = match (self.drop_all, self.add_all) {
            (true, _) => 0,
            (false, true) => known,
            (false, false) => DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit),
        };
        (start | self.add) & !self.drop
    }
}

fn parse(field: &'static str, list: &[String]) -> Result<(bool, u64), SpecError> {
    let mut all = false;
    let mut set = 0;
    for name in list {
        if name.eq_ignore_ascii_case("ALL") {
            all = true;
        } else {
            set |= bit(name).ok_or_else(|| SpecError::UnknownCapability { field, name: name.clone() })?;
        }
    }
    Ok((all, set))
}

/// What the daemon or the kernel lacks cannot be given away. Some hosts take CAP_SYS_RESOURCE from everybody;
/// that must not stop a privileged pod.
fn within_ours(field: &str, wanted: u64, node: &NodeFacts, notes: &mut Vec<Note>) -> u64 {
    let missing = wanted & !(node.capabilities & all(node.last_cap));
    if missing != 0 {
        notes.push(Note::new(
            field,
            format!("{} left out: the daemon itself lacks them", names(missing).join(", ")),
        ));
    }
    wanted & !missing
}
