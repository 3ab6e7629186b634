//! Layers, entry by entry, as tar bytes of our own making: a test must be able to write what no sane writer would.

use std::io::Write as _;

use sha2::Digest as _;

/// How a layer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// `sha256:<hex>` of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A layer being written. Each call appends one entry; owner and time default to 0 and 1,000,000,000.
#[derive(Clone, Default)]
pub struct Layer {
    tar: Vec<u8>,
    owner: (u64, u64),
    pax: Vec<(String, Vec<u8>)>,
    unfinished: bool,
}

impl Layer {
    /// An empty layer.
    pub fn new() -> Layer {
        Layer::default()
    }

    /// Owner of the entries that follow.
    pub fn owner(mut self, uid: u64, gid: u64) -> Layer {
        self.owner = (uid, gid);
        self
    }

    /// An extended attribute of the next entry.
    pub fn xattr(self, name: &str, value: &[u8]) -> Layer {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// A PAX record of the next entry.
    pub fn pax(mut self, key: &str, value: &[u8]) -> Layer {
        self.pax.push((key.to_owned(), value.to_vec()));
        self
    }

    /// A regular file.
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Layer {
        self.entry(b'0', path, mode, "", content.as_ref(), (0, 0))
    }

    /// A folder.
    pub fn dir(self, path: &str, mode: u32) -> Layer {
        self.entry(b'5', path, mode, "", b"", (0, 0))
    }

    /// A symlink.
    pub fn symlink(self, path: &str, target: &str) -> Layer {
        self.entry(b'2', path, 0o777, target, b"", (0, 0))
    }

    /// A hard link to an entry of this layer or one below.
    pub fn hardlink(self, path: &str, target: &str) -> Layer {
        self.entry(b'1', path, 0o644, target, b"", (0, 0))
    }

    /// A character device.
    pub fn char_device(self, path: &str, mode: u32, major: u32, minor: u32) -> Layer {
        self.entry(b'3', path, mode, "", b"", (major, minor))
    }

    /// A block device.
    pub fn block_device(self, path: &str, mode: u32, major: u32, minor: u32) -> Layer {
        self.entry(b'4', path, mode, "", b"", (major, minor))
    }

    /// A named pipe.
    pub fn fifo(self, path: &str, mode: u32) -> Layer {
        self.entry(b'6', path, mode, "", b"", (0, 0))
    }

    /// Hides `path` of the layers below.
    pub fn whiteout(self, path: &str) -> Layer {
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
        let slash = if folder.is_empty() { "" } else { "/" };
        self.file(&format!("{folder}{slash}.wh.{name}"), 0o644, b"")
    }

    /// Hides everything that the layers below have in `folder`.
    pub fn opaque(self, folder: &str) -> Layer {
        self.file(&format!("{folder}/.wh..wh..opq"), 0o644, b"")
    }

    /// Any entry; `kind` is tar's type byte. Names longer than the header's fields go into PAX records.
    pub fn entry(
        mut self,
        kind: u8,
        path: &str,
        mode: u32,
        link: &str,
        content: &[u8],
        device: (u32, u32),
    ) -> Layer {
        let mut pax = std::mem::take(&mut self.pax);
        if path.len() > 100 {
            pax.push(("path".to_owned(), path.as_bytes().to_vec()));
        }
        if link.len() > 100 {
            pax.push(("linkpath".to_owned(), link.as_bytes().to_vec()));
        }
        if !pax.is_empty() {
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            self = self.raw(&header(b'x', "PaxHeaders/x", 0o644, "", records.len() as u64, (0, 0), (0, 0)));
            self = self.content(&records);
        }
        let owner = self.owner;
        self.raw(&header(kind, path, mode, link, content.len() as u64, owner, device)).content(content)
    }

    /// A GNU long name (`kind` `L`) or long link (`K`) for the next entry.
    pub fn gnu_long(self, kind: u8, text: &str) -> Layer {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        let size = bytes.len() as u64;
        self.raw(&header(kind, "././@LongLink", 0o644, "", size, (0, 0), (0, 0))).content(&bytes)
    }

    /// Bytes as they are: for broken archives.
    pub fn raw(mut self, bytes: &[u8]) -> Layer {
        self.tar.extend_from_slice(bytes);
        self
    }

    /// Content, padded to the block.
    pub fn content(mut self, bytes: &[u8]) -> Layer {
        self.tar.extend_from_slice(bytes);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    /// Leaves the end mark off.
    pub fn without_end(mut self) -> Layer {
        self.unfinished = true;
        self
    }

    /// The archive.
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = self.tar.clone();
        if !self.unfinished {
            tar.extend_from_slice(&[0; 1024]);
        }
        tar
    }

    /// The digest of the uncompressed archive.
    pub fn diff_id(&self) -> String {
        sha256(&self.tar())
    }

    /// The archive as it travels.
    pub fn blob(&self, compression: Compression) -> Vec<u8> {
        let tar = self.tar();
        match compression {
            Compression::Plain => tar,
            Compression::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(&tar).and_then(|()| out.finish()).expect("writing into memory")
            }
            Compression::Zstd => zstd::encode_all(tar.as_slice(), 1).expect("writing into memory"),
        }
    }
}

/// A ustar header with a correct checksum.
pub(crate) fn header(
    kind: u8,
    path: &str,
    mode: u32,
    link: &str,
    size: u64,
    owner: (u64, u64),
    device: (u32, u32),
) -> [u8; 512] {
    let mut block = [0u8; 512];
    let mut put = |at: usize, width: usize, bytes: &[u8]| {
        let length = bytes.len().min(width);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, 100, path.as_bytes());
    put(100, 8, format!("{mode:07o}\0").as_bytes());
    put(108, 8, &numeric(owner.0, 8));
    put(116, 8, &numeric(owner.1, 8));
    put(124, 12, &numeric(size, 12));
    put(136, 12, format!("{:011o}\0", 1_000_000_000).as_bytes());
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, link.as_bytes());
    put(257, 8, b"ustar\x0000");
    put(329, 8, format!("{:07o}\0", device.0).as_bytes());
    put(337, 8, format!("{:07o}\0", device.1).as_bytes());
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Octal where it fits, GNU's base 256 where not.
fn numeric(value: u64, width: usize) -> Vec<u8> {
    let octal = format!("{value:0width$o}\0", width = width - 1);
    if octal.len() == width {
        return octal.into_bytes();
    }
    let mut bytes = vec![0u8; width];
    bytes[width - 8..].copy_from_slice(&value.to_be_bytes());
    bytes[0] |= 0x80;
    bytes
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    let mut out = format!("{length} {key}=").into_bytes();
    out.extend_from_slice(value);
    out.push(b'\n');
    out
}
