//! The process of a spec: who it is and what it is given.

use serde::{Deserialize, Serialize};

use super::{Extra, spec_structs};

spec_structs! {
    /// What runs in the container.
    pub struct Process {
        /// It has a terminal.
        pub terminal: bool,
        /// The terminal's size.
        pub console_size: Option<ConsoleSize>,
        /// Who it is.
        pub user: ProcessUser,
        /// Program and arguments.
        pub args: Vec<String>,
        /// Environment.
        pub env: Vec<EnvLine>,
        /// Absolute working directory.
        pub cwd: String,
        /// Capability sets; `None`: none at all.
        pub capabilities: Option<CapabilitySets>,
        /// Resource limits.
        pub rlimits: Vec<Rlimit>,
        /// Set no_new_privs.
        pub no_new_privileges: bool,
        /// AppArmor profile.
        pub apparmor_profile: String,
        /// `oom_score_adj`; `None`: as the runtime's.
        pub oom_score_adj: Option<i32>,
        /// SELinux label.
        pub selinux_label: String,
        /// Scheduling policy.
        pub scheduler: Option<Scheduler>,
        /// I/O priority.
        pub io_priority: Option<IoPriority>,
        /// CPU affinity of `exec`.
        #[serde(rename = "execCPUAffinity")]
        pub exec_cpu_affinity: Option<serde_json::Value>,
        /// Fields that we do not know.
        #[serde(flatten)]
        pub extra: Extra,
    }

    /// Size of a terminal, in characters.
    pub struct ConsoleSize {
        /// Rows.
        pub height: u16,
        /// Columns.
        pub width: u16,
    }

    /// Who a process is.
    pub struct ProcessUser {
        /// User id.
        pub uid: u32,
        /// Group id.
        pub gid: u32,
        /// File mode creation mask; `None`: 0022.
        pub umask: Option<u32>,
        /// Supplemental groups.
        pub additional_gids: Vec<u32>,
        /// User name (Windows).
        pub username: String,
    }

    /// Capability sets by name (`CAP_..`).
    pub struct CapabilitySets {
        /// Bounding set.
        pub bounding: Vec<String>,
        /// Effective set.
        pub effective: Vec<String>,
        /// Inheritable set.
        pub inheritable: Vec<String>,
        /// Permitted set.
        pub permitted: Vec<String>,
        /// Ambient set.
        pub ambient: Vec<String>,
    }

    /// A resource limit.
    pub struct Rlimit {
        /// `RLIMIT_..`.
        #[serde(rename = "type")]
        pub kind: String,
        /// Hard limit.
        pub hard: u64,
        /// Soft limit.
        pub soft: u64,
    }

    /// Scheduling policy.
    pub struct Scheduler {
        /// `SCHED_..`.
        pub policy: String,
        /// -20 to 19, for `SCHED_OTHER` and `SCHED_BATCH`.
        pub nice: i32,
        /// 1 to 99, for `SCHED_FIFO` and `SCHED_RR`.
        pub priority: i32,
        /// `SCHED_FLAG_..`.
        pub flags: Vec<String>,
        /// Nanoseconds, for `SCHED_DEADLINE`.
        pub runtime: u64,
        /// Nanoseconds, for `SCHED_DEADLINE`.
        pub deadline: u64,
        /// Nanoseconds, for `SCHED_DEADLINE`.
        pub period: u64,
    }

    /// I/O priority.
    pub struct IoPriority {
        /// `IOPRIO_CLASS_..`.
        pub class: String,
        /// 0 to 7.
        pub priority: i32,
    }
}

/// One `NAME=value` line of an environment: any bytes but NUL, which JSON cannot carry. In memory nothing is lost;
/// as JSON, what is not UTF-8 becomes U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct EnvLine(Vec<u8>);

impl EnvLine {
    /// A line of a name and a value.
    pub fn new(name: &str, value: &[u8]) -> Self {
        Self([name.as_bytes(), b"=", value].concat())
    }

    /// The whole line.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What stands before the first `=`; the whole line where there is none.
    pub fn name(&self) -> &[u8] {
        self.0.split(|byte| *byte == b'=').next().unwrap_or_default()
    }

    /// What stands after the first `=`.
    pub fn value(&self) -> Option<&[u8]> {
        let at = self.0.iter().position(|byte| *byte == b'=')?;
        self.0.get(at + 1..)
    }
}

impl From<String> for EnvLine {
    fn from(line: String) -> Self {
        Self(line.into_bytes())
    }
}

impl From<&str> for EnvLine {
    fn from(line: &str) -> Self {
        Self(line.as_bytes().to_vec())
    }
}

impl From<EnvLine> for String {
    fn from(line: EnvLine) -> String {
        String::from_utf8(line.0)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}
