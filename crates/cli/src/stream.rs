//! A session with a command or a container: our terminal at one end, its streams at the other.

use std::io::{self, IsTerminal as _, Write};

use bowline_streaming::client::{self, ClientError, Command, Driver, Transport as Wire, Wanted};
use bowline_streaming::{Gone, Incoming, Outcome, Outgoing};
use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{StreamArgs, Transport};
use crate::exec::exit_code;
use crate::failure::{Done, Failure};

/// What is read at once.
const READ: usize = 16 << 10;

/// Begins a session, is its user's terminal, and gives its exit code. `ask` gets an address from the runtime, which is
/// good for one try.
pub(crate) async fn session(
    ask: impl AsyncFn() -> Result<String, Failure>,
    what: &str,
    how: &StreamArgs,
    stdin: bool,
    tty: bool,
) -> Done {
    let wanted = Wanted { stdin, stdout: true, stderr: !tty, terminal: tty };
    let begin =
        async |wire, address: String| client::command(&address, how.tls_ca.as_ref(), wire, wanted).await;
    let (streams, driver) =
        with_fallback(ask, how.transport, begin).await.map_err(|failure| match failure {
            Trouble::Asking(failure) => failure,
            Trouble::Streaming(error) => failed(what, &error),
        })?;
    // Our terminal passes every key on while theirs makes sense of them.
    let raw = (stdin && tty).then(Raw::set).flatten();
    let outcome = converse(streams, driver, tty).await;
    drop(raw);
    match outcome {
        Ok(Outcome::Success) => Ok(0),
        Ok(Outcome::Code(code)) => Ok(exit_code(code)),
        Ok(Outcome::Failed(text)) => Err(Failure::new(format!("could not {what}: {text}"))),
        Err(Gone) => Err(Failure::hint(
            format!("could not {what} to its end: the connection was lost"),
            "again; the daemon's log may say more",
        )),
    }
}

/// Why there is no session.
pub(crate) enum Trouble {
    /// The runtime gave no address.
    Asking(Failure),
    /// The streaming server cannot be used.
    Streaming(ClientError),
}

/// WebSocket first; a runtime whose streaming server does not have this protocol is asked for another address, for SPDY.
pub(crate) async fn with_fallback<T>(
    ask: impl AsyncFn() -> Result<String, Failure>,
    transport: Transport,
    begin: impl AsyncFn(Wire, String) -> Result<T, ClientError>,
) -> Result<T, Trouble> {
    let wire = if transport == Transport::Spdy { Wire::Spdy } else { Wire::WebSocket };
    let address = ask().await.map_err(Trouble::Asking)?;
    match begin(wire, address).await {
        Err(ClientError::Refused { .. }) if transport == Transport::Auto => {
            let address = ask().await.map_err(Trouble::Asking)?;
            begin(Wire::Spdy, address).await.map_err(Trouble::Streaming)
        }
        other => other.map_err(Trouble::Streaming),
    }
}

/// Says what did not work, with its causes.
pub(crate) fn failed(what: &str, error: &ClientError) -> Failure {
    Failure::new(format!("could not {what}: {}", bowline_pods::chain(error)))
}

async fn converse(streams: Command, mut driver: Driver, tty: bool) -> Result<Outcome, Gone> {
    let Command { stdin, resize, stdout, stderr, mut error } = streams;
    let work = async {
        let (_, _, outcome) = tokio::join!(
            print(stdout, io::stdout()),
            print(stderr, io::stderr()),
            client::outcome(&mut error)
        );
        outcome
    };
    tokio::pin!(work);
    let input = async {
        tokio::join!(feed(stdin), sizes(resize.filter(|_| tty)));
        std::future::pending::<()>().await;
    };
    tokio::pin!(input);
    let mut connected = true;
    loop {
        tokio::select! {
            outcome = &mut work => return outcome,
            () = &mut input, if connected => {}
            // What has arrived is still printed.
            _ = &mut driver, if connected => {
                connected = false;
                driver = Box::pin(std::future::pending());
            }
        }
    }
}

/// Prints what comes. Whoever has closed our output gets no more of it.
async fn print(from: Option<Incoming>, mut to: impl Write) {
    let Some(mut from) = from else { return };
    while let Ok(Some(bytes)) = from.next().await {
        if to.write_all(&bytes).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

async fn feed(to: Option<Outgoing>) {
    let Some(mut to) = to else { return };
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; READ];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(len) => {
                if to.send(Bytes::copy_from_slice(&buffer[..len])).await.is_err() {
                    return;
                }
            }
        }
    }
    let _ = to.end().await;
}

/// Tells of our terminal's size, now and whenever it changes.
async fn sizes(to: Option<Outgoing>) {
    let Some(mut to) = to else { return };
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = tcgetwinsize(io::stdout())
            && to.send(client::size(size.ws_row, size.ws_col)).await.is_err()
        {
            return;
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}

/// Our terminal in raw mode, until this is dropped.
struct Raw(Termios);

impl Raw {
    /// `None` if stdin is no terminal.
    fn set() -> Option<Raw> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}
