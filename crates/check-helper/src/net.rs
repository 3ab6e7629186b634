//! Listening, asking, and one thing that only an administrator of the network may do.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};

use crate::say;

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) fn perform(name: &str, rest: &[&str]) -> Option<io::Result<()>> {
    Some(match (name, rest) {
        ("serve", ["tcp", address, text]) => serve_tcp(address, text),
        ("serve", ["udp", address, text]) => serve_udp(address, text),
        ("serve", ["http", address, text]) => serve_http(address, text),
        ("serve", ["whole", address]) => serve_whole(address),
        ("ask", ["tcp", address]) => ask_tcp(address),
        ("ask", ["udp", address]) => ask_udp(address),
        ("raw-socket", []) => raw_socket(),
        ("link-up", []) => loopback_up(),
        _ => return None,
    })
}

/// Answers each connection with the text; goes on in the background.
fn serve_tcp(address: &str, text: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let text = text.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let text = text.clone();
            std::thread::spawn(move || {
                let from = stream.peer_addr().map(|from| from.to_string()).unwrap_or_default();
                let _ = writeln!(stream, "{text} {from}");
            });
        }
    });
    say("serving", address.as_bytes());
    Ok(())
}

/// Answers each request over HTTP with the text.
fn serve_http(address: &str, text: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let text = text.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let text = text.clone();
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut piece = [0; 1024];
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut piece) {
                        Ok(length @ 1..) => head.extend_from_slice(&piece[..length]),
                        _ => return,
                    }
                }
                let length = text.len();
                let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{text}");
            });
        }
    });
    say("serving", address.as_bytes());
    Ok(())
}

/// Greets each connection, and answers it once all was said, with how much that was.
fn serve_whole(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let _ = stream.write_all(b"ready ");
                match io::copy(&mut stream, &mut io::sink()) {
                    Ok(length) => drop(write!(stream, "{length} bytes")),
                    Err(error) => say("broken-off", crate::errno_name(&error).as_bytes()),
                }
            });
        }
    });
    say("serving", address.as_bytes());
    Ok(())
}

fn serve_udp(address: &str, text: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let text = text.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{text} {from}\n").as_bytes(), from);
        }
    });
    say("serving", address.as_bytes());
    Ok(())
}

fn ask_tcp(address: &str) -> io::Result<()> {
    let target = address.parse().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    say("answer", answer.trim_end().as_bytes());
    Ok(())
}

fn ask_udp(address: &str) -> io::Result<()> {
    let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    say("answer", buffer[..length].trim_ascii_end());
    Ok(())
}

fn raw_socket() -> io::Result<()> {
    rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(rustix::net::ipproto::ICMP))?;
    say("raw-socket", b"ok");
    Ok(())
}

/// Asks the kernel to set loopback's IFF_UP, which it is already: harmless, but it needs CAP_NET_ADMIN.
fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    let mut message = Vec::new();
    message.extend(32u32.to_ne_bytes()); // length of header and ifinfomsg
    message.extend(16u16.to_ne_bytes()); // RTM_NEWLINK
    message.extend(5u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_ACK
    message.extend(1u32.to_ne_bytes()); // sequence
    message.extend(0u32.to_ne_bytes()); // port
    message.extend([0, 0, 0, 0]); // family, padding, type
    message.extend(1u32.to_ne_bytes()); // index of `lo`
    message.extend(1u32.to_ne_bytes()); // IFF_UP
    message.extend(1u32.to_ne_bytes()); // of which this bit changes
    rustix::net::send(&socket, &message, rustix::net::SendFlags::empty())?;
    let mut answer = [0u8; 512];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty())?;
    let code = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => say("link-up", b"ok"),
        Some(code) => return Err(io::Error::from_raw_os_error(-code)),
        None => return Err(io::Error::other("a short answer")),
    }
    Ok(())
}
