//! WebSocket frames (RFC 6455, section 5), read piece by piece: a message of any length needs no memory of its own.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};

use crate::mux::PIECE;

/// The most that a control frame may carry (section 5.5).
const MAX_CONTROL: usize = 125;

/// Kinds of frames.
pub mod opcode {
    /// More of the message.
    pub const CONTINUATION: u8 = 0;
    /// A message of text.
    pub const TEXT: u8 = 1;
    /// A message of bytes.
    pub const BINARY: u8 = 2;
    /// The last frame.
    pub const CLOSE: u8 = 8;
    /// Asks for an echo.
    pub const PING: u8 = 9;
    /// The echo.
    pub const PONG: u8 = 10;
}

/// The code of an end in order.
pub const NORMAL: u16 = 1000;

/// What is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A message begins.
    Begin,
    /// Some of it.
    Data(Bytes),
    /// It is complete.
    End,
    /// The peer wants an echo of this.
    Ping(Bytes),
    /// The peer is through.
    Close,
}

/// Reads frames.
pub struct Reader<R> {
    socket: BufReader<R>,
    /// Frames of clients are masked, those of servers are not.
    masked: bool,
    /// A message has begun and not ended.
    open: bool,
    /// Of the frame that is being read: bytes left, whether it is the last of its message, its mask and where in it.
    left: u64,
    last: bool,
    mask: [u8; 4],
    at: usize,
    in_frame: bool,
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Of a server (`masked`), or of a client.
    pub fn new(socket: R, masked: bool) -> Reader<R> {
        let socket = BufReader::with_capacity(PIECE, socket);
        Reader { socket, masked, open: false, left: 0, last: false, mask: [0; 4], at: 0, in_frame: false }
    }

    /// The next thing; `None` at the end of the connection. Not to be cancelled half-way.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        if self.in_frame {
            return self.data().await.map(Some);
        }
        let mut head = [0u8; 2];
        match self.socket.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let (last, opcode) = (head[0] & 0x80 != 0, head[0] & 0x0f);
        if head[0] & 0x70 != 0 {
            return Err(broken("a frame uses extensions that were not agreed"));
        }
        if (head[1] & 0x80 != 0) != self.masked {
            return Err(broken("a client's frames must be masked, a server's must not"));
        }
        let len = match head[1] & 0x7f {
            126 => u64::from(self.socket.read_u16().await?),
            127 => self.socket.read_u64().await?,
            len => u64::from(len),
        };
        self.mask = [0; 4];
        if self.masked {
            self.socket.read_exact(&mut self.mask).await?;
        }
        self.at = 0;
        match opcode {
            opcode::TEXT | opcode::BINARY if !self.open => {
                (self.open, self.in_frame, self.left, self.last) = (true, true, len, last);
                Ok(Some(Event::Begin))
            }
            opcode::CONTINUATION if self.open => {
                (self.in_frame, self.left, self.last) = (true, len, last);
                self.data().await.map(Some)
            }
            opcode::CLOSE | opcode::PING | opcode::PONG if len <= MAX_CONTROL as u64 && last => {
                let mut body = vec![0; len as usize];
                self.socket.read_exact(&mut body).await?;
                self.unmask(&mut body);
                Ok(Some(match opcode {
                    opcode::CLOSE => Event::Close,
                    opcode::PING => Event::Ping(body.into()),
                    // Any traffic says as much; an empty piece is no message.
                    _ => Event::Data(Bytes::new()),
                }))
            }
            _ => Err(broken("a frame comes out of turn, or of no known kind")),
        }
    }

    async fn data(&mut self) -> io::Result<Event> {
        if self.left == 0 {
            self.in_frame = false;
            if self.last {
                self.open = false;
                return Ok(Event::End);
            }
            return Ok(Event::Data(Bytes::new()));
        }
        let size = self.left.min(PIECE as u64);
        let mut piece = BytesMut::with_capacity(size as usize);
        if (&mut self.socket).take(size).read_buf(&mut piece).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= piece.len() as u64;
        self.unmask(&mut piece);
        Ok(Event::Data(piece.freeze()))
    }

    fn unmask(&mut self, bytes: &mut [u8]) {
        if self.masked {
            for byte in bytes {
                *byte ^= self.mask[self.at & 3];
                self.at += 1;
            }
        }
    }
}

/// Appends a frame. `mask`: a client's.
pub fn put(buffer: &mut BytesMut, opcode: u8, parts: &[&[u8]], mask: Option<[u8; 4]>) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let flag = if mask.is_some() { 0x80 } else { 0 };
    buffer.extend_from_slice(&[0x80 | opcode]);
    match len {
        0..=125 => buffer.extend_from_slice(&[flag | len as u8]),
        126..=0xffff => {
            buffer.extend_from_slice(&[flag | 126]);
            buffer.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            buffer.extend_from_slice(&[flag | 127]);
            buffer.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        buffer.extend_from_slice(&mask);
    }
    let start = buffer.len();
    for part in parts {
        buffer.extend_from_slice(part);
    }
    if let Some(mask) = mask {
        for (at, byte) in buffer[start..].iter_mut().enumerate() {
            *byte ^= mask[at & 3];
        }
    }
}

/// A mask. It is not to keep a secret but to keep proxies from taking data for requests (section 10.3).
pub fn mask() -> [u8; 4] {
    let mut mask = [0u8; 4];
    let _ = rustix::rand::getrandom(&mut mask, rustix::rand::GetRandomFlags::empty());
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8], masked: bool) -> io::Result<Vec<Event>> {
        let mut reader = Reader::new(bytes, masked);
        let mut events = Vec::new();
        while let Some(event) = reader.next().await? {
            if event != Event::Data(Bytes::new()) {
                events.push(event);
            }
        }
        Ok(events)
    }

    fn message(bytes: &'static [u8]) -> Vec<Event> {
        vec![Event::Begin, Event::Data(Bytes::from_static(bytes)), Event::End]
    }

    #[tokio::test]
    async fn the_examples_of_the_rfc() {
        let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&masked, true).await.unwrap(), message(b"Hello"));
        let plain = [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
        assert_eq!(read(&plain, false).await.unwrap(), message(b"Hello"));
        // In two fragments, with a ping between them.
        let fragments = [0x01, 0x03, 0x48, 0x65, 0x6c, 0x89, 0x01, 0x2a, 0x80, 0x02, 0x6c, 0x6f];
        let events = [
            Event::Begin,
            Event::Data(Bytes::from_static(b"Hel")),
            Event::Ping(Bytes::from_static(b"*")),
            Event::Data(Bytes::from_static(b"lo")),
            Event::End,
        ];
        assert_eq!(read(&fragments, false).await.unwrap(), events);
    }

    #[tokio::test]
    async fn frames_of_every_length() {
        for len in [0, 1, 125, 126, 65535, 65536, 100_000] {
            let body = vec![7u8; len];
            let mut buffer = BytesMut::new();
            put(&mut buffer, opcode::BINARY, &[&body], Some([1, 2, 3, 4]));
            let events = read(&buffer, true).await.unwrap();
            let data: usize =
                events.iter().map(|event| if let Event::Data(bytes) = event { bytes.len() } else { 0 }).sum();
            assert_eq!((data, events.last()), (len, Some(&Event::End)));
            assert!(events.iter().all(|event| !matches!(event, Event::Data(b) if b.iter().any(|b| *b != 7))));
        }
    }

    #[tokio::test]
    async fn what_breaks_the_rules_ends_the_connection() {
        let refused: [&[u8]; 6] = [
            &[0x82, 0x00],                                     // not masked
            &[0xc2, 0x80, 0, 0, 0, 0],                         // an extension
            &[0x80, 0x80, 0, 0, 0, 0],                         // a continuation of nothing
            &[0x83, 0x80, 0, 0, 0, 0],                         // an unknown kind
            &[0x89, 0xfe, 0, 126, 0, 0, 0, 0],                 // a ping that is too long
            &[0x02, 0x80, 0, 0, 0, 0, 0x82, 0x80, 0, 0, 0, 0], // a message inside a message
        ];
        for bytes in refused {
            assert!(read(bytes, true).await.is_err(), "{bytes:?}");
        }
    }
}
