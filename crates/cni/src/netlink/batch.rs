//! Writing netlink messages and reading attributes.

/// `NLM_F_REQUEST`
const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`
const ACK: u16 = 0x4;
/// `NLM_F_EXCL`: refuse if it exists.
pub(crate) const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND` (rules: at the end of the chain)
pub(crate) const APPEND: u16 = 0x800;
/// `NLM_F_DUMP`
pub(crate) const DUMP: u16 = 0x300;
/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;

const HEADER: usize = 16;

/// Several netlink messages in one buffer.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Where each message starts, and whether the kernel answers it.
    messages: Vec<(usize, bool)>,
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch { bytes: Vec::with_capacity(1024), messages: Vec::new() }
    }

    /// Appends a message that the kernel is asked to acknowledge; `fill` writes what follows the header.
    /// The result is the message's index among the answers.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Body<'_>)) -> usize {
        self.append(kind, REQUEST | ACK | flags, true, fill)
    }

    /// Appends a message that has no answer of its own (the brackets of an nfnetlink batch).
    pub(crate) fn unanswered(&mut self, kind: u16, fill: impl FnOnce(&mut Body<'_>)) -> usize {
        self.append(kind, REQUEST, false, fill)
    }

    fn append(&mut self, kind: u16, flags: u16, answered: bool, fill: impl FnOnce(&mut Body<'_>)) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER]);
        fill(&mut Body { bytes: &mut self.bytes });
        let len = (self.bytes.len() - start) as u32;
        let header = &mut self.bytes[start..start + HEADER];
        header[0..4].copy_from_slice(&len.to_ne_bytes());
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.messages.push((start, answered));
        self.messages.len() - 1
    }

    /// How many messages there are.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn is_answered(&self, index: usize) -> bool {
        self.messages.get(index).is_some_and(|(_, answered)| *answered)
    }

    /// Numbers the messages from `first` on and gives the bytes to send.
    pub(crate) fn numbered(&mut self, first: u32) -> &[u8] {
        for (i, (start, _)) in self.messages.iter().enumerate() {
            let seq = first.wrapping_add(i as u32);
            self.bytes[start + 8..start + 12].copy_from_slice(&seq.to_ne_bytes());
        }
        &self.bytes
    }
}

/// The part of a message after its header.
pub(crate) struct Body<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Body<'_> {
    /// Raw bytes, padded to four.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// One attribute.
    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    /// A NUL-terminated string.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    /// A number in the machine's order (rtnetlink).
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// A number in network order (nfnetlink).
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// An attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(&mut Body { bytes: self.bytes });
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

/// Walks a run of attributes. Stops at the first one that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = match bytes {
            [a, b, c, d, ..] => (u16::from_ne_bytes([*a, *b]) as usize, u16::from_ne_bytes([*c, *d])),
            _ => return None,
        };
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind & 0x3fff, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_the_way_there_and_back() {
        let mut batch = Batch::new();
        batch.message(16, CREATE, |m| {
            m.raw(&[7; 16]);
            m.string(3, "eth0");
            m.nest(18, |m| m.u32(1, 42));
        });
        let bytes = batch.numbered(9).to_vec();
        assert_eq!(bytes.len(), u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize);
        assert_eq!(bytes[8], 9, "the sequence number");
        let attrs: Vec<_> = attributes(&bytes[32..]).collect();
        assert_eq!(attrs[0], (3, &b"eth0\0"[..]));
        assert_eq!(attrs[1].0, 18, "the nested bit is taken off");
        assert_eq!(attributes(attrs[1].1).next(), Some((1, &42u32.to_ne_bytes()[..])));
    }

    #[test]
    fn a_lying_length_ends_the_walk() {
        assert_eq!(attributes(&[200, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0, 5]).count(), 0);
    }
}
