//! Ends, signals and children.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process, setsid};
use signal_hook::iterator::Signals;

use crate::say;

/// The program itself, wherever its image has it.
const SELF: &str = "/proc/self/exe";

pub(crate) fn perform(name: &str, rest: &[&str]) -> Option<io::Result<()>> {
    Some(match (name, rest) {
        ("pause", []) => loop {
            std::thread::park();
        },
        // What a sandbox's first process does: asks for every child that ends.
        ("init", []) => loop {
            if rustix::process::wait(rustix::process::WaitOptions::empty()).is_err() {
                std::thread::sleep(Duration::from_millis(50));
            }
        },
        ("sleep", [milliseconds]) => {
            number(milliseconds).map(|span| std::thread::sleep(Duration::from_millis(span)))
        }
        ("exit", [code]) => number(code).map(|code| std::process::exit(i32::try_from(code).unwrap_or(255))),
        ("kill", [signal]) => by_name(signal).and_then(|signal| Ok(kill_process(getpid(), signal)?)),
        ("on", [signal, "ignore"]) => on(signal, None),
        ("on", [signal, code]) => number(code).and_then(|code| on(signal, i32::try_from(code).ok())),
        // A child in the same group; it ends only by being ended.
        ("spawn", words) => spawn(words),
        // A grandchild of its own session whose parent is gone: what a daemon does to get away.
        ("detach", words) => detach(words),
        ("become-detached", words) => {
            let _ = setsid();
            spawn(words)
        }
        // Runs to its end, here.
        ("run", words) => run(words),
        _ => return None,
    })
}

fn number(word: &str) -> io::Result<u64> {
    word.parse().map_err(io::Error::other)
}

fn by_name(name: &str) -> io::Result<Signal> {
    Ok(match name {
        "TERM" => Signal::TERM,
        "INT" => Signal::INT,
        "HUP" => Signal::HUP,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "QUIT" => Signal::QUIT,
        "KILL" => Signal::KILL,
        "ABRT" => Signal::ABORT,
        "SEGV" => Signal::SEGV,
        _ => return Err(io::Error::other("no such signal")),
    })
}

/// From now on the signal ends us with the code, or is counted and said.
fn on(signal: &str, code: Option<i32>) -> io::Result<()> {
    let number = by_name(signal)?.as_raw();
    let mut signals = Signals::new([number])?;
    let signal = signal.to_owned();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            say("signal", signal.as_bytes());
            if let Some(code) = code {
                let _ = io::stdout().flush();
                std::process::exit(code);
            }
        }
    });
    Ok(())
}

/// `,` parts the child's operations, as `;` parts ours.
fn child(words: &[&str]) -> Command {
    let mut command = Command::new(SELF);
    command.args(words.iter().map(|word| if *word == "," { ";" } else { word }));
    command
}

fn spawn(words: &[&str]) -> io::Result<()> {
    let child = child(words).spawn()?;
    say("child", child.id().to_string().as_bytes());
    Ok(())
}

fn detach(words: &[&str]) -> io::Result<()> {
    let status = Command::new(SELF).arg("become-detached").args(words).status()?;
    say("detached", status.code().unwrap_or(-1).to_string().as_bytes());
    Ok(())
}

fn run(words: &[&str]) -> io::Result<()> {
    let status = child(words).stdin(Stdio::null()).status()?;
    say("status", format!("{status}").as_bytes());
    Ok(())
}
