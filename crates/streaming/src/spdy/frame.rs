//! SPDY/3.1 frames as bytes.
//!
//! Source: "SPDY Protocol - Draft 3.1", sections 2.2 and 2.6. Numbers are big-endian; a frame has a head of 8 bytes.

use bytes::{BufMut as _, Bytes, BytesMut};

/// Length of the head of every frame.
pub const HEAD: usize = 8;
/// The longest control frame that is taken: a header block of a sane client has a few hundred bytes.
pub const MAX_CONTROL: usize = 64 << 10;
/// The most data that is sent in one frame.
pub const MAX_DATA: usize = 32 << 10;

/// The last frame of its sender on this stream.
pub const FIN: u8 = 1;

/// Kinds of control frames that we know.
pub mod kind {
    /// Opens a stream.
    pub const SYN_STREAM: u16 = 1;
    /// Accepts it.
    pub const SYN_REPLY: u16 = 2;
    /// Breaks it off.
    pub const RST_STREAM: u16 = 3;
    /// Asks for an echo.
    pub const PING: u16 = 6;
    /// No more streams.
    pub const GOAWAY: u16 = 7;
    /// More headers.
    pub const HEADERS: u16 = 8;
    /// Room for more data.
    pub const WINDOW_UPDATE: u16 = 9;
}

/// Reasons to break a stream off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// The other end broke the rules.
    Protocol = 1,
    /// There are too many streams.
    Refused = 3,
    /// Nobody needs it any more.
    Cancel = 5,
}

/// The head of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// Data of a stream.
    Data {
        /// Which.
        stream: u32,
        /// See [`FIN`].
        flags: u8,
        /// Bytes that follow.
        len: usize,
    },
    /// Anything else.
    Control {
        /// See [`kind`].
        kind: u16,
        /// See [`FIN`].
        flags: u8,
        /// Bytes that follow.
        len: usize,
    },
}

impl Head {
    /// Reads a head; `None` if this is no SPDY/3.
    pub fn parse(bytes: [u8; HEAD]) -> Option<Head> {
        let word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let flags = bytes[4];
        let len = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
        if word >> 31 == 0 {
            return Some(Head::Data { stream: word, flags, len });
        }
        let (version, kind) = ((word >> 16) & 0x7fff, word as u16);
        (version == 3).then_some(Head::Control { kind, flags, len })
    }
}

fn control(kind: u16, flags: u8, body: &[&[u8]]) -> Bytes {
    let len: usize = body.iter().map(|part| part.len()).sum();
    let mut out = BytesMut::with_capacity(HEAD + len);
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | len as u32);
    for part in body {
        out.put_slice(part);
    }
    out.freeze()
}

/// Opens a stream.
pub fn syn_stream(stream: u32, block: &[u8]) -> Bytes {
    // No stream that it belongs to, highest priority, no credential slot.
    control(kind::SYN_STREAM, 0, &[&stream.to_be_bytes(), &[0; 6], block])
}

/// Accepts a stream.
pub fn syn_reply(stream: u32, block: &[u8]) -> Bytes {
    control(kind::SYN_REPLY, 0, &[&stream.to_be_bytes(), block])
}

/// Breaks a stream off.
pub fn rst_stream(stream: u32, why: Reset) -> Bytes {
    control(kind::RST_STREAM, 0, &[&stream.to_be_bytes(), &(why as u32).to_be_bytes()])
}

/// An echo, or a request for one.
pub fn ping(id: u32) -> Bytes {
    control(kind::PING, 0, &[&id.to_be_bytes()])
}

/// No more streams after this one.
pub fn goaway(last: u32) -> Bytes {
    control(kind::GOAWAY, 0, &[&last.to_be_bytes(), &[0; 4]])
}

/// Room for more data on a stream; 0: on the connection.
pub fn window_update(stream: u32, more: u32) -> Bytes {
    control(kind::WINDOW_UPDATE, 0, &[&stream.to_be_bytes(), &more.to_be_bytes()])
}

/// The head of a data frame.
pub fn data_head(stream: u32, flags: u8, len: usize) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&stream.to_be_bytes());
    head[4..].copy_from_slice(&(u32::from(flags) << 24 | len as u32).to_be_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(bytes: &[u8]) -> Option<Head> {
        Head::parse(bytes[..HEAD].try_into().unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(head(&data_head(5, FIN, 300)), Some(Head::Data { stream: 5, flags: FIN, len: 300 }));
        let frame = rst_stream(7, Reset::Cancel);
        assert_eq!(head(&frame), Some(Head::Control { kind: kind::RST_STREAM, flags: 0, len: 8 }));
        assert_eq!(&frame[..], [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 5]);
        assert_eq!(head(&syn_stream(1, b"abc")), Some(Head::Control { kind: 1, flags: 0, len: 13 }));
    }

    #[test]
    fn other_versions_are_refused() {
        assert_eq!(head(&[0x80, 2, 0, 1, 0, 0, 0, 0]), None);
        assert_eq!(head(b"\xff\xff\xff\xff\xff\xff\xff\xff"), None);
    }
}
