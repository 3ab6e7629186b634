//! Two ends of one connection, and ends that break the rules.

use std::time::Duration;

use tokio::io::DuplexStream;

use super::*;

type Ends = (Handle, mpsc::Receiver<NewStream>);

fn end(socket: DuplexStream, role: Role) -> Ends {
    let (handle, new, driver) = connection(socket, Hangup::default(), role, Activity::default());
    tokio::spawn(driver.run());
    (handle, new)
}

fn pair() -> (Ends, Ends) {
    let (client, server) = tokio::io::duplex(16 << 10);
    (end(client, Role::Client), end(server, Role::Server))
}

fn named(name: &str) -> Headers {
    Headers(vec![("streamType".into(), name.into())])
}

async fn all(incoming: &mut Incoming) -> Result<Vec<u8>, Gone> {
    let mut bytes = Vec::new();
    while let Some(piece) = incoming.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

#[tokio::test]
async fn streams_carry_bytes_both_ways_and_end_one_way_at_a_time() {
    let ((client, _), (_server, mut new)) = pair();
    let (mut from_server, mut to_server) = client.open(named("data")).await.unwrap();
    let mut stream = new.recv().await.unwrap();
    assert_eq!((stream.id, stream.headers.get("STREAMTYPE")), (1, Some("data")));
    to_server.send(Bytes::from_static(b"question")).await.unwrap();
    to_server.end().await.unwrap();
    assert_eq!(all(&mut stream.incoming).await.unwrap(), b"question");
    // The other direction goes on.
    stream.outgoing.send(Bytes::from_static(b"answer")).await.unwrap();
    stream.outgoing.end().await.unwrap();
    assert_eq!(all(&mut from_server).await.unwrap(), b"answer");
    assert_eq!(from_server.next().await, Ok(None), "and stays ended");
}

#[tokio::test]
async fn more_than_any_window_passes_without_being_told_of_room() {
    let ((client, _), (_server, mut new)) = pair();
    let (mut from_server, _to_server) = client.open(named("data")).await.unwrap();
    let mut stream = new.recv().await.unwrap();
    let sending = async {
        for _ in 0..100 {
            stream.outgoing.send(vec![7u8; 100_000].into()).await.unwrap();
        }
        stream.outgoing.end().await.unwrap();
    };
    let (got, ()) = tokio::join!(all(&mut from_server), sending);
    assert_eq!(got.unwrap().len(), 10_000_000);
}

#[tokio::test]
async fn a_reset_is_of_one_stream() {
    let ((client, _), (server, mut new)) = pair();
    let (mut first_in, mut first_out) = client.open(named("one")).await.unwrap();
    let (mut second_in, mut second_out) = client.open(named("two")).await.unwrap();
    let (mut one, mut two) = (new.recv().await.unwrap(), new.recv().await.unwrap());
    first_out.reset().await.unwrap();
    assert_eq!(one.incoming.next().await, Err(Gone));
    one.outgoing.broken_off().await;
    assert_eq!(one.outgoing.send(Bytes::from_static(b"x")).await, Err(Gone));
    assert_eq!(first_in.next().await, Err(Gone));
    second_out.send(Bytes::from_static(b"still here")).await.unwrap();
    second_out.end().await.unwrap();
    assert_eq!(all(&mut two.incoming).await.unwrap(), b"still here");
    two.outgoing.end().await.unwrap();
    assert_eq!(second_in.next().await, Ok(None));
    assert_eq!(server.streams(), 0, "what has ended both ways is forgotten");
}

#[tokio::test]
async fn what_is_broken_off_unread_holds_up_nobody() {
    let ((client, _), (_server, mut new)) = pair();
    let (mut unread, mut breaker) = client.open(named("stdout")).await.unwrap();
    let (mut error, _error) = client.open(named("error")).await.unwrap();
    let (mut stdout, mut status) = (new.recv().await.unwrap(), new.recv().await.unwrap());
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = sent.clone();
    let flood = tokio::spawn(async move {
        while stdout.outgoing.send(Bytes::from(vec![7u8; 32 << 10])).await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    unread.next().await.unwrap();
    // Until nothing moves any more: the client's end of the connection waits for a reader.
    let mut before = usize::MAX;
    while unread.queued() < crate::mux::QUEUE || before != sent.load(Ordering::Relaxed) {
        before = sent.load(Ordering::Relaxed);
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }
    breaker.reset().await.unwrap();
    flood.await.unwrap();
    status.outgoing.send(Bytes::from_static(b"141")).await.unwrap();
    let word = tokio::time::timeout(Duration::from_secs(10), error.next()).await;
    assert_eq!(&word.expect("the neighbour's word arrives").unwrap().unwrap()[..], b"141");
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_sender_and_one_that_left_does_not() {
    let ((client, _), (_server, mut new)) = pair();
    let (_from_server, mut to_server) = client.open(named("data")).await.unwrap();
    let stream = new.recv().await.unwrap();
    let piece = Bytes::from(vec![7u8; 32 << 10]);
    let mut sent = 0;
    let mut send = async |limit| {
        while tokio::time::timeout(limit, to_server.send(piece.clone())).await.is_ok() {
            sent += piece.len();
            if sent > 8 << 20 {
                break;
            }
        }
        sent
    };
    let before = send(Duration::from_millis(300)).await;
    assert!(before < 2 << 20, "{before} bytes wait somewhere");
    drop(stream.incoming);
    assert!(send(Duration::from_secs(10)).await > 8 << 20);
}

#[tokio::test]
async fn the_end_of_a_connection_is_the_end_of_its_streams() {
    let ((client, _), (server, mut new)) = pair();
    let (mut incoming, _outgoing) = client.open(named("data")).await.unwrap();
    let mut stream = new.recv().await.unwrap();
    stream.outgoing.send(Bytes::from_static(b"last words")).await.unwrap();
    server.finish().await;
    assert_eq!(&incoming.next().await.unwrap().unwrap()[..], b"last words");
    assert_eq!(incoming.next().await, Err(Gone));
}

async fn broken(bytes: &[u8]) -> io::Result<()> {
    let (mut client, server) = tokio::io::duplex(64 << 10);
    let (_handle, _new, driver) = connection(server, Hangup::default(), Role::Server, Activity::default());
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    driver.run().await
}

#[tokio::test]
async fn who_breaks_the_rules_loses_the_connection() {
    assert!(broken(b"").await.is_ok());
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x80\x02\x00\x01\x00\x00\x00\x00",               // SPDY/2
        b"\x80\x03\x00\x01\x00\xff\xff\xff",               // a control frame of 16 MiB
        b"\x80\x03\x00\x01\x00\x00\x00\x02ab",             // a short one
        b"\x80\x03\x00\x01\x00\x00\x00\x0eabcdefghijklmn", // headers that are none
        b"\x00\x00\x00\x01\x00\x00\x00\x09abc",            // cut off
    ] {
        assert!(broken(bytes).await.is_err(), "{bytes:?}");
    }
}

#[tokio::test]
async fn data_of_unknown_streams_and_unknown_frames_are_passed_over() {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&frame::data_head(9, 0, 3));
    bytes.extend_from_slice(b"abc");
    bytes.extend_from_slice(&frame::rst_stream(9, Reset::Cancel));
    bytes.extend_from_slice(b"\x80\x03\x00\x04\x00\x00\x00\x04\x00\x00\x00\x00");
    bytes.extend_from_slice(b"\x80\x03\x00\x63\x00\x00\x00\x01x");
    assert!(broken(&bytes).await.is_ok());
}

#[tokio::test]
async fn pings_of_the_peer_come_back() {
    let (mut client, server) = tokio::io::duplex(64 << 10);
    let (_server, _new) = end(server, Role::Server);
    client.write_all(&frame::ping(1)).await.unwrap();
    client.write_all(&frame::ping(2)).await.unwrap();
    client.write_all(&frame::ping(3)).await.unwrap();
    let mut echoes = [0u8; 24];
    client.read_exact(&mut echoes).await.unwrap();
    assert_eq!(&echoes[..12], &frame::ping(1)[..]);
    assert_eq!(&echoes[12..], &frame::ping(3)[..]);
}
