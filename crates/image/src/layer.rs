//! One layer: from the registry through the unpacker into place.
//!
//! ```text
//!   async task ──chunks──► sink (thread): sha256, blob file ──pipe──► worker (process): tree
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::config::Unpacker;
use crate::digest::{Digest, Hasher, LayerName};
use crate::error::PullError;
use crate::flight::Progress;
use crate::images::{Claim, Inner, Ticket};
use crate::manifest::{Compression, Descriptor};
use crate::registry::Session;
use crate::store::{LayerMeta, Workplace};
use crate::unpack::{Failure, Job, Link, Reply, Report};

/// Chunks between network and sink. hyper's chunks are at most some 400 KiB.
const QUEUE: usize = 16;
const PIPE_BYTES: usize = 1 << 20;

/// A layer to be had.
#[derive(Clone)]
pub(crate) struct Order {
    pub(crate) blob: Descriptor,
    pub(crate) diff_id: Digest,
    pub(crate) chain_id: Digest,
    pub(crate) bottom: bool,
}

/// Where a layer's compressed bytes come from.
pub(crate) trait Source: Send + Sync {
    /// Streams the blob into `to`. Digest and size are checked by the receiver.
    fn stream(
        &self,
        blob: &Descriptor,
        to: mpsc::Sender<Bytes>,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), PullError>> + Send;
}

impl Source for Session {
    async fn stream(
        &self,
        blob: &Descriptor,
        to: mpsc::Sender<Bytes>,
        progress: &Progress,
    ) -> Result<(), PullError> {
        let mut reader = self.blob(blob);
        while let Some(chunk) = reader.next().await? {
            progress.bytes_done.fetch_add(chunk.len() as u64, Relaxed);
            // The sink is gone: it knows why.
            if to.send(chunk).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// One holder per layer (by chain id), so that two pulls do not fetch the same layer twice. Chain ids cannot wait in a circle: a
/// layer's id depends on those below it, and only those does it ever wait for.
#[derive(Default)]
pub(crate) struct LayerLocks(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl LayerLocks {
    fn of(&self, chain_id: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(&chain_id).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(chain_id, Arc::downgrade(&lock));
        lock
    }
}

/// Makes sure that all layers stand, several at a time, and gives their names, bottom first.
pub(crate) async fn obtain_all<S: Source>(
    inner: &Arc<Inner>,
    source: &S,
    claim: &Claim,
    orders: Vec<Order>,
    progress: &Progress,
) -> Result<Vec<LayerName>, PullError> {
    let (tell, done): (Vec<_>, Vec<_>) = orders.iter().map(|_| watch::channel(None::<LayerName>)).unzip();
    let batch = Batch {
        inner,
        source,
        claim,
        progress,
        orders: &orders,
        done: &done,
        // Taken in order, bottom first, so that the lowest unfinished layer always has one: a layer that waits for its parents
        // cannot starve them.
        permits: Semaphore::new(inner.config.max_concurrent_downloads.max(1)),
    };
    try_join_all(tell.into_iter().enumerate().map(|(at, tell)| {
        let batch = &batch;
        async move {
            let name = batch.obtain(at).await?;
            progress.layers_done.fetch_add(1, Relaxed);
            tell.send_replace(Some(name.clone()));
            Ok(name)
        }
    }))
    .await
}

struct Batch<'a, S> {
    inner: &'a Arc<Inner>,
    source: &'a S,
    claim: &'a Claim,
    progress: &'a Progress,
    orders: &'a [Order],
    done: &'a [watch::Receiver<Option<LayerName>>],
    permits: Semaphore,
}

impl<S: Source> Batch<'_, S> {
    async fn obtain(&self, at: usize) -> Result<LayerName, PullError> {
        let order = &self.orders[at];
        let _permit = self.permits.acquire().await;
        // The same layer twice in one image: the lower one does the work.
        if let Some(lower) = self.orders[..at].iter().position(|other| other.diff_id == order.diff_id) {
            self.wait_for(lower).await?;
        }
        let lock = self.inner.layer_locks.of(order.chain_id);
        let _alone = lock.lock().await;
        let keep = self.inner.config.keep_layer_blobs;
        match self.claim.find_layer(order.diff_id, order.chain_id, order.bottom) {
            Some(name) if !keep || self.claim.find_blob(order.blob.digest) => {
                self.progress.bytes_done.fetch_add(order.blob.size, Relaxed);
                Ok(name)
            }
            Some(name) => self.fetch_blob_only(order).await.map(|()| name),
            None => self.fetch(at).await,
        }
    }

    async fn wait_for(&self, at: usize) -> Result<LayerName, PullError> {
        let mut done = self.done[at].clone();
        let name = done.wait_for(Option::is_some).await.ok().and_then(|name| name.clone());
        name.ok_or_else(|| PullError::Internal("a lower layer was given up".to_owned()))
    }

    /// The tree is there (from another image, compressed differently), but not this blob, which the layout needs.
    async fn fetch_blob_only(&self, order: &Order) -> Result<(), PullError> {
        let place = self.workplace().await?;
        let (to_sink, from_source) = mpsc::channel(QUEUE);
        let sink = spawn_sink(order.blob.clone(), place.clone(), from_source, None, true);
        let (streamed, sunk) = tokio::join!(self.source.stream(&order.blob, to_sink, self.progress), sink);
        streamed?;
        sunk?;
        commit(self.claim, place, order.clone(), None).await.map(drop)
    }

    async fn fetch(&self, at: usize) -> Result<LayerName, PullError> {
        let order = &self.orders[at];
        let place = self.workplace().await?;
        let (to_sink, from_source) = mpsc::channel(QUEUE);
        let (pipe_out, pipe_in) = pipe().map_err(|error| PullError::io("make a pipe", error))?;
        let (parents_needed, needed) = oneshot::channel();
        let (give_parents, parents) = oneshot::channel();
        let keep = self.inner.config.keep_layer_blobs;
        let sink = spawn_sink(order.blob.clone(), place.clone(), from_source, Some(pipe_in), keep);
        let worker = spawn_worker(
            (**self.claim).clone(),
            order.blob.clone(),
            place.clone(),
            pipe_out,
            parents_needed,
            parents,
        );
        let lower = async {
            if needed.await.is_ok() {
                let mut names = Vec::with_capacity(at);
                for lower in (0..at).rev() {
                    names.push(self.wait_for(lower).await?);
                }
                let _ = give_parents.send(names);
            }
            Ok::<(), PullError>(())
        };
        let stream = self.source.stream(&order.blob, to_sink, self.progress);
        let (streamed, sunk, worked, lower) = tokio::join!(stream, sink, worker, lower);
        // The cause first: a broken stream breaks what comes after it.
        streamed?;
        lower?;
        let report = match (sunk, worked) {
            // A worker that gave up closes the pipe; its reason is the better one. A wrong blob explains a corrupt archive.
            (Err(wrong @ PullError::WrongDigest { .. }), _) => return Err(wrong),
            (_, Err(failure)) => return Err(failure),
            (Err(error), Ok(_)) => return Err(error),
            (Ok(()), Ok(report)) => report,
        };
        if report.diff_id != order.diff_id {
            return Err(PullError::WrongDigest {
                what: "the content of a layer",
                expected: order.diff_id,
                actual: report.diff_id.to_string(),
            });
        }
        let name = commit(self.claim, place, order.clone(), Some(report)).await?;
        name.ok_or_else(|| PullError::Internal("a layer was committed without a name".to_owned()))
    }

    async fn workplace(&self) -> Result<Arc<Workplace>, PullError> {
        let store = self.inner.store.clone();
        let made = tokio::task::spawn_blocking(move || store.workplace()).await.map_err(io::Error::other);
        made.and_then(|place| place)
            .map(Arc::new)
            .map_err(|error| PullError::io("make a folder for a layer", error))
    }
}

/// Moves tree and blob into place. `None`: only the blob.
async fn commit(
    claim: &Claim,
    place: Arc<Workplace>,
    order: Order,
    report: Option<Report>,
) -> Result<Option<LayerName>, PullError> {
    let ticket: Ticket = (**claim).clone();
    let work = tokio::task::spawn_blocking(move || {
        let inner = &ticket.inner;
        let failed = |error| PullError::io("put a layer into place", error);
        let _turn = inner.commit_turn();
        if !ticket.live() {
            return Err(PullError::Internal("the pull was cancelled".to_owned()));
        }
        if inner.config.keep_layer_blobs && !ticket.find_blob(order.blob.digest) {
            inner.store.commit_blob(&place.blob, order.blob.digest).map_err(failed)?;
            ticket.add_blob(order.blob.digest, order.blob.size);
        }
        let Some(report) = report else { return Ok(None) };
        // Another image's pull may have been faster with the same layer on other parents.
        if let Some(name) = ticket.find_layer(order.diff_id, order.chain_id, order.bottom) {
            return Ok(Some(name));
        }
        let key = if report.standalone { order.diff_id } else { order.chain_id };
        let meta = LayerMeta {
            key,
            diff_id: order.diff_id,
            standalone: report.standalone,
            bytes: report.bytes,
            inodes: report.inodes,
        };
        let name = LayerName::of(key);
        if inner.state().layers.get(&name).is_some_and(|other| other.key != key) {
            return Err(PullError::Internal(format!("two layers want the folder {name}")));
        }
        inner.store.commit_layer(&place.tree, &name, &meta).map_err(failed)?;
        ticket.add_layer(&name, meta);
        Ok(Some(name))
    });
    work.await.map_err(|error| PullError::Internal(format!("a commit died: {error}")))?
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (out, into) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Unprivileged users have a bound on pipe pages; a small pipe is only slower.
    let _ = rustix::pipe::fcntl_setpipe_size(&into, PIPE_BYTES);
    Ok((out, into))
}

/// Hashes the blob, writes it if it is to be kept, passes it on; ends with a verdict on digest and size.
async fn spawn_sink(
    blob: Descriptor,
    place: Arc<Workplace>,
    mut from: mpsc::Receiver<Bytes>,
    pipe: Option<OwnedFd>,
    keep: bool,
) -> Result<(), PullError> {
    let work = tokio::task::spawn_blocking(move || {
        let failed = |error| PullError::io(format!("write blob {}", blob.digest), error);
        let mut file = if keep { Some(File::create_new(&place.blob).map_err(failed)?) } else { None };
        let mut pipe = pipe.map(File::from);
        let (mut hasher, mut size) = (Hasher::new(), 0u64);
        while let Some(chunk) = from.blocking_recv() {
            size += chunk.len() as u64;
            hasher.update(&chunk);
            if size > blob.size {
                break;
            }
            if let Some(file) = &mut file {
                file.write_all(&chunk).map_err(failed)?;
            }
            // A closed pipe means that the worker has given up and says why itself. Keep hashing: a wrong digest is the better reason.
            if pipe.as_mut().is_some_and(|pipe| pipe.write_all(&chunk).is_err()) {
                pipe = None;
            }
        }
        let actual = hasher.finish();
        if size != blob.size {
            let actual = if size > blob.size { "more".to_owned() } else { size.to_string() };
            let actual = format!("{actual} bytes instead of {}", blob.size);
            return Err(PullError::WrongDigest { what: "layer", expected: blob.digest, actual });
        }
        if actual != blob.digest {
            let actual = actual.to_string();
            return Err(PullError::WrongDigest { what: "layer", expected: blob.digest, actual });
        }
        Ok(())
    });
    work.await.map_err(|error| PullError::Internal(format!("a blob's writer died: {error}")))?
}

/// Starts an unpack worker and talks to it until it is done.
async fn spawn_worker(
    ticket: Ticket,
    blob: Descriptor,
    place: Arc<Workplace>,
    stream: OwnedFd,
    parents_needed: oneshot::Sender<()>,
    parents: oneshot::Receiver<Vec<LayerName>>,
) -> Result<Report, PullError> {
    let work = tokio::task::spawn_blocking(move || {
        let failed = |error| PullError::io(format!("unpack layer {}", blob.digest), error);
        let compression = Compression::of_media_type(&blob.media_type).unwrap_or(Compression::Any);
        let (link, theirs) = Link::pair().map_err(failed)?;
        let running = Running::start(&ticket.inner.config.unpacker, theirs).map_err(failed)?;
        let talked = (|| {
            let tree = place.open_tree()?;
            let layers = ticket.inner.store.open_layers()?;
            link.send(&Job { compression }, &[stream.as_fd(), tree.as_fd(), layers.as_fd()])?;
            drop(stream);
            let (mut reply, _) = link.receive::<Reply>()?;
            if matches!(reply, Reply::NeedParents) {
                let _ = parents_needed.send(());
                let names = parents.blocking_recv().map_err(io::Error::other)?;
                let folders: Vec<OwnedFd> = names
                    .iter()
                    .map(|name| ticket.inner.store.open_layer(name))
                    .collect::<io::Result<_>>()?;
                let borrowed: Vec<BorrowedFd<'_>> = folders.iter().map(|fd| fd.as_fd()).collect();
                link.send(&(), &borrowed)?;
                (reply, _) = link.receive::<Reply>()?;
            }
            Ok(reply)
        })();
        link.shut_down();
        let end = running.wait();
        match talked {
            Ok(Reply::Done(report)) => Ok(report),
            Ok(Reply::Failed(failure)) => Err(explain(blob.digest, failure)),
            Ok(Reply::NeedParents) => Err(PullError::Internal("the unpacker asked twice".to_owned())),
            Err(error) => {
                Err(PullError::io(format!("unpack layer {} (the unpacker {end})", blob.digest), error))
            }
        }
    });
    work.await.map_err(|error| PullError::Internal(format!("an unpacker's guardian died: {error}")))?
}

fn explain(layer: Digest, failure: Failure) -> PullError {
    match failure {
        Failure::Corrupt(reason) => PullError::CorruptLayer { layer, reason },
        Failure::TooLarge(reason) => PullError::TooLarge { what: format!("layer {layer}"), reason },
        Failure::DiskFull(reason) => PullError::DiskFull { action: format!("layer {layer}: {reason}") },
        Failure::Io(reason) => PullError::io(format!("unpack layer {layer}"), io::Error::other(reason)),
    }
}

/// An unpack worker, as a process or a thread.
pub(crate) enum Running {
    Process(std::process::Child),
    Thread(std::thread::JoinHandle<io::Result<()>>),
}

impl Running {
    pub(crate) fn start(unpacker: &Unpacker, socket: OwnedFd) -> io::Result<Running> {
        match unpacker {
            Unpacker::InProcess => {
                let work = move || crate::unpack::serve(socket, false);
                Ok(Running::Thread(std::thread::Builder::new().name("unpack".to_owned()).spawn(work)?))
            }
            Unpacker::Process { program, args } => {
                let mut command = Command::new(program);
                command.args(args).env_clear().stdin(Stdio::from(socket)).stdout(Stdio::null());
                Ok(Running::Process(command.current_dir("/").spawn()?))
            }
        }
    }

    /// Waits for the end and says how it came. Socket and pipe are closed by now, so the worker has nothing left to wait for.
    pub(crate) fn wait(self) -> String {
        match self {
            Running::Process(mut child) => match child.wait() {
                Ok(status) => format!("ended with {status}"),
                Err(error) => format!("could not be waited for: {error}"),
            },
            Running::Thread(thread) => match thread.join() {
                Ok(Ok(())) => "ended".to_owned(),
                Ok(Err(error)) => format!("ended with {error}"),
                Err(_) => "panicked".to_owned(),
            },
        }
    }
}
