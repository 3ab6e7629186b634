//! One line of a CRI log: `2026-11-21T12:00:00.000000000Z stdout F text`.
//!
//! The kubelet parses the time as RFC 3339 with nanoseconds; the tag is `P` for a part of a line that goes on in the
//! next record of the same stream, `F` for a whole line or its last part.

use std::time::{SystemTime, UNIX_EPOCH};

/// The longest content of one record; longer lines are split (containerd's `max_container_log_line_size`).
pub const MAX_CONTENT: usize = 16 << 10;

/// The clock, nanoseconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// Writes times; remembers the text of the current second.
#[derive(Default)]
pub struct Stamper {
    second: i64,
    text: [u8; 20],
    valid: bool,
}

impl Stamper {
    /// Appends `time`, nanoseconds since the epoch, in UTC with nine digits after the point.
    pub fn put(&mut self, time: i64, out: &mut Vec<u8>) {
        let (second, nanos) = (time.div_euclid(1_000_000_000), time.rem_euclid(1_000_000_000));
        if !self.valid || second != self.second {
            self.text = civil(second);
            self.second = second;
            self.valid = true;
        }
        out.extend_from_slice(&self.text);
        let mut digits = [b'0'; 9];
        let mut rest = nanos;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&digits);
        out.push(b'Z');
    }
}

/// `2026-11-21T12:00:00.` of a second since the epoch (days to civil date as in H. Hinnant's algorithm).
fn civil(second: i64) -> [u8; 20] {
    let (days, of_day) = (second.div_euclid(86_400), second.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00.";
    let mut put = |at: usize, width: usize, value: i64| {
        let mut rest = value;
        for digit in text[at..at + width].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, of_day / 3600);
    put(14, 2, of_day / 60 % 60);
    put(17, 2, of_day % 60);
    text
}

/// Turns the bytes of one stream into records.
///
/// What has no newline yet waits in `pending`, never more than [`MAX_CONTENT`].
pub struct Splitter {
    name: &'static [u8],
    pending: Vec<u8>,
}

impl Splitter {
    /// For the stream `name`, `stdout` or `stderr`.
    pub fn new(name: &'static str) -> Self {
        Self { name: name.as_bytes(), pending: Vec::new() }
    }

    /// Takes bytes as they arrived at `time` and appends the records that are complete.
    pub fn feed(&mut self, mut bytes: &[u8], time: i64, stamper: &mut Stamper, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = MAX_CONTENT - self.pending.len();
            let newline = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            match newline {
                Some(at) => {
                    self.emit(&bytes[..at], b" F ", time, stamper, out);
                    bytes = &bytes[at + 1..];
                }
                None if bytes.len() > room => {
                    self.emit(&bytes[..room], b" P ", time, stamper, out);
                    bytes = &bytes[room..];
                }
                None => {
                    self.pending.extend_from_slice(bytes);
                    return;
                }
            }
        }
    }

    /// The stream has ended. What is left is a part of a line that never ended, as with containerd: readers add no newline
    /// to it (k8s.io/cri-client, pkg/logs, `parseCRILog`).
    pub fn finish(&mut self, time: i64, stamper: &mut Stamper, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.emit(&[], b" P ", time, stamper, out);
        }
    }

    fn emit(&mut self, rest: &[u8], tag: &[u8], time: i64, stamper: &mut Stamper, out: &mut Vec<u8>) {
        stamper.put(time, out);
        out.push(b' ');
        out.extend_from_slice(self.name);
        out.extend_from_slice(tag);
        out.extend_from_slice(&self.pending);
        out.extend_from_slice(rest);
        out.push(b'\n');
        // Most lines arrive whole, so most streams never own a buffer.
        self.pending = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(chunks: &[&[u8]]) -> Vec<String> {
        let (mut splitter, mut stamper, mut out) = (Splitter::new("stdout"), Stamper::default(), Vec::new());
        for chunk in chunks {
            splitter.feed(chunk, 0, &mut stamper, &mut out);
        }
        splitter.finish(0, &mut stamper, &mut out);
        out.split(|b| *b == b'\n')
            .filter(|r| !r.is_empty())
            .map(|r| String::from_utf8(r[31..].to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn times_are_rfc_3339_with_nanoseconds() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_795_262_399_999_999_999, "2026-11-21T11:59:59.999999999Z"),
        ] {
            let mut out = Vec::new();
            Stamper::default().put(time, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn lines_arrive_in_any_pieces() {
        let want = vec!["stdout F one", "stdout F ", "stdout F two"];
        assert_eq!(records(&[b"one\n\ntwo\n"]), want);
        assert_eq!(records(&[b"o", b"ne", b"\n", b"\nt", b"wo", b"\n"]), want);
        // The last one never ended.
        let want = vec!["stdout F one", "stdout F ", "stdout P two"];
        assert_eq!(records(&[b"o", b"ne", b"\n", b"\nt", b"wo"]), want);
    }

    #[test]
    fn long_lines_are_split_and_joined_equal() {
        let line = vec![b'x'; 100_000];
        let parts = records(&[&line[..70_000], &line[70_000..], b"\nend\n"]);
        let (last, body) = parts.split_last().unwrap();
        assert_eq!(last, "stdout F end");
        let joined: usize = body.iter().map(|part| part.len() - "stdout P ".len()).sum();
        assert_eq!(joined, 100_000);
        assert!(
            body[..body.len() - 1]
                .iter()
                .all(|part| part.starts_with("stdout P ") && part.len() == 9 + MAX_CONTENT)
        );
        assert!(body[body.len() - 1].starts_with("stdout F "));
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole() {
        let mut line = vec![b'y'; MAX_CONTENT];
        line.push(b'\n');
        let parts = records(&[&line]);
        assert_eq!(parts.len(), 1);
        assert!(parts[0].starts_with("stdout F "));
    }
}
