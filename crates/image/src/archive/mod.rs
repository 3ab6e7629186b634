//! Images as files: OCI archives and those of `docker save`.

mod export;
mod import;
mod members;

/// An image that an archive brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedImage {
    /// Its id.
    pub id: crate::ImageId,
    /// The names it got.
    pub names: Vec<String>,
}

/// What containerd and docker annotate with the full name; `org.opencontainers.image.ref.name` is often only the tag.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
