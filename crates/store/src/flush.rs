//! The thread that brings records to the disk, makes spare folders and empties the trash, behind everybody's back.
//!
//! It looks [`FLUSH_AFTER`] the first thing that it is told of. What is told meanwhile waits for the same look and wakes
//! nobody: a pod start writes a dozen records, and each wake-up took a client's call two switches of the processor.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::spare::Spares;

/// How long a written record may wait for its flush.
pub const FLUSH_AFTER: Duration = Duration::from_millis(200);
/// Things that wait; a writer that finds so many waits with them, which is the limit.
const MOST: usize = 4096;

#[derive(Default)]
struct Pending {
    /// Records to flush.
    dirty: BTreeSet<PathBuf>,
    /// Spare folders were taken; others are made when their takers are done.
    refill: bool,
    /// Folders in the trash.
    trash: Vec<PathBuf>,
    /// Who waits for all of it.
    settle: Vec<SyncSender<()>>,
    /// Nobody comes any more, or nobody is there who would look.
    closed: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.dirty.is_empty() && !self.refill && self.trash.is_empty() && self.settle.is_empty()
    }

    fn is_full(&self) -> bool {
        self.dirty.len() + self.trash.len() >= MOST
    }
}

#[derive(Default)]
struct Desk {
    pending: Mutex<Pending>,
    /// Something is there, or shall not wait any longer.
    wake: Condvar,
    /// There is room again.
    room: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Flusher(Arc<Desk>);

impl Flusher {
    pub(crate) fn start(spares: Arc<Spares>) -> Flusher {
        let desk = Arc::new(Desk::default());
        let own = desk.clone();
        let thread = std::thread::Builder::new().name("records".into()).stack_size(256 << 10);
        // Without the thread records are unflushed, not unwritten.
        if thread.spawn(move || run(&own, &spares)).is_err() {
            desk.lock().closed = true;
        }
        Flusher(desk)
    }

    pub(crate) fn flush(&self, path: PathBuf) {
        self.tell(|pending| {
            pending.dirty.insert(path);
        });
    }

    pub(crate) fn refill(&self) {
        self.tell(|pending| pending.refill = true);
    }

    /// Removes `folder`, or everything in `trash`.
    pub(crate) fn empty(&self, trash: &Path, folder: Option<PathBuf>) {
        match folder {
            Some(folder) => self.tell(|pending| pending.trash.push(folder)),
            None => {
                for entry in fs::read_dir(trash).into_iter().flatten().flatten() {
                    self.tell(|pending| pending.trash.push(entry.path()));
                }
            }
        }
    }

    pub(crate) fn settle(&self) {
        let (done, wait) = sync_channel(1);
        let mut pending = self.0.lock();
        if !pending.closed {
            pending.settle.push(done);
            drop(pending);
            self.0.wake.notify_one();
            let _ = wait.recv();
        }
    }

    fn tell(&self, what: impl FnOnce(&mut Pending)) {
        let mut pending = self.0.lock();
        while pending.is_full() && !pending.closed {
            pending = self.0.room.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        if pending.closed {
            return;
        }
        let first = pending.is_empty();
        what(&mut pending);
        let now = first || pending.is_full();
        drop(pending);
        if now {
            self.0.wake.notify_one();
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.notify_one();
    }
}

/// Whoever waits when the thread ends, however it does, need not wait for ever.
struct Closing<'a>(&'a Desk);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut pending = self.0.lock();
        pending.closed = true;
        pending.settle.clear();
        drop(pending);
        self.0.room.notify_all();
    }
}

fn run(desk: &Desk, spares: &Spares) {
    let _closing = Closing(desk);
    spares.refill();
    loop {
        let work = next(desk);
        desk.room.notify_all();
        flush(&work.dirty);
        for folder in work.trash {
            // Never follows symlinks (std opens each folder by descriptor), and no mount lies below.
            let _ = fs::remove_dir_all(folder);
        }
        if work.closed {
            return;
        }
        spares.refill();
        for done in work.settle {
            let _ = done.send(());
        }
    }
}

/// What there is to do, once it is time.
fn next(desk: &Desk) -> Pending {
    let idle = |pending: &mut Pending| pending.is_empty() && !pending.closed;
    let pending = desk.wake.wait_while(desk.lock(), idle).unwrap_or_else(PoisonError::into_inner);
    let early = |pending: &mut Pending| pending.settle.is_empty() && !pending.closed && !pending.is_full();
    let waited = desk.wake.wait_timeout_while(pending, FLUSH_AFTER, early);
    let (mut pending, _) = waited.unwrap_or_else(PoisonError::into_inner);
    let closed = pending.closed;
    Pending { closed, ..std::mem::take(&mut *pending) }
}

/// Files first, then the folders that name them. A record that is gone by now needs no flush.
fn flush(dirty: &BTreeSet<PathBuf>) {
    let mut folders = BTreeSet::new();
    for path in dirty {
        if let Ok(file) = File::open(path) {
            let _ = file.sync_data();
            folders.extend(path.parent().map(Path::to_owned));
        }
    }
    for folder in folders {
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
    }
}
