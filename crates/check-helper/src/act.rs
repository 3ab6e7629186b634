//! Output in bulk, and hunger for memory and time.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::say;

pub(crate) fn perform(name: &str, rest: &[&str]) -> Option<io::Result<()>> {
    Some(match (name, rest) {
        ("say", words) => {
            println!("{}", words.join(" "));
            Ok(())
        }
        ("complain", words) => {
            eprintln!("{}", words.join(" "));
            Ok(())
        }
        ("bytes", [stream, hex]) => bytes(stream, hex),
        ("pattern", [stream, count]) => pattern(stream, count),
        ("numbers", [stream, count, width]) => numbers(stream, count, width),
        // For ever, or as long as anybody lets us.
        ("count", [microseconds]) => count(microseconds),
        ("eat", [mebibytes]) => eat(mebibytes),
        ("burn", [milliseconds]) => burn(milliseconds),
        ("copy", []) => io::copy(&mut io::stdin().lock(), &mut io::stdout()).map(drop),
        ("await-window", [rows, columns]) => await_window(rows, columns),
        ("await-file", [path]) => await_file(path),
        ("hostname", [name]) => rustix::system::sethostname(name.as_bytes()).map_err(Into::into),
        _ => return None,
    })
}

fn number(word: &str) -> io::Result<usize> {
    word.parse().map_err(io::Error::other)
}

fn stream(name: &str) -> Box<dyn Write> {
    match name {
        "err" => Box::new(io::stderr()),
        _ => Box::new(io::stdout()),
    }
}

fn bytes(name: &str, hex: &str) -> io::Result<()> {
    let mut out = stream(name);
    for at in (0..hex.len()).step_by(2) {
        let pair = hex.get(at..at + 2).ok_or_else(|| io::Error::other("odd hex"))?;
        out.write_all(&[u8::from_str_radix(pair, 16).map_err(io::Error::other)?])?;
    }
    out.flush()
}

/// So many bytes `abc..xyzabc..` without any newline.
fn pattern(name: &str, count: &str) -> io::Result<()> {
    let block: Vec<u8> = (b'a'..=b'z').cycle().take(26 * 2048).collect();
    let (mut out, mut left) = (stream(name), number(count)?);
    while left > 0 {
        let part = left.min(block.len());
        out.write_all(&block[..part])?;
        left -= part;
    }
    out.flush()
}

/// So many lines of a width (newline included), each starting with its number in eight digits.
fn numbers(name: &str, count: &str, width: &str) -> io::Result<()> {
    let (count, width) = (number(count)?, number(width)?);
    let mut out = io::BufWriter::with_capacity(64 << 10, stream(name));
    let filling = ".".repeat(width.saturating_sub(9));
    for line in 0..count {
        writeln!(out, "{line:08}{filling}")?;
    }
    out.flush()
}

fn count(microseconds: &str) -> io::Result<()> {
    let gap = Duration::from_micros(number(microseconds)? as u64);
    for line in 0u64.. {
        println!("{line:08}");
        std::thread::sleep(gap);
    }
    Ok(())
}

/// Touches so much memory and keeps it.
fn eat(mebibytes: &str) -> io::Result<()> {
    let mut kept = Vec::new();
    for _ in 0..number(mebibytes)? {
        let mut piece = vec![0u8; 1 << 20];
        piece.chunks_mut(4096).for_each(|page| page[0] = 1);
        kept.push(piece);
    }
    std::hint::black_box(&kept);
    std::mem::forget(kept);
    say("eaten", mebibytes.as_bytes());
    Ok(())
}

fn burn(milliseconds: &str) -> io::Result<()> {
    let end = Instant::now() + Duration::from_millis(number(milliseconds)? as u64);
    let mut value = 0u64;
    while Instant::now() < end {
        value = std::hint::black_box(value.wrapping_mul(31).wrapping_add(7));
    }
    say("burnt", milliseconds.as_bytes());
    Ok(())
}

/// Waits until the terminal has this size.
fn await_window(rows: &str, columns: &str) -> io::Result<()> {
    let (rows, columns) = (number(rows)?, number(columns)?);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let size = rustix::termios::tcgetwinsize(io::stdout())?;
        if (usize::from(size.ws_row), usize::from(size.ws_col)) == (rows, columns) {
            say("window", format!("{rows} {columns}").as_bytes());
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn await_file(path: &str) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !std::path::Path::new(path).exists() {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
