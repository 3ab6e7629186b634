//! Header blocks: names and values, compressed.
//!
//! All blocks of one direction are one zlib stream, each ending at a byte border. What we send is not compressed at all
//! but stored (RFC 1951, 3.2.4), without use of the dictionary, as any inflater must take it: our blocks are a few dozen bytes
//! at most, a compressor would keep a quarter of a megabyte for every connection, and nothing can be learnt from
//! lengths (CRIME).

use flate2::{Decompress, FlushDecompress};

use super::dictionary::DICTIONARY;

/// The most that a block may be once inflated.
const MAX_BLOCK: usize = 16 << 10;
/// The most headers of a block.
const MAX_HEADERS: u32 = 64;

/// A stored block without bytes.
const FLUSH: &[u8] = &[0, 0, 0, 0xff, 0xff];

/// A header block makes no sense; the stream of blocks cannot be followed any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a header block is broken or too long")]
pub struct Broken;

/// Names and values in the order of the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The value of a name, whatever its case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn parse(bytes: &[u8]) -> Option<Headers> {
        let (count, mut rest) = number(bytes)?;
        if count > MAX_HEADERS {
            return None;
        }
        let mut text = || {
            let (len, after) = number(rest)?;
            let (text, after) = after.split_at_checked(len as usize)?;
            rest = after;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        let headers: Option<Vec<_>> = (0..count).map(|_| Some((text()?, text()?))).collect();
        rest.is_empty().then_some(Headers(headers?))
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = (self.0.len() as u32).to_be_bytes().to_vec();
        for (name, value) in &self.0 {
            for text in [name.to_ascii_lowercase().as_str(), value] {
                out.extend_from_slice(&(text.len() as u32).to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
        out
    }
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*number), rest))
}

/// Reads the blocks of one direction.
pub struct Inflater(Decompress);

impl Inflater {
    /// Before the first block.
    pub fn new() -> Inflater {
        Inflater(Decompress::new(true))
    }

    /// Reads the next block.
    pub fn block(&mut self, compressed: &[u8]) -> Result<Headers, Broken> {
        let mut out = Vec::with_capacity(MAX_BLOCK);
        let start = self.0.total_in();
        loop {
            let used = (self.0.total_in() - start) as usize;
            let before = (self.0.total_in(), out.len());
            match self.0.decompress_vec(&compressed[used..], &mut out, FlushDecompress::Sync) {
                Ok(_) => {}
                // Asked for once, by a head that says so.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| Broken)?;
                    continue;
                }
                Err(_) => return Err(Broken),
            }
            let used = (self.0.total_in() - start) as usize;
            if out.len() == out.capacity() {
                return Err(Broken);
            }
            if used == compressed.len() || before == (self.0.total_in(), out.len()) {
                break;
            }
        }
        Headers::parse(&out).ok_or(Broken)
    }
}

/// Writes the blocks of one direction.
#[derive(Default)]
pub struct Storer {
    begun: bool,
}

impl Storer {
    /// Writes the next block.
    pub fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            // zlib's head: deflate, a window of 32 KiB, no dictionary.
            out.extend_from_slice(&[0x78, 0x01]);
        }
        for chunk in headers.bytes().chunks(usize::from(u16::MAX)) {
            let len = chunk.len() as u16;
            out.push(0);
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(&(!len).to_le_bytes());
            out.extend_from_slice(chunk);
        }
        // An empty block at the end, as a flush writes it: Go's inflater gives out what it has only when it meets one.
        out.extend_from_slice(FLUSH);
        out
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        assert_eq!(DICTIONARY.len(), 1423);
        // The Adler-32 by which zlib names it, as any implementation of SPDY/3 sends it.
        let (a, b) = DICTIONARY.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn stored_blocks_are_read_back_one_after_the_other() {
        let (mut storer, mut inflater) = (Storer::default(), Inflater::new());
        for block in [headers(&[]), headers(&[("streamtype", "stdin")]), headers(&[("a", "b"), ("c", "")])] {
            let stored = storer.block(&block);
            assert!(stored.ends_with(FLUSH));
            assert_eq!(inflater.block(&stored), Ok(block));
        }
    }

    #[test]
    fn blocks_that_use_the_dictionary_are_read() {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(DICTIONARY).unwrap();
        let mut inflater = Inflater::new();
        for value in ["stdout", "stderr", "a longer value, a longer value, a longer value"] {
            let block = headers(&[("streamtype", value), ("accept-encoding", "gzip")]);
            let mut out = Vec::with_capacity(4096);
            compress.compress_vec(&block.bytes(), &mut out, FlushCompress::Sync).unwrap();
            assert_eq!(inflater.block(&out), Ok(block));
        }
    }

    #[test]
    fn bombs_and_rubbish_are_refused() {
        let mut compress = Compress::new(Compression::best(), true);
        let mut out = Vec::with_capacity(1 << 20);
        compress.compress_vec(&vec![0; 10 << 20], &mut out, FlushCompress::Sync).unwrap();
        assert!(out.len() < 64 << 10);
        assert_eq!(Inflater::new().block(&out), Err(Broken));
        for rubbish in [&b""[..], b"\0", b"\x78\x01\x07", b"\xff\xff\xff\xff"] {
            assert_eq!(Inflater::new().block(rubbish), Err(Broken), "{rubbish:?}");
        }
        let mut many = (MAX_HEADERS + 1).to_be_bytes().to_vec();
        many.extend(std::iter::repeat_n(0, 8 * (MAX_HEADERS as usize + 1)));
        assert_eq!(Headers::parse(&many), None);
        assert_eq!(Headers::parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn names_have_no_case() {
        assert_eq!(headers(&[("RequestID", "3")]).get("requestid"), Some("3"));
        assert_eq!(headers(&[]).get("port"), None);
    }
}
