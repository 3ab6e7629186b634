//! What /proc tells of processes: open files, sockets, limits. Only read for metrics, since it costs a call per open
//! file.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// The most open files of one container that are looked at to find the sockets among them.
const MAX_FILES: usize = 65_536;

/// Sums over processes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Open {
    pub files: u64,
    pub sockets: u64,
}

/// Counts open files. A process that ends meanwhile counts as far as it was seen.
pub(super) fn open_files(pids: &[i32]) -> Open {
    let mut open = Open::default();
    let mut looked_at = 0;
    for pid in pids {
        let folder = format!("/proc/{pid}/fd");
        if looked_at >= MAX_FILES {
            // Since Linux 6.2 the size of the folder is the number of open files.
            open.files += fs::metadata(&folder).map_or(0, |meta| meta.size());
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            open.files += 1;
            looked_at += 1;
            if looked_at < MAX_FILES
                && let Ok(target) = fs::read_link(entry.path())
                && target.as_os_str().as_encoded_bytes().starts_with(b"socket:")
            {
                open.sockets += 1;
            }
        }
    }
    open
}

/// The soft limit of open files of a process; `None` where it has none.
pub(super) fn open_files_limit(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_files_are_counted() {
        let own = std::process::id() as i32;
        let before = open_files(&[own]);
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let after = open_files(&[own, i32::MAX]);
        assert!(after.sockets > before.sockets && after.files >= after.sockets, "{before:?} {after:?}");
        assert!(open_files_limit(own).is_some_and(|limit| limit > 0));
    }
}
