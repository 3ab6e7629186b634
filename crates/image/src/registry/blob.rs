//! A blob, read over as many connections as it takes.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};
use hyper::{Method, StatusCode};

use super::request::{self, ATTEMPTS};
use super::{Need, Session};
use crate::error::PullError;
use crate::manifest::Descriptor;

/// Resumptions of one blob in all, however much progress lies between them.
const MAX_RESUMES: u32 = 100;
/// Progress that makes up for a failure.
const PROGRESS: u64 = 1 << 20;

/// Streams one blob; a connection that breaks or stalls is replaced, from where it stood.
pub(crate) struct BlobReader<'a> {
    session: &'a Session,
    blob: &'a Descriptor,
    target: String,
    at: u64,
    body: Option<Incoming>,
    /// Bytes to pass over, where a server ignores ranges.
    skip: u64,
    failures: u32,
    resumes: u32,
    mark: u64,
}

impl<'a> BlobReader<'a> {
    pub(super) fn new(session: &'a Session, blob: &'a Descriptor) -> BlobReader<'a> {
        let target = blob.digest.to_string();
        BlobReader { session, blob, target, at: 0, body: None, skip: 0, failures: 0, resumes: 0, mark: 0 }
    }

    /// The next piece, or `None` at the end. May hand out more than the blob's size, if that is what comes: the reader counts.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        loop {
            if self.at >= self.blob.size {
                return self.trailing().await;
            }
            if self.body.is_none() {
                self.open().await?;
            }
            let Some(body) = &mut self.body else { continue };
            let reason = match tokio::time::timeout(self.session.stall, body.frame()).await {
                Err(_) => format!("no byte for {:?}", self.session.stall),
                Ok(None) => "the connection ended early".to_owned(),
                Ok(Some(Err(error))) => request::chain(&error),
                Ok(Some(Ok(frame))) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    let skipped = self.skip.min(data.len() as u64);
                    self.skip -= skipped;
                    let data = data.split_off(usize::try_from(skipped).unwrap_or(data.len()));
                    if data.is_empty() {
                        continue;
                    }
                    self.at += data.len() as u64;
                    if self.at - self.mark >= PROGRESS {
                        (self.failures, self.mark) = (0, self.at);
                    }
                    return Ok(Some(data));
                }
            };
            self.body = None;
            self.failures += 1;
            self.resumes += 1;
            if self.failures > ATTEMPTS || self.resumes > MAX_RESUMES {
                let (at, size) = (self.at, self.blob.size);
                return Err(self
                    .session
                    .unavailable(format!("{} broke off at {at} of {size} bytes: {reason}", self.target)));
            }
            tracing::debug!(blob = self.target, at = self.at, reason, "resuming");
            request::pause(self.failures, None).await;
        }
    }

    /// A server that sends more than it should is caught here, without waiting for a connection that stays open.
    async fn trailing(&mut self) -> Result<Option<Bytes>, PullError> {
        let Some(mut body) = self.body.take() else { return Ok(None) };
        if hyper::body::Body::is_end_stream(&body) {
            return Ok(None);
        }
        match tokio::time::timeout(self.session.stall, body.frame()).await {
            Ok(Some(Ok(frame))) => Ok(frame.into_data().ok().filter(|data| !data.is_empty())),
            _ => Ok(None),
        }
    }

    async fn open(&mut self) -> Result<(), PullError> {
        let answer =
            self.session.request(&Method::GET, "blobs", &self.target, Need::Content, None, self.at).await?;
        let partial = answer.status() == StatusCode::PARTIAL_CONTENT;
        self.skip = if partial { 0 } else { self.at };
        let start = if partial { self.at } else { 0 };
        if partial && range_start(answer.headers()) != Some(self.at) {
            return Err(self
                .session
                .unavailable(format!("{} answers another range than asked for", self.target)));
        }
        let length: Option<u64> =
            answer.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        // Known to be wrong before a byte has been read.
        if let Some(length) = length
            && start + length != self.blob.size
        {
            let actual = format!("{} bytes instead of {}", start + length, self.blob.size);
            return Err(PullError::WrongDigest { what: "layer", expected: self.blob.digest, actual });
        }
        self.body = Some(answer.into_body());
        Ok(())
    }
}

fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
