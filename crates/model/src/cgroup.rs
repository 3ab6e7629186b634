//! The cgroup hierarchies of a host, as everybody counts them: docs/design/cgroups.md.

use serde::{Deserialize, Serialize};

/// How a host has its cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupMode {
    /// Only v1 hierarchies.
    V1,
    /// Controllers in v1 hierarchies, and a v2 tree without any.
    Hybrid,
    /// One v2 tree.
    #[default]
    V2,
}

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hierarchy {
    /// It is the v2 tree.
    pub unified: bool,
    /// Its controllers (`cpu`, `cpuacct`, ..); of the v2 tree, those that its root offers.
    pub controllers: Vec<String>,
    /// Name of a v1 hierarchy without controllers (`name=systemd`).
    pub name: Option<String>,
    /// Name of its folder below /sys/fs/cgroup (`cpu,cpuacct`); empty: /sys/fs/cgroup itself, or not mounted.
    pub folder: String,
}

/// All hierarchies. The position in the list is the number that a launch plan counts by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupLayout {
    /// In a fixed order for the life of the daemon and of its monitors; at most 255.
    pub hierarchies: Vec<Hierarchy>,
}

impl CgroupLayout {
    /// A host with one v2 tree and these controllers.
    pub fn v2(controllers: &[&str]) -> Self {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        Self { hierarchies: vec![Hierarchy { unified: true, controllers, ..Hierarchy::default() }] }
    }

    /// What kind of host this is. A v2 tree beside v1 hierarchies is hybrid wherever it is mounted, or not at all.
    pub fn mode(&self) -> CgroupMode {
        match (self.hierarchies.iter().any(|h| h.unified), self.hierarchies.iter().any(|h| !h.unified)) {
            (true, false) => CgroupMode::V2,
            (true, true) => CgroupMode::Hybrid,
            (false, _) => CgroupMode::V1,
        }
    }

    /// The hierarchies with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (u8, &Hierarchy)> {
        (0..=u8::MAX).zip(&self.hierarchies)
    }

    /// The hierarchy that has this controller.
    pub fn find(&self, controller: &str) -> Option<(u8, &Hierarchy)> {
        self.numbered().find(|(_, hierarchy)| hierarchy.controllers.iter().any(|name| name == controller))
    }

    /// The v2 tree.
    pub fn unified(&self) -> Option<u8> {
        self.numbered().find(|(_, hierarchy)| hierarchy.unified).map(|(number, _)| number)
    }
}
