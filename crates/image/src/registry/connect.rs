//! Connections: TCP, proxies, TLS with each host's own certificates.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use crate::error::PullError;

pub(super) type Client = hyper_util::client::legacy::Client<Connector, Full<Bytes>>;

/// How long the system's certificates are taken from memory: long enough for a burst of pulls, short enough for a rotation.
const ROOTS_AGE: Duration = Duration::from_secs(300);

/// The system's certificates, read when first needed.
#[derive(Default)]
pub(crate) struct Trust(Mutex<Option<(Instant, Arc<Vec<CertificateDer<'static>>>)>>);

impl Trust {
    fn roots(&self) -> Arc<Vec<CertificateDer<'static>>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, roots)) = &*kept
            && read.elapsed() < ROOTS_AGE
        {
            return roots.clone();
        }
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "a system certificate cannot be read");
        }
        let roots = Arc::new(found.certs);
        *kept = Some((Instant::now(), roots.clone()));
        roots
    }
}

/// A host's TLS settings.
#[derive(Clone, Default)]
pub(super) struct Tls {
    pub(super) ca: Vec<PathBuf>,
    pub(super) client: Vec<(PathBuf, PathBuf)>,
    pub(super) skip_verify: bool,
}

/// Whether `authority` is this machine: docker and containerd talk plain HTTP there without being told.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A client for one endpoint. With `guess`, https turns into http if nobody speaks TLS there.
pub(super) fn client(
    trust: &Trust,
    tls: Tls,
    dial_timeout: Duration,
    guess: bool,
) -> Result<Client, PullError> {
    let config = tls_config(trust, &tls)?;
    let connector = Connector {
        tls: Arc::new(config),
        dial_timeout,
        guess: guess.then(|| Arc::new(AtomicU8::new(UNKNOWN))),
        proxies: Arc::new(Proxies::from_env()),
    };
    Ok(hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(20))
        .build(connector))
}

fn tls_config(trust: &Trust, tls: &Tls) -> Result<rustls::ClientConfig, PullError> {
    let bad = |path: &PathBuf, reason: String| PullError::BadHostsToml { path: path.clone(), reason };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| PullError::Internal(format!("TLS: {error}")))?;
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnyone(provider)))
    } else {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(trust.roots().iter().cloned());
        for path in &tls.ca {
            let certificates =
                CertificateDer::pem_file_iter(path).map_err(|error| bad(path, error.to_string()))?;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| bad(path, error.to_string()))?;
                roots.add(certificate).map_err(|error| bad(path, error.to_string()))?;
            }
        }
        builder.with_root_certificates(roots)
    };
    match tls.client.first() {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
            let chain = chain.map_err(|error| bad(certificate, error.to_string()))?;
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, error.to_string()))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| bad(certificate, error.to_string()))
        }
    }
}

const UNKNOWN: u8 = 0;
const SPEAKS_TLS: u8 = 1;
const PLAIN: u8 = 2;

/// Opens connections for one endpoint.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Arc<rustls::ClientConfig>,
    dial_timeout: Duration,
    /// What a loopback host turned out to speak.
    guess: Option<Arc<AtomicU8>>,
    proxies: Arc<Proxies>,
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(this.dial_timeout, this.connect(&to)).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "no connection to {} within {:?}",
                        to.authority().map_or("", |a| a.as_str()),
                        this.dial_timeout
                    ),
                )),
            }
        })
    }
}

impl Connector {
    async fn connect(&self, to: &Uri) -> io::Result<Stream> {
        let host =
            to.host().ok_or_else(|| io::Error::other("a URL without a host"))?.trim_matches(['[', ']']);
        let secure = to.scheme_str() != Some("http");
        let port = to.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let proxy = self.proxies.of(secure, host, port);
        if !secure {
            let tcp = match proxy {
                None => dial(host, port).await?,
                Some(proxy) => dial(&proxy.host, proxy.port).await?,
            };
            return Ok(Stream::Plain { tcp, proxied: proxy.is_some() });
        }
        let guess = self.guess.as_ref().filter(|_| is_loopback(host) && proxy.is_none());
        if guess.is_some_and(|guess| guess.load(Relaxed) == PLAIN) {
            return Ok(Stream::Plain { tcp: dial(host, port).await?, proxied: false });
        }
        let tcp = match proxy {
            None => dial(host, port).await?,
            Some(proxy) => proxy.tunnel(host, port).await?,
        };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let shaken = tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, tcp).await;
        match (shaken, guess) {
            (Ok(tls), guess) => {
                if let Some(guess) = guess {
                    guess.store(SPEAKS_TLS, Relaxed);
                }
                Ok(Stream::Tls(Box::new(tls)))
            }
            (Err(error), Some(guess)) if guess.load(Relaxed) == UNKNOWN && speaks_no_tls(&error) => {
                guess.store(PLAIN, Relaxed);
                Ok(Stream::Plain { tcp: dial(host, port).await?, proxied: false })
            }
            (Err(error), _) => Err(error),
        }
    }
}

/// Whether a handshake failed because the other side does not speak TLS at all. A bad certificate is not that.
fn speaks_no_tls(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidMessage(_)) => true,
        Some(_) => false,
        None => matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset),
    }
}

async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// A connection, in the clear or not.
pub(super) enum Stream {
    Plain { tcp: TcpStream, proxied: bool },
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(matches!(self, Stream::Plain { proxied: true, .. }))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain { tcp, .. } => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain { tcp, .. } => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain { tcp, .. } => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain { tcp, .. } => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the daemon, as Go programs read them.
#[derive(Default)]
struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    except: Vec<String>,
}

#[derive(Clone)]
struct Proxy {
    host: String,
    port: u16,
    /// The value of Proxy-Authorization.
    login: Option<String>,
}

impl Proxies {
    fn from_env() -> Proxies {
        let get = |upper: &str| {
            let value = std::env::var(upper).or_else(|_| std::env::var(upper.to_lowercase()));
            value.ok().filter(|value| !value.is_empty())
        };
        Proxies {
            http: get("HTTP_PROXY").and_then(|url| Proxy::parse(&url)),
            https: get("HTTPS_PROXY").and_then(|url| Proxy::parse(&url)),
            except: get("NO_PROXY")
                .map(|list| list.split(',').map(|item| item.trim().to_ascii_lowercase()).collect())
                .unwrap_or_default(),
        }
    }

    fn of(&self, secure: bool, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = if secure { self.https.as_ref() } else { self.http.as_ref() }?;
        (!is_loopback_host(host) && !self.excepts(host, port)).then_some(proxy)
    }

    fn excepts(&self, host: &str, port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        self.except.iter().any(|rule| {
            let rule = match rule.rsplit_once(':') {
                Some((name, digits)) if !name.contains(':') && digits.parse() == Ok(port) => name,
                _ => rule.as_str(),
            };
            if rule == "*" {
                return true;
            }
            if let (Ok(net), Ok(ip)) = (rule.parse::<ipnet::IpNet>(), host.parse::<std::net::IpAddr>()) {
                return net.contains(&ip);
            }
            let domain = rule.trim_start_matches("*.").trim_start_matches('.');
            !domain.is_empty()
                && ((host == domain && !rule.starts_with('.')) || host.ends_with(&format!(".{domain}")))
        })
    }
}

fn is_loopback_host(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Proxy {
    fn parse(url: &str) -> Option<Proxy> {
        use base64::Engine as _;
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = url.parse().ok()?;
        let login =
            uri.authority()?.as_str().rsplit_once('@').map(|(login, _)| {
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login))
            });
        let port = uri.port_u16().unwrap_or(80);
        Some(Proxy { host: uri.host()?.trim_matches(['[', ']']).to_owned(), port, login })
    }

    /// A connection through the proxy, by CONNECT.
    async fn tunnel(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut tcp = dial(&self.host, self.port).await?;
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let login =
            self.login.as_ref().map(|login| format!("Proxy-Authorization: {login}\r\n")).unwrap_or_default();
        let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{login}\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // Byte by byte, so that nothing of the TLS stream is swallowed; it is a hundred bytes, once per connection.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() > 8192 {
                return Err(io::Error::other("the proxy's answer is too long"));
            }
            answer.push(tcp.read_u8().await?);
        }
        let status = String::from_utf8_lossy(&answer);
        let status = status.lines().next().unwrap_or_default().to_owned();
        if status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
            Ok(tcp)
        } else {
            Err(io::Error::other(format!("the proxy refused the connection: {status}")))
        }
    }
}

/// For `skip_verify = true`.
#[derive(Debug)]
struct TrustAnyone(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
