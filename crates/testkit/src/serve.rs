//! The registry's answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::layer::sha256;
use crate::registry::{AuthMode, Content, Fault, Request, Shared};

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) pem: String,
    config: Arc<rustls::ServerConfig>,
}

pub(crate) fn identity() -> Identity {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a TLS configuration");
    Identity { pem: made.cert.pem(), config: Arc::new(config) }
}

pub(crate) fn run(
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    identity: Option<Identity>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let accept = async {
            while let Ok((tcp, _)) = listener.accept().await {
                let (shared, tls) =
                    (shared.clone(), identity.as_ref().map(|identity| identity.config.clone()));
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(shared.clone(), request));
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(tcp), service).await),
                        Some(tls) => {
                            if let Ok(tcp) = tokio_rustls::TlsAcceptor::from(tls).accept(tcp).await {
                                drop(http.serve_connection(TokioIo::new(tcp), service).await);
                            }
                        }
                    }
                });
            }
        };
        tokio::select! { () = accept => {}, _ = stopped => {} }
    });
    // Hanging connections must not keep a test from ending.
    runtime.shutdown_background();
}

/// A body that may stop short.
pub(crate) struct Reply {
    data: Bytes,
    /// What the headers promise.
    promised: u64,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Clean,
    Hang,
    Break,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if !self.data.is_empty() {
            let amount = self.data.len().min(256 << 10);
            let piece = self.data.split_to(amount);
            self.promised -= amount as u64;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match self.end {
            End::Clean => Poll::Ready(None),
            // Nobody wakes us: the client must give up by itself.
            End::Hang => Poll::Pending,
            End::Break => Poll::Ready(Some(Err(std::io::Error::other("ordered fault")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.end == End::Clean
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.promised)
    }
}

fn reply(status: u16, body: impl Into<Bytes>) -> Response<Reply> {
    let data = body.into();
    let promised = data.len() as u64;
    let mut response = Response::new(Reply { data, promised, end: End::Clean });
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

fn error(status: u16, code: &str, message: &str) -> Response<Reply> {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    with(reply(status, body), "content-type", "application/json")
}

fn with(mut response: Response<Reply>, name: &'static str, value: &str) -> Response<Reply> {
    response.headers_mut().insert(name, HeaderValue::from_str(value).expect("a header value"));
    response
}

async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let text = |name: header::HeaderName| {
        request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let method = request.method().clone();
    let seen = Request {
        method: method.to_string(),
        path: path.clone(),
        authorization: text(header::AUTHORIZATION),
        range: text(header::RANGE),
        headers: request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
    };
    shared.content().log.push(seen.clone());
    shared.changed.notify_all();
    let faults = take_faults(&mut shared.content(), &path);
    for fault in &faults {
        match fault {
            Fault::Delay(time) => tokio::time::sleep(*time).await,
            Fault::Status(status, _) => return Ok(error(*status, "UNKNOWN", "ordered fault")),
            Fault::TooMany(seconds, _) => {
                let refused = error(429, "TOOMANYREQUESTS", "ordered fault");
                return Ok(with(refused, "retry-after", &seconds.to_string()));
            }
            Fault::Redirect(base) => return Ok(with(reply(307, ""), "location", &format!("{base}{path}"))),
            _ => {}
        }
    }
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if path.starts_with("/token") {
        return Ok(token(&shared, &seen, &body));
    }
    if let Some(refusal) = refuse(&shared, &seen, &faults) {
        return Ok(refusal);
    }
    let found = serve(&mut shared.content(), &method, &path, &seen, body, &faults);
    Ok(found)
}

/// The faults for a path; those with a count are used up.
fn take_faults(content: &mut Content, path: &str) -> Vec<Fault> {
    let mut hit = Vec::new();
    for (part, fault) in &mut content.faults {
        if !path.contains(part.as_str()) {
            continue;
        }
        let left = match fault {
            Fault::Status(_, left)
            | Fault::TooMany(_, left)
            | Fault::HangAfter(_, left)
            | Fault::BreakAfter(_, left)
            | Fault::ForgetTokens(left) => Some(left),
            _ => None,
        };
        match left {
            Some(0) => continue,
            Some(left) => {
                *left -= 1;
                hit.push(fault.clone());
            }
            None => hit.push(fault.clone()),
        }
    }
    hit
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn refuse(shared: &Shared, seen: &Request, faults: &[Fault]) -> Option<Response<Reply>> {
    let forgotten = faults.iter().any(|fault| matches!(fault, Fault::ForgetTokens(_)));
    let given = seen.authorization.as_deref();
    let challenge = match &shared.auth {
        AuthMode::None => return None,
        AuthMode::Basic { user, password } => {
            if given == Some(&basic(user, password)) {
                return None;
            }
            "Basic realm=\"test\"".to_owned()
        }
        AuthMode::Bearer { .. } => {
            if !forgotten && given.is_some_and(|given| given.starts_with("Bearer good-")) {
                return None;
            }
            format!("Bearer realm=\"{}://{}/token\",service=\"test-service\"", shared.scheme, shared.address)
        }
    };
    Some(with(error(401, "UNAUTHORIZED", "authentication required"), "www-authenticate", &challenge))
}

fn token(shared: &Shared, seen: &Request, body: &[u8]) -> Response<Reply> {
    let AuthMode::Bearer { user, password, identity_token, anonymous } = &shared.auth else {
        return error(404, "UNKNOWN", "no token service");
    };
    let allowed = if seen.method == "POST" {
        let form = String::from_utf8_lossy(body);
        if identity_token.is_empty() {
            return error(404, "UNKNOWN", "no OAuth2 here");
        }
        form.contains("grant_type=refresh_token") && form.contains(&format!("refresh_token={identity_token}"))
    } else {
        match &seen.authorization {
            Some(given) => *given == basic(user, password),
            None => *anonymous,
        }
    };
    if !allowed {
        return error(401, "UNAUTHORIZED", "wrong credentials");
    }
    let mut content = shared.content();
    content.tokens += 1;
    // Clients that exchange a refresh token look for the second name alone.
    let token = format!("good-{}", content.tokens);
    reply(200, serde_json::json!({"token": token, "access_token": token, "expires_in": 300}).to_string())
}

fn serve(
    content: &mut Content,
    method: &Method,
    path: &str,
    seen: &Request,
    body: Bytes,
    faults: &[Fault],
) -> Response<Reply> {
    let plain = path.split('?').next().unwrap_or(path);
    let Some(rest) = plain.strip_prefix("/v2/") else { return error(404, "UNKNOWN", "not the API") };
    if rest.is_empty() {
        return reply(200, "{}");
    }
    if let Some((repository, upload)) = rest.split_once("/blobs/uploads/") {
        return uploads(content, method, path, repository, upload, body);
    }
    if let Some((_, digest)) = rest.split_once("/blobs/") {
        let Some(blob) = content.blobs.get(digest) else { return error(404, "BLOB_UNKNOWN", "no such blob") };
        let response = with(reply(200, ""), "docker-content-digest", digest);
        return deliver(response, blob.clone(), method, seen, faults);
    }
    if let Some((repository, target)) = rest.split_once("/manifests/") {
        if *method == Method::PUT {
            let digest = sha256(&body);
            let media_type = seen.headers.get("content-type").cloned().unwrap_or_default();
            for key in [target.to_owned(), digest.clone()] {
                content.manifests.insert((repository.to_owned(), key), (media_type.clone(), body.to_vec()));
            }
            return with(reply(201, ""), "docker-content-digest", &digest);
        }
        let found = content.manifests.get(&(repository.to_owned(), target.to_owned()));
        let Some((media_type, bytes)) = found else {
            return error(404, "MANIFEST_UNKNOWN", "no such manifest");
        };
        let response = with(reply(200, ""), "content-type", media_type);
        let response = with(response, "docker-content-digest", &sha256(bytes));
        return deliver(response, bytes.clone(), method, seen, faults);
    }
    error(404, "UNKNOWN", "not the API")
}

fn deliver(
    mut response: Response<Reply>,
    mut bytes: Vec<u8>,
    method: &Method,
    seen: &Request,
    faults: &[Fault],
) -> Response<Reply> {
    let mut cut = None;
    let mut ranges = true;
    for fault in faults {
        match fault {
            Fault::Corrupt => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x55;
            }
            Fault::Truncate(length) => bytes.truncate(*length),
            Fault::HangAfter(length, _) => cut = Some((*length, End::Hang)),
            Fault::BreakAfter(length, _) => cut = Some((*length, End::Break)),
            Fault::NoRanges => ranges = false,
            _ => {}
        }
    }
    let start = seen.range.as_deref().filter(|_| ranges);
    let start =
        start.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok());
    if let Some(start) = start {
        if start >= bytes.len() {
            return error(416, "RANGE", "beyond the end");
        }
        let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        bytes.drain(..start);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        response = with(response, "content-range", &range);
    }
    let promised = bytes.len() as u64;
    let end = match cut {
        Some((length, end)) if length < bytes.len() => {
            bytes.truncate(length);
            end
        }
        _ => End::Clean,
    };
    response = with(response, "content-length", &promised.to_string());
    if *method == Method::HEAD {
        return response;
    }
    *response.body_mut() = Reply { data: bytes.into(), promised, end };
    response
}

fn uploads(
    content: &mut Content,
    method: &Method,
    path: &str,
    repository: &str,
    upload: &str,
    body: Bytes,
) -> Response<Reply> {
    let digest = path.split_once("digest=").map(|(_, digest)| digest.replace("%3A", ":").replace("%3a", ":"));
    match (method, upload, digest) {
        (&Method::POST, _, None) => {
            let id = format!("u{}", content.uploads.len());
            content.uploads.insert(id.clone(), Vec::new());
            with(reply(202, ""), "location", &format!("/v2/{repository}/blobs/uploads/{id}"))
        }
        (&Method::PATCH, id, _) => {
            content.uploads.entry(id.to_owned()).or_default().extend_from_slice(&body);
            with(reply(202, ""), "location", &format!("/v2/{repository}/blobs/uploads/{id}"))
        }
        (&Method::PUT | &Method::POST, id, Some(digest)) => {
            let mut bytes = content.uploads.insert(id.to_owned(), Vec::new()).unwrap_or_default();
            bytes.extend_from_slice(&body);
            if sha256(&bytes) != digest {
                return error(400, "DIGEST_INVALID", "the content is not what its digest says");
            }
            content.blobs.insert(digest.clone(), bytes);
            with(reply(201, ""), "location", &format!("/v2/{repository}/blobs/{digest}"))
        }
        _ => error(405, "UNSUPPORTED", "not this"),
    }
}
