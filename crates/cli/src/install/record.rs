//! What an installation wrote: `docs/design/installation.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::read_if_there;
use crate::failure::Failure;

const VERSION: u32 = 1;

/// Paths as on the machine that it is for, with the digest of what was written there.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    files: BTreeMap<PathBuf, String>,
}

impl Default for Record {
    fn default() -> Record {
        Record { version: VERSION, files: BTreeMap::new() }
    }
}

impl Record {
    /// The record, or an empty one.
    pub fn read(path: &Path) -> Result<Record, Failure> {
        let Some(bytes) = read_if_there(path)? else { return Ok(Record::default()) };
        let name = path.display();
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| {
            Failure::hint(format!("{name} cannot be read: {error}"), "remove it; files are then kept")
        })?;
        match record.version {
            VERSION => Ok(record),
            other => Err(Failure::hint(
                format!("{name} is of version {other}, and this program knows version {VERSION}"),
                "the `bowline` that installed it",
            )),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        // A map of texts always has a text.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub fn add(&mut self, path: &Path, bytes: &[u8]) {
        self.files.insert(path.to_owned(), digest(bytes));
    }

    /// Takes over what only the older one knows.
    pub fn add_missing(&mut self, older: &Record) {
        for (path, digest) in &older.files {
            self.files.entry(path.clone()).or_insert_with(|| digest.clone());
        }
    }

    /// Whether these bytes are what was written there.
    pub fn wrote(&self, path: &Path, bytes: &[u8]) -> bool {
        self.files.get(path).is_some_and(|known| *known == digest(bytes))
    }

    pub fn has_unit(&self) -> bool {
        self.files.keys().any(|path| path.ends_with(super::SERVICE))
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }
}

/// SHA-256 as text.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
