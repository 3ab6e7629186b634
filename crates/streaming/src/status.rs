//! How a session ended, as its error stream tells it.
//!
//! From v4 on a `metav1.Status` in JSON; before, text if something went wrong and nothing otherwise. Source:
//! `k8s.io/cri-streaming/pkg/streaming/remotecommand`.

use serde::{Deserialize, Serialize};

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Success,
    /// The command ended with a code other than 0.
    Code(i32),
    /// It did not work.
    Failed(String),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Status {
    metadata: serde_json::Map<String, serde_json::Value>,
    status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    message: String,
}

impl Outcome {
    /// What goes onto the error stream. `json`: from v4 on.
    pub fn bytes(&self, json: bool) -> Vec<u8> {
        match json {
            true => serde_json::to_vec(&self.status()).unwrap_or_default(),
            false => self.status().message.into_bytes(),
        }
    }

    fn status(&self) -> Status {
        let cause = |reason: &str, message: String| {
            Some(Details { causes: vec![Cause { reason: reason.into(), message }] })
        };
        match self {
            Outcome::Success => Status { status: "Success".into(), ..Status::default() },
            Outcome::Code(code) => Status {
                status: "Failure".into(),
                message: format!("command terminated with non-zero exit code: {code}"),
                reason: "NonZeroExitCode".into(),
                details: cause("ExitCode", code.to_string()),
                ..Status::default()
            },
            Outcome::Failed(text) => Status {
                status: "Failure".into(),
                message: format!("Internal error occurred: {text}"),
                reason: "InternalError".into(),
                details: cause("", text.clone()),
                code: Some(500),
                ..Status::default()
            },
        }
    }

    /// Reads what an error stream said, whatever its version.
    pub fn read(bytes: &[u8]) -> Outcome {
        if bytes.is_empty() {
            return Outcome::Success;
        }
        let Ok(status) = serde_json::from_slice::<Status>(bytes) else {
            return Outcome::Failed(String::from_utf8_lossy(bytes).trim().to_owned());
        };
        let causes = status.details.iter().flat_map(|details| &details.causes);
        let code =
            causes.filter(|cause| cause.reason == "ExitCode").find_map(|cause| cause.message.parse().ok());
        match (status.status.as_str(), code) {
            ("Success", _) => Outcome::Success,
            (_, Some(code)) if status.reason == "NonZeroExitCode" => Outcome::Code(code),
            _ => Outcome::Failed(status.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_clients_expect_it() {
        let text = |outcome: Outcome| String::from_utf8(outcome.bytes(true)).unwrap();
        assert_eq!(text(Outcome::Success), r#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(
            text(Outcome::Code(3)),
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
        );
        assert!(text(Outcome::Failed("no".into())).ends_with(r#""code":500}"#));
        assert_eq!(Outcome::Success.bytes(false), b"");
        assert_eq!(Outcome::Code(3).bytes(false), b"command terminated with non-zero exit code: 3");
    }

    #[test]
    fn what_is_written_is_read() {
        for outcome in [Outcome::Success, Outcome::Code(3)] {
            assert_eq!(Outcome::read(&outcome.bytes(true)), outcome);
        }
        let failed = Outcome::read(&Outcome::Failed("no such file".into()).bytes(true));
        assert_eq!(failed, Outcome::Failed("Internal error occurred: no such file".into()));
        assert_eq!(Outcome::read(b"something\n"), Outcome::Failed("something".into()));
    }
}
