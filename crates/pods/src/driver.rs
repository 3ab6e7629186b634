//! Who makes pods' cgroups: we alone (`cgroupfs`), or systemd, one scope per pod. Chosen once, at the daemon's start.
//!
//! The kubelet makes the groups above a pod, and must do it in the same way: it asks (`RuntimeConfig`) when it starts.
//! Where a pod's cgroup is stands in its record, so a daemon that has chosen otherwise still manages older pods.

use bowline_model::SandboxId;
use bowline_model::cgroup::{CgroupLayout, CgroupMode};
use bowline_systemd::slice;

use crate::PodError;

/// What the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverWish {
    /// systemd where it can be, else cgroupfs.
    #[default]
    Auto,
    /// cgroupfs.
    Cgroupfs,
    /// systemd, or no daemon.
    Systemd,
}

/// Who makes pods' cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// We alone.
    Cgroupfs,
    /// systemd makes a scope for each pod; what is in it is ours.
    Systemd,
}

impl std::fmt::Display for CgroupDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CgroupDriver::Cgroupfs => "cgroupfs",
            CgroupDriver::Systemd => "systemd",
        })
    }
}

/// The choice, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenDriver {
    /// What was chosen.
    pub driver: CgroupDriver,
    /// For operators.
    pub why: String,
}

impl ChosenDriver {
    /// Until somebody has looked: what works everywhere.
    pub(crate) fn of_default() -> ChosenDriver {
        ChosenDriver { driver: CgroupDriver::Cgroupfs, why: "nothing else was asked for".to_owned() }
    }

    /// Looks at this machine. The error says why the wish cannot be met.
    pub fn on_this_machine(wish: DriverWish) -> Result<ChosenDriver, String> {
        let (layout, _) = crate::host::cgroups().map_err(|error| error.to_string())?;
        choose(wish, &layout, bowline_systemd::available())
    }
}

/// Whether systemd could make scopes here; if not, why.
fn possible(layout: &CgroupLayout, available: Result<(), &'static str>) -> Result<(), &'static str> {
    available?;
    match layout.mode() {
        CgroupMode::V2 => Ok(()),
        // A scope would be made in systemd's own hierarchy alone, or in those controllers' that systemd manages, and
        // what a limit means would depend on which. runc and crun have code for it; systemd itself has dropped it (258).
        CgroupMode::Hybrid | CgroupMode::V1 => {
            Err("this host has cgroup v1 hierarchies, and scopes are made on cgroup v2 alone")
        }
    }
}

fn choose(
    wish: DriverWish,
    layout: &CgroupLayout,
    available: Result<(), &'static str>,
) -> Result<ChosenDriver, String> {
    let chosen = |driver, why: &str| Ok(ChosenDriver { driver, why: why.to_owned() });
    match (wish, possible(layout, available)) {
        (DriverWish::Cgroupfs, _) => chosen(CgroupDriver::Cgroupfs, "cgroup_driver is `cgroupfs`"),
        (DriverWish::Systemd, Ok(())) => chosen(CgroupDriver::Systemd, "cgroup_driver is `systemd`"),
        (DriverWish::Systemd, Err(why)) => Err(format!(
            "cgroup_driver is `systemd`, but {why}; set it to `cgroupfs`, here and for the kubelet"
        )),
        (DriverWish::Auto, Ok(())) => {
            chosen(CgroupDriver::Systemd, "systemd is the machine's init and cgroups are v2")
        }
        (DriverWish::Auto, Err(why)) => chosen(CgroupDriver::Cgroupfs, why),
    }
}

/// The slice of pods that name no parent, as runc and CRI-O have it.
const DEFAULT_SLICE: &str = "system.slice";

/// A pod's cgroup below the root of each hierarchy. `root` is the daemon's own, for pods without a parent.
pub(crate) fn pod_cgroup(
    driver: CgroupDriver,
    root: &str,
    parent: &str,
    id: &SandboxId,
) -> Result<String, PodError> {
    const FIELD: &str = "config.linux.cgroup_parent";
    let plain = parent.trim_matches('/');
    match driver {
        CgroupDriver::Systemd => {
            let parent = if plain.is_empty() { DEFAULT_SLICE } else { parent };
            let folder =
                slice::place(parent).map_err(|error| PodError::Invalid(format!("{FIELD}: {error}")))?;
            let scope = scope_name(id);
            Ok(if folder.is_empty() { scope } else { format!("{folder}/{scope}") })
        }
        CgroupDriver::Cgroupfs if slice::looks_like_slice(plain) => Err(PodError::Invalid(format!(
            "{FIELD}: `{parent}` is a slice of systemd, and this daemon has the cgroupfs driver; start the kubelet \
             anew (it asks for the driver), or set cgroup_driver to `systemd`"
        ))),
        CgroupDriver::Cgroupfs if plain.is_empty() => Ok(format!("{root}/{id}")),
        CgroupDriver::Cgroupfs => Ok(plain.to_owned()),
    }
}

/// The name of a pod's scope.
pub(crate) fn scope_name(id: &SandboxId) -> String {
    format!("bowline-{id}.scope")
}

/// The place of the slice that a pod's scope is in; `None`: its cgroup is no scope.
pub(crate) fn slice_of<'a>(cgroup: &'a str, id: &SandboxId) -> Option<&'a str> {
    let (folder, last) = cgroup.rsplit_once('/').unwrap_or(("", cgroup));
    (last == scope_name(id)).then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hybrid() -> CgroupLayout {
        let mut layout = CgroupLayout::v2(&[]);
        layout.hierarchies.push(bowline_model::cgroup::Hierarchy::default());
        layout
    }

    #[test]
    fn systemd_is_chosen_where_it_can_be() {
        let v2 = CgroupLayout::v2(&["memory"]);
        let driver = |wish, layout: &CgroupLayout, available| {
            choose(wish, layout, available).map(|chosen| chosen.driver)
        };
        assert_eq!(driver(DriverWish::Auto, &v2, Ok(())), Ok(CgroupDriver::Systemd));
        assert_eq!(driver(DriverWish::Auto, &v2, Err("absent")), Ok(CgroupDriver::Cgroupfs));
        assert_eq!(driver(DriverWish::Auto, &hybrid(), Ok(())), Ok(CgroupDriver::Cgroupfs));
        assert_eq!(driver(DriverWish::Cgroupfs, &v2, Ok(())), Ok(CgroupDriver::Cgroupfs));
        assert_eq!(driver(DriverWish::Systemd, &v2, Ok(())), Ok(CgroupDriver::Systemd));
    }

    #[test]
    fn a_wish_that_cannot_be_met_is_told_why() {
        let error = choose(DriverWish::Systemd, &CgroupLayout::v2(&[]), Err("it is absent")).unwrap_err();
        assert!(error.contains("it is absent"), "{error}");
        let error = choose(DriverWish::Systemd, &hybrid(), Ok(())).unwrap_err();
        assert!(error.contains("cgroup v1"), "{error}");
    }

    #[test]
    fn parents_belong_to_their_driver() {
        let id = SandboxId::from_bytes([7; 32]);
        let of = |driver, parent: &str| pod_cgroup(driver, "bowline/i", parent, &id);
        let scope = scope_name(&id);
        let ok = |driver, parent: &str, expected: String| assert_eq!(of(driver, parent).unwrap(), expected);
        ok(CgroupDriver::Systemd, "", format!("system.slice/{scope}"));
        ok(CgroupDriver::Systemd, "/", format!("system.slice/{scope}"));
        ok(CgroupDriver::Systemd, "/a-b.slice", format!("a.slice/a-b.slice/{scope}"));
        ok(CgroupDriver::Systemd, "-.slice", scope.clone());
        ok(CgroupDriver::Cgroupfs, "", format!("bowline/i/{id}"));
        ok(CgroupDriver::Cgroupfs, "/kubepods/pod1/", "kubepods/pod1".to_owned());
        for (driver, parent) in [
            (CgroupDriver::Systemd, "/kubepods/pod1"),
            (CgroupDriver::Cgroupfs, "kubepods.slice"),
            (CgroupDriver::Cgroupfs, "/kubepods.slice/kubepods-pod1.slice/"),
        ] {
            let error = of(driver, parent).unwrap_err();
            assert!(
                matches!(&error, PodError::Invalid(text) if text.starts_with("config.linux.cgroup_parent: "))
            );
        }
    }

    #[test]
    fn a_cgroup_says_whether_it_is_a_scope() {
        let id = SandboxId::from_bytes([7; 32]);
        let scope = scope_name(&id);
        assert_eq!(slice_of(&format!("a.slice/{scope}"), &id), Some("a.slice"));
        assert_eq!(slice_of(&scope, &id), Some(""));
        assert_eq!(slice_of("kubepods/pod1", &id), None);
        assert_eq!(slice_of(&format!("{scope}/x"), &id), None);
    }
}
