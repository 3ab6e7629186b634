//! Two ends of one connection.

use tokio::io::DuplexStream;

use super::*;

fn ends(form: Form, from_client: &[u8], from_server: &[u8]) -> (Channels, Channels) {
    let (client, server) = tokio::io::duplex(16 << 10);
    let end = |socket: DuplexStream, form, from_peer: &[u8]| {
        let (channels, driver) = channels(socket, Hangup::default(), form, from_peer, Activity::default());
        tokio::spawn(driver.run());
        channels
    };
    (end(client, Form { client: true, ..form }, from_server), end(server, form, from_client))
}

async fn all(incoming: &mut Incoming) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(piece)) = incoming.next().await {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

#[tokio::test]
async fn channels_carry_bytes_in_every_form() {
    for base64 in [false, true] {
        let form = Form { base64, close_signal: !base64, client: false };
        let (mut client, mut server) = ends(form, &[0], &[1, 3]);
        let big: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let (mut to_client, mut to_server) = (server.outgoing(1), client.outgoing(0));
        let mut incoming = server.incoming.remove(&0).unwrap();
        let there = async {
            to_server.send(Bytes::from(big.clone())).await.unwrap();
            to_server.end().await.unwrap();
            if base64 {
                client.finish().await;
            }
        };
        let (got, ()) = tokio::join!(all(&mut incoming), there);
        assert!(got == big, "{} of {} bytes", got.len(), big.len());
        if base64 {
            continue;
        }
        // The other direction goes on after the end of this one.
        to_client.send(Bytes::from_static(b"answer")).await.unwrap();
        let mut status = server.outgoing(3);
        status.send(Bytes::from_static(b"done")).await.unwrap();
        server.finish().await;
        assert_eq!(all(&mut client.incoming.remove(&1).unwrap()).await, b"answer");
        assert_eq!(all(&mut client.incoming.remove(&3).unwrap()).await, b"done");
    }
}

#[tokio::test]
async fn a_tunnel_carries_a_stream() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (client, server) = tokio::io::duplex(4 << 10);
    let (mut near, moving) = tunnel(client, Hangup::default(), true);
    let near_end = tokio::spawn(moving);
    let (mut far, moving) = tunnel(server, Hangup::default(), false);
    let far_end = tokio::spawn(moving);
    let big = vec![5u8; 300_000];
    let echo = async {
        let mut got = vec![0; big.len()];
        far.read_exact(&mut got).await.unwrap();
        far.write_all(&got).await.unwrap();
        far.shutdown().await.unwrap();
    };
    let ask = async {
        let (mut read, mut write) = tokio::io::split(&mut near);
        let mut got = Vec::new();
        let (written, _) = tokio::join!(write.write_all(&big), read.read_to_end(&mut got));
        written.unwrap();
        got
    };
    let (got, ()) = tokio::join!(ask, echo);
    assert!(got == big);
    drop((near, far));
    near_end.await.unwrap().unwrap();
    far_end.await.unwrap().unwrap();
}

#[tokio::test]
async fn pings_come_back() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut client, server) = tokio::io::duplex(4 << 10);
    let (_channels, driver) = channels(server, Hangup::default(), Form::default(), &[], Activity::default());
    tokio::spawn(driver.run());
    let mut ping = BytesMut::new();
    frame::put(&mut ping, opcode::PING, &[b"hello"], Some([1, 2, 3, 4]));
    client.write_all(&ping).await.unwrap();
    let mut pong = [0u8; 7];
    client.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"\x8a\x05hello");
}
