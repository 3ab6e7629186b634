//! Images as files: OCI archives and those of `docker save`.

/// An image that an archive brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedImage {
    /// Its id.
    pub id: crate::ImageId,
    /// The names it got.
    pub names: Vec<String>,
}
