//! Folders made in advance. A file system may take a tenth of a millisecond and more for each folder that it makes, and a
//! pod start needs five of them; a rename takes a tenth of that.
//!
//! A spare is made under a name of no meaning and renamed, so one that is found at start is whole. One that is missing
//! costs time only: whoever finds none makes the folders.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a folder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pod,
    Container,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Pod => "pod",
            Kind::Container => "container",
        }
    }

    /// The folders in it.
    fn inner(self) -> &'static [&'static str] {
        match self {
            Kind::Pod => &["containers"],
            Kind::Container => &["upper", "work"],
        }
    }

    /// How many are kept: what comes between two visits of the thread that makes them, at the pace of one client.
    fn kept(self) -> u32 {
        match self {
            Kind::Pod => 16,
            Kind::Container => 24,
        }
    }
}

pub(crate) struct Spares {
    folder: PathBuf,
    /// The numbers of those that are there.
    pods: Mutex<Vec<u32>>,
    containers: Mutex<Vec<u32>>,
}

impl Spares {
    /// Spares in this folder, which is made if it is missing.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Spares> {
        make(&folder)?;
        let there = |kind: Kind| {
            let is_there = |number: &u32| folder.join(format!("{}.{number}", kind.name())).is_dir();
            Mutex::new((0..kind.kept()).filter(is_there).collect())
        };
        let (pods, containers) = (there(Kind::Pod), there(Kind::Container));
        Ok(Spares { folder, pods, containers })
    }

    /// Makes `target` with the folders in it, of a spare if there is one. It may be there already.
    pub(crate) fn place(&self, kind: Kind, target: &Path) -> io::Result<()> {
        let number = self.numbers(kind).pop();
        if let Some(number) = number {
            match fs::rename(self.path(kind, number), target) {
                Ok(()) => return Ok(()),
                // There already; the spare stays one.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                    self.numbers(kind).push(number);
                }
                // Somebody took it away, or the folder above is missing: the making says what is wrong.
                Err(_) => {}
            }
        }
        fill(kind, target)
    }

    /// Makes those that are missing. An error ends it: what is missing is made by whoever needs it.
    pub(crate) fn refill(&self) {
        for kind in [Kind::Pod, Kind::Container] {
            let there = self.numbers(kind).clone();
            for number in (0..kind.kept()).filter(|number| !there.contains(number)) {
                let draft = self.folder.join(format!("{}.new", kind.name()));
                if fill(kind, &draft).and_then(|()| fs::rename(&draft, self.path(kind, number))).is_err() {
                    return;
                }
                self.numbers(kind).push(number);
            }
        }
    }

    fn path(&self, kind: Kind, number: u32) -> PathBuf {
        self.folder.join(format!("{}.{number}", kind.name()))
    }

    fn numbers(&self, kind: Kind) -> MutexGuard<'_, Vec<u32>> {
        let numbers = match kind {
            Kind::Pod => &self.pods,
            Kind::Container => &self.containers,
        };
        numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fill(kind: Kind, folder: &Path) -> io::Result<()> {
    make(folder)?;
    kind.inner().iter().try_for_each(|name| make(&folder.join(name)))
}

fn make(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}
