//! TLS, where it is wanted: certificate and key from files, read again when they change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// The files. All PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities of which clients must have a certificate; none: whoever has a token is let in.
    pub client_authorities: Option<PathBuf>,
}

/// Why TLS cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read, or is no PEM of this kind.
    #[error("could not read {what} in {}: {reason}", path.display())]
    File {
        /// What should be in it.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// They do not go together.
    #[error("the certificate in {} cannot be used with its key", path.display())]
    Unfit {
        /// The certificate's.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

/// When files were changed; `None` for one that cannot be looked at.
type Stamps = Vec<Option<SystemTime>>;

/// Accepts TLS with what the files say now.
pub(crate) struct Acceptor {
    files: TlsFiles,
    current: Mutex<(Stamps, Arc<ServerConfig>)>,
}

impl Acceptor {
    /// Reads the files; what is wrong with them is found here.
    pub(crate) fn open(files: TlsFiles) -> Result<Acceptor, TlsError> {
        // Looked at before they are read: a change in between is seen the next time.
        let stamps = stamps(&files);
        let config = read(&files)?;
        Ok(Acceptor { files, current: Mutex::new((stamps, config)) })
    }

    /// For the next connection. Three looks at files are little beside a handshake; new files that make no sense are
    /// told of once, and the old ones stay in use.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.files);
        if now != current.0 {
            current.0 = now;
            match read(&self.files) {
                Ok(config) => {
                    tracing::info!("the streaming server's certificate was read again");
                    current.1 = config;
                }
                Err(error) => {
                    tracing::warn!(
                        error = bowline_pods::chain(&error),
                        "the streaming server goes on with its old certificate"
                    );
                }
            }
        }
        TlsAcceptor::from(current.1.clone())
    }
}

fn stamps(files: &TlsFiles) -> Stamps {
    let paths = [Some(&files.certificate), Some(&files.key), files.client_authorities.as_ref()];
    let changed = |path: &PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    paths.into_iter().flatten().map(changed).collect()
}

fn read(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let certificates = certificates("a certificate", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| TlsError::File {
        what: "a key",
        path: files.key.clone(),
        reason: error.to_string(),
    })?;
    let unfit = |source| TlsError::Unfit { path: files.certificate.clone(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // 1.2 and 1.3, whose suites are all sound in this library.
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unfit)?;
    let builder = match &files.client_authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for authority in self::certificates("authorities of clients", path)? {
                roots.add(authority).map_err(unfit)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(|error| TlsError::File {
                what: "authorities of clients",
                path: path.clone(),
                reason: error.to_string(),
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(unfit)?;
    // Upgrades are a matter of HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::File { what, path: path.to_owned(), reason };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| wrong(error.to_string()))?;
    match found.is_empty() {
        true => Err(wrong(io::Error::from(io::ErrorKind::NotFound).to_string())),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str) -> TlsFiles {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let files = TlsFiles {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            client_authorities: None,
        };
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    fn config(acceptor: &Acceptor) -> Arc<ServerConfig> {
        acceptor.acceptor();
        acceptor.current.lock().unwrap().1.clone()
    }

    #[test]
    fn files_that_change_are_read_again_and_rubbish_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let acceptor = Acceptor::open(write(folder.path(), "one")).unwrap();
        let first = config(&acceptor);
        assert!(Arc::ptr_eq(&first, &config(&acceptor)), "nothing has changed");
        let later = |path: &Path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
        };
        let files = write(folder.path(), "two");
        later(&files.certificate);
        let second = config(&acceptor);
        assert!(!Arc::ptr_eq(&first, &second));
        fs::write(&files.key, "rubbish").unwrap();
        later(&files.key);
        assert!(Arc::ptr_eq(&second, &config(&acceptor)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = write(folder.path(), "one");
        files.client_authorities = Some(folder.path().join("nothing"));
        let text = Acceptor::open(files.clone()).err().unwrap().to_string();
        assert!(text.contains("authorities of clients") && text.contains("nothing"), "{text}");
        files.client_authorities = None;
        fs::write(&files.certificate, "").unwrap();
        assert!(Acceptor::open(files).is_err());
    }
}
