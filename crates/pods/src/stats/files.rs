//! Files of cgroups that are read again and again, kept open: opening one costs several times what reading it does.
//!
//! A kept file of a group that is gone reads as an error and is opened anew, for a group of the same path may have come.
//! Keeping stops at a share of what this process may have open; groups beyond are read as well, only slower.

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Resource, getrlimit};

/// The most groups whose files are kept: the kubelet's limit of pods, with two containers and the pod's own group each.
const MOST_GROUPS: u64 = 512;
/// Of the descriptors that this process may have, a group's files may take one in so many. A group has eight files.
const SHARE: u64 = 32;

/// The kept files of all groups.
pub(crate) struct Files {
    groups: Mutex<HashMap<Arc<str>, Arc<Kept>>>,
    most: usize,
}

impl Default for Files {
    fn default() -> Files {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Files { groups: Mutex::default(), most: MOST_GROUPS.min(descriptors / SHARE) as usize }
    }
}

impl Files {
    /// The kept files of a group; `None` if too many groups have theirs kept.
    pub(super) fn of(&self, cgroup: &Arc<str>) -> Option<Arc<Kept>> {
        let mut groups = lock(&self.groups);
        if let Some(kept) = groups.get(cgroup) {
            return Some(kept.clone());
        }
        if groups.len() >= self.most {
            return None;
        }
        Some(groups.entry(cgroup.clone()).or_default().clone())
    }

    /// A cgroup that is gone, or has nothing to tell.
    pub fn forget(&self, cgroup: &str) {
        lock(&self.groups).remove(cgroup);
    }
}

/// The kept files of one group, by hierarchy and name.
#[derive(Default)]
pub(super) struct Kept(Mutex<Vec<(RawFd, String, OwnedFd)>>);

impl Kept {
    /// Reads a file of the group from its beginning, and opens it where that has not been done.
    pub fn read(
        &self,
        root: &OwnedFd,
        name: &str,
        bytes: &mut [u8],
        open: impl FnOnce() -> Option<OwnedFd>,
    ) -> Option<usize> {
        let mut files = lock(&self.0);
        let at = files.iter().position(|(of, known, _)| *of == root.as_raw_fd() && known == name);
        if let Some((_, _, file)) = at.and_then(|at| files.get(at))
            && let Ok(len) = rustix::io::pread(file, &mut *bytes, 0)
        {
            return Some(len);
        }
        if let Some(at) = at {
            files.swap_remove(at);
        }
        let file = open()?;
        let len = rustix::io::pread(&file, bytes, 0).ok()?;
        files.push((root.as_raw_fd(), name.to_owned(), file));
        Some(len)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_is_read_anew_and_opened_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let root: OwnedFd = std::fs::File::open(folder.path()).unwrap().into();
        let kept = Kept::default();
        let mut opened = 0;
        for text in ["one", "three"] {
            std::fs::write(&path, text).unwrap();
            let mut bytes = [0u8; 16];
            let len = kept.read(&root, "file", &mut bytes, || {
                opened += 1;
                Some(std::fs::File::open(&path).unwrap().into())
            });
            assert_eq!(&bytes[..len.unwrap()], text.as_bytes());
        }
        assert_eq!(opened, 1);
        assert_eq!(kept.read(&root, "other", &mut [0u8; 1], || None), None);
    }

    #[test]
    fn keeping_has_a_limit() {
        let files = Files { groups: Mutex::default(), most: 1 };
        assert!(files.of(&Arc::from("a")).is_some() && files.of(&Arc::from("b")).is_none());
        files.forget("a");
        assert!(files.of(&Arc::from("b")).is_some());
    }
}
