//! A registry on loopback, with faults to order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::builder::BuiltImage;
use crate::layer::sha256;
use crate::serve;

/// How clients must prove themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthMode {
    /// Not at all.
    None,
    /// Basic.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// Bearer tokens from the registry's own `/token`. Anonymous clients get one too if `anonymous`.
    Bearer {
        /// The user.
        user: String,
        /// The password.
        password: String,
        /// A refresh token that is accepted by POST; empty: none.
        identity_token: String,
        /// Whether clients without credentials get a token.
        anonymous: bool,
    },
}

/// Something to go wrong, for requests whose path contains a text.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, so many times.
    Status(u16, u32),
    /// 429 with `Retry-After`, so many times.
    TooMany(u64, u32),
    /// Sends so many bytes of the body, then nothing more, so many times.
    HangAfter(usize, u32),
    /// Sends so many bytes of the body, then closes the connection, so many times.
    BreakAfter(usize, u32),
    /// Serves only so many bytes, as if that were all.
    Truncate(usize),
    /// Flips a byte in the middle.
    Corrupt,
    /// Waits before it answers.
    Delay(Duration),
    /// 307 to the same path at another base URL.
    Redirect(String),
    /// Ignores Range headers.
    NoRanges,
    /// Rejects the first so many tokens with 401.
    ForgetTokens(u32),
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// GET, HEAD, ..
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The Authorization header.
    pub authorization: Option<String>,
    /// The Range header.
    pub range: Option<String>,
    /// All headers, names in lower case.
    pub headers: BTreeMap<String, String>,
}

#[derive(Default)]
pub(crate) struct Content {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// (repository, tag or digest) -> (media type, bytes).
    pub(crate) manifests: BTreeMap<(String, String), (String, Vec<u8>)>,
    pub(crate) uploads: BTreeMap<String, Vec<u8>>,
    pub(crate) faults: Vec<(String, Fault)>,
    pub(crate) log: Vec<Request>,
    pub(crate) tokens: u64,
}

pub(crate) struct Shared {
    pub(crate) content: Mutex<Content>,
    pub(crate) changed: Condvar,
    pub(crate) auth: AuthMode,
    pub(crate) scheme: &'static str,
    pub(crate) address: SocketAddr,
}

impl Shared {
    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running registry; it ends when dropped.
pub struct Registry {
    shared: Arc<Shared>,
    certificate: Option<String>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Choices for a registry.
#[derive(Clone, Debug)]
pub struct RegistryBuilder {
    auth: AuthMode,
    tls: bool,
    listen: SocketAddr,
}

impl RegistryBuilder {
    /// Listens there, not on any free port of 127.0.0.1.
    pub fn listen(mut self, address: SocketAddr) -> RegistryBuilder {
        self.listen = address;
        self
    }

    /// Demands credentials.
    pub fn auth(mut self, auth: AuthMode) -> RegistryBuilder {
        self.auth = auth;
        self
    }

    /// Speaks https, with a certificate of its own making.
    pub fn tls(mut self) -> RegistryBuilder {
        self.tls = true;
        self
    }

    /// Starts it, on a thread of its own.
    pub fn start(self) -> Registry {
        let listener = std::net::TcpListener::bind(self.listen).expect("an address to listen on");
        listener.set_nonblocking(true).expect("a non-blocking socket");
        let shared = Arc::new(Shared {
            content: Mutex::new(Content::default()),
            changed: Condvar::new(),
            auth: self.auth,
            scheme: if self.tls { "https" } else { "http" },
            address: listener.local_addr().expect("an address"),
        });
        let identity = self.tls.then(serve::identity);
        let certificate = identity.as_ref().map(|identity| identity.pem.clone());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = shared.clone();
        let thread = std::thread::spawn(move || serve::run(listener, served, identity, stopped));
        Registry { shared, certificate, stop: Some(stop), thread: Some(thread) }
    }
}

impl Registry {
    /// A plain HTTP registry without authentication.
    pub fn start() -> Registry {
        Registry::builder().start()
    }

    /// A registry to be configured.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder { auth: AuthMode::None, tls: false, listen: SocketAddr::from(([127, 0, 0, 1], 0)) }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.shared.scheme, self.shared.address)
    }

    /// The certificate, as PEM, of a registry with TLS.
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// Stores an image under `repository:tag` and gives the full reference.
    pub fn push(&self, repository: &str, tag: &str, image: &BuiltImage) -> String {
        let mut content = self.shared.content();
        content.blobs.extend(image.blobs.clone());
        let top = (image.media_type.clone(), image.manifest.clone());
        for (digest, manifest) in &image.manifests {
            content.manifests.insert((repository.to_owned(), digest.clone()), manifest.clone());
        }
        content.manifests.insert((repository.to_owned(), image.digest()), top.clone());
        content.manifests.insert((repository.to_owned(), tag.to_owned()), top);
        format!("{}/{repository}:{tag}", self.host())
    }

    /// Stores any bytes as a manifest.
    pub fn put_manifest(&self, repository: &str, target: &str, media_type: &str, bytes: &[u8]) {
        let value = (media_type.to_owned(), bytes.to_vec());
        self.shared.content().manifests.insert((repository.to_owned(), target.to_owned()), value);
    }

    /// Stores any bytes as a blob and gives the digest.
    pub fn put_blob(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        self.shared.content().blobs.insert(digest.clone(), bytes.to_vec());
        digest
    }

    /// Forgets a blob.
    pub fn lose_blob(&self, digest: &str) {
        self.shared.content().blobs.remove(digest);
    }

    /// Makes requests whose path contains `part` go wrong.
    pub fn fault(&self, part: &str, fault: Fault) {
        self.shared.content().faults.push((part.to_owned(), fault));
    }

    /// Makes everything go right again.
    pub fn heal(&self) {
        self.shared.content().faults.clear();
    }

    /// All requests so far.
    pub fn log(&self) -> Vec<Request> {
        self.shared.content().log.clone()
    }

    /// How many requests of this method had `part` in their path.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let content = self.shared.content();
        content.log.iter().filter(|request| request.method == method && request.path.contains(part)).count()
    }

    /// Waits until a request with `part` in its path has come.
    pub fn wait_for(&self, part: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut content = self.shared.content();
        while !content.log.iter().any(|request| request.path.contains(part)) {
            let left = deadline.checked_duration_since(Instant::now()).expect("no request came");
            let waited = self.shared.changed.wait_timeout(content, left);
            content = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
