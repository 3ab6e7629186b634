//! Exec, attach and port-forward.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio;

use bowline_tests::{Daemon, wait_for};

use crate::containers::find;
use crate::{Crictl, Ending, LIMIT, terminal, text};

pub(crate) fn exec(crictl: &Crictl) {
    let talks = find(crictl, "talks");
    // crictl adds empty lines of its own.
    assert_eq!(crictl.ok(&["exec", "--sync", &talks, "echo", "synced"]).trim(), "synced");
    crictl.fails(&["exec", "--sync", "--timeout", "1", &talks, "sleep", "60"], "DeadlineExceeded");
    crictl.fails(&["exec", "-s", &talks, "sh", "-c", "exit 7"], "exited with 7");
    for transport in ["spdy", "websocket"] {
        assert_eq!(crictl.ok(&["exec", "--transport", transport, &talks, "echo", "streamed"]), "streamed\n");
        crictl.fails(&["exec", "-r", transport, &talks, "sh", "-c", "exit 5"], "exit code 5");
        let mut command = crictl.command(&[], &["exec", "--interactive", "-r", transport, &talks, "cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"through\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.success(), output.stdout.as_slice()), (true, &b"through\n"[..]));
        on_a_terminal(crictl, &talks, transport);
    }
    let said = crictl.ok(&["exec", "-s", "--name", "talks", "--state", "running", "echo", "found"]);
    assert_eq!(said.trim(), format!("{talks}:\nfound"));
    let pod = crictl.ok(&["pods", "-q", "--name", "main"]);
    let filters: [&[&str]; 5] = [
        &["--label", "role=talks"],
        &["--latest"],
        &["--last", "1"],
        &["--image", &crictl.image("busybox:1")],
        &["--pod", pod.trim()],
    ];
    for filter in filters {
        let said = crictl.ok(&[&["exec", "-s", "--quiet"], filter, &["echo", "found"]].concat());
        assert_eq!(said.trim(), "found", "{filter:?}");
    }
    crictl.ok(&["exec", "-s", "--ignore-errors", "--name", "talks", "sh", "-c", "exit 9"]);
    assert_eq!(crictl.ok(&["exec", "-s", "--parallel", "--name", "talks", "echo", "side"]).trim(), "side");
}

/// `-it` with a terminal of a size that nobody has by chance; it is seen inside, and so is a change of it.
fn on_a_terminal(crictl: &Crictl, id: &str, transport: &str) {
    let script = "until stty size | grep -q '33 101'; do sleep 0.1; done; echo first; \
                  until stty size | grep -q '44 55'; do sleep 0.1; done; echo second; read word; echo got $word";
    let command = crictl.command(&[], &["exec", "-i", "--tty", "-r", transport, id, "sh", "-c", script]);
    let mut screen = Screen::start(crictl, command);
    screen.wait_for("first");
    let size = rustix::termios::Winsize { ws_row: 44, ws_col: 55, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&screen.master, size).unwrap();
    // The kernel tells only those whose controlling terminal it is.
    let pid = rustix::process::Pid::from_child(&screen.child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    screen.wait_for("second");
    type_line(&screen.master, "word");
    screen.wait_for("got word");
    let status = screen.child.0.wait().unwrap();
    assert!(status.success(), "{status}");
}

/// A process on a terminal of 33 rows and 101 columns, and what appears on it.
struct Screen {
    master: OwnedFd,
    child: Ending,
    file: std::path::PathBuf,
}

impl Screen {
    fn start(crictl: &Crictl, mut command: std::process::Command) -> Screen {
        let (master, slave) = terminal(33, 101);
        let file = crictl.path("screen");
        let mut shown = fs::File::create(&file).unwrap();
        let mut from = fs::File::from(master.try_clone().unwrap());
        // Ends when nobody has the terminal open any more (EIO).
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut shown);
        });
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        Screen { master, child: Ending(command.spawn().unwrap()), file }
    }

    fn wait_for(&self, word: &str) {
        wait_for(&format!("`{word}` appears: {}", text(&self.file)), LIMIT, || {
            text(&self.file).contains(word)
        });
    }
}

fn type_line(master: &OwnedFd, line: &str) {
    rustix::io::write(master.as_fd(), format!("{line}\r").as_bytes()).unwrap();
}

pub(crate) fn attach(crictl: &Crictl) {
    let pod = crictl.pod("main");
    let main = crictl.ok(&["pods", "-q", "--name", "main"]).trim().to_owned();
    for (tty, transport) in [(false, "spdy"), (false, "websocket"), (true, "spdy"), (true, "websocket")] {
        let more = format!(r#", "stdin": true, "tty": {tty}"#);
        let script = "while read line; do echo heard $line; done";
        let config = crictl.container("listens", &crictl.image("busybox:1"), script, &more);
        let id = crictl.id(&["create", &main, &config, &pod]);
        crictl.ok(&["start", &id]);
        if tty {
            let command = crictl.command(&[], &["attach", "-i", "--tty", "-r", transport, &id]);
            let screen = Screen::start(crictl, command);
            wait_for("it hears", LIMIT, || {
                type_line(&screen.master, "me");
                text(&screen.file).contains("heard me")
            });
        } else {
            let file = crictl.path("attached");
            let mut command = crictl.command(&[], &["attach", "--stdin", "--transport", transport, &id]);
            command.stdout(fs::File::create(&file).unwrap());
            let mut child = Ending(command.stdin(Stdio::piped()).spawn().unwrap());
            child.0.stdin.as_mut().unwrap().write_all(b"me\n").unwrap();
            wait_for("it hears", LIMIT, || text(&file).contains("heard me"));
        }
        crictl.ok(&["rm", "-f", &id]);
    }
}

pub(crate) fn port_forward(crictl: &Crictl) {
    let pod = crictl.pod("main");
    let main = crictl.ok(&["pods", "-q", "--name", "main"]).trim().to_owned();
    let script = "while :; do echo served | nc -l -p 8080; done";
    let config = crictl.container("serves", &crictl.image("busybox:1"), script, "");
    let id = crictl.id(&["create", &main, &config, &pod]);
    crictl.ok(&["start", &id]);
    for transport in ["spdy", "websocket"] {
        forwarded(crictl, &["port-forward", "--transport", transport, &main]);
    }
    crictl.ok(&["rm", "-f", &id]);
}

/// The command with a port of ours at its end; the pod's server is reached through it.
fn forwarded(crictl: &Crictl, args: &[&str]) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ports = format!("{port}:8080");
    let mut command = crictl.command(&[], &[args, &[ports.as_str()]].concat());
    let _child = Ending(command.stdout(Stdio::null()).spawn().unwrap());
    wait_for("the pod's server is reached", LIMIT, || {
        let mut said = String::new();
        let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { return false };
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        connection.read_to_string(&mut said).is_ok() && said == "served\n"
    });
}

/// Streaming over TLS with certificates on both sides.
pub(crate) fn over_tls(crictl: &Crictl) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    certificates(folder.path());
    let (ca, cert, key) = (path("ca.crt"), path("server.crt"), path("server.key"));
    let more = format!("[streaming]\ntls_cert = \"{cert}\"\ntls_key = \"{key}\"\ntls_client_ca = \"{ca}\"\n");
    let crictl = Crictl::new(Daemon::start_with(&more), crictl.used.clone());
    let busybox = crictl.image("busybox:1");
    crictl.ok(&["pull", &busybox]);
    let pod = crictl.pod("main");
    let main = crictl.id(&["runp", &pod]);
    let more = r#", "stdin": true"#;
    let script =
        "(while :; do echo served | nc -l -p 8080; done) & while read line; do echo heard $line; done";
    let id = crictl.id(&["create", &main, &crictl.container("talks", &busybox, script, more), &pod]);
    crictl.ok(&["start", &id]);
    let (cert, key) = (path("client.crt"), path("client.key"));
    let sure = ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key, "--tls-sni", "bowline.test"];
    for transport in ["spdy", "websocket"] {
        let args = [&["exec", "-r", transport], &sure[..], &[&id, "echo", "sealed"]].concat();
        assert_eq!(crictl.ok(&args), "sealed\n");
        forwarded(&crictl, &[&["port-forward", "-r", transport], &sure[..], &[&main]].concat());
    }
    let stranger = ["exec", "--tls-ca", &ca, "--tls-sni", "bowline.test", &id, "echo", "sealed"];
    let output = crictl.command(&[], &stranger).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "a client without a certificate");
    let file = crictl.path("attached");
    let mut command = crictl.command(&[], &[&["attach", "-i"], &sure[..], &[&id]].concat());
    command.stdin(Stdio::piped()).stdout(fs::File::create(&file).unwrap());
    let mut child = Ending(command.spawn().unwrap());
    child.0.stdin.as_mut().unwrap().write_all(b"me\n").unwrap();
    wait_for("it hears", LIMIT, || text(&file).contains("heard me"));
    child.end();
    crictl.ok(&["rmp", "-f", &main]);
}

/// An authority, and a server and a client that it vouches for.
fn certificates(folder: &std::path::Path) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    fs::write(folder.join("ca.crt"), authority.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, authority_key);
    for (name, usage) in [
        ("server", rcgen::ExtendedKeyUsagePurpose::ServerAuth),
        ("client", rcgen::ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["bowline.test".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(folder.join(format!("{name}.crt")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}
