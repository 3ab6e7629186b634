//! One request: hosts in turn, attempts, redirects, challenges.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode, Uri};

use super::hosts::Endpoint;
use super::{Need, Session};
use crate::error::PullError;

/// How often the last host is asked again. Mirrors are asked once: the next host is the better second attempt.
pub(super) const ATTEMPTS: u32 = 4;
const MAX_REDIRECTS: usize = 10;
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
const MAX_ERROR_BODY: usize = 16 << 10;
pub(super) const AGENT: &str = concat!("bowline/", env!("CARGO_PKG_VERSION"));

/// Why one host did not answer.
pub(super) enum Fault {
    Unavailable(String, Option<Duration>),
    NotFound(String),
    Denied(String),
    /// The range lies beyond the content.
    Beyond,
    Other(String),
}

impl Session {
    /// Asks the hosts that can serve `need`, in order, until one answers with content. `from` > 0 asks for the rest of a blob.
    pub(super) async fn request(
        &self,
        method: &Method,
        kind: &str,
        target: &str,
        need: Need,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response<Incoming>, PullError> {
        let able: Vec<&Endpoint> = self.endpoints.iter().filter(|endpoint| endpoint.can(need)).collect();
        let mut worst = None;
        for (number, endpoint) in able.iter().enumerate() {
            let more = number + 1 < able.len();
            let query = endpoint.namespace.as_ref().map(|ns| format!("?ns={ns}")).unwrap_or_default();
            let path = format!("{}/{}/{kind}/{target}{query}", endpoint.prefix, self.reference.path());
            match self.ask(endpoint, method, &path, accept, from, if more { 0 } else { ATTEMPTS }).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => {
                    if more {
                        let reason = fault.reason();
                        tracing::info!(
                            host = endpoint.base,
                            reason,
                            "a mirror did not serve; trying the next host"
                        );
                    }
                    worst = Some((endpoint, fault));
                }
            }
        }
        let Some((endpoint, fault)) = worst else {
            return Err(self.unavailable("hosts.toml names no host that may serve this".to_owned()));
        };
        Err(self.error(endpoint, fault, target))
    }

    fn error(&self, endpoint: &Endpoint, fault: Fault, target: &str) -> PullError {
        let reference = self.reference.to_string();
        let reason = format!("{}: {}", endpoint.base, fault.reason());
        match fault {
            Fault::Unavailable(..) => PullError::RegistryUnavailable { reference, reason },
            Fault::NotFound(_) => PullError::NotFound { reference, reason },
            Fault::Denied(_) => PullError::Denied { reference, reason },
            Fault::Beyond => match crate::digest::Digest::parse(target) {
                Some(expected) => {
                    let actual = "less than its size".to_owned();
                    PullError::WrongDigest { what: "layer", expected, actual }
                }
                None => PullError::RegistryUnavailable { reference, reason },
            },
            Fault::Other(_) => PullError::RegistryUnavailable { reference, reason },
        }
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        method: &Method,
        path: &str,
        accept: Option<&str>,
        from: u64,
        again: u32,
    ) -> Result<Response<Incoming>, Fault> {
        let mut attempt = 0;
        loop {
            match self.once(endpoint, method, path, accept, from).await {
                Err(Fault::Unavailable(reason, after)) if attempt < again => {
                    attempt += 1;
                    tracing::debug!(host = endpoint.base, reason, attempt, "asking again");
                    pause(attempt, after).await;
                }
                other => return other,
            }
        }
    }

    async fn once(
        &self,
        endpoint: &Endpoint,
        method: &Method,
        path: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response<Incoming>, Fault> {
        let start: Uri =
            format!("{}{path}", endpoint.base).parse().map_err(|error| Fault::Other(format!("{error}")))?;
        let mut to = start.clone();
        let mut reauthenticated = false;
        for _ in 0..=MAX_REDIRECTS {
            // Credentials and configured headers are for this host alone, wherever it sends us.
            let home = to.authority() == start.authority() && to.scheme() == start.scheme();
            let used = if home { endpoint.access.header().await } else { None };
            let mut request = Request::new(Full::new(Bytes::new()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = to.clone();
            let headers = request.headers_mut();
            set(headers, USER_AGENT, AGENT);
            if let Some(accept) = accept {
                set(headers, ACCEPT, accept);
            }
            if from > 0 {
                set(headers, RANGE, &format!("bytes={from}-"));
            }
            if home {
                headers.extend(endpoint.headers.clone());
            }
            if let Some(value) = &used {
                headers.insert(AUTHORIZATION, value.clone());
            }
            let answer = match tokio::time::timeout(self.stall, endpoint.client.request(request)).await {
                Err(_) => return Err(Fault::Unavailable(format!("no answer within {:?}", self.stall), None)),
                Ok(Err(error)) => return Err(Fault::Unavailable(chain(&error), None)),
                Ok(Ok(answer)) => answer,
            };
            let status = answer.status();
            warnings(endpoint, answer.headers());
            if status.is_redirection() {
                to = follow(&to, answer.headers())?;
                continue;
            }
            if status == StatusCode::UNAUTHORIZED && home && !reauthenticated {
                reauthenticated = true;
                let challenges: Vec<String> = answer
                    .headers()
                    .get_all(WWW_AUTHENTICATE)
                    .iter()
                    .filter_map(|value| value.to_str().ok().map(str::to_owned))
                    .collect();
                endpoint.access.meet(endpoint, &challenges, self.reference.path(), used, self.stall).await?;
                continue;
            }
            return judge(answer).await;
        }
        Err(Fault::Other(format!("more than {MAX_REDIRECTS} redirects")))
    }
}

impl Fault {
    fn reason(&self) -> String {
        match self {
            Fault::Unavailable(reason, _)
            | Fault::NotFound(reason)
            | Fault::Denied(reason)
            | Fault::Other(reason) => reason.clone(),
            Fault::Beyond => "the content is shorter than its size".to_owned(),
        }
    }
}

fn set(headers: &mut HeaderMap, name: hyper::header::HeaderName, value: &str) {
    if let Ok(value) = value.parse() {
        headers.insert(name, value);
    }
}

/// Registries tell of deprecations by `Warning: 299`.
fn warnings(endpoint: &Endpoint, headers: &HeaderMap) {
    for value in headers.get_all(hyper::header::WARNING).iter().take(5) {
        if let Ok(text) = value.to_str()
            && text.starts_with("299 ")
        {
            tracing::warn!(host = endpoint.base, warning = text, "the registry warns");
        }
    }
}

fn follow(from: &Uri, headers: &HeaderMap) -> Result<Uri, Fault> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| Fault::Other("a redirect without a location".to_owned()))?;
    let bad = |_| Fault::Other(format!("a redirect to `{location}`"));
    let (scheme, authority) =
        (from.scheme_str().unwrap_or("https"), from.authority().map_or("", |a| a.as_str()));
    let to: Uri = match location {
        absolute if absolute.contains("://") => absolute.parse().map_err(bad)?,
        host if host.starts_with("//") => format!("{scheme}:{host}").parse().map_err(bad)?,
        path if path.starts_with('/') => format!("{scheme}://{authority}{path}").parse().map_err(bad)?,
        relative => {
            let base = from.path().rsplit_once('/').map_or("", |(base, _)| base);
            format!("{scheme}://{authority}{base}/{relative}").parse().map_err(bad)?
        }
    };
    if !matches!(to.scheme_str(), Some("http" | "https")) || to.host().is_none() {
        return Err(Fault::Other(format!("a redirect to `{location}`")));
    }
    Ok(to)
}

async fn judge(answer: Response<Incoming>) -> Result<Response<Incoming>, Fault> {
    let status = answer.status();
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok(answer);
    }
    let after = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    let said = said(answer).await;
    let reason = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Fault::Denied(reason),
        StatusCode::NOT_FOUND | StatusCode::GONE => Fault::NotFound(reason),
        StatusCode::RANGE_NOT_SATISFIABLE => Fault::Beyond,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Fault::Unavailable(reason, after),
        status if status.is_server_error() => Fault::Unavailable(reason, after),
        _ => Fault::Other(reason),
    })
}

/// The registry's own words, as the distribution spec lays errors out.
pub(super) async fn said(answer: Response<Incoming>) -> String {
    let limited = Limited::new(answer.into_body(), MAX_ERROR_BODY).collect();
    let Ok(Ok(body)) = tokio::time::timeout(Duration::from_secs(5), limited).await else {
        return String::new();
    };
    let body = body.to_bytes();
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let first = parsed.as_ref().and_then(|value| value.get("errors")?.get(0));
    let field = |name: &str| first.and_then(|error| error.get(name)?.as_str()).unwrap_or_default();
    let text = match (field("code"), field("message")) {
        ("", "") => return String::new(),
        (code, "") => code.to_owned(),
        ("", message) => message.to_owned(),
        (code, message) => format!("{message} ({code})"),
    };
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// Backs off: 0.1 s, doubled each time, up to half of it taken off at random, so that a thousand nodes do not come back together.
pub(super) async fn pause(attempt: u32, after: Option<Duration>) {
    use std::hash::{BuildHasher as _, Hasher as _};
    let base = 50u64 << attempt.min(6);
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let backoff = Duration::from_millis(base / 2 + random % (base / 2));
    tokio::time::sleep(after.unwrap_or(backoff)).await;
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}
