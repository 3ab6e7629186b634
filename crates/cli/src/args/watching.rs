//! Commands that watch what goes on.

use clap::{Args, ValueEnum};

use super::{Output, seconds};

/// `stats`
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// How to print
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) output: Output,
    /// Go on, with a new look every so often
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Seconds between the two looks that CPU% comes from
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Those that do not run as well
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Only these (ids, starts of ids, or names)
    pub(crate) containers: Vec<String>,
}

/// `top`
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Seconds between two looks
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// What comes first
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) sort: SortBy,
    /// Print one screen and stop
    #[arg(long)]
    pub(crate) once: bool,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    /// CPU in use
    Cpu,
    /// Memory in use
    Memory,
    /// Names
    Name,
}

/// `events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// How to print; JSON is one object per line
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) output: Output,
    /// Only of this pod (id or name)
    #[arg(long)]
    pub(crate) pod: Option<String>,
    /// Stop after so many
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub(crate) count: Option<u64>,
}

/// `ops`
#[derive(Debug, Args)]
pub struct OpsArgs {
    /// How to print
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) output: Output,
    /// Go on, with a new look every second
    #[arg(long, short)]
    pub(crate) watch: bool,
}
