//! The limits of a spec.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Extra, spec_structs};

spec_structs! {
    /// Limits of a container's cgroup.
    pub struct LinuxResources {
        /// Which devices may be used; the last rule that matches counts.
        pub devices: Vec<DeviceRule>,
        /// Memory.
        pub memory: Option<MemoryResources>,
        /// Processors.
        pub cpu: Option<CpuResources>,
        /// Number of tasks.
        pub pids: Option<PidsResources>,
        /// Block devices.
        #[serde(rename = "blockIO")]
        pub block_io: Option<BlockIo>,
        /// Huge pages.
        pub hugepage_limits: Vec<HugepageLimit>,
        /// Network classes.
        pub network: Option<NetworkResources>,
        /// RDMA, by device.
        pub rdma: BTreeMap<String, RdmaResources>,
        /// Files of cgroup v2, by name.
        pub unified: BTreeMap<String, String>,
        /// Fields that we do not know.
        #[serde(flatten)]
        pub extra: Extra,
    }

    /// Memory limits, in bytes; -1: none.
    pub struct MemoryResources {
        /// Hard limit.
        pub limit: Option<i64>,
        /// Soft limit.
        pub reservation: Option<i64>,
        /// Memory and swap together.
        pub swap: Option<i64>,
        /// Kernel memory (v1; without effect since Linux 5.16).
        pub kernel: Option<i64>,
        /// Kernel memory for TCP (v1).
        #[serde(rename = "kernelTCP")]
        pub kernel_tcp: Option<i64>,
        /// 0 to 100 (v1).
        pub swappiness: Option<u64>,
        /// No OOM killer (v1).
        #[serde(rename = "disableOOMKiller")]
        pub disable_oom_killer: Option<bool>,
        /// Count the memory of child cgroups (v1).
        pub use_hierarchy: Option<bool>,
        /// Refuse a limit below what is in use.
        pub check_before_update: Option<bool>,
    }

    /// Processor limits.
    pub struct CpuResources {
        /// Relative weight, 2 to 262144.
        pub shares: Option<u64>,
        /// Microseconds per period; negative: no limit.
        pub quota: Option<i64>,
        /// Microseconds that may be saved up.
        pub burst: Option<u64>,
        /// Microseconds.
        pub period: Option<u64>,
        /// Realtime microseconds per period (v1).
        pub realtime_runtime: Option<i64>,
        /// Realtime period (v1).
        pub realtime_period: Option<u64>,
        /// CPU list.
        pub cpus: String,
        /// Memory node list.
        pub mems: String,
        /// 1: SCHED_IDLE.
        pub idle: Option<i64>,
    }

    /// Limit of tasks.
    pub struct PidsResources {
        /// How many; 0 and below: no limit.
        pub limit: Option<i64>,
    }

    /// Limits of block devices.
    pub struct BlockIo {
        /// 10 to 1000.
        pub weight: Option<u16>,
        /// Weight against child cgroups (v1).
        pub leaf_weight: Option<u16>,
        /// Weights of devices.
        pub weight_device: Vec<WeightDevice>,
        /// Bytes read per second.
        pub throttle_read_bps_device: Vec<ThrottleDevice>,
        /// Bytes written per second.
        pub throttle_write_bps_device: Vec<ThrottleDevice>,
        /// Reads per second.
        #[serde(rename = "throttleReadIOPSDevice")]
        pub throttle_read_iops_device: Vec<ThrottleDevice>,
        /// Writes per second.
        #[serde(rename = "throttleWriteIOPSDevice")]
        pub throttle_write_iops_device: Vec<ThrottleDevice>,
    }

    /// Weight of a block device.
    pub struct WeightDevice {
        /// Major number.
        pub major: i64,
        /// Minor number.
        pub minor: i64,
        /// 10 to 1000.
        pub weight: Option<u16>,
        /// Weight against child cgroups (v1).
        pub leaf_weight: Option<u16>,
    }

    /// Rate of a block device.
    pub struct ThrottleDevice {
        /// Major number.
        pub major: i64,
        /// Minor number.
        pub minor: i64,
        /// Per second.
        pub rate: u64,
    }

    /// Limit of huge pages.
    pub struct HugepageLimit {
        /// Such as `2MB`.
        pub page_size: String,
        /// Bytes.
        pub limit: u64,
    }

    /// Network classes (v1).
    pub struct NetworkResources {
        /// Class of packets.
        #[serde(rename = "classID")]
        pub class_id: Option<u32>,
        /// Priorities of interfaces.
        pub priorities: Vec<NetworkPriority>,
    }

    /// Priority of an interface (v1).
    pub struct NetworkPriority {
        /// Interface.
        pub name: String,
        /// Priority.
        pub priority: u32,
    }

    /// RDMA limits.
    pub struct RdmaResources {
        /// HCA handles.
        pub hca_handles: Option<u32>,
        /// HCA objects.
        pub hca_objects: Option<u32>,
    }
}

/// Whether some devices may be used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// They may.
    pub allow: bool,
    /// `a` or empty: all; `c`, `b`.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Major number; `None` or -1: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Minor number; `None` or -1: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Some of `r`, `w`, `m`; empty: all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub access: String,
}
