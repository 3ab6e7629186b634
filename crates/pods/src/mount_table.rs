//! The table of mounts that the daemon sees.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

/// Whether the mount that holds `path` is (shared, slave), by the longest mount point of mountinfo that is above it.
pub(crate) fn propagation_of(path: &Path) -> io::Result<(bool, bool)> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut best: (usize, (bool, bool)) = (0, (false, false));
    for line in text.lines() {
        let Some((front, _)) = line.split_once(" - ") else { continue };
        let mut fields = front.split(' ');
        let Some(point) = fields.nth(4).map(unescape) else { continue };
        let options: Vec<&str> = fields.collect();
        let depth = Path::new(&point).components().count();
        if path.starts_with(&point) && depth >= best.0 {
            let has = |kind: &str| options.iter().any(|option| option.starts_with(kind));
            best = (depth, (has("shared:"), has("master:")));
        }
    }
    Ok(best.1)
}

/// mountinfo writes space, tab, newline and backslash as octal.
pub(crate) fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Takes away whatever is mounted below a folder, or on it, so that removing the folder touches no other file system.
pub(crate) fn clear(folder: &Path) -> io::Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).map(PathBuf::from);
    let below: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    // The last is on top of, or below, those before it.
    for point in below.iter().rev() {
        match unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It went with the one that it was on.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads() {
        propagation_of(Path::new("/proc")).unwrap();
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }

    #[test]
    fn mounts_below_a_folder_go_and_what_is_in_them_stays() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("word"), "kept").unwrap();
        let inside = folder.path().join("a b");
        fs::create_dir(&inside).unwrap();
        for _ in 0..2 {
            rustix::mount::mount_bind(other.path(), &inside).unwrap();
        }
        clear(folder.path()).unwrap();
        assert!(!inside.join("word").exists());
        assert_eq!(fs::read_to_string(other.path().join("word")).unwrap(), "kept");
    }
}
