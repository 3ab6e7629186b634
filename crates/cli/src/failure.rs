//! What went wrong, and what to try.

use std::io;

use tonic::{Code, Status};

/// The exit code, or what went wrong.
pub(crate) type Done = Result<u8, Failure>;

/// Ends a command.
#[derive(Debug)]
pub(crate) struct Failure {
    /// `None`: nobody listens any more.
    text: Option<String>,
    code: u8,
}

impl Failure {
    /// A sentence without a full stop.
    pub fn new(text: impl Into<String>) -> Failure {
        Failure { text: Some(text.into()), code: 1 }
    }

    /// A sentence, and another with what to try.
    pub fn hint(text: impl Into<String>, hint: &str) -> Failure {
        Failure::new(format!("{}\n  try: {hint}", text.into()))
    }

    /// What was being done, and the system's reason.
    pub fn io(doing: &str, error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure { text: None, code: 0 },
            io::ErrorKind::PermissionDenied => {
                Failure::hint(format!("could not {doing}: {error}"), "the same as root")
            }
            _ => Failure::new(format!("could not {doing}: {error}")),
        }
    }

    /// The runtime's no.
    pub fn status(doing: &str, status: &Status) -> Failure {
        let reason = status.message();
        match status.code() {
            Code::Unimplemented => Failure::hint(
                format!("could not {doing}: this runtime does not have it"),
                "`bowline version` to see which runtime answers",
            ),
            Code::DeadlineExceeded => Failure::hint(
                format!("could not {doing} in time: {reason}"),
                "a longer --timeout; what was begun may still go on",
            ),
            Code::Cancelled if reason.contains("imeout") => Failure::hint(
                format!("could not {doing} in time"),
                "a longer --timeout; what was begun may still go on",
            ),
            Code::Unavailable => Failure::hint(
                format!("could not {doing}: {reason}"),
                "the daemon's log, and again when it is up",
            ),
            Code::PermissionDenied | Code::Unauthenticated => Failure::hint(
                format!("could not {doing}: {reason}"),
                "other credentials (--creds USER:PASSWORD)",
            ),
            _ if reason.is_empty() => Failure::new(format!("could not {doing}: {}", status.code())),
            _ => Failure::new(format!("could not {doing}: {reason}")),
        }
    }

    /// For stderr.
    pub fn text(&self) -> Option<String> {
        self.text.as_ref().map(|text| format!("error: {text}"))
    }

    /// For the shell.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl From<io::Error> for Failure {
    /// Writing to stdout is where a bare error comes from.
    fn from(error: io::Error) -> Failure {
        Failure::io("write to stdout", error)
    }
}

/// `map_err` to a failure with what was being done.
pub(crate) fn doing(what: impl Into<String>) -> impl FnOnce(Status) -> Failure {
    move |status| Failure::status(&what.into(), &status)
}

/// Does it to each, goes on after a failure, and fails if one did.
pub(crate) async fn each<T, F>(items: &[T], mut act: impl FnMut(usize) -> F) -> Done
where
    F: Future<Output = Result<(), Failure>>,
{
    let mut failed = Vec::new();
    for at in 0..items.len() {
        match act(at).await {
            Err(Failure { text: Some(text), .. }) => failed.push(text),
            Err(silent) => return Err(silent),
            Ok(()) => {}
        }
    }
    match failed.is_empty() {
        true => Ok(0),
        false => Err(Failure::new(failed.join("\nerror: "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_end_with_what_to_try() {
        let text = |failure: Failure| failure.text().unwrap();
        let missing = text(Failure::status("list pods", &Status::unimplemented("unknown service")));
        assert!(missing.contains("does not have it") && missing.contains("\n  try: "), "{missing}");
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(text(Failure::io("connect", denied)).ends_with("try: the same as root"));
    }

    #[test]
    fn a_closed_pipe_is_silent() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.text(), failure.code()), (None, 0));
    }
}
