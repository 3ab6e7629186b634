//! Archives that another runtime wrote: what is in ours and not in theirs, and the other way round.
//!
//! containerd and CRI-O write the same layout, and both have runc (or crun) call criu. What of its images is otherwise is
//! made ours by [`bowline_criu::adopt`]; the rest is here. Nothing of it is believed further than what is in our own.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

use bowline_criu::adopt;
use bowline_launch_plan::LaunchPlan;

use super::facts::{self, Own, Unpacked};
use super::{dump, restore};
use crate::PodError;
use crate::error::doing;

/// runc's and crun's list of standard input, output and error, in words of criu.
const DESCRIPTORS: &str = "checkpoint/descriptors.json";
/// Files that may have been deleted.
const MAX_DELETED: usize = 100_000;
/// The changed files with the deleted ones.
const CHANGED: &str = "bowline.changed";

/// Makes another runtime's images ours, and says of them what we would have.
pub(super) fn own(archive: &Path, plan: &LaunchPlan) -> Result<Own, PodError> {
    let archive = Unpacked(archive);
    let profile = restore::apparmor(plan);
    let places = adopt(archive.folder(facts::IMAGES)?, profile.as_deref()).map_err(restore::objected)?;
    let wanted: BTreeSet<String> =
        dump::targets(plan).map(|path| path.to_string_lossy().into_owned()).collect();
    let mounts = places.into_iter().map(|place| (place.clone(), asked_as(place, &wanted))).collect();
    let streams: Vec<String> =
        if archive.has(DESCRIPTORS)? { archive.read(DESCRIPTORS)? } else { Vec::new() };
    let mut streams =
        streams.into_iter().map(|key| if key.starts_with("pipe:[") { key } else { String::new() });
    let descriptors = [(); 3].map(|()| streams.next().unwrap_or_default());
    Ok(Own::new("", descriptors, Vec::new(), mounts))
}

/// The path in a request behind a mount point: nothing says where the image has symlinks, and one they all have.
fn asked_as(place: String, wanted: &BTreeSet<String>) -> String {
    let by_link = format!("/var{place}");
    let is_linked = place.starts_with("/run/") && !wanted.contains(&place) && wanted.contains(&by_link);
    if is_linked { by_link } else { place }
}

/// What a container changed, as a layer, if anything. containerd has what was deleted in it, as we have; CRI-O in a list.
pub(super) fn changed_files(folder: &Path) -> Result<Option<File>, PodError> {
    let archive = Unpacked(folder);
    let changed = if archive.has(facts::DIFF)? { Some(archive.open(facts::DIFF)?) } else { None };
    if !archive.has(facts::DELETED)? {
        return Ok(changed);
    }
    let deleted: Vec<PathBuf> = archive.read(facts::DELETED)?;
    let what = "put together the changed files of the checkpoint";
    let marks = whiteouts(&deleted)?;
    let path = folder.join(CHANGED);
    let both = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    let mut both = both.map_err(doing(what))?;
    both.write_all(&marks).map_err(doing(what))?;
    match changed {
        Some(mut changed) => {
            let mut magic = [0; 2];
            changed.read_exact(&mut magic).and_then(|()| changed.rewind()).map_err(doing(what))?;
            // What is compressed cannot be appended to what is not; CRI-O does not compress it.
            if matches!(magic, [0x1f, 0x8b] | [0x28, 0xb5]) {
                return Err(PodError::Invalid(format!(
                    "{} of the checkpoint is compressed, and there is a {}; no runtime writes that",
                    facts::DIFF,
                    facts::DELETED
                )));
            }
            io::copy(&mut changed, &mut both).map_err(doing(what))?;
        }
        // The end of an archive.
        None => both.write_all(&[0; 1024]).map_err(doing(what))?,
    }
    both.rewind().map_err(doing(what))?;
    Ok(Some(both))
}

/// An archive of OCI's marks for deleted files, without its end.
fn whiteouts(deleted: &[PathBuf]) -> Result<Vec<u8>, PodError> {
    let refused = |why: &str| PodError::Invalid(format!("{} of the checkpoint {why}", facts::DELETED));
    if deleted.len() > MAX_DELETED {
        return Err(refused(&format!("names more than {MAX_DELETED} files")));
    }
    let mut out = tar::Builder::new(Vec::new());
    for path in deleted {
        let path = path.strip_prefix("/").unwrap_or(path);
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        let (Some(name), true) = (path.file_name(), plain) else {
            return Err(refused(&format!("names {}, which is no file", path.display())));
        };
        let mut mark = std::ffi::OsString::from(".wh.");
        mark.push(name);
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mode(0o600);
        out.append_data(&mut header, path.with_file_name(mark), io::empty())
            .map_err(|error| refused(&format!("names {}: {error}", path.display())))?;
    }
    Ok(out.get_ref().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(folder: &Path) -> Option<Vec<String>> {
        let mut archive = tar::Archive::new(changed_files(folder).unwrap()?);
        let entries = archive.entries().unwrap();
        Some(entries.map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn what_was_deleted_comes_before_what_was_changed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(members(folder.path()), None);
        let mut diff = tar::Builder::new(File::create(folder.path().join(facts::DIFF)).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        diff.append_data(&mut header, "etc/new", &b"x"[..]).unwrap();
        diff.into_inner().unwrap();
        assert_eq!(members(folder.path()).unwrap(), ["etc/new"]);
        let long = "d".repeat(200);
        let deleted = format!(r#"["/etc/group", "/{long}/x"]"#);
        std::fs::write(folder.path().join(facts::DELETED), deleted).unwrap();
        let wanted = ["etc/.wh.group".to_owned(), format!("{long}/.wh.x"), "etc/new".to_owned()];
        assert_eq!(members(folder.path()).unwrap(), wanted);
        std::fs::remove_file(folder.path().join(facts::DIFF)).unwrap();
        std::fs::remove_file(folder.path().join(CHANGED)).unwrap();
        assert_eq!(members(folder.path()).unwrap(), wanted[..2]);
    }

    #[test]
    fn what_is_no_file_is_not_deleted() {
        for path in ["/", "", "/..", "/a/../../b", "x/.."] {
            let error = whiteouts(&[PathBuf::from(path)]).unwrap_err();
            assert!(error.to_string().contains("no file"), "{path}: {error}");
        }
    }

    #[test]
    fn a_mount_is_known_by_the_path_of_the_request() {
        let wanted =
            BTreeSet::from(["/var/run/secrets".to_owned(), "/run/x".to_owned(), "/var/run/x".to_owned()]);
        for (place, asked) in [
            ("/run/secrets", "/var/run/secrets"),
            ("/run/x", "/run/x"),
            ("/run/none", "/run/none"),
            ("/y", "/y"),
        ] {
            assert_eq!(asked_as(place.into(), &wanted), asked);
        }
    }
}
