//! How answers look.

mod amount;
mod table;

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::args::Output;
use crate::failure::Failure;

pub(crate) use amount::{age, binary_size, size};
pub(crate) use table::Table;

/// Characters of an id that are shown.
const SHORT: usize = 13;

/// The start of an id, enough to name it.
pub(crate) fn short(id: &str, whole: bool) -> &str {
    let bare = id.strip_prefix("sha256:").unwrap_or(id);
    match bare.char_indices().nth(SHORT) {
        Some((end, _)) if !whole => &bare[..end],
        _ => bare,
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

/// Nanoseconds since the epoch as RFC 3339, in UTC.
pub(crate) fn rfc3339(nanoseconds: i64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)) {
        Ok(time) => time.to_string(),
        Err(_) => nanoseconds.to_string(),
    }
}

/// Prints JSON or YAML.
pub(crate) fn print_value(output: Output, value: &Value) -> Result<(), Failure> {
    print(&text_of(output, value)?)
}

fn text_of(output: Output, value: &Value) -> Result<String, Failure> {
    let text = match output {
        Output::Yaml => serde_saphyr::to_string(value).map_err(|error| error.to_string()),
        Output::Json | Output::Table => {
            serde_json::to_string_pretty(value).map_err(|error| error.to_string())
        }
    };
    let mut text = text.map_err(|error| Failure::new(format!("could not print this: {error}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Writes data.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes a line of data.
pub(crate) fn print_line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Talks to people. Nobody listening is no failure.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_short() {
        assert_eq!(short("0123456789abcdef", false), "0123456789abc");
        assert_eq!(short("sha256:0123456789abcdef", false), "0123456789abc");
        assert_eq!(short("0123456789abcdef", true), "0123456789abcdef");
        assert_eq!(short("abc", false), "abc");
    }

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(rfc3339(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123456789Z");
    }

    #[test]
    fn json_and_yaml() {
        let value = serde_json::json!({"items": [{"id": "a", "state": "1"}]});
        assert_eq!(
            text_of(Output::Json, &value).unwrap(),
            "{\n  \"items\": [\n    {\n      \"id\": \"a\",\n      \"state\": \"1\"\n    }\n  ]\n}\n"
        );
        let yaml = text_of(Output::Yaml, &value).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), value, "{yaml}");
    }
}
