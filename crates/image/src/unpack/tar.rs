//! A strict reader of tar: ustar, GNU long names, PAX.
//!
//! Where known readers disagree (CVE-2025-62518 and its kin smuggled entries through that gap), we refuse: a size said twice with
//! different values, a size on an entry that has no content, two sources of one name, global records that rename.

use std::io::{self, BufRead, Read};

use super::job::Failure;

const BLOCK: usize = 512;
const MAX_ENTRIES: u64 = 1_000_000;
/// A block of PAX records or a GNU long name.
const MAX_EXTENSION: u64 = 1 << 20;
const MAX_PATH: usize = 4096;
const MAX_XATTRS: usize = 64;
const MAX_XATTR_BYTES: usize = 64 << 10;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    Hardlink,
    Char,
    Block,
    Fifo,
}

/// One entry; its content, if any, is read from the reader next.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) xattrs: Records,
}

impl Entry {
    /// The path for an error message.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.path[..self.path.len().min(200)]).into_owned()
    }
}

/// Keys and values, in order.
type Records = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Records>,
}

/// Reads entries one after the other. As [`Read`], it is the content of the entry returned last.
pub(crate) struct Reader<R> {
    input: R,
    content: u64,
    padding: u64,
    entries: u64,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Reader<R> {
        Reader { input, content: 0, padding: 0, entries: 0 }
    }

    /// The next entry, or `None` at the end mark or at the end of the stream between two entries.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, Failure> {
        let mut extensions = Extensions::default();
        loop {
            let left = self.content + self.padding;
            self.skip(left)?;
            (self.content, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return match (extensions.long_name, extensions.long_link, extensions.pax) {
                    (None, None, None) => Ok(None),
                    _ => Err(corrupt("it ends after an extension header")),
                };
            };
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(Failure::TooLarge(format!("it has more than {MAX_ENTRIES} entries")));
            }
            let once = |before: bool| {
                if before { Err(corrupt("an extension header is given twice")) } else { Ok(()) }
            };
            match header[156] {
                b'L' => {
                    once(extensions.long_name.is_some())?;
                    extensions.long_name = Some(until_nul(&self.extension(&header)?).to_vec());
                }
                b'K' => {
                    once(extensions.long_link.is_some())?;
                    extensions.long_link = Some(until_nul(&self.extension(&header)?).to_vec());
                }
                b'x' => {
                    once(extensions.pax.is_some())?;
                    extensions.pax = Some(pax_records(&self.extension(&header)?)?);
                }
                b'g' => {
                    let renames = |key: &[u8]| {
                        matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse")
                    };
                    if pax_records(&self.extension(&header)?)?.iter().any(|(key, _)| renames(key)) {
                        return Err(corrupt("a global PAX header sets path, linkpath or size"));
                    }
                }
                _ => {
                    let entry = entry(&header, extensions)?;
                    self.content = entry.size;
                    self.padding = entry.size.next_multiple_of(BLOCK as u64) - entry.size;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// What is being read; right after [`Self::next_entry`] it stands at the entry's content.
    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    /// Content of the current entry as it lies in the buffer, to be written without a copy.
    pub(crate) fn content(&mut self) -> io::Result<&[u8]> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.content).unwrap_or(usize::MAX);
        let buffer = self.input.fill_buf()?;
        if buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the archive ends within an entry"));
        }
        Ok(&buffer[..buffer.len().min(left)])
    }

    /// Marks `amount` bytes of [`Self::content`] as read.
    pub(crate) fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.content -= amount as u64;
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Failure> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().all(|&b| b == 0) {
            return match self.block()? {
                None => Ok(None),
                Some(second) if second.iter().all(|&b| b == 0) => Ok(None),
                Some(_) => Err(corrupt("a single zero block stands between entries")),
            };
        }
        check_sum(&block)?;
        Ok(Some(block))
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Failure> {
        let mut block = [0u8; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let got = self
                .input
                .read(&mut block[have..])
                .map_err(|error| Failure::io("read the archive", error))?;
            if got == 0 {
                return if have == 0 { Ok(None) } else { Err(corrupt("it ends within a header")) };
            }
            have += got;
        }
        Ok(Some(block))
    }

    fn extension(&mut self, header: &[u8; BLOCK]) -> Result<Vec<u8>, Failure> {
        let size = number(&header[124..136])
            .and_then(|n| u64::try_from(n).ok())
            .ok_or_else(|| corrupt("a size is no number"))?;
        if size > MAX_EXTENSION {
            return Err(Failure::TooLarge(format!(
                "an extension header of {size} bytes, the limit is {MAX_EXTENSION}"
            )));
        }
        let mut data = Vec::new();
        let got = self
            .input
            .by_ref()
            .take(size)
            .read_to_end(&mut data)
            .map_err(|error| Failure::io("read the archive", error))?;
        if (got as u64) < size {
            return Err(corrupt("it ends within an extension header"));
        }
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(data)
    }

    fn skip(&mut self, mut amount: u64) -> Result<(), Failure> {
        while amount > 0 {
            let have = self.input.fill_buf().map_err(|error| Failure::io("read the archive", error))?.len();
            if have == 0 {
                return Err(corrupt("it ends within an entry"));
            }
            let step = have.min(usize::try_from(amount).unwrap_or(usize::MAX));
            self.input.consume(step);
            amount -= step as u64;
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.content()?;
        let amount = available.len().min(out.len());
        out[..amount].copy_from_slice(&available[..amount]);
        self.consume(amount);
        Ok(amount)
    }
}

fn corrupt(text: &str) -> Failure {
    Failure::Corrupt(text.to_owned())
}

fn check_sum(block: &[u8; BLOCK]) -> Result<(), Failure> {
    let said = number(&block[148..156]).ok_or_else(|| corrupt("a header's checksum is no number"))?;
    let with_blank = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
    let unsigned: i64 = block.iter().enumerate().map(|(at, &b)| i64::from(with_blank(at, b))).sum();
    // Some old writers summed signed bytes.
    let signed: i64 =
        block.iter().enumerate().map(|(at, &b)| i64::from(with_blank(at, b).cast_signed())).sum();
    if said == unsigned || said == signed { Ok(()) } else { Err(corrupt("a header's checksum is wrong")) }
}

/// A numeric field: octal text, or GNU's base 256 with the top bit set.
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, &byte) in field.iter().enumerate() {
            let byte = if at == 0 && !negative { byte & 0x7f } else { byte };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).ok();
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if rest.iter().any(|b| !matches!(b, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// PAX records, `<length> <key>=<value>\n`.
fn pax_records(mut data: &[u8]) -> Result<Records, Failure> {
    let bad = || corrupt("a PAX header is malformed");
    let mut records = Vec::new();
    while !data.is_empty() {
        // Some writers pad with zeros.
        if data.iter().all(|&b| b == 0) {
            break;
        }
        let space = data.iter().take(20).position(|&b| b == b' ').ok_or_else(bad)?;
        let digits = std::str::from_utf8(&data[..space]).map_err(|_| bad())?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let length: usize = digits.parse().map_err(|_| bad())?;
        if length < space + 3 || length > data.len() || data[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Ok(records)
}

fn entry(header: &[u8; BLOCK], extensions: Extensions) -> Result<Entry, Failure> {
    let field = |range: std::ops::Range<usize>, what: &str| {
        number(&header[range]).ok_or_else(|| Failure::Corrupt(format!("the {what} of a header is no number")))
    };
    let posix = &header[257..263] == b"ustar\0";
    let mut path = until_nul(&header[0..100]).to_vec();
    let prefix = until_nul(&header[345..500]);
    if posix && !prefix.is_empty() {
        path = [prefix, b"/", &path].concat();
    }
    let kind = match header[156] {
        b'0' | 0 | b'7' if path.ends_with(b"/") && extensions.long_name.is_none() && header[156] == 0 => {
            Kind::Dir
        }
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        b'S' => return Err(corrupt("GNU sparse files are not supported")),
        other => {
            return Err(Failure::Corrupt(format!(
                "entries of type {:?} are not supported",
                char::from(other)
            )));
        }
    };
    let mut size = field(124..136, "size")?;
    let device = matches!(kind, Kind::Char | Kind::Block);
    let mut entry = Entry {
        kind,
        path,
        link: until_nul(&header[157..257]).to_vec(),
        mode: u32::try_from(field(100..108, "mode")? & 0o7777).unwrap_or(0),
        uid: 0,
        gid: 0,
        size: 0,
        seconds: field(136..148, "time")?,
        nanoseconds: 0,
        major: if device { to_u32(field(329..337, "device number")?, "device number")? } else { 0 },
        minor: if device { to_u32(field(337..345, "device number")?, "device number")? } else { 0 },
        xattrs: Vec::new(),
    };
    let (mut uid, mut gid) = (field(108..116, "uid")?, field(116..124, "gid")?);
    let named_by_gnu = (extensions.long_name.is_some(), extensions.long_link.is_some());
    if let Some(path) = extensions.long_name {
        entry.path = path;
    }
    if let Some(link) = extensions.long_link {
        entry.link = link;
    }
    for (key, value) in extensions.pax.unwrap_or_default() {
        match key.as_slice() {
            b"path" if named_by_gnu.0 => return Err(corrupt("its name is given by GNU and by PAX")),
            b"linkpath" if named_by_gnu.1 => return Err(corrupt("its link is given by GNU and by PAX")),
            // An empty value takes the record back, says POSIX.
            b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime" if value.is_empty() => {}
            b"path" => entry.path = value,
            b"linkpath" => entry.link = value,
            b"size" => size = pax_size(&value, size)?,
            b"uid" => uid = decimal(&value, "uid")?,
            b"gid" => gid = decimal(&value, "gid")?,
            b"mtime" => (entry.seconds, entry.nanoseconds) = pax_time(&value)?,
            key if key.starts_with(b"GNU.sparse") => {
                return Err(corrupt("GNU sparse files are not supported"));
            }
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    entry.xattrs.push((name.to_vec(), value));
                }
            }
        }
    }
    entry.uid = owner(uid, "uid")?;
    entry.gid = owner(gid, "gid")?;
    entry.size = u64::try_from(size).map_err(|_| corrupt("its size is negative"))?;
    check(&entry)?;
    Ok(entry)
}

fn check(entry: &Entry) -> Result<(), Failure> {
    if entry.kind != Kind::File && entry.size != 0 {
        return Err(corrupt("an entry without content has a size"));
    }
    for text in [&entry.path, &entry.link] {
        if text.contains(&0) {
            return Err(corrupt("a name contains a zero byte"));
        }
        if text.len() > MAX_PATH {
            return Err(Failure::TooLarge(format!(
                "a name of {} bytes, the limit is {MAX_PATH}",
                text.len()
            )));
        }
    }
    let bytes: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if entry.xattrs.len() > MAX_XATTRS || bytes > MAX_XATTR_BYTES {
        return Err(Failure::TooLarge(format!(
            "{} extended attributes of {bytes} bytes",
            entry.xattrs.len()
        )));
    }
    Ok(())
}

/// The PAX size. The header's own field must agree, or be 0 because the value did not fit.
fn pax_size(value: &[u8], header: i64) -> Result<i64, Failure> {
    let size = decimal(value, "size")?;
    if header != 0 && header != size {
        return Err(Failure::Corrupt(format!("its size is {header} in the header and {size} in PAX")));
    }
    Ok(size)
}

fn decimal(value: &[u8], what: &str) -> Result<i64, Failure> {
    std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Failure::Corrupt(format!("the PAX {what} is no number")))
}

fn pax_time(value: &[u8]) -> Result<(i64, u32), Failure> {
    let bad = || corrupt("the PAX mtime is no time");
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    if !part.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let digits: String = part.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| bad())?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok((seconds - 1, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

fn to_u32(value: i64, what: &str) -> Result<u32, Failure> {
    u32::try_from(value).map_err(|_| Failure::Corrupt(format!("{what} {value} does not fit 32 bits")))
}

/// A uid or gid. 2^32-1 means "no change" to chown, so it is nobody's.
fn owner(value: i64, what: &str) -> Result<u32, Failure> {
    match to_u32(value, what)? {
        u32::MAX => Err(Failure::Corrupt(format!("{what} {} is reserved", u32::MAX))),
        id => Ok(id),
    }
}
