//! Ages and sizes for people, as docker, crictl and kubectl write them.

/// How long ago `then` was. Both in nanoseconds since the epoch.
pub(crate) fn age(then: i64, now: i64) -> String {
    if then <= 0 {
        return "unknown".to_owned();
    }
    format!("{} ago", duration(now.saturating_sub(then).max(0) as u64 / 1_000_000_000))
}

/// A number of seconds in words.
fn duration(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        0 => "less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "about a minute".to_owned(),
        120..HOUR => format!("{} minutes", seconds / MINUTE),
        HOUR..7200 => "about an hour".to_owned(),
        7200..172_800 => format!("{} hours", seconds / HOUR),
        172_800..1_209_600 => format!("{} days", seconds / DAY),
        1_209_600..5_184_000 => format!("{} weeks", seconds / (7 * DAY)),
        5_184_000..63_072_000 => format!("{} months", seconds / (30 * DAY)),
        _ => format!("{} years", seconds / (365 * DAY)),
    }
}

/// Bytes in powers of 1000: what disks and images are measured in.
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// Bytes in powers of 1024: what memory is measured in.
pub(crate) fn binary_size(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Three digits that count, and a unit.
fn scaled(bytes: u64, base: f64, units: &[&str]) -> String {
    let mut amount = bytes as f64;
    let mut unit = 0;
    // What would round up to four digits goes on to the next unit.
    while amount >= base.min(999.5) && unit + 1 < units.len() {
        amount /= base;
        unit += 1;
    }
    let digits = match amount {
        _ if unit == 0 => 0,
        small if small < 9.995 => 2,
        middle if middle < 99.95 => 1,
        _ => 0,
    };
    let mut text = format!("{amount:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + units[unit]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let ago = |seconds: i64| age(1, 1 + seconds * 1_000_000_000);
        assert_eq!(ago(0), "less than a second ago");
        assert_eq!(ago(1), "1 second ago");
        assert_eq!(ago(59), "59 seconds ago");
        assert_eq!(ago(61), "about a minute ago");
        assert_eq!(ago(125), "2 minutes ago");
        assert_eq!(ago(3_700), "about an hour ago");
        assert_eq!(ago(7_200), "2 hours ago");
        assert_eq!(ago(3 * 86_400), "3 days ago");
        assert_eq!(ago(15 * 86_400), "2 weeks ago");
        assert_eq!(ago(100 * 86_400), "3 months ago");
        assert_eq!(ago(800 * 86_400), "2 years ago");
        assert_eq!(age(0, 5), "unknown");
        assert_eq!(age(9_000_000_000, 5), "less than a second ago", "a clock that was set back");
    }

    #[test]
    fn sizes() {
        assert_eq!(size(0), "0B");
        assert_eq!(size(999), "999B");
        assert_eq!(size(1_000), "1kB");
        assert_eq!(size(1_855_000), "1.85MB");
        assert_eq!(size(18_550_000), "18.6MB");
        assert_eq!(size(185_500_000), "186MB");
        assert_eq!(size(999_999_999), "1GB");
        assert_eq!(size(u64::MAX), "18.4EB");
        assert_eq!(binary_size(1_536), "1.5KiB");
        assert_eq!(binary_size(1 << 30), "1GiB");
    }
}
