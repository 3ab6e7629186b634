//! What each attachment was made of, kept until nothing of it is left.
//!
//! One file per (sandbox, link), `<sandbox>@<link>.<state>`. It is there before the first thing is made, so that
//! whatever a crash leaves can be found, and goes when the kernel and the reservations are clean.
//!
//! The state is in the name, so that a new state is a rename, and so that a file never replaces another: at that
//! ext4 starts writing back (`auto_da_alloc`), which takes milliseconds. Of two states the later one counts.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::CniError;

/// A conflist and a result, both limited where they come in.
const RECORD_MAX: u64 = 4 * 1024 * 1024;

/// How far an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Something of it may exist.
    Adding,
    /// All of it exists.
    Added,
    /// DEL is done but for the link, which the reaper deletes, and the addresses, which are free afterwards.
    Dying,
}

impl State {
    const ALL: [State; 3] = [State::Adding, State::Added, State::Dying];

    fn suffix(self) -> &'static str {
        match self {
            State::Adding => ".adding",
            State::Added => ".added",
            State::Dying => ".dying",
        }
    }
}

/// Everything that DEL needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) sandbox_id: String,
    pub(crate) if_name: String,
    pub(crate) netns_path: Option<String>,
    pub(crate) args: String,
    pub(crate) capability_args: Map<String, Value>,
    pub(crate) conflist: Value,
    /// In the newest version; absent until ADD is done, then a second line of the file.
    pub(crate) result: Option<Value>,
}

/// Ends the name of a record that is being written.
const DRAFT: &str = ".draft";

/// Which attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) sandbox_id: String,
    pub(crate) if_name: String,
}

impl Key {
    pub(crate) fn new(sandbox_id: &str, if_name: &str) -> Key {
        Key { sandbox_id: sandbox_id.to_owned(), if_name: if_name.to_owned() }
    }

    fn file_name(&self, state: State) -> String {
        format!("{}@{}{}", self.sandbox_id, self.if_name, state.suffix())
    }

    fn of_file_name(name: &str) -> Option<(Key, State)> {
        let (stem, state) = State::ALL.into_iter().find_map(|s| Some((name.strip_suffix(s.suffix())?, s)))?;
        let (sandbox_id, if_name) = stem.split_once('@')?;
        crate::request::validate_id(sandbox_id).ok()?;
        Some((Key::new(sandbox_id, if_name), state))
    }
}

/// The folder of records, with an index in memory: nobody else writes there.
pub(crate) struct Cache {
    dir: PathBuf,
    index: Mutex<BTreeMap<Key, Indexed>>,
}

/// What is known without reading a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub(crate) state: State,
    /// Empty if the file cannot be read.
    pub(crate) network: String,
}

impl Cache {
    /// Reads the folder, making it if need be. A file that cannot be understood costs its own attachment only.
    pub(crate) fn open(dir: &Path) -> Result<Cache, CniError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(CniError::file("make the folder of network records", dir))?;
        let entries = fs::read_dir(dir).map_err(CniError::file("list the network records in", dir))?;
        let mut index = BTreeMap::new();
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let Some((key, state)) = name.to_str().and_then(Key::of_file_name) else { continue };
            let network = read(&entry.path()).map(|record| record.network()).unwrap_or_default();
            let earlier: Option<&Indexed> = index.get(&key);
            if earlier.is_none_or(|earlier| earlier.state < state) {
                index.insert(key, Indexed { state, network });
            }
        }
        Ok(Cache { dir: dir.to_owned(), index: Mutex::new(index) })
    }

    /// Writes the record and takes away that of the state before.
    pub(crate) fn write(&self, record: &Record, state: State) -> Result<(), CniError> {
        let key = Key::new(&record.sandbox_id, &record.if_name);
        let path = self.dir.join(key.file_name(state));
        let draft = self.dir.join(format!("{}@{}{DRAFT}", key.sandbox_id, key.if_name));
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(record)?;
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)?
                .write_all(&text)?;
            fs::rename(&draft, &path)
        };
        if let Err(error) = write() {
            let _ = fs::remove_file(&draft);
            return Err(CniError::file("write the network record", &path)(error));
        }
        let earlier = self.index().insert(key.clone(), Indexed { state, network: record.network() });
        match earlier.filter(|earlier| earlier.state != state) {
            Some(earlier) => self.unlink(&key, earlier.state),
            None => Ok(()),
        }
    }

    /// Adds the result to a record of [`State::Adding`] that is otherwise as it was written, and moves it on: a line more is
    /// cheaper than a file more, which the pod would wait for.
    pub(crate) fn complete(&self, record: &Record) -> Result<(), CniError> {
        let key = Key::new(&record.sandbox_id, &record.if_name);
        let path = self.dir.join(key.file_name(State::Adding));
        let append = || -> io::Result<()> {
            let mut line = b"\n".to_vec();
            serde_json::to_writer(&mut line, &record.result)?;
            OpenOptions::new().append(true).open(&path)?.write_all(&line)
        };
        append().map_err(CniError::file("write the network record", &path))?;
        self.advance(&key, State::Added)
    }

    /// Moves the record to another state as it is.
    pub(crate) fn advance(&self, key: &Key, to: State) -> Result<(), CniError> {
        let Some(now) = self.get(key).filter(|now| now.state != to) else { return Ok(()) };
        let (from, path) = (self.dir.join(key.file_name(now.state)), self.dir.join(key.file_name(to)));
        fs::rename(from, &path).map_err(CniError::file("rename the network record to", path))?;
        self.index().insert(key.clone(), Indexed { state: to, ..now });
        Ok(())
    }

    /// The record, if there is one that can be read.
    pub(crate) fn read(&self, key: &Key) -> Result<Option<Record>, CniError> {
        let Some(now) = self.get(key) else { return Ok(None) };
        let path = self.dir.join(key.file_name(now.state));
        match read(&path) {
            Ok(record) => Ok(Some(record)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(CniError::file("read the network record", path)(e)),
        }
    }

    pub(crate) fn remove(&self, key: &Key) -> Result<(), CniError> {
        for state in State::ALL {
            self.unlink(key, state)?;
        }
        self.index().remove(key);
        Ok(())
    }

    /// Removes records that were being written when a daemon died, but those of these sandboxes.
    pub(crate) fn sweep_drafts(&self, valid: &[&str]) -> Result<(), CniError> {
        let entries = fs::read_dir(&self.dir);
        let entries = entries.map_err(CniError::file("list the network records in", &self.dir))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(DRAFT)?.split_once('@'));
            if stem.is_some_and(|(sandbox, _)| !valid.contains(&sandbox)) {
                fs::remove_file(entry.path())
                    .map_err(CniError::file("remove the unfinished network record", entry.path()))?;
            }
        }
        Ok(())
    }

    fn unlink(&self, key: &Key, state: State) -> Result<(), CniError> {
        let path = self.dir.join(key.file_name(state));
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(CniError::file("remove the network record", path)(e))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Indexed> {
        self.index().get(key).cloned()
    }

    pub(crate) fn all(&self) -> Vec<(Key, Indexed)> {
        self.index().iter().map(|(key, indexed)| (key.clone(), indexed.clone())).collect()
    }

    pub(crate) fn of_sandbox(&self, sandbox_id: &str) -> Vec<Key> {
        let first = Key::new(sandbox_id, "");
        self.index()
            .range(first..)
            .take_while(|(key, _)| key.sandbox_id == sandbox_id)
            .map(|(key, _)| key.clone())
            .collect()
    }

    fn index(&self) -> MutexGuard<'_, BTreeMap<Key, Indexed>> {
        // Each change is one insert or remove.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn network(&self) -> String {
        self.conflist.get("name").and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let mut text = Vec::new();
    File::open(path)?.take(RECORD_MAX).read_to_end(&mut text)?;
    let mut lines = text.splitn(2, |byte| *byte == b'\n');
    let mut record: Record = serde_json::from_slice(lines.next().unwrap_or_default())?;
    if let Some(result) = lines.next() {
        match serde_json::from_slice(result) {
            Ok(result) => record.result = result,
            // Cut off in the middle: ADD was not done.
            Err(_) if path.extension().is_some_and(|state| state == "adding") => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(result: Option<Value>) -> Record {
        Record {
            sandbox_id: "pod".into(),
            if_name: "eth0".into(),
            netns_path: None,
            args: String::new(),
            capability_args: Map::new(),
            conflist: serde_json::json!({ "name": "net" }),
            result,
        }
    }

    #[test]
    fn the_result_is_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::new("pod", "eth0");
        let cache = Cache::open(dir.path()).unwrap();
        cache.write(&record(None), State::Adding).unwrap();
        assert_eq!(cache.read(&key).unwrap().unwrap().result, None);
        let result = serde_json::json!({ "ips": [{ "address": "10.0.0.2/24" }] });
        cache.complete(&record(Some(result.clone()))).unwrap();
        let reopened = Cache::open(dir.path()).unwrap();
        assert_eq!(reopened.get(&key).unwrap().state, State::Added);
        assert_eq!(reopened.read(&key).unwrap().unwrap().result, Some(result.clone()));

        // As an earlier daemon wrote it.
        let inline = serde_json::to_vec(&record(Some(result.clone()))).unwrap();
        fs::write(dir.path().join("pod@eth0.added"), inline).unwrap();
        assert_eq!(cache.read(&key).unwrap().unwrap().result, Some(result));
    }

    #[test]
    fn a_result_that_is_cut_off_counts_only_before_the_state_changes() {
        let dir = tempfile::tempdir().unwrap();
        let cut = [&serde_json::to_vec(&record(None)).unwrap()[..], b"\n{\"ips\":[{"].concat();
        fs::write(dir.path().join("pod@eth0.adding"), &cut).unwrap();
        assert_eq!(read(&dir.path().join("pod@eth0.adding")).unwrap().result, None);
        fs::write(dir.path().join("pod@eth0.added"), &cut).unwrap();
        assert!(read(&dir.path().join("pod@eth0.added")).is_err());
    }

    #[test]
    fn what_a_daemon_was_writing_when_it_died_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["dead@eth0.draft", "alive@eth0.draft", "dead@eth0.added", "note"] {
            fs::write(dir.path().join(name), "{").unwrap();
        }
        Cache::open(dir.path()).unwrap().sweep_drafts(&["alive"]).unwrap();
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, ["alive@eth0.draft", "dead@eth0.added", "note"]);
    }
}
