//! Answers challenges: Basic, and the bearer tokens of the distribution spec.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::auth::Auth;
use super::hosts::Endpoint;
use super::request::{AGENT, Fault, chain, said};

const MAX_TOKEN_ANSWER: usize = 1 << 20;
/// What the spec lets us assume if the server says nothing.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// Tokens are not used in their last seconds: they must still be good on arrival.
const MARGIN: Duration = Duration::from_secs(5);

/// What one endpoint is shown. The reference is the same for all its requests, so one token serves.
pub(super) struct Access {
    auth: Option<Auth>,
    shown: Mutex<Option<Shown>>,
}

struct Shown {
    header: HeaderValue,
    until: Option<Instant>,
}

impl Access {
    pub(super) fn new(auth: Option<Auth>) -> Access {
        let registry_token =
            auth.as_ref().map(|auth| auth.registry_token.as_str()).filter(|token| !token.is_empty());
        let header = registry_token.and_then(|token| secret(format!("Bearer {token}")));
        Access { auth, shown: Mutex::new(header.map(|header| Shown { header, until: None })) }
    }

    /// The Authorization to send, if one is known and good.
    pub(super) async fn header(&self) -> Option<HeaderValue> {
        let shown = self.shown.lock().await;
        let good = shown.as_ref().filter(|shown| shown.until.is_none_or(|until| until > Instant::now()));
        good.map(|shown| shown.header.clone())
    }

    /// Prepares the answer to a 401. `used` is what had been sent; if another request has learned better since, nothing is to do.
    pub(super) async fn meet(
        &self,
        endpoint: &Endpoint,
        challenges: &[String],
        repository: &str,
        used: Option<HeaderValue>,
        limit: Duration,
    ) -> Result<(), Fault> {
        let mut shown = self.shown.lock().await;
        if let Some(now) = &*shown
            && used.as_ref() != Some(&now.header)
            && now.until.is_none_or(|until| until > Instant::now())
        {
            return Ok(());
        }
        let parsed: Vec<Challenge> = challenges.iter().filter_map(|text| Challenge::parse(text)).collect();
        if let Some(bearer) = parsed.iter().find(|challenge| challenge.scheme == "bearer") {
            let asked = self.token(endpoint, bearer, repository);
            let (token, life) = tokio::time::timeout(limit, asked)
                .await
                .unwrap_or_else(|_| Err(Fault::Unavailable(format!("no token within {limit:?}"), None)))?;
            let header = secret(format!("Bearer {token}"))
                .ok_or_else(|| Fault::Other("the token has characters that no header may have".to_owned()))?;
            let until = Instant::now().checked_add(life.saturating_sub(MARGIN));
            *shown = Some(Shown { header, until });
            return Ok(());
        }
        let basic = self.auth.as_ref().and_then(Auth::basic);
        match (parsed.iter().any(|challenge| challenge.scheme == "basic"), basic) {
            (true, Some((user, password))) => {
                let header = secret(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
                    .ok_or_else(|| Fault::Other("the credentials cannot be sent".to_owned()))?;
                if used.as_ref() == Some(&header) {
                    return Err(Fault::Denied(
                        "401 Unauthorized: it does not accept the user or password".to_owned(),
                    ));
                }
                *shown = Some(Shown { header, until: None });
                Ok(())
            }
            (true, None) => Err(Fault::Denied("401 Unauthorized: it wants a user and password".to_owned())),
            (false, _) => {
                Err(Fault::Denied("401 Unauthorized: it names no way to log in that we know".to_owned()))
            }
        }
    }

    /// Asks the token service: OAuth2 with an identity token, else GET with or without a password.
    async fn token(
        &self,
        endpoint: &Endpoint,
        challenge: &Challenge,
        repository: &str,
    ) -> Result<(String, Duration), Fault> {
        let realm = challenge.get("realm").unwrap_or_default();
        let uri: Uri = realm.parse().map_err(|_| Fault::Other(format!("its token service is `{realm}`")))?;
        let secure = uri.scheme_str() == Some("https");
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(Fault::Other(format!("its token service is `{realm}`")));
        }
        let service = challenge.get("service").unwrap_or_default().to_owned();
        let scope = match challenge.get("scope") {
            Some(scope) if !scope.is_empty() => scope.to_owned(),
            _ => format!("repository:{repository}:pull"),
        };
        let identity =
            self.auth.as_ref().map(|auth| auth.identity_token.as_str()).filter(|token| !token.is_empty());
        let basic = self.auth.as_ref().and_then(Auth::basic);
        if !secure
            && endpoint.base.starts_with("https://")
            && !super::connect::is_loopback(uri.host().unwrap_or_default())
            && (identity.is_some() || basic.is_some())
        {
            return Err(Fault::Denied(
                "its token service is not encrypted; credentials stay here".to_owned(),
            ));
        }
        if let Some(identity) = identity {
            let form = format!(
                "grant_type=refresh_token&service={}&scope={}&client_id=bowline&refresh_token={}",
                encode(&service),
                encode(&scope),
                encode(identity)
            );
            let mut request = Request::post(uri.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header(USER_AGENT, AGENT)
                .body(Full::new(Bytes::from(form)))
                .map_err(|error| Fault::Other(error.to_string()))?;
            request.headers_mut().insert(hyper::header::ACCEPT, HeaderValue::from_static("application/json"));
            match self.send(endpoint, request).await {
                // Old token services know only GET.
                Err((Some(StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED), _)) if basic.is_some() => {
                }
                other => return other.map_err(|(_, fault)| fault),
            }
        }
        let separator = if uri.query().is_some() { '&' } else { '?' };
        let service =
            if service.is_empty() { String::new() } else { format!("service={}&", encode(&service)) };
        let url = format!("{realm}{separator}{service}scope={}", encode(&scope));
        let mut request = Request::get(url)
            .header(USER_AGENT, AGENT)
            .body(Full::new(Bytes::new()))
            .map_err(|error| Fault::Other(error.to_string()))?;
        if let Some((user, password)) = basic
            && let Some(header) = secret(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
        {
            request.headers_mut().insert(AUTHORIZATION, header);
        }
        self.send(endpoint, request).await.map_err(|(_, fault)| fault)
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        request: Request<Full<Bytes>>,
    ) -> Result<(String, Duration), (Option<StatusCode>, Fault)> {
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: Option<String>,
            #[serde(default)]
            access_token: Option<String>,
            #[serde(default)]
            expires_in: Option<u64>,
        }
        let answer = endpoint.client.request(request).await;
        let answer = answer
            .map_err(|error| (None, Fault::Unavailable(format!("token service: {}", chain(&error)), None)))?;
        let status = answer.status();
        if status != StatusCode::OK {
            let reason = format!("token service: {status} {}", said(answer).await);
            let fault = if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
                Fault::Unavailable(reason, None)
            } else {
                Fault::Denied(reason)
            };
            return Err((Some(status), fault));
        }
        let body = Limited::new(answer.into_body(), MAX_TOKEN_ANSWER).collect().await;
        let body =
            body.map_err(|error| (None, Fault::Unavailable(format!("token service: {error}"), None)))?;
        let other = |reason: &str| (None, Fault::Other(format!("token service: {reason}")));
        let token: Token =
            serde_json::from_slice(&body.to_bytes()).map_err(|_| other("its answer is not JSON"))?;
        let life = token.expires_in.filter(|&seconds| seconds > 0).map_or(DEFAULT_LIFE, Duration::from_secs);
        let text = token.token.filter(|t| !t.is_empty()).or(token.access_token).filter(|t| !t.is_empty());
        text.map(|text| (text, life)).ok_or_else(|| other("its answer has no token"))
    }
}

fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// One WWW-Authenticate.
#[derive(Debug)]
struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parse(text: &str) -> Option<Challenge> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', ',', '\t']);
            if rest.is_empty() {
                break;
            }
            let (key, after) = rest.split_once('=')?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => {
                    let mut value = String::new();
                    let mut chars = quoted.char_indices();
                    let end = loop {
                        match chars.next()? {
                            (at, '"') => break at,
                            (_, '\\') => value.push(chars.next()?.1),
                            (_, other) => value.push(other),
                        }
                    };
                    (value, &quoted[end + 1..])
                }
                None => {
                    let end = after.find(',').unwrap_or(after.len());
                    (after[..end].trim().to_owned(), &after[end..])
                }
            };
            parameters.push((key.trim().to_ascii_lowercase(), value));
            rest = after;
        }
        Some(Challenge { scheme: scheme.to_ascii_lowercase(), parameters })
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.parameters.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// Percent-encodes what is not unreserved.
fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let text = r#"Bearer realm="https://auth.example/token",service="reg, istry",scope="repository:a/b:pull,push""#;
        let challenge = Challenge::parse(text).unwrap();
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.get("realm"), Some("https://auth.example/token"));
        assert_eq!(challenge.get("service"), Some("reg, istry"));
        assert_eq!(challenge.get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(Challenge::parse("basic Realm=x, a=\"q\\\"q\"").unwrap().get("a"), Some("q\"q"));
        assert!(Challenge::parse("Bearer realm=\"open").is_none());
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encode("a:b/c d+é"), "a%3Ab%2Fc%20d%2B%C3%A9");
    }
}
