//! The registry's side of a pull: which hosts to ask, as whom, and what to do when they fail.
//!
//! `hosts` reads hosts.toml, `connect` opens connections, `token` answers challenges, `request` runs one request against the hosts
//! in turn, `blob` reads a blob over as many requests as it takes.

mod auth;
mod blob;
mod connect;
mod hosts;
mod request;
mod token;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::Method;

pub use auth::Auth;
pub(crate) use blob::BlobReader;
pub(crate) use connect::Trust;

use crate::config::ImagesConfig;
use crate::digest::Digest;
use crate::error::PullError;
use crate::manifest::{self, Descriptor};
use crate::reference::Reference;
use hosts::Endpoint;

/// One pull's dealings with the registries that may serve its repository.
pub(crate) struct Session {
    reference: Reference,
    endpoints: Vec<Endpoint>,
    stall: Duration,
}

/// A manifest or index as it came, its digest known.
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) media_type: Option<String>,
}

/// Whether a mirror may answer what a tag stands for, or only serve content by digest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    Resolve,
    Content,
}

impl Session {
    /// Reads the hosts' configuration afresh: a changed mirror needs no restart.
    pub(crate) fn new(
        config: &ImagesConfig,
        trust: &Trust,
        reference: &Reference,
        auth: Option<&Auth>,
    ) -> Result<Session, PullError> {
        let endpoints = hosts::endpoints(&config.registry_config_dirs, reference, auth, trust)?;
        Ok(Session { reference: reference.clone(), endpoints, stall: config.stall_timeout })
    }

    /// Fetches the manifest of `digest`, or of the reference's tag. `announced` is what an index said of it.
    pub(crate) async fn manifest(
        &self,
        digest: Option<Digest>,
        announced: Option<&Descriptor>,
    ) -> Result<Fetched, PullError> {
        let target = match digest {
            Some(digest) => digest.to_string(),
            None => self.reference.tag().unwrap_or("latest").to_owned(),
        };
        let need = if digest.is_some() { Need::Content } else { Need::Resolve };
        let what = format!("manifest {target}");
        let (bytes, media_type) = self
            .whole("manifests", &target, need, Some(manifest::ACCEPT), manifest::MAX_MANIFEST, &what)
            .await?;
        let actual = Digest::of(&bytes);
        let expected = digest.unwrap_or(actual);
        if actual != expected || announced.is_some_and(|said| said.size != bytes.len() as u64) {
            let actual = format!("{actual}, {} bytes", bytes.len());
            return Err(PullError::WrongDigest { what: "manifest", expected, actual });
        }
        let media_type =
            announced.map(|said| said.media_type.clone()).filter(|said| !said.is_empty()).or(media_type);
        Ok(Fetched { bytes, digest: actual, media_type })
    }

    /// Fetches a blob into memory.
    pub(crate) async fn small_blob(
        &self,
        blob: &Descriptor,
        limit: u64,
        what: &'static str,
    ) -> Result<Bytes, PullError> {
        let (bytes, _) =
            self.whole("blobs", &blob.digest.to_string(), Need::Content, None, limit, what).await?;
        let actual = Digest::of(&bytes);
        if actual != blob.digest || bytes.len() as u64 != blob.size {
            let actual = format!("{actual}, {} bytes instead of {}", bytes.len(), blob.size);
            return Err(PullError::WrongDigest { what, expected: blob.digest, actual });
        }
        Ok(bytes)
    }

    /// A reader of a blob that survives broken connections.
    pub(crate) fn blob<'a>(&'a self, blob: &'a Descriptor) -> BlobReader<'a> {
        BlobReader::new(self, blob)
    }

    /// A whole small body, asked for again if it breaks off.
    async fn whole(
        &self,
        kind: &str,
        target: &str,
        need: Need,
        accept: Option<&str>,
        limit: u64,
        what: &str,
    ) -> Result<(Bytes, Option<String>), PullError> {
        let mut attempt = 0;
        loop {
            let answer = self.request(&Method::GET, kind, target, need, accept, 0).await?;
            let media_type = answer
                .headers()
                .get(hyper::header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned);
            match self.collect(answer.into_body(), limit, what).await {
                Ok(bytes) => return Ok((bytes, media_type)),
                Err(error @ PullError::RegistryUnavailable { .. }) if attempt < request::ATTEMPTS => {
                    tracing::debug!(%error, what, "asking again");
                    attempt += 1;
                    request::pause(attempt, None).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn collect(
        &self,
        mut body: hyper::body::Incoming,
        limit: u64,
        what: &str,
    ) -> Result<Bytes, PullError> {
        let mut bytes = BytesMut::new();
        loop {
            let frame = match tokio::time::timeout(self.stall, body.frame()).await {
                Err(_) => return Err(self.unavailable(format!("no byte of the {what} for {:?}", self.stall))),
                Ok(None) => return Ok(bytes.freeze()),
                Ok(Some(Err(error))) => {
                    return Err(self.unavailable(format!("the {what} broke off: {}", request::chain(&error))));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            if let Ok(data) = frame.into_data() {
                if (bytes.len() + data.len()) as u64 > limit {
                    let reason = format!("more than {limit} bytes");
                    return Err(PullError::TooLarge {
                        what: format!("the {what} of `{}`", self.reference),
                        reason,
                    });
                }
                bytes.extend_from_slice(&data);
            }
        }
    }

    fn unavailable(&self, reason: String) -> PullError {
        PullError::RegistryUnavailable { reference: self.reference.to_string(), reason }
    }
}
