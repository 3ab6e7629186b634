//! What a container comes from: an archive on the host, or an image whose layer holds what such an archive does.
//!
//! An image is no more than another way for an archive to arrive. Its layer was unpacked by the confined worker, as archives
//! are; from it the same few files are taken, by the same names and rules, and from then on there is no difference.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bowline_image::{Image, UnpackError};
use bowline_model::ContainerId;
use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::facts::{self, Unpacked};
use crate::PodError;
use crate::error::doing;
use crate::shared::Shared;

/// What an image's manifest says of a checkpoint: CRI-O's word (documented by Kubernetes), and checkpointctl's, which
/// containerd 2.1 to 2.3 went by. The value is a container's name, and nothing is done with it.
const ANNOTATIONS: [&str; 2] =
    ["io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"];
/// Files in the folder of criu's images; the judge's limit as well.
const MAX_FILES: usize = 200_000;

/// What a container comes from.
pub(crate) enum Origin {
    /// A tar file of the host's.
    Archive(PathBuf),
    /// An image of the store.
    Image {
        /// As it was asked for.
        name: String,
        /// The image.
        image: Arc<Image>,
    },
}

impl Origin {
    /// The checkpoint that an image's name stands for: a path is an archive's; an image may say that it is one.
    pub(crate) fn of(shared: &Shared, name: &str) -> Option<Origin> {
        if name.starts_with('/') {
            return Some(Origin::Archive(PathBuf::from(name)));
        }
        let image = shared.images.resolve(name)?;
        let is_checkpoint = ANNOTATIONS.iter().any(|key| image.annotations.contains_key(*key));
        is_checkpoint.then(|| Origin::Image { name: name.to_owned(), image })
    }

    /// Puts what it holds into an empty folder. `room`: how many bytes there may be.
    pub(super) fn unpack(
        &self,
        shared: &Shared,
        id: &ContainerId,
        folder: &Path,
        room: u64,
    ) -> Result<(), PodError> {
        match self {
            Origin::Archive(path) => unpack(shared, path, folder, room),
            Origin::Image { name, image } => {
                let held = Held::new(shared, id, image)?;
                let [layer] = held.layers.as_slice() else {
                    return Err(PodError::Invalid(format!(
                        "the image {name} is a checkpoint with {} layers; it must have one, with the archive's content",
                        held.layers.len()
                    )));
                };
                copy(name, layer, folder, room)
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Archive(path) => write!(f, "{}", path.display()),
            Origin::Image { name, .. } => write!(f, "the image {name}"),
        }
    }
}

fn unpack(shared: &Shared, archive: &Path, folder: &Path, room: u64) -> Result<(), PodError> {
    let what = || format!("read the checkpoint {}", archive.display());
    let file = open(archive)?;
    let size = file.metadata().map_err(doing(what()))?.len();
    if size > room {
        return Err(too_large(&archive.display(), size, room));
    }
    shared.images.unpack_archive(file, folder, &[]).map_err(|error| match error {
        UnpackError::Corrupt(_) => PodError::Invalid(format!("{}: {error}", archive.display())),
        UnpackError::TooLarge(_) | UnpackError::DiskFull(_) => {
            PodError::Full(format!("{}: {error}", archive.display()))
        }
        UnpackError::Io(_) => PodError::failed(what(), error),
    })
}

fn too_large(name: &dyn fmt::Display, size: u64, room: u64) -> PodError {
    PodError::Full(format!("the checkpoint {name} has at least {size} bytes, and there is room for {room}"))
}

/// Opens a plain file of the host's; anything else could make us wait.
fn open(archive: &Path) -> Result<File, PodError> {
    let what = format!("open the checkpoint {}", archive.display());
    let open =
        |flags| rustix::fs::open(archive, flags | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from);
    let place = match open(OFlags::PATH) {
        Ok(place) => place,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(PodError::NotFound { what: "checkpoint archive", id: archive.display().to_string() });
        }
        Err(error) => return Err(doing(what)(error)),
    };
    let stat = rustix::fs::fstat(&place).map_err(io::Error::from).map_err(doing(what.clone()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(PodError::Invalid(format!(
            "{} is no file, so it is no checkpoint archive",
            archive.display()
        )));
    }
    open(OFlags::RDONLY | OFlags::NONBLOCK).map(File::from).map_err(doing(what))
}

/// The layers of an image, which stay while it is read even if somebody removes the image meanwhile.
struct Held<'a> {
    shared: &'a Shared,
    owner: String,
    layers: Vec<PathBuf>,
}

impl<'a> Held<'a> {
    fn new(shared: &'a Shared, id: &ContainerId, image: &Image) -> Result<Held<'a>, PodError> {
        let owner = format!("{id}-checkpoint");
        let held = shared.images.hold(&owner, &image.id.to_string());
        let held = held.map_err(|_| PodError::NotFound { what: "image", id: image.id.to_string() })?;
        let folder = shared.images.layers_dir();
        let layers = held.layers.iter().map(|layer| folder.join(layer.as_str())).collect();
        Ok(Held { shared, owner, layers })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Of an image that was removed meanwhile the next container's end gives the space back.
        self.shared.images.release(&self.owner);
    }
}

/// Copies out of a layer what counts in an archive, and nothing else.
fn copy(name: &str, layer: &Path, folder: &Path, mut room: u64) -> Result<(), PodError> {
    let what = || format!("read the checkpoint in the image {name}");
    let source = Unpacked(layer);
    let mut copy = |file: &str| -> Result<(), PodError> {
        let mut from = source.open(file)?;
        let size = from.metadata().map_err(doing(what()))?.len();
        room = room.checked_sub(size).ok_or_else(|| too_large(&format_args!("in {name}"), size, room))?;
        let to = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(file));
        io::copy(&mut from, &mut to.map_err(doing(what()))?).map(drop).map_err(doing(what()))
    };
    for file in [facts::CONFIG, facts::SPEC] {
        copy(file)?;
    }
    // Others' have no such file, and perhaps no changed files.
    for file in [facts::OWN, facts::DIFF, facts::DELETED] {
        if source.has(file)? {
            copy(file)?;
        }
    }
    super::make_private(&folder.join(facts::IMAGES)).map_err(doing(what()))?;
    let images = Dir::read_from(source.folder(facts::IMAGES)?).map_err(io::Error::from);
    let mut count = 0;
    for entry in images.map_err(doing(what()))? {
        let entry = entry.map_err(io::Error::from).map_err(doing(what()))?;
        let file = entry.file_name().to_bytes();
        if file == b"." || file == b".." {
            continue;
        }
        count += 1;
        let file = std::str::from_utf8(file).ok().filter(|_| count <= MAX_FILES).ok_or_else(|| {
            PodError::Invalid(format!("{} of the checkpoint holds what criu does not write", facts::IMAGES))
        })?;
        copy(&format!("{}/{file}", facts::IMAGES))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> tempfile::TempDir {
        let layer = tempfile::tempdir().unwrap();
        for (name, text) in
            [("config.dump", "{}"), ("spec.dump", "{}"), ("bowline.dump", "{}"), ("other", "x")]
        {
            fs::write(layer.path().join(name), text).unwrap();
        }
        fs::create_dir(layer.path().join("checkpoint")).unwrap();
        fs::write(layer.path().join("checkpoint/pages-1.img"), "memory").unwrap();
        layer
    }

    fn copied(layer: &Path, room: u64) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        copy("x", layer, folder.path(), room).map_err(|error| crate::chain(&error))?;
        let list = |path: PathBuf| -> Vec<String> {
            fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        let mut names = list(folder.path().to_owned());
        names.extend(list(folder.path().join("checkpoint")));
        names.sort();
        Ok(names)
    }

    #[test]
    fn of_a_layer_the_files_of_a_checkpoint_are_taken() {
        let names = copied(layer().path(), 1000).unwrap();
        assert_eq!(names, ["bowline.dump", "checkpoint", "config.dump", "pages-1.img", "spec.dump"]);
    }

    #[test]
    fn a_layer_that_leads_elsewhere_or_is_none_is_refused() {
        type Change = fn(&Path);
        let table: [(&str, Change); 7] = [
            ("config.dump", |layer| fs::remove_file(layer.join("config.dump")).unwrap()),
            ("no plain file", |layer| {
                fs::hard_link(layer.join("spec.dump"), layer.join("again")).unwrap();
            }),
            ("spec.dump", |layer| link(layer, "spec.dump")),
            ("bowline.dump", |layer| link(layer, "bowline.dump")),
            ("pages-1.img", |layer| link(layer, "checkpoint/pages-1.img")),
            ("checkpoint", |layer| {
                fs::rename(layer.join("checkpoint"), layer.join("real")).unwrap();
                std::os::unix::fs::symlink("real", layer.join("checkpoint")).unwrap();
            }),
            ("no plain file", |layer| fs::create_dir(layer.join("checkpoint/folder")).unwrap()),
        ];
        for (part, change) in table {
            let layer = layer();
            change(layer.path());
            let error = copied(layer.path(), 1000).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(copied(layer().path(), 11).unwrap_err().contains("room for"), "the files have 12 bytes");
    }

    fn link(layer: &Path, name: &str) {
        fs::remove_file(layer.join(name)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", layer.join(name)).unwrap();
    }
}
