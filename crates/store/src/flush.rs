//! The thread that brings records to the disk, makes spare folders and empties the trash, behind everybody's back.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::spare::Spares;

/// How long a written record may wait for its flush.
pub const FLUSH_AFTER: Duration = Duration::from_millis(200);
/// Work that waits; a writer that finds the queue full waits with it, which is the limit.
const QUEUE: usize = 4096;

enum Work {
    Flush(PathBuf),
    /// A spare folder was taken; another one is made with the next flush, when its taker is done.
    Refill,
    /// A folder in the trash, or the whole trash.
    Empty(PathBuf),
    Settle(SyncSender<()>),
}

pub(crate) struct Flusher {
    work: SyncSender<Work>,
}

impl Flusher {
    pub(crate) fn start(spares: Arc<Spares>) -> Flusher {
        let (work, queue) = sync_channel(QUEUE);
        // A thread that cannot be started leaves the records unflushed, not unwritten.
        let _ = std::thread::Builder::new()
            .name("records".into())
            .stack_size(256 << 10)
            .spawn(move || run(&queue, &spares));
        Flusher { work }
    }

    pub(crate) fn flush(&self, path: PathBuf) {
        let _ = self.work.send(Work::Flush(path));
    }

    pub(crate) fn refill(&self) {
        let _ = self.work.send(Work::Refill);
    }

    /// Removes `folder`, or everything in `trash`.
    pub(crate) fn empty(&self, trash: &Path, folder: Option<PathBuf>) {
        match folder {
            Some(folder) => drop(self.work.send(Work::Empty(folder))),
            None => {
                for entry in fs::read_dir(trash).into_iter().flatten().flatten() {
                    let _ = self.work.send(Work::Empty(entry.path()));
                }
            }
        }
    }

    pub(crate) fn settle(&self) {
        let (done, wait) = sync_channel(1);
        if self.work.send(Work::Settle(done)).is_ok() {
            let _ = wait.recv();
        }
    }
}

fn run(queue: &Receiver<Work>, spares: &Spares) {
    spares.refill();
    let mut dirty: BTreeSet<PathBuf> = BTreeSet::new();
    let mut due: Option<Instant> = None;
    loop {
        let received = match due {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => queue.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match received {
            Ok(Work::Flush(path)) => {
                dirty.insert(path);
                due.get_or_insert(Instant::now() + FLUSH_AFTER);
            }
            Ok(Work::Refill) => drop(due.get_or_insert(Instant::now() + FLUSH_AFTER)),
            // Never follows symlinks (std opens each folder by descriptor), and no mount lies below.
            Ok(Work::Empty(folder)) => drop(fs::remove_dir_all(folder)),
            Ok(Work::Settle(done)) => {
                flush(&mut dirty);
                spares.refill();
                due = None;
                let _ = done.send(());
            }
            Err(RecvTimeoutError::Timeout) => {
                flush(&mut dirty);
                spares.refill();
                due = None;
            }
            Err(RecvTimeoutError::Disconnected) => {
                flush(&mut dirty);
                return;
            }
        }
    }
}

/// Files first, then the folders that name them. A record that is gone by now needs no flush.
fn flush(dirty: &mut BTreeSet<PathBuf>) {
    let mut folders = BTreeSet::new();
    for path in std::mem::take(dirty) {
        if let Ok(file) = File::open(&path) {
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
