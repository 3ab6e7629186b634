//! What can go wrong, said as what happened to what. The layer that speaks CRI turns variants into codes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::digest::Digest;

/// The store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or folder of the store could not be made, read or written.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another daemon has the store open.
    #[error("another process uses the image store at {}", .0.display())]
    InUse(PathBuf),
}

/// A pull failed. Cloneable, because merged callers share one outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    /// The text is not an image reference.
    #[error("`{reference}` is not an image reference: {reason}")]
    BadReference {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Connection refused, no such host, timeout, stall, 5xx, 429: trying again later may help.
    #[error("the registry of `{reference}` is unavailable: {reason}")]
    RegistryUnavailable {
        /// What was asked for.
        reference: String,
        /// What the last attempt met.
        reason: String,
    },
    /// The registry has no such image, or not all of it.
    #[error("the registry has no image `{reference}`: {reason}")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// What was missing.
        reason: String,
    },
    /// The registry wants other credentials.
    #[error("the registry denied access to `{reference}`: {reason}")]
    Denied {
        /// What was asked for.
        reference: String,
        /// What it said.
        reason: String,
    },
    /// Content is not what its digest or size says.
    #[error("{what} {expected} arrived as {actual}")]
    WrongDigest {
        /// Manifest, config, layer blob or layer content.
        what: &'static str,
        /// What it must be.
        expected: Digest,
        /// What came.
        actual: String,
    },
    /// A layer is not a well-formed archive, or asks for something we refuse.
    #[error("layer {layer} cannot be unpacked: {reason}")]
    CorruptLayer {
        /// The blob's digest.
        layer: Digest,
        /// What is wrong, and at which entry.
        reason: String,
    },
    /// A manifest or config that cannot be used.
    #[error("{what} of `{reference}` cannot be used: {reason}")]
    BadManifest {
        /// What was asked for.
        reference: String,
        /// Manifest, index or config.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Something exceeds a limit of docs/design/image-store.md.
    #[error("{what} is too large: {reason}")]
    TooLarge {
        /// What.
        what: String,
        /// The size and the limit.
        reason: String,
    },
    /// No entry of the index fits this machine.
    #[error("`{reference}` has nothing for {wanted}; it offers {offered}")]
    NoPlatform {
        /// What was asked for.
        reference: String,
        /// Our platform.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// The store's file system is full.
    #[error("no space left in the image store: {action}")]
    DiskFull {
        /// What was being written.
        action: String,
    },
    /// The store's file system failed us.
    #[error("could not {action}")]
    Io {
        /// What was being done.
        action: String,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
    /// A registry configuration file is wrong. Refused, because guessing could send credentials to the wrong host.
    #[error("{} cannot be used: {reason}", path.display())]
    BadHostsToml {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Ours to fix.
    #[error("internal: {0}")]
    Internal(String),
}

impl PullError {
    pub(crate) fn io(action: impl Into<String>, source: io::Error) -> PullError {
        let action = action.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PullError::DiskFull { action },
            _ => PullError::Io { action, source: Arc::new(source) },
        }
    }
}

/// An image could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// A prefix that fits several images: removing one of them would be a guess.
    #[error("`{0}` fits several image ids")]
    Ambiguous(String),
    /// The index could not be written; the image is still there.
    #[error("could not write the image index")]
    Index(#[source] io::Error),
}

/// A use of layers could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// There is no such image.
    #[error("there is no image `{0}`")]
    NoSuchImage(String),
    /// A recorded layer is gone.
    #[error("layer {0} is not in the store")]
    NoSuchLayer(crate::LayerName),
    /// Another set of layers is held under this name.
    #[error("`{0}` already holds other layers")]
    OwnerTaken(String),
}

/// An archive could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The stream broke or the file system failed.
    #[error("could not {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Not an OCI archive nor one of `docker save`, or a damaged one.
    #[error("the archive cannot be imported: {0}")]
    BadArchive(String),
    /// One of its images failed as a pull would.
    #[error("an image of the archive cannot be used")]
    Image(#[from] PullError),
}

/// Images could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no such image.
    #[error("there is no image `{0}`")]
    NoSuchImage(String),
    /// The compressed layer was not kept.
    #[error("blob {0} is not kept in this store, so the image cannot be exported (keep_layer_blobs is off)")]
    BlobNotKept(Digest),
    /// Reading the store or writing the archive failed.
    #[error("could not {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// An archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is damaged, or asks for what is refused.
    #[error("the archive is damaged: {0}")]
    Corrupt(String),
    /// A limit.
    #[error("the archive is too large: {0}")]
    TooLarge(String),
    /// The file system is full.
    #[error("there is no room for it: {0}")]
    DiskFull(String),
    /// The file system or the machinery failed.
    #[error("could not unpack the archive")]
    Io(#[from] io::Error),
}
