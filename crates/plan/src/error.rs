//! Why a spec cannot be planned.

use crate::seccomp::SeccompError;

/// Why a spec cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A field asks for something that we do not do.
    #[error("{field} is not supported{hint}")]
    Unsupported {
        /// The field of the spec.
        field: String,
        /// What to do instead, with punctuation in front; may be empty.
        hint: &'static str,
    },
    /// A field makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of the spec.
        field: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The filter of system calls.
    #[error("linux.seccomp: {0}")]
    Seccomp(#[from] SeccompError),
}

impl PlanError {
    pub(crate) fn unsupported(field: impl Into<String>) -> Self {
        PlanError::Unsupported { field: field.into(), hint: "" }
    }

    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        PlanError::Invalid { field: field.into(), reason: reason.into() }
    }
}
