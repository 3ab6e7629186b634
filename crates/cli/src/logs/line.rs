//! Lines of the CRI log format: `TIME STREAM TAG TEXT`, where the tag says whether the line goes on (`P`) or ends (`F`).

use std::io::{self, Write};

use crate::failure::Failure;

/// Where a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One entry of a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub time: &'a [u8],
    pub stream: Stream,
    /// The line goes on in the next entry of its stream.
    pub partial: bool,
    pub text: &'a [u8],
}

/// Takes an entry apart. `None`: it is none.
pub(crate) fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = fields.next().filter(|time| !time.is_empty())?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Further tags may follow, separated by colons.
    let partial = match fields.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Entry { time, stream, partial, text: fields.next().unwrap_or_default() })
}

/// Since when, in nanoseconds since the epoch: a moment (RFC 3339), or for how long (`90s`, `1h30m`).
pub(crate) fn since(text: &str, now: i64) -> Result<i64, Failure> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_nanosecond().clamp(i64::MIN.into(), i64::MAX.into()) as i64);
    }
    match seconds(text) {
        Some(seconds) => Ok(now.saturating_sub(seconds.saturating_mul(1_000_000_000))),
        None => Err(Failure::hint(
            format!("`{text}` is neither a time nor a duration"),
            "2026-01-31T10:00:00Z, or 90s, 10m, 1h30m",
        )),
    }
}

/// `1h30m` in seconds; a bare number is of seconds.
fn seconds(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(seconds.into());
    }
    let mut total: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: i64 = rest.get(..digits)?.parse().ok()?;
        let unit = match rest.as_bytes().get(digits)? {
            b's' => 1,
            b'm' => 60,
            b'h' => 3_600,
            b'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(count.checked_mul(unit)?)?;
        rest = rest.get(digits + 1..)?;
    }
    (!text.is_empty()).then_some(total)
}

/// Writes entries as the container wrote them, each stream to ours of the same name.
pub(crate) struct Printer {
    since: Option<i64>,
    timestamps: bool,
    /// In the middle of a line, by stream.
    inside: [bool; 2],
}

impl Printer {
    /// A printer of what was written `since`.
    pub fn new(since: Option<i64>, timestamps: bool) -> Printer {
        Printer { since, timestamps, inside: [false; 2] }
    }

    /// Prints one line of the log file. What is no entry is shown as it is, rather than not at all.
    pub fn print(&mut self, line: &[u8], out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
        let Some(entry) = parse(line) else {
            return if self.since.is_none() { write_line(out, b"", line, true) } else { Ok(()) };
        };
        if self.since.is_some_and(|since| is_before(entry.time, since)) {
            return Ok(());
        }
        let inside = &mut self.inside[entry.stream as usize];
        let mut prefix = Vec::new();
        if self.timestamps && !*inside {
            prefix.extend_from_slice(entry.time);
            prefix.push(b' ');
        }
        *inside = entry.partial;
        match entry.stream {
            Stream::Stdout => write_line(out, &prefix, entry.text, !entry.partial),
            Stream::Stderr => write_line(err, &prefix, entry.text, !entry.partial),
        }
    }
}

fn write_line(to: &mut dyn Write, prefix: &[u8], text: &[u8], end: bool) -> io::Result<()> {
    to.write_all(prefix)?;
    to.write_all(text)?;
    if end { to.write_all(b"\n") } else { Ok(()) }
}

fn is_before(time: &[u8], since: i64) -> bool {
    let time = std::str::from_utf8(time).ok().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    time.is_some_and(|time| time.as_nanosecond() < i128::from(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let entry = parse(b"2026-01-01T00:00:00.5Z stdout F a  b ").unwrap();
        assert_eq!((entry.stream, entry.partial, entry.text), (Stream::Stdout, false, &b"a  b "[..]));
        assert!(parse(b"2026-01-01T00:00:00Z stderr P:more x").unwrap().partial);
        assert_eq!(parse(b"2026-01-01T00:00:00Z stderr F ").unwrap().text, b"");
        assert_eq!(parse(b"2026-01-01T00:00:00Z stderr F").unwrap().text, b"");
        for bad in [&b""[..], b"text", b"T stdin F x", b"T stdout X x"] {
            assert_eq!(parse(bad), None);
        }
    }

    fn printed(printer: &mut Printer, lines: &[&str]) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for line in lines {
            printer.print(line.as_bytes(), &mut out, &mut err).unwrap();
        }
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    const LINES: [&str; 5] = [
        "2026-01-01T00:00:01Z stdout P one ",
        "2026-01-01T00:00:02Z stderr F oops",
        "2026-01-01T00:00:03Z stdout P line",
        "2026-01-01T00:00:04Z stdout F ",
        "2026-01-01T00:00:05Z stdout F two",
    ];

    #[test]
    fn parts_are_joined_and_streams_kept_apart() {
        let (out, err) = printed(&mut Printer::new(None, false), &LINES);
        assert_eq!((out.as_str(), err.as_str()), ("one line\ntwo\n", "oops\n"));
    }

    #[test]
    fn a_joined_line_has_the_time_of_its_beginning() {
        let (out, err) = printed(&mut Printer::new(None, true), &LINES);
        assert_eq!(out, "2026-01-01T00:00:01Z one line\n2026-01-01T00:00:05Z two\n");
        assert_eq!(err, "2026-01-01T00:00:02Z oops\n");
    }

    #[test]
    fn only_since() {
        let since = since("2026-01-01T00:00:05Z", 0).unwrap();
        assert_eq!(printed(&mut Printer::new(Some(since), false), &LINES).0, "two\n");
    }

    #[test]
    fn times_and_durations() {
        let now = 10_000_000_000_000;
        assert_eq!(since("90s", now).unwrap(), now - 90_000_000_000);
        assert_eq!(since("90", now).unwrap(), now - 90_000_000_000);
        assert_eq!(since("1h30m", now).unwrap(), now - 5_400_000_000_000);
        assert_eq!(since("1970-01-01T01:00:01+01:00", now).unwrap(), 1_000_000_000);
        for bad in ["", "x", "5x", "h", "99999999999999999999s"] {
            assert!(since(bad, now).is_err(), "{bad}");
        }
    }
}
