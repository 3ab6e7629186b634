//! `GET /metrics` for Prometheus, where the configuration asks for it. Plain HTTP: the address should be one that only
//! the node reaches.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bowline_cri::Exporter;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 8;
/// How long a connection may take, whatever it does: a scrape is one request.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a client may take to say what it wants.
const HEADERS: Duration = Duration::from_secs(5);
/// The pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// Opens the address; the first scrape may come from now on.
pub(crate) async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves scrapes for ever.
pub(crate) async fn serve(listener: TcpListener, exporter: Arc<Exporter>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::debug!(%error, "could not accept a scrape");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let exporter = exporter.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| answer(exporter.clone(), request));
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(64 << 10);
            let serving = builder.serve_connection(TokioIo::new(connection), service);
            // A client that breaks off is its own affair.
            let _ = tokio::time::timeout(LIMIT, serving).await;
        });
    }
}

async fn answer(
    exporter: Arc<Exporter>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let known = request.uri().path() == "/metrics";
    let (status, text) = match (known, request.method()) {
        (true, &Method::GET) => (StatusCode::OK, exporter.text().await),
        (true, _) => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        (false, _) => (StatusCode::NOT_FOUND, "there is only /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    Ok(response)
}
