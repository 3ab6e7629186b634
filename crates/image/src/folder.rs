//! Archives that are no layers of an image, unpacked by the same confined worker into a folder of the caller's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::digest::LayerName;
use crate::error::UnpackError;
use crate::images::Images;
use crate::layer::Running;
use crate::manifest::Compression;
use crate::unpack::{Failure, Job, Link, Reply};

impl Images {
    /// Unpacks a tar archive, compressed or not, into an empty folder, as a layer is: whiteouts become overlayfs', and nothing
    /// leaves the folder. Folders that no entry describes look as they do in `below` (layers, bottom first). Blocks. On failure
    /// the folder holds a part of it.
    pub fn unpack_archive(
        &self,
        archive: File,
        folder: &Path,
        below: &[LayerName],
    ) -> Result<(), UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let tree = rustix::fs::open(folder, flags, Mode::empty()).map_err(io::Error::from)?;
        let layers = self.0.store.open_layers()?;
        let (link, theirs) = Link::pair()?;
        let running = Running::start(&self.0.config.unpacker, theirs)?;
        let talked = (|| {
            let archive = OwnedFd::from(archive);
            link.send(
                &Job { compression: Compression::Any },
                &[archive.as_fd(), tree.as_fd(), layers.as_fd()],
            )?;
            let (mut reply, _) = link.receive::<Reply>()?;
            if matches!(reply, Reply::NeedParents) {
                let below: Vec<OwnedFd> = below
                    .iter()
                    .rev()
                    .map(|name| self.0.store.open_layer(name))
                    .collect::<io::Result<_>>()?;
                let below: Vec<BorrowedFd<'_>> = below.iter().map(|layer| layer.as_fd()).collect();
                link.send(&(), &below)?;
                (reply, _) = link.receive::<Reply>()?;
            }
            Ok::<_, io::Error>(reply)
        })();
        link.shut_down();
        let end = running.wait();
        match talked {
            Ok(Reply::Done(_)) => Ok(()),
            Ok(Reply::Failed(Failure::Corrupt(why))) => Err(UnpackError::Corrupt(why)),
            Ok(Reply::Failed(Failure::TooLarge(why))) => Err(UnpackError::TooLarge(why)),
            Ok(Reply::Failed(Failure::DiskFull(why))) => Err(UnpackError::DiskFull(why)),
            Ok(Reply::Failed(Failure::Io(why))) => Err(io::Error::other(why).into()),
            Ok(Reply::NeedParents) => Err(io::Error::other("the unpacker asked twice").into()),
            Err(error) => Err(io::Error::new(error.kind(), format!("the unpacker {end}: {error}")).into()),
        }
    }
}
