//! Where the last lines of a file begin, found from its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const PIECE: u64 = 64 << 10;

/// The offset of the last `lines` lines. Entries that belong to one long line count one by one, as with the kubelet.
pub(crate) fn start_of_last(path: &Path, lines: usize) -> io::Result<u64> {
    let file = File::open(path)?;
    let end = file.metadata()?.len();
    let mut upper = end;
    let mut found = 0;
    let mut piece = vec![0; PIECE as usize];
    while upper > 0 {
        let lower = upper.saturating_sub(PIECE);
        let part = &mut piece[..(upper - lower) as usize];
        file.read_exact_at(part, lower)?;
        for at in (0..part.len()).rev().filter(|at| part[*at] == b'\n') {
            let after = lower + at as u64 + 1;
            // The end of the last line begins no further one.
            if after == end && lines > 0 {
                continue;
            }
            found += 1;
            if found >= lines {
                return Ok(after);
            }
        }
        upper = lower;
    }
    Ok(if lines == 0 { end } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(text: &str, lines: usize) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let start = start_of_last(file.path(), lines).unwrap();
        text[start as usize..].to_owned()
    }

    #[test]
    fn the_last_lines() {
        assert_eq!(last("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last("a\nb\nc", 2), "b\nc");
        assert_eq!(last("a\nb\nc\n", 9), "a\nb\nc\n");
        assert_eq!(last("a\nb\n", 0), "");
        assert_eq!(last("", 3), "");
        assert_eq!(last("\n\n\n", 1), "\n");
        let long = "x".repeat(100_000) + "\n";
        assert_eq!(last(&long.repeat(3), 2), long.repeat(2));
    }
}
