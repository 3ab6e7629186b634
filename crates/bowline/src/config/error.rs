//! What is wrong with a configuration, said so that it can be put right at once.

use std::io;
use std::path::{Path, PathBuf};

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A file cannot be read.
    #[error("could not read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is wrong.
    #[error("{}{}: {problem}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where, counted from 1.
        line: Option<usize>,
        /// What is wrong, and what may have been meant.
        problem: String,
    },
    /// A value makes no sense.
    #[error("{key}: {reason}")]
    Value {
        /// Of which key.
        key: &'static str,
        /// Why not.
        reason: String,
    },
}

impl ConfigError {
    pub(super) fn value(key: &'static str, reason: String) -> ConfigError {
        ConfigError::Value { key, reason }
    }

    pub(super) fn parse(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        ConfigError::Parse { path: path.to_owned(), line, problem: explain(error.message()) }
    }
}

/// Serde tells of an unknown key with all the keys there are: ``unknown field `a`, expected one of `b`, `c` ``. The one
/// that was meant is put first.
fn explain(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let kind = match message {
        text if text.starts_with("unknown field") => "key",
        text if text.starts_with("unknown variant") => "value",
        _ => return message.to_owned(),
    };
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<_> = quoted.collect();
    match known.iter().map(|known| (distance(unknown, known), known)).min() {
        Some((far, meant)) if far <= 1 + unknown.len() / 3 => {
            format!("there is no {kind} `{unknown}` here; did you mean `{meant}`?")
        }
        _ => format!("there is no {kind} `{unknown}` here; there are {}", known.join(", ")),
    }
}

/// How many letters must be added, removed or changed to make one word of the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let changed = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (from, to, expected) in
            [("", "", 0), ("abc", "abc", 0), ("lisen", "listen", 1), ("rot", "root", 1), ("a", "xyz", 3)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }
}
