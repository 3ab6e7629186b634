//! Why no spec can be made, and what was left out of one.

/// Why a container cannot be had as asked. Each variant is the client's mistake (InvalidArgument) unless it says
/// otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A field holds something that we cannot honour.
    #[error("{field}: {reason}")]
    Invalid {
        /// The CRI field.
        field: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Neither the container nor its image names a program.
    #[error("command: neither the container nor its image names a program to run; set command or args")]
    NoCommand,
    /// A capability that does not exist.
    #[error(
        "{field}: there is no capability {name:?}; names are those of capabilities(7), with or without CAP_"
    )]
    UnknownCapability {
        /// The CRI field.
        field: &'static str,
        /// The name.
        name: String,
    },
    /// A group without a user.
    #[error("security_context.run_as_group: needs run_as_user or run_as_username beside it")]
    GroupWithoutUser,
    /// A privileged container in a pod that is not.
    #[error(
        "security_context.privileged: the sandbox is not privileged; make the sandbox privileged as well"
    )]
    PrivilegedInUnprivilegedSandbox,
    /// The kernel cannot; FailedPrecondition. The kubelet looks for the first word.
    #[error(
        "RROUnsupported: {field}: this kernel has no recursive read-only mounts (mount_setattr, Linux 5.12)"
    )]
    RecursiveReadOnlyUnsupported {
        /// The CRI field.
        field: String,
    },
}

impl SpecError {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        SpecError::Invalid { field: field.into(), reason: reason.into() }
    }
}

/// Something asked for that was left out, and why. Shown to whoever looks; never an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The CRI field, or `image`.
    pub field: String,
    /// What was left out, and why.
    pub text: String,
}

impl Note {
    pub(crate) fn new(field: impl Into<String>, text: impl Into<String>) -> Self {
        Note { field: field.into(), text: text.into() }
    }
}
