//! What the records say. Fields may be added with a default; none is renamed or changes its meaning.

use bowline_model::container::Life;
use bowline_model::spec::{ContainerSpec, PodSpec, Resources};
use bowline_model::{ContainerId, SandboxId, Signal};
use serde::{Deserialize, Serialize};

/// Version of the records that this build writes.
pub const VERSION: u32 = 1;

/// Where a pod is, as far as a restart must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodLife {
    /// Being brought up: after a restart everything of it is undone.
    Creating,
    /// Up.
    Ready,
    /// Down, or going down; `cleaned` says how far.
    NotReady,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The boot during which its kernel objects were made.
    pub boot: String,
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub spec: PodSpec,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where it is.
    pub life: PodLife,
    /// Network, processes and cgroups are gone.
    #[serde(default)]
    pub cleaned: bool,
    /// Its network, once there is one.
    #[serde(default)]
    pub network: Option<NetworkRecord>,
    /// Its monitor's process; 0: none yet.
    #[serde(default)]
    pub monitor: i32,
    /// The cgroup folder of the pod, below the root of each hierarchy, without a leading slash.
    #[serde(default)]
    pub cgroup: String,
    /// How many folders at the end of that path were not there before the pod.
    #[serde(default)]
    pub cgroup_made: u32,
    /// What the pod is to have altogether, as UpdatePodSandboxResources last said; nothing is done with it here.
    #[serde(default)]
    pub resources: PodResources,
    /// Its SELinux labels; `None`: the node had no SELinux when it was made.
    #[serde(default)]
    pub selinux: Option<SelinuxRecord>,
}

/// The labels of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SelinuxRecord {
    /// Of its processes, where a container asks for nothing else; empty: the policy's choice.
    pub process: String,
    /// Of its mounts.
    pub mount: String,
    /// Its level, with the categories that no other pod has; empty: the policy has no levels.
    pub level: String,
}

/// The resources of a whole pod.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodResources {
    /// Beyond what its containers have.
    pub overhead: Resources,
    /// The sum of its containers'.
    pub sum: Resources,
}

/// What CNI gave.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkRecord {
    /// Addresses, the primary one first.
    pub ips: Vec<String>,
    /// The CNI result.
    pub result: String,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: SandboxId,
    /// What was asked for; the resources are those in force.
    pub spec: ContainerSpec,
    /// Nanoseconds since the epoch; strictly rising over all containers.
    pub created_at: i64,
    /// Its image, as it was found.
    pub image: ImageRecord,
    /// Who it runs as.
    pub user: UserRecord,
    /// Its cgroup, below the root of each hierarchy, without a leading slash.
    pub cgroup: String,
    /// Its slot in the exits file.
    pub slot: u16,
    /// What stops it.
    pub stop_signal: Signal,
    /// Absolute path of its log; empty: none.
    pub log_path: String,
    /// Where it is.
    pub life: LifeRecord,
    /// What could not be given as asked, and why.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Images that are its volumes.
    #[serde(default)]
    pub image_volumes: Vec<ImageVolumeRecord>,
    /// It is not launched but brought back, from what a checkpoint left in its folder.
    #[serde(default)]
    pub restore: bool,
    /// SELinux label of volumes that are to be relabelled when it starts; `None`: they stay as they are.
    #[serde(default)]
    pub relabel: Option<String>,
}

/// An image that is a volume of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageVolumeRecord {
    /// The position of the mount among those asked for.
    pub mount: usize,
    /// Image id.
    pub id: String,
    /// Layer folders, bottom first.
    pub layers: Vec<String>,
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageRecord {
    /// Image id (`sha256:` and the digest of its configuration).
    pub id: String,
    /// A digest reference of it, or its id.
    pub reference: String,
    /// Layer folders, bottom first.
    pub layers: Vec<String>,
}

/// The user of a container's first process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UserRecord {
    /// uid.
    pub uid: u32,
    /// gid.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
}

/// Where a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum LifeRecord {
    /// Nothing runs yet.
    Created,
    /// A start was begun; after a restart the monitor knows how it went.
    Starting,
    /// The program runs.
    Running {
        /// Its process.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It ended.
    Exited(ExitRecord),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExitRecord {
    /// Nanoseconds since the epoch; 0: it never ran.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// Exit code, or 128 and the number of the signal.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, ...
    pub reason: String,
    /// More for people.
    pub message: String,
}

impl From<&Life> for LifeRecord {
    /// What a restart must know of a life. A stop under way is not part of it: whoever asked for it asks again.
    fn from(life: &Life) -> LifeRecord {
        match life {
            Life::Created => LifeRecord::Created,
            Life::Starting { .. } => LifeRecord::Starting,
            Life::Running { pid, started_at } | Life::Stopping { pid, started_at, .. } => {
                LifeRecord::Running { pid: *pid, started_at: *started_at }
            }
            Life::Exited { started_at, exit } => LifeRecord::Exited(ExitRecord {
                started_at: *started_at,
                finished_at: exit.finished_at,
                code: exit.code,
                reason: exit.reason().to_owned(),
                message: exit.message.clone(),
            }),
        }
    }
}
