//! Why an operation on a pod or container did not work.
//!
//! Cloneable, since several callers may wait for one operation. `cri` turns the variants into codes.

use std::sync::Arc;

use bowline_resctrl::ResctrlError;

/// What the operation came to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PodError {
    /// There is no such thing.
    #[error("there is no {what} `{id}`")]
    NotFound {
        /// Pod sandbox, container, image.
        what: &'static str,
        /// As it was asked for.
        id: String,
    },
    /// The client asked for something that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Something else has the name.
    #[error("{0}")]
    Exists(String),
    /// Not in this state.
    #[error("{0}")]
    State(String),
    /// Not built, or this host cannot.
    #[error("{0}")]
    Unsupported(String),
    /// Time is up.
    #[error("{0}")]
    Deadline(String),
    /// The daemon is going down or not up yet.
    #[error("{0}")]
    Unavailable(String),
    /// A limit is reached.
    #[error("{0}")]
    Full(String),
    /// It did not work.
    #[error("could not {doing}")]
    Failed {
        /// What was being done, to what.
        doing: String,
        /// Why not.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
}

impl PodError {
    /// A failure with its cause.
    pub fn failed(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> PodError {
        PodError::Failed { doing: doing.into(), source: Arc::from(source.into()) }
    }

    /// Whether the cause is that a file system or a quota is full.
    pub fn is_no_space(&self) -> bool {
        let PodError::Failed { source, .. } = self else { return false };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**source);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<PodError>() {
                return error.is_no_space();
            }
            let errno = match error.downcast_ref::<std::io::Error>() {
                Some(error) => rustix::io::Errno::from_io_error(error),
                None => error.downcast_ref::<rustix::io::Errno>().copied(),
            };
            if matches!(errno, Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

impl From<ResctrlError> for PodError {
    fn from(error: ResctrlError) -> PodError {
        match error {
            ResctrlError::Invalid { .. } => PodError::Invalid(error.to_string()),
            ResctrlError::Missing(_) => PodError::Unsupported(error.to_string()),
            ResctrlError::Differs(_) => PodError::State(error.to_string()),
            ResctrlError::Failed { .. } => PodError::failed("give the container its class of service", error),
        }
    }
}

/// `map_err` to [`PodError::Failed`].
pub(crate) fn doing<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    what: impl Into<String>,
) -> impl FnOnce(E) -> PodError {
    move |error| PodError::failed(what, error)
}

/// An error and its causes on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        // Some errors print their cause themselves.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}
