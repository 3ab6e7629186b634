//! Which network the node has: the first valid conflist of the configured folders.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::CniError;
use crate::config::CniConfig;
use crate::conflist::Conflist;

/// A conflist is a page or two.
const FILE_MAX: u64 = 1024 * 1024;
/// Most files that are looked at in a folder.
const MOST_FILES: usize = 256;

/// What the last look at the folders gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) network: Option<Arc<Conflist>>,
    /// Files that were passed over, and why.
    pub(crate) problems: Vec<String>,
    fingerprint: Vec<Seen>,
}

/// Enough of a file to see that it changed: files are mostly replaced, at times written over.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    changed: Option<SystemTime>,
    len: u64,
    inode: u64,
}

/// The folders' state, looked at again whenever it is asked for: a look is a `readdir` of a small folder, and misses
/// nothing, be the folder deleted and made again (at which watches are lost).
pub(crate) struct Networks {
    last: Mutex<Loaded>,
}

impl Networks {
    pub(crate) fn new(config: &CniConfig) -> Networks {
        Networks { last: Mutex::new(load(config)) }
    }

    /// The network as the folders say it now. True: it was read anew.
    pub(crate) fn current(&self, config: &CniConfig) -> (Loaded, bool) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = fingerprint(config) != last.fingerprint;
        if changed {
            *last = load(config);
        }
        (last.clone(), changed)
    }
}

fn load(config: &CniConfig) -> Loaded {
    let fingerprint = fingerprint(config);
    let mut problems = Vec::new();
    for file in &fingerprint {
        match read(&file.path) {
            Ok(list) => return Loaded { network: Some(Arc::new(list)), problems, fingerprint },
            Err(error) => problems.push(chain(&error)),
        }
    }
    let network = config.default_network.as_ref().map(|d| Arc::new(Conflist::of_default(d)));
    Loaded { network, problems, fingerprint }
}

/// An error with its causes, for a message that goes to people who have no log at hand.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn read(path: &Path) -> Result<Conflist, CniError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX).read_to_end(&mut text))
        .map_err(CniError::file("read network configuration", path))?;
    Conflist::parse(&text, &path.display().to_string())
}

/// Configuration files in the order in which they count: by folder, then by name.
fn fingerprint(config: &CniConfig) -> Vec<Seen> {
    let mut out = Vec::new();
    for dir in &config.conf_dirs {
        out.extend(files(dir).unwrap_or_default());
    }
    out
}

fn files(dir: &Path) -> io::Result<Vec<Seen>> {
    use std::os::unix::fs::MetadataExt;
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let extension = path.extension().and_then(|e| e.to_str());
            matches!(extension, Some("conflist" | "conf" | "json"))
        })
        .collect();
    paths.sort();
    paths.truncate(MOST_FILES);
    let seen = paths.into_iter().filter_map(|path| {
        let meta = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        Some(Seen { path, changed: meta.modified().ok(), len: meta.len(), inode: meta.ino() })
    });
    Ok(seen.collect())
}
