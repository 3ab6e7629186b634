//! `features`: what this runtime can do, as the OCI has it (features.md of the runtime spec).

use anyhow::Result;
use bowline_model::capability;
use bowline_plan::seccomp::Arch;
use serde_json::{Value, json};

use crate::bundle::last_cap;
use crate::list::print_json;

const MOUNT_OPTIONS: [&str; 35] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "loud",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "rbind",
    "relatime",
    "ro",
    "rprivate",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "unbindable",
    "rnosuid",
];
/// Options of [`MOUNT_OPTIONS`] that also exist for a whole tree, with an `r` in front.
const RECURSIVE: [&str; 13] = [
    "ratime",
    "rdev",
    "rdiratime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnosymfollow",
    "rrelatime",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
];
const ARCHS: [&str; 9] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

/// Prints the features.
pub(crate) fn features() -> Result<()> {
    let mut mount_options: Vec<&str> = MOUNT_OPTIONS.into_iter().chain(RECURSIVE).collect();
    mount_options.sort_unstable();
    print_json(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mount_options,
        "linux": linux()?,
    }))
}

/// "Enabled" is what the runtime can do, whether or not this host has it.
fn linux() -> Result<Value> {
    Ok(json!({
        "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
        "capabilities": capability::names(capability::all(last_cap()?)),
        "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
        "seccomp": seccomp(),
        "apparmor": { "enabled": true },
        "selinux": { "enabled": true },
        "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
        "netDevices": { "enabled": true },
        "mountExtensions": { "idmap": { "enabled": false } },
    }))
}

fn seccomp() -> Value {
    let archs: Vec<&str> = ARCHS.into_iter().filter(|name| Arch::parse(name).is_ok()).collect();
    let flags = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"];
    json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
            "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
        ],
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
            "SCMP_CMP_NE",
        ],
        "archs": archs,
        "knownFlags": flags,
        "supportedFlags": flags,
    })
}
