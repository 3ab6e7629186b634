//! For tests only: an in-process registry, and images built from a few lines of code.
//!
//! Nothing here is careful about hostile input; everything is careful about being the same on every run.

mod archive;
mod builder;
mod layer;
mod layout;
mod registry;
mod serve;

pub use archive::{docker_archive, oci_archive};
pub use builder::{BuiltImage, ImageBuilder, MediaTypes, busybox, checkpoint_image, index_of};
pub use layer::{Compression, Layer, sha256};
pub use registry::{AuthMode, Fault, Registry, RegistryBuilder, Request};
