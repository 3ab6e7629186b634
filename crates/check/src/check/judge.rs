//! From a result to a verdict.

use std::time::Duration;

use anyhow::Result;
use tonic::{Code, Status};

use super::case::Case;
use crate::node::Skip;

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As asserted.
    Passed,
    /// Not as asserted.
    Failed(String),
    /// Not as we promise, but nobody else asks for it.
    Differs(String),
    /// Not tried.
    Skipped(String),
}

/// A case that was run.
pub(crate) struct Outcome {
    pub(crate) case: &'static Case,
    pub(crate) verdict: Verdict,
    pub(crate) took: Duration,
}

impl Verdict {
    /// Weighs what the case and its cleaning up said. What is left behind counts also when the case was skipped.
    pub(crate) fn of(case: &Case, result: Result<()>, cleaned: Result<()>, strict: bool) -> Verdict {
        let failed = |reason: String| match case.goes_beyond() && !strict {
            true => Verdict::Differs(reason),
            false => Verdict::Failed(reason),
        };
        match (result, cleaned) {
            (Ok(()), Ok(())) => Verdict::Passed,
            (Ok(()), Err(error)) => Verdict::Failed(format!("leftovers: {error:#}")),
            (Err(error), Ok(())) => match excuse(&error) {
                Some(reason) => Verdict::Skipped(reason),
                None => failed(format!("{error:#}")),
            },
            (Err(error), Err(after)) => Verdict::Failed(format!("{error:#}; leftovers: {after:#}")),
        }
    }

    pub(crate) fn is_failure(&self) -> bool {
        matches!(self, Verdict::Failed(_))
    }

    /// One word for it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::Failed(_) => "FAILED",
            Verdict::Differs(_) => "differs",
            Verdict::Skipped(_) => "skipped",
        }
    }

    /// The reason, if there is one to give.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Verdict::Passed => "",
            Verdict::Failed(reason) | Verdict::Differs(reason) | Verdict::Skipped(reason) => reason,
        }
    }
}

/// What the host or the endpoint itself declares missing is no failure.
fn excuse(error: &anyhow::Error) -> Option<String> {
    if let Some(skip) = error.downcast_ref::<Skip>() {
        return Some(skip.0.clone());
    }
    let status = error.chain().find_map(|cause| cause.downcast_ref::<Status>())?;
    (status.code() == Code::Unimplemented)
        .then(|| format!("the endpoint does not implement it: {}", status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::skip;

    async fn nothing(_: crate::node::Node) -> Result<()> {
        Ok(())
    }

    const OURS: Case = super::super::case::case!("group/ours", "S", nothing);
    const THEIRS: Case = super::super::case::case!("group/theirs", "CK", nothing);

    #[test]
    fn a_promise_of_ours_alone_differs_unless_strict() {
        let wrong = || Err(anyhow::anyhow!("no"));
        assert_eq!(Verdict::of(&OURS, wrong(), Ok(()), false), Verdict::Differs("no".to_owned()));
        assert_eq!(Verdict::of(&OURS, wrong(), Ok(()), true), Verdict::Failed("no".to_owned()));
        assert_eq!(Verdict::of(&THEIRS, wrong(), Ok(()), false), Verdict::Failed("no".to_owned()));
    }

    #[test]
    fn only_what_is_declared_missing_is_skipped() {
        let missing = Err(anyhow::Error::from(Status::unimplemented("later")).context("Exec"));
        assert!(matches!(Verdict::of(&THEIRS, missing, Ok(()), false), Verdict::Skipped(_)));
        assert!(matches!(Verdict::of(&THEIRS, skip("no LSM"), Ok(()), false), Verdict::Skipped(_)));
        let broken = Err(anyhow::Error::from(Status::internal("oops")));
        assert!(Verdict::of(&THEIRS, broken, Ok(()), false).is_failure());
    }

    #[test]
    fn leftovers_fail_even_what_was_skipped() {
        let left = Err(anyhow::anyhow!("a mount"));
        assert!(Verdict::of(&OURS, skip("no LSM"), left, false).is_failure());
    }
}
