//! Images: from a name in a registry to layer folders that overlayfs can mount.
//!
//! ```text
//!   pull ──► flight ─► registry ─► manifest, config          (one task per distinct pull, shared by its callers)
//!                          │
//!                          ├─ layer ─► sha256 ─┬─► blob file
//!                          │                   └─► pipe ─► unpack worker ─► tree     (several at once)
//!                          ▼
//!                      store: sync, rename, index.json     (the name appears last)
//!                          ▼
//!                      snapshot                            (what `resolve` and `list` read; nothing blocks them)
//! ```
//!
//! Read `pull.rs` first: the order of a pull is on one screen there. What lies on disk, why a crash cannot hurt it, and every
//! limit are in `docs/design/image-store.md`.

mod archive;
mod collect;
mod config;
mod digest;
mod error;
mod flight;
mod folder;
mod hold;
mod image;
mod images;
mod layer;
mod manifest;
mod pull;
mod reference;
mod registry;
mod store;
mod unpack;

pub use archive::ImportedImage;
pub use config::{ImagesConfig, Platform, Unpacker};
pub use digest::{Digest, ImageId, LayerName};
pub use error::{ExportError, HoldError, ImportError, OpenError, PullError, RemoveError, UnpackError};
pub use flight::{PullProgress, Stage};
pub use hold::HeldImage;
pub use image::{FsUsage, Image, ImageConfig};
pub use images::Images;
pub use reference::Reference;
pub use registry::Auth;
pub use unpack::unpack_worker_main;
