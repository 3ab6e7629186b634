//! The one program in the images of `bowline check`: it does what it is told and says what it sees.
//!
//! Its words are a list of operations parted by `;`, run in order: `bowline-check-helper ids ; serve tcp 80 hello ; pause`.
//! What an operation finds goes to standard output as `key=value` lines, a failure as `<operation>.error=<ERRNO>`;
//! no assertion therefore rests on the wording of a shell. It is static and needs nothing else in its image.

mod act;
mod file;
mod net;
mod process;
mod see;

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    for operation in words.split(|word| word == ";") {
        let Some((name, rest)) = operation.split_first() else { continue };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match perform(name, &rest) {
            Some(Ok(())) => {}
            Some(Err(error)) => say(&format!("{name}.error"), errno_name(&error).as_bytes()),
            None => {
                eprintln!("no such operation: {name} {rest:?}");
                return ExitCode::from(64);
            }
        }
    }
    ExitCode::SUCCESS
}

/// Runs one operation; `None` if there is no such thing.
fn perform(name: &str, rest: &[&str]) -> Option<std::io::Result<()>> {
    see::perform(name, rest)
        .or_else(|| file::perform(name, rest))
        .or_else(|| net::perform(name, rest))
        .or_else(|| process::perform(name, rest))
        .or_else(|| act::perform(name, rest))
}

/// Prints one `key=value` line; bytes that are not plain ASCII are escaped as in Rust.
fn say(key: &str, value: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{key}={}", value.escape_ascii());
    let _ = out.flush();
}

/// `EPERM` and the like for what we assert on, the number for the rest.
fn errno_name(error: &std::io::Error) -> String {
    use rustix::io::Errno;
    let Some(number) = error.raw_os_error() else { return format!("{:?}", error.kind()) };
    let known = [
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::ACCESS, "EACCES"),
        (Errno::ROFS, "EROFS"),
        (Errno::EXIST, "EEXIST"),
        (Errno::NOTDIR, "ENOTDIR"),
        (Errno::ISDIR, "EISDIR"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::BUSY, "EBUSY"),
        (Errno::CONNREFUSED, "ECONNREFUSED"),
        (Errno::NETUNREACH, "ENETUNREACH"),
        (Errno::HOSTUNREACH, "EHOSTUNREACH"),
        (Errno::TIMEDOUT, "ETIMEDOUT"),
        (Errno::NODEV, "ENODEV"),
        (Errno::NXIO, "ENXIO"),
    ];
    let found = known.iter().find(|(errno, _)| errno.raw_os_error() == number);
    found.map_or_else(|| format!("errno {number}"), |(_, name)| (*name).to_owned())
}
