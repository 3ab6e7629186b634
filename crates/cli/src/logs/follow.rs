//! Reading a log as it grows.
//!
//! A rotation renames the file and goes on in a new one at the old path; the writer may still write to the old one
//! until it is told. So the old one is read to its end once the new one is there, and only then left.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Bytes read at a time.
const PIECE: usize = 64 << 10;
/// A longer line is given in pieces.
const MAX_LINE: usize = 1 << 20;

/// A place in a log.
pub(crate) struct Follower {
    path: PathBuf,
    file: Option<File>,
    /// Where to begin in the first file.
    start: u64,
    position: u64,
    pending: Vec<u8>,
    /// How much of `pending` was given away already.
    given: usize,
}

impl Follower {
    /// Begins at `start`. The file need not be there yet.
    pub fn new(path: PathBuf, start: u64) -> Follower {
        Follower { path, file: None, start, position: 0, pending: Vec::new(), given: 0 }
    }

    /// The next whole line, without its end. `None`: there is none yet.
    pub fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let rest = &self.pending[self.given..];
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest[..end].to_vec();
                self.given += end + 1;
                return Ok(Some(line));
            }
            if rest.len() >= MAX_LINE {
                let line = rest.to_vec();
                self.given = self.pending.len();
                return Ok(Some(line));
            }
            if self.fill()? {
                continue;
            }
            // A look at the path, then one more at the old file: what it got meanwhile comes first.
            match self.successor()? {
                Some(next) if !self.fill()? => self.enter(next),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Reads on. False: nothing is there.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.file else { return Ok(false) };
        self.pending.drain(..self.given);
        self.given = 0;
        let len = self.pending.len();
        self.pending.resize(len + PIECE, 0);
        let result = file.read(&mut self.pending[len..]);
        self.pending.truncate(len + result.as_ref().map_or(0, |read| *read));
        let read = result?;
        self.position += read as u64;
        Ok(read > 0)
    }

    /// The file at the path, if it is another one than ours, or ours with less in it than we have read.
    fn successor(&mut self) -> io::Result<Option<File>> {
        let there = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let Some(ours) = &self.file else { return Ok(Some(there)) };
        let (new, old) = (there.metadata()?, ours.metadata()?);
        let same = (new.dev(), new.ino()) == (old.dev(), old.ino());
        Ok((!same || new.len() < self.position).then_some(there))
    }

    fn enter(&mut self, mut next: File) {
        // Half a line at the end of a file that nobody writes to any more is a line.
        if self.pending.len() > self.given {
            self.pending.push(b'\n');
        }
        let start = std::mem::take(&mut self.start);
        self.position = next.seek(SeekFrom::Start(start)).unwrap_or(0);
        self.file = Some(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, OpenOptions};
    use std::io::Write as _;
    use std::path::Path;

    fn append(path: &Path, text: &str) {
        let file = OpenOptions::new().append(true).create(true).open(path);
        file.unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn read(follower: &mut Follower) -> Vec<String> {
        let lines = std::iter::from_fn(|| follower.next_line().unwrap());
        lines.map(|line| String::from_utf8(line).unwrap()).collect()
    }

    #[test]
    fn follows_across_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("0.log"), folder.path().join("0.log.1"));
        let mut follower = Follower::new(path.clone(), 0);
        assert!(read(&mut follower).is_empty(), "not there yet");
        append(&path, "a\nb");
        assert_eq!(read(&mut follower), ["a"]);
        append(&path, "b\n");
        assert_eq!(read(&mut follower), ["bb"]);
        fs::rename(&path, &old).unwrap();
        append(&old, "c\n");
        assert_eq!(read(&mut follower), ["c"], "the writer has not been told yet");
        append(&old, "d\n");
        append(&path, "e\n");
        assert_eq!(read(&mut follower), ["d", "e"]);
        append(&path, "f\n");
        assert_eq!(read(&mut follower), ["f"]);
    }

    #[test]
    fn a_file_that_was_emptied_is_read_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        append(&path, "first line\n");
        let mut follower = Follower::new(path.clone(), 0);
        assert_eq!(read(&mut follower), ["first line"]);
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        append(&path, "x\n");
        assert_eq!(read(&mut follower), ["x"]);
    }

    #[test]
    fn begins_where_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        append(&path, "a\nb\nc\n");
        assert_eq!(read(&mut Follower::new(path, 2)), ["b", "c"]);
    }

    #[test]
    fn endless_lines_come_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        append(&path, &"x".repeat(MAX_LINE + 10));
        append(&path, "\n");
        let total: usize = read(&mut Follower::new(path, 0)).iter().map(String::len).sum();
        assert_eq!(total, MAX_LINE + 10);
    }
}
