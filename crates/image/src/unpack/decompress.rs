//! Finds out how a stream is compressed and decodes it.

use std::io::{self, Read};

use super::job::Failure;
use crate::manifest::Compression;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// zstd's default bound. A larger window would let 20 bytes of input claim gigabytes.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What the first bytes of a stream say.
pub(crate) fn detect(head: &[u8]) -> Compression {
    let skippable = head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18];
    if head.starts_with(GZIP_MAGIC) {
        Compression::Gzip
    } else if head.starts_with(ZSTD_MAGIC) || skippable {
        Compression::Zstd
    } else {
        Compression::Plain
    }
}

/// Decodes `stream`. Its magic must agree with what the media type `said`, if that said anything: a registry that serves another
/// format than it announces serves different content to different clients.
pub(crate) fn decoder<'a>(
    said: Compression,
    mut stream: impl Read + 'a,
) -> Result<Box<dyn Read + 'a>, Failure> {
    let mut head = Vec::with_capacity(4);
    stream.by_ref().take(4).read_to_end(&mut head).map_err(|error| Failure::io("read the stream", error))?;
    let found = detect(&head);
    if said != Compression::Any && said != found {
        return Err(Failure::Corrupt(format!("its media type says {said:?}, its first bytes say {found:?}")));
    }
    let whole = io::Cursor::new(head).chain(stream);
    let buffered = io::BufReader::with_capacity(256 << 10, whole);
    match found {
        Compression::Gzip => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(buffered))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)
                .map_err(|error| Failure::io("start zstd", error))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(|error| Failure::io("start zstd", error))?;
            Ok(Box::new(decoder))
        }
        Compression::Plain | Compression::Any => Ok(Box::new(buffered)),
    }
}
