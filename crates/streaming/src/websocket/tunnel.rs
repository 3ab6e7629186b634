//! A stream of bytes inside the messages of a WebSocket, as `SPDY/3.1+portforward.k8s.io` has it.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};

use super::{Shared, frame};
use crate::mux::{Activity, Hangup, PIECE, linger};
use frame::{Event, NORMAL, Reader, opcode};

/// The other end of the tunnel, as a stream, and what has to run for it to move.
pub fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    hangup: Hangup,
    client: bool,
) -> (DuplexStream, impl Future<Output = io::Result<()>>) {
    let (inner, outer) = tokio::io::duplex(2 * PIECE);
    (inner, run(socket, hangup, client, outer))
}

async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    hangup: Hangup,
    client: bool,
    stream: DuplexStream,
) -> io::Result<()> {
    let (read, write) = tokio::io::split(socket);
    let (from_inner, to_inner) = tokio::io::split(stream);
    let shared = Shared::new(Activity::default());
    let reading = unpack(Reader::new(read, !client), &hangup, to_inner, &shared);
    tokio::pin!(reading);
    tokio::select! {
        read = &mut reading => read,
        written = pack(write, from_inner, client, &shared) => {
            written?;
            linger(reading, &shared.activity).await
        }
    }
}

async fn unpack<R, W>(mut reader: Reader<R>, hangup: &Hangup, mut inner: W, shared: &Shared) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while let Some(event) = reader.next().await? {
        match event {
            Event::Begin | Event::End => {}
            Event::Data(bytes) => {
                shared.activity.note();
                let written = tokio::select! {
                    biased;
                    written = inner.write_all(&bytes) => written,
                    () = hangup.gone() => return Err(io::ErrorKind::ConnectionAborted.into()),
                };
                // Nobody reads any more: the rest is thrown away.
                let _ = written;
            }
            Event::Ping(bytes) => shared.echo(bytes)?,
            Event::Close => break,
        }
    }
    let _ = inner.shutdown().await;
    Ok(())
}

async fn pack<R, W>(mut socket: W, mut inner: R, client: bool, shared: &Shared) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut piece = vec![0u8; PIECE];
    let mut buffer = BytesMut::new();
    loop {
        let len = tokio::select! {
            biased;
            () = shared.wake.notified() => None,
            len = inner.read(&mut piece) => Some(len?),
        };
        shared.put_echoes(&mut buffer, client);
        let mask = client.then(frame::mask);
        match len {
            Some(0) => frame::put(&mut buffer, opcode::CLOSE, &[&NORMAL.to_be_bytes()], mask),
            Some(len) => frame::put(&mut buffer, opcode::BINARY, &[&piece[..len]], mask),
            None => {}
        }
        socket.write_all_buf(&mut buffer).await?;
        socket.flush().await?;
        if len == Some(0) {
            return Ok(());
        }
    }
}
