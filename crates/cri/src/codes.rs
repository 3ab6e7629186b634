//! The only place where errors become gRPC codes.
//!
//! The text is the error with all its causes on one line. The kubelet knows some errors by the first word of the text,
//! and strips the gRPC envelope from a pull's error only when the code is `Unknown`, so those words come first and
//! pulls of unavailable registries are `Unknown` although a better code exists.

use bowline_image::{PullError, RemoveError};
use bowline_pods::{PodError, chain};
use tonic::{Code, Status};

use crate::convert::Refused;

/// First words that the kubelet looks for.
const SENTINELS: [&str; 4] =
    ["ImageVolumeMountFailed: ", "RROUnsupported: ", "RegistryUnavailable: ", "SignatureValidationFailed: "];

/// A status travels in a header, and clients limit those to 16 KiB or less, each character taking up to three there.
const MAX_TEXT: usize = 4 << 10;

/// The status of a failed operation on a pod or container.
pub(crate) fn of_pod(error: &PodError) -> Status {
    let code = match error {
        PodError::NotFound { .. } => Code::NotFound,
        PodError::Invalid(_) => Code::InvalidArgument,
        PodError::Exists(_) => Code::AlreadyExists,
        PodError::State(_) => Code::FailedPrecondition,
        PodError::Unsupported(_) => Code::Unimplemented,
        PodError::Deadline(_) => Code::DeadlineExceeded,
        PodError::Unavailable(_) => Code::Unavailable,
        PodError::Full(_) => Code::ResourceExhausted,
        PodError::Failed { .. } if error.is_no_space() => Code::ResourceExhausted,
        PodError::Failed { .. } => Code::Internal,
    };
    status(code, chain(error))
}

/// The status of a failed pull.
pub(crate) fn of_pull(error: &PullError) -> Status {
    let code = match error {
        PullError::RegistryUnavailable { .. } => {
            return status(Code::Unknown, format!("RegistryUnavailable: {}", chain(error)));
        }
        PullError::BadReference { .. } => Code::InvalidArgument,
        PullError::NotFound { .. } | PullError::NoPlatform { .. } => Code::NotFound,
        PullError::Denied { .. } => Code::PermissionDenied,
        PullError::WrongDigest { .. } | PullError::CorruptLayer { .. } => Code::DataLoss,
        PullError::BadManifest { .. } | PullError::BadHostsToml { .. } => Code::FailedPrecondition,
        PullError::TooLarge { .. } | PullError::DiskFull { .. } => Code::ResourceExhausted,
        PullError::Io { .. } | PullError::Internal(_) => Code::Internal,
    };
    status(code, chain(error))
}

/// The status of a failed removal of an image.
pub(crate) fn of_remove(error: &RemoveError) -> Status {
    let code = match error {
        RemoveError::Ambiguous(_) => Code::InvalidArgument,
        RemoveError::Index(_) => Code::Internal,
    };
    status(code, chain(error))
}

/// The status of a request that is not even tried.
pub(crate) fn of_refused(error: &Refused) -> Status {
    let code = match error {
        Refused::Invalid { .. } => Code::InvalidArgument,
        Refused::NoVolume { .. } => Code::FailedPrecondition,
    };
    status(code, chain(error))
}

fn status(code: Code, text: String) -> Status {
    Status::new(code, shorten(sentinel_first(text)))
}

/// Moves a word that the kubelet looks for to the front, from wherever in the chain of causes it was said.
fn sentinel_first(text: String) -> String {
    match SENTINELS.iter().find_map(|word| text.find(word).map(|at| (*word, at))) {
        None | Some((_, 0)) => text,
        Some((word, at)) => format!("{word}{}{}", &text[..at], &text[at + word.len()..]),
    }
}

fn shorten(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" ..");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(error: PodError) -> (Code, String) {
        let status = of_pod(&error);
        (status.code(), status.message().to_owned())
    }

    #[test]
    fn every_pod_error_has_its_code() {
        let text = || "why".to_owned();
        let table = [
            (PodError::NotFound { what: "container", id: "abc".into() }, Code::NotFound),
            (PodError::Invalid(text()), Code::InvalidArgument),
            (PodError::Exists(text()), Code::AlreadyExists),
            (PodError::State(text()), Code::FailedPrecondition),
            (PodError::Unsupported(text()), Code::Unimplemented),
            (PodError::Deadline(text()), Code::DeadlineExceeded),
            (PodError::Unavailable(text()), Code::Unavailable),
            (PodError::Full(text()), Code::ResourceExhausted),
            (PodError::failed("mount it", "no"), Code::Internal),
            (
                PodError::failed("start", PodError::failed("write", std::io::Error::from_raw_os_error(28))),
                Code::ResourceExhausted,
            ),
        ];
        for (error, code) in table {
            assert_eq!(of_pod(&error).code(), code, "{error}");
        }
    }

    #[test]
    fn the_whole_chain_of_causes_is_told() {
        let cause = PodError::failed("open /x", std::io::Error::from(std::io::ErrorKind::NotFound));
        let (_, text) = pod(PodError::failed("start container `c`", cause));
        assert_eq!(text, "could not start container `c`: could not open /x: entity not found");
    }

    #[test]
    fn words_for_the_kubelet_come_first() {
        let (_, text) = pod(PodError::failed("create `c`", "RROUnsupported: this kernel cannot"));
        assert_eq!(text, "RROUnsupported: could not create `c`: this kernel cannot");
        let reason = "connection refused".to_owned();
        let status = of_pull(&PullError::RegistryUnavailable { reference: "r/a:1".into(), reason });
        assert_eq!(status.code(), Code::Unknown);
        assert!(status.message().starts_with("RegistryUnavailable: "), "{}", status.message());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let (_, text) = pod(PodError::Invalid("ä".repeat(5000)));
        assert!(text.len() <= MAX_TEXT + 3 && text.ends_with("ä .."));
    }
}
