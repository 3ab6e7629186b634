//! The daemon's own log, on standard error.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
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
    let _ = match format {
        Format::Text => {
            registry.with(layer.with_ansi(std::io::stderr().is_terminal()).with_filter(targets)).try_init()
        }
        Format::Json => registry.with(layer.json().with_filter(targets)).try_init(),
    };
}
