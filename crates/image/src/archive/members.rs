//! A tar archive on disk, with its members found by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::error::ImportError;
use crate::unpack::tar::{Kind, Reader};
use crate::unpack::{Failure, decoder};

const MAX_MEMBERS: usize = 100_000;
/// Indexes, manifests and configs.
const MAX_SMALL: u64 = 8 << 20;
const MAX_LINKS: usize = 8;

/// Where a member's content lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) size: u64,
}

enum Member {
    File(Span),
    Link(String),
}

/// An archive whose members can be read in any order.
pub(super) struct Members {
    pub(super) file: File,
    members: BTreeMap<String, Member>,
}

/// A reader that knows where it is.
struct Counted {
    inner: BufReader<File>,
    at: u64,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let amount = self.inner.read(out)?;
        self.at += amount as u64;
        Ok(amount)
    }
}

impl BufRead for Counted {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.at += amount as u64;
    }
}

impl Members {
    /// Reads the table of contents of `spool`. A compressed archive is unpacked into `plain` first, at most `limit` bytes of it.
    pub(super) fn open(spool: &Path, plain: &Path, limit: u64) -> Result<Members, ImportError> {
        let failed = |action| move |source| ImportError::Io { action, source };
        let mut file = File::open(spool).map_err(failed("read the archive"))?;
        let mut head = [0u8; 4];
        let length = file.read_at(&mut head, 0).map_err(failed("read the archive"))?;
        if crate::unpack::detect(&head[..length]) != crate::manifest::Compression::Plain {
            let mut decoder = decoder(crate::manifest::Compression::Any, file).map_err(bad)?.take(limit + 1);
            let mut out = File::create_new(plain).map_err(failed("write the archive"))?;
            let size = io::copy(&mut decoder, &mut out).map_err(failed("decompress the archive"))?;
            if size > limit {
                return Err(ImportError::BadArchive(format!("it decompresses to more than {limit} bytes")));
            }
            file = File::open(plain).map_err(failed("read the archive"))?;
        }
        let copy = file.try_clone().map_err(failed("read the archive"))?;
        let mut reader = Reader::new(Counted { inner: BufReader::with_capacity(64 << 10, copy), at: 0 });
        let mut members = BTreeMap::new();
        while let Some(entry) = reader.next_entry().map_err(bad)? {
            let Some(name) = normal(&String::from_utf8_lossy(&entry.path)) else { continue };
            let link = String::from_utf8_lossy(&entry.link).into_owned();
            let member = match entry.kind {
                Kind::File => Member::File(Span { offset: reader.input().at, size: entry.size }),
                Kind::Hardlink => Member::Link(link),
                // Old `docker save` links equal layers as `../<id>/layer.tar`.
                Kind::Symlink => {
                    Member::Link(format!("{}/{link}", name.rsplit_once('/').map_or("", |(dir, _)| dir)))
                }
                _ => continue,
            };
            if members.insert(name, member).is_none() && members.len() > MAX_MEMBERS {
                return Err(ImportError::BadArchive(format!("it has more than {MAX_MEMBERS} members")));
            }
        }
        Ok(Members { file, members })
    }

    pub(super) fn find(&self, name: &str) -> Option<Span> {
        let mut name = normal(name)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Member::File(span) => return Some(*span),
                Member::Link(target) => name = normal(target)?,
            }
        }
        None
    }

    /// A small member, whole.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let span = self.find(name).ok_or_else(|| ImportError::BadArchive(format!("`{name}` is missing")))?;
        if span.size > MAX_SMALL {
            let text = format!("`{name}` has {} bytes, the limit is {MAX_SMALL}", span.size);
            return Err(ImportError::BadArchive(text));
        }
        let mut bytes = vec![0u8; usize::try_from(span.size).unwrap_or(0)];
        let read = self.file.read_exact_at(&mut bytes, span.offset);
        read.map_err(|source| ImportError::Io { action: "read the archive", source })?;
        Ok(bytes)
    }
}

fn bad(failure: Failure) -> ImportError {
    match failure {
        Failure::Corrupt(text) | Failure::TooLarge(text) => ImportError::BadArchive(text),
        Failure::DiskFull(text) | Failure::Io(text) => {
            ImportError::Io { action: "read the archive", source: io::Error::other(text) }
        }
    }
}

/// A member's name without `.`, `..` and leading slashes; `None` if it leads outside.
fn normal(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
