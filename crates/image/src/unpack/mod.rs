//! From a compressed stream to a tree that overlayfs can use as a lower folder.
//!
//! ```text
//!   stream ─► decompress (thread) ─┬─► sha256 (thread)      the diff id
//!                                  └─► tar ─► extract       this thread
//! ```
//!
//! Archives are hostile. `tar` reads strictly and refuses what two readers could read in two ways; `extract` writes relative to
//! descriptors only; `worker` confines the whole. Nothing here knows a path of the host.

mod decompress;
mod extract;
mod fixup;
mod folders;
mod job;
pub(crate) mod tar;
mod union;
mod worker;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

pub(crate) use decompress::{decoder, detect};
pub(crate) use job::{Failure, Job, Link, Reply, Report};
pub(crate) use union::{Found, Stack};
pub(crate) use worker::serve;
pub use worker::unpack_worker_main;

use crate::digest::{Digest, Hasher};
use crate::manifest::Compression;

const CHUNK: usize = 1 << 20;
/// Chunks under way per layer: two being filled or drained per stage, no more.
const CHUNKS: usize = 4;
/// What one layer may unpack to, counted in file bytes.
const MAX_UNPACKED: u64 = 64 << 30;

/// Unpacks `stream` into the empty folder `tree`. `parents` is asked for the layers below, top first, only if the tree needs them.
pub(crate) fn unpack(
    compression: Compression,
    stream: impl Read + Send,
    tree: OwnedFd,
    parents: impl FnOnce() -> io::Result<Vec<OwnedFd>>,
) -> Result<Report, Failure> {
    let mut extractor = extract::Extractor::new(tree)?;
    let diff_id = std::thread::scope(|scope| {
        let (to_hash, hash_from) = sync_channel::<Arc<Vec<u8>>>(CHUNKS);
        let (to_tar, tar_from) = sync_channel::<Arc<Vec<u8>>>(CHUNKS);
        let (give_back, free) = sync_channel::<Vec<u8>>(2 * CHUNKS);
        let back = give_back.clone();
        let decompressor = scope.spawn(move || pump(compression, stream, &to_hash, &to_tar, &free));
        let hasher = scope.spawn(move || hash(hash_from, &back));
        let mut chunks = Chunks { from: tar_from, back: give_back, current: None, at: 0 };
        let extracted = extract_all(&mut chunks, &mut extractor);
        // Ends the pump if the archive ended early, by failure or by its own end mark.
        drop(chunks);
        let pumped = join(decompressor)?;
        let diff_id = join(hasher)?;
        // A broken stream also breaks the archive; the stream is the cause.
        match (pumped, extracted) {
            (Err(failure), _) => Err(failure),
            (Ok(()), Err(failure)) => Err(failure),
            (Ok(()), Ok(())) => Ok(diff_id),
        }
    })?;
    let standalone = !extractor.needs_parents();
    if !standalone {
        let parents = parents().map_err(|error| Failure::io("take the layers below", error))?;
        fixup::from_parents(&mut extractor, &Stack::new(parents))?;
    }
    let (bytes, inodes) = extractor.finish()?;
    Ok(Report { diff_id, standalone, bytes, inodes })
}

fn extract_all(chunks: &mut Chunks, extractor: &mut extract::Extractor) -> Result<(), Failure> {
    let mut archive = tar::Reader::new(&mut *chunks);
    while let Some(entry) = archive.next_entry()? {
        let name = entry.shown();
        extractor.entry(entry, &mut archive).map_err(|failure| failure.at(&name))?;
    }
    // What follows the end mark belongs to the diff id all the same.
    io::copy(chunks, &mut io::sink()).map_err(|error| Failure::io("read the stream", error))?;
    Ok(())
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> Result<T, Failure> {
    thread.join().map_err(|_| Failure::Io("unpack: a thread of the unpacker panicked".to_owned()))
}

fn pump(
    compression: Compression,
    stream: impl Read,
    to_hash: &SyncSender<Arc<Vec<u8>>>,
    to_tar: &SyncSender<Arc<Vec<u8>>>,
    free: &Receiver<Vec<u8>>,
) -> Result<(), Failure> {
    let mut decoder = decompress::decoder(compression, stream)?;
    let mut total = 0u64;
    loop {
        let mut chunk = free.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
        chunk.clear();
        let got = decoder.by_ref().take(CHUNK as u64).read_to_end(&mut chunk).map_err(|error| {
            Failure::Corrupt(format!("the compressed stream is damaged or cut short: {error}"))
        })?;
        if got == 0 {
            return Ok(());
        }
        total += got as u64;
        if total > MAX_UNPACKED + (MAX_UNPACKED >> 2) {
            return Err(Failure::TooLarge(format!("it decompresses to more than {MAX_UNPACKED} bytes")));
        }
        let chunk = Arc::new(chunk);
        // A closed receiver means that the reader has failed and says why itself.
        if to_hash.send(chunk.clone()).is_err() || to_tar.send(chunk).is_err() {
            return Ok(());
        }
    }
}

fn hash(from: Receiver<Arc<Vec<u8>>>, back: &SyncSender<Vec<u8>>) -> Digest {
    let mut hasher = Hasher::new();
    while let Ok(chunk) = from.recv() {
        hasher.update(&chunk);
        recycle(chunk, back);
    }
    hasher.finish()
}

/// Whoever is done with a chunk last hands it back; a full queue means that there are enough.
fn recycle(chunk: Arc<Vec<u8>>, back: &SyncSender<Vec<u8>>) {
    if let Some(chunk) = Arc::into_inner(chunk) {
        let _ = back.try_send(chunk);
    }
}

/// The decompressed stream as the archive reader sees it.
struct Chunks {
    from: Receiver<Arc<Vec<u8>>>,
    back: SyncSender<Vec<u8>>,
    current: Option<Arc<Vec<u8>>>,
    at: usize,
}

impl io::BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.as_ref().is_none_or(|chunk| self.at >= chunk.len()) {
            if let Some(done) = self.current.take() {
                recycle(done, &self.back);
            }
            self.at = 0;
            self.current = self.from.recv().ok();
        }
        Ok(self.current.as_ref().map_or(&[][..], |chunk| &chunk[self.at..]))
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = io::BufRead::fill_buf(self)?;
        let amount = available.len().min(out.len());
        out[..amount].copy_from_slice(&available[..amount]);
        io::BufRead::consume(self, amount);
        Ok(amount)
    }
}
