//! What a daemon's pods are like, whatever a client asks for.

use std::path::PathBuf;
use std::time::Duration;

use bowline_nri::NriConfig;

use crate::apparmor::ApparmorConfig;
use crate::checkpoint::CheckpointConfig;
use crate::driver::ChosenDriver;
use crate::selinux::SelinuxConfig;

/// How pods are set up.
#[derive(Debug, Clone)]
pub struct PodsConfig {
    /// The daemon's root folder: records, layers, writable layers.
    pub root: PathBuf,
    /// The daemon's state folder, on a tmpfs: sockets, exits.
    pub state: PathBuf,
    /// The program `bowline-monitor`.
    pub monitor: PathBuf,
    /// Size of a pod's /dev/shm, bytes.
    pub shm_size: u64,
    /// Where CDI files are; later folders count before earlier ones.
    pub cdi_folders: Vec<PathBuf>,
    /// How long the host's file systems may take to hand out what a container needs of them.
    pub path_patience: Duration,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
    /// AppArmor.
    pub apparmor: ApparmorConfig,
    /// SELinux.
    pub selinux: SelinuxConfig,
    /// Plugins; `None`: nobody is ever asked.
    pub nri: Option<NriConfig>,
    /// Who makes pods' cgroups.
    pub cgroup_driver: ChosenDriver,
}

/// The size of /dev/shm that every peer gives.
pub const SHM_SIZE: u64 = 64 << 20;

/// Where vendors' tools put CDI files (SPEC.md of the Container Device Interface).
const CDI_FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

impl PodsConfig {
    /// The usual sizes.
    pub fn new(root: PathBuf, state: PathBuf, monitor: PathBuf) -> PodsConfig {
        PodsConfig {
            root,
            state,
            monitor,
            shm_size: SHM_SIZE,
            cdi_folders: CDI_FOLDERS.iter().map(PathBuf::from).collect(),
            path_patience: crate::paths::PATIENCE,
            checkpoint: CheckpointConfig::default(),
            apparmor: ApparmorConfig::default(),
            selinux: SelinuxConfig::default(),
            nri: None,
            cgroup_driver: ChosenDriver::of_default(),
        }
    }
}
