//! Messages to specs and views to messages.
//!
//! The way in is strict: a field that we know and cannot honour is refused by name, never dropped. The way out repeats
//! what was asked for, byte for byte, since the kubelet compares.

pub(crate) mod check;
pub(crate) mod container;
pub(crate) mod image;
pub(crate) mod mount;
pub(crate) mod namespaces;
pub(crate) mod pod;
pub(crate) mod resources;
pub(crate) mod security;
pub(crate) mod signal;
pub(crate) mod stats;
pub(crate) mod view;

/// Why a request is not even tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// A field holds something that makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// Its path in the request.
        field: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// An image volume. The kubelet looks for the first word; and no code that critest takes for "skip this".
    #[error("ImageVolumeMountFailed: {field}: {reason}")]
    NoVolume {
        /// Its path in the request.
        field: String,
        /// Why not.
        reason: String,
    },
}

/// `field: reason`.
pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Refused {
    Refused::Invalid { field: field.into(), reason: reason.into() }
}
