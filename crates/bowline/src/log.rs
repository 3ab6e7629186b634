//! The daemon's own log, on standard error.

use std::io::IsTerminal as _;

use std::fmt;
use std::os::unix::fs::MetadataExt as _;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::traces::Traces;

/// What is worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// What an operator must look at.
    Error,
    /// What an operator should look at.
    Warn,
    /// What happened to the daemon, and calls that were refused.
    #[default]
    Info,
    /// Every call.
    Debug,
    /// Everything.
    Trace,
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts the log, and collects spans if anybody wants them. The transport's own libraries only get to warn: their debug
/// output is a line per frame, with the bytes of requests in it, secrets and all.
///
/// Where standard error is systemd's journal, lines say their priority and no time: the journal knows both better.
pub(crate) fn init(level: Level, format: Format, traces: Option<&Traces>) {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let quiet = level.min(LevelFilter::WARN);
    let foreign = ["h2", "hyper", "hyper_util", "opentelemetry", "tonic", "tower", "rustls"];
    let targets = Targets::new()
        .with_default(level)
        .with_targets(foreign.map(|name| (name, quiet)))
        .with_target(bowline_pods::SPANS, LevelFilter::OFF);
    let registry = tracing_subscriber::registry().with(traces.map(Traces::layer));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // Fails only where a log runs already, which then serves.
    let _ = match (format, to_journal()) {
        (Format::Text, false) => {
            registry.with(layer.with_ansi(std::io::stderr().is_terminal()).with_filter(targets)).try_init()
        }
        (Format::Json, false) => registry.with(layer.json().with_filter(targets)).try_init(),
        (Format::Text, true) => {
            let layer = layer.with_ansi(false).without_time().map_event_format(Prefixed);
            registry.with(layer.with_filter(targets)).try_init()
        }
        (Format::Json, true) => {
            registry.with(layer.json().map_event_format(Prefixed).with_filter(targets)).try_init()
        }
    };
}

/// Whether standard error goes to the journal: JOURNAL_STREAM is device and inode of what systemd gave to the unit, which
/// may have been redirected since (systemd.exec(5)).
fn to_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|meta| is_stream(&stream, meta.dev(), meta.ino()))
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(dev, ino)| dev.parse() == Ok(device) && ino.parse() == Ok(inode))
}

/// Lines that begin with their priority (sd-daemon(3)).
struct Prefixed<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prefixed<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// syslog(3): 3 is an error, 4 a warning, 6 a piece of information, 7 for debugging.
fn priority(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => 3,
        tracing::Level::WARN => 4,
        tracing::Level::INFO => 6,
        tracing::Level::DEBUG | tracing::Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_for_the_journal_begin_with_their_priority() {
        let lines = Lines::default();
        let to = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || to.clone());
        let layer = layer.with_ansi(false).without_time().map_event_format(Prefixed);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::error!(target: "t", "one");
            tracing::info!(target: "t", number = 2, "two");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<3>ERROR t: one\n<6> INFO t: two number=2\n");
    }

    #[test]
    fn a_stream_is_known_by_device_and_inode() {
        assert!(is_stream("8:42", 8, 42));
        for other in ["8:43", "9:42", "", "8", "8:", "x:42"] {
            assert!(!is_stream(other, 8, 42), "{other}");
        }
    }
}
