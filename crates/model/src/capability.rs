//! Capabilities by name and number.

/// Names without `CAP_`, by bit number (linux/capability.h of 6.18).
pub const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The bit of a capability, from its name in either case, with or without `CAP_`.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().zip(0u32..).find(|(known, _)| **known == short).map(|(_, number)| 1 << number)
}

/// The names, with `CAP_`, of the bits of a set, in the order of their numbers.
pub fn names(set: u64) -> Vec<String> {
    NAMES
        .iter()
        .zip(0u32..)
        .filter(|(_, number)| set & (1 << number) != 0)
        .map(|(name, _)| format!("CAP_{name}"))
        .collect()
}

/// All capabilities up to this number (`/proc/sys/kernel/cap_last_cap`) that have a name here.
pub fn all(last_cap: u32) -> u64 {
    NAMES.iter().zip(0..=last_cap).fold(0, |set, (_, number)| set | (1 << number))
}
