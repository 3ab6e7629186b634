//! Bytes: frames of two connections on one socket, and the ttrpc messages inside them. Pure. Formats and limits:
//! docs/design/nri.md.

use std::collections::BTreeMap;

/// The longest payload of a ttrpc message (ttrpc v1.2.7, `messageLengthMax`).
pub(crate) const MAX_MESSAGE: usize = 4 << 20;
/// A ttrpc header.
const MESSAGE_HEADER: usize = 10;
/// A frame's header.
const FRAME_HEADER: usize = 8;
/// The longest payload of a frame (nri v0.12.5, `maxPayloadSize`).
const MAX_FRAME: usize = MAX_MESSAGE + MESSAGE_HEADER;
/// What the Go library's reader takes in one go while it looks for a header.
const FIRST_FRAME: usize = 4096;

/// A connection: who serves on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Connection {
    /// The plugin serves.
    Plugin,
    /// The runtime serves.
    Runtime,
}

impl Connection {
    fn number(self) -> u32 {
        match self {
            Connection::Plugin => 1,
            Connection::Runtime => 2,
        }
    }

    fn of(number: u32) -> Option<Connection> {
        [Connection::Plugin, Connection::Runtime].into_iter().find(|known| known.number() == number)
    }
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A call.
    Request,
    /// Its answer.
    Response,
}

/// A ttrpc message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) connection: Connection,
    pub(crate) stream: u32,
    pub(crate) kind: Kind,
    pub(crate) payload: Vec<u8>,
}

/// The other end said something that makes no sense; the socket cannot be used any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a frame of {0} bytes is longer than {MAX_FRAME}")]
    LongFrame(usize),
    #[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
    LongMessage(usize),
    #[error("a message of type {0}; requests are 1 and responses 2")]
    Type(u8),
}

/// The bytes of a message, framed. The payload is no longer than [`MAX_MESSAGE`].
pub(crate) fn encode(message: &Message) -> Vec<u8> {
    let Message { connection, stream, kind, payload } = message;
    let mut whole = Vec::with_capacity(MESSAGE_HEADER + payload.len());
    whole.extend((payload.len() as u32).to_be_bytes());
    whole.extend(stream.to_be_bytes());
    whole.push(match kind {
        Kind::Request => 1,
        Kind::Response => 2,
    });
    whole.push(0);
    whole.extend_from_slice(payload);
    let mut framed = Vec::with_capacity(whole.len() + 2 * FRAME_HEADER);
    let (first, rest) = whole.split_at(whole.len().min(FIRST_FRAME));
    for part in [first, rest].into_iter().filter(|part| !part.is_empty()) {
        framed.extend(connection.number().to_be_bytes());
        framed.extend((part.len() as u32).to_be_bytes());
        framed.extend_from_slice(part);
    }
    framed
}

/// Takes bytes as they come and gives messages when they are whole.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    raw: Vec<u8>,
    streams: BTreeMap<Connection, Vec<u8>>,
}

impl Inbox {
    /// Takes more bytes, and gives the messages that are whole with them.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Vec<Message>, WireError> {
        self.raw.extend_from_slice(bytes);
        let mut messages = Vec::new();
        let mut used = 0;
        while let Some((number, length)) = two_numbers(self.raw.get(used..).unwrap_or_default()) {
            let length = length as usize;
            if length > MAX_FRAME {
                return Err(WireError::LongFrame(length));
            }
            let Some(payload) = self.raw.get(used + FRAME_HEADER..used + FRAME_HEADER + length) else {
                break;
            };
            used += FRAME_HEADER + length;
            // Connections that nobody has opened are passed over, as the Go library does.
            let Some(connection) = Connection::of(number) else { continue };
            let stream = self.streams.entry(connection).or_default();
            stream.extend_from_slice(payload);
            cut(connection, stream, &mut messages)?;
        }
        self.raw.drain(..used);
        Ok(messages)
    }
}

/// Takes the whole messages from the front of a stream.
fn cut(connection: Connection, stream: &mut Vec<u8>, messages: &mut Vec<Message>) -> Result<(), WireError> {
    let mut used = 0;
    while let Some((length, number)) = two_numbers(stream.get(used..).unwrap_or_default()) {
        let length = length as usize;
        if length > MAX_MESSAGE {
            return Err(WireError::LongMessage(length));
        }
        let Some(message) = stream.get(used..used + MESSAGE_HEADER + length) else { break };
        let kind = match message.get(8) {
            Some(1) => Kind::Request,
            Some(2) => Kind::Response,
            other => return Err(WireError::Type(other.copied().unwrap_or(0))),
        };
        let payload = message.get(MESSAGE_HEADER..).unwrap_or_default().to_vec();
        messages.push(Message { connection, stream: number, kind, payload });
        used += MESSAGE_HEADER + length;
    }
    stream.drain(..used);
    Ok(())
}

fn two_numbers(bytes: &[u8]) -> Option<(u32, u32)> {
    let [a, b, c, d, e, f, g, h] = *bytes.first_chunk::<8>()?;
    Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_message(length: usize) -> Message {
        let payload = (0..length).map(|at| at as u8).collect();
        Message { connection: Connection::Plugin, stream: 7, kind: Kind::Request, payload }
    }

    #[test]
    fn a_small_message_byte_by_byte() {
        let message = Message { payload: b"abc".to_vec(), ..a_message(0) };
        let bytes = [0, 0, 0, 1, 0, 0, 0, 13, 0, 0, 0, 3, 0, 0, 0, 7, 1, 0, b'a', b'b', b'c'];
        assert_eq!(encode(&message), bytes);
        let mut inbox = Inbox::default();
        for byte in &bytes[..bytes.len() - 1] {
            assert_eq!(inbox.take(&[*byte]), Ok(Vec::new()));
        }
        assert_eq!(inbox.take(b"c"), Ok(vec![message]));
    }

    #[test]
    fn long_messages_have_two_frames_of_which_the_first_fits_a_small_reader() {
        for length in [0, 4086, 4087, 100_000, MAX_MESSAGE] {
            let message = a_message(length);
            let bytes = encode(&message);
            let first = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize;
            assert!(first <= FIRST_FRAME, "{length}: {first}");
            assert_eq!(bytes.len(), length + 10 + if length > 4086 { 16 } else { 8 });
            assert_eq!(Inbox::default().take(&bytes), Ok(vec![message]), "{length}");
        }
    }

    #[test]
    fn messages_of_both_connections_may_be_cut_anywhere() {
        let other = Message { connection: Connection::Runtime, kind: Kind::Response, ..a_message(5000) };
        let one = a_message(9000);
        let mut bytes = encode(&one);
        bytes.extend(encode(&other));
        bytes.extend([0, 0, 0, 9, 0, 0, 0, 1, 99]);
        for size in [1, 7, 4096] {
            let mut inbox = Inbox::default();
            let found: Vec<Message> =
                bytes.chunks(size).flat_map(|chunk| inbox.take(chunk).unwrap()).collect();
            assert_eq!(found, [one.clone(), other.clone()]);
            assert!(inbox.raw.is_empty());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_it_is_kept() {
        let frame = [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(Inbox::default().take(&frame), Err(WireError::LongFrame(u32::MAX as usize)));
        let message = [0, 0, 0, 1, 0, 0, 0, 10, 0x7f, 0, 0, 0, 0, 0, 0, 1, 1, 0];
        assert_eq!(Inbox::default().take(&message), Err(WireError::LongMessage(0x7f00_0000)));
        let kind = [0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0];
        assert_eq!(Inbox::default().take(&kind), Err(WireError::Type(3)));
    }
}
