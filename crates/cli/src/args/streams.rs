//! Commands on the streams of containers and pods.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ports;

/// `logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on until the container ends
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only the last so many lines
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// Only since a time (RFC 3339) or for a while (90s, 10m, 1h30m)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Show when each line was written
    #[arg(long, short)]
    pub(crate) timestamps: bool,
    /// The container of this name that ran before
    #[arg(long, short)]
    pub(crate) previous: bool,
    /// Id, start of an id, or name
    pub(crate) container: String,
}

/// How to speak to the streaming server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// WebSocket, and SPDY where that is refused
    #[default]
    Auto,
    /// WebSocket only
    Websocket,
    /// SPDY only
    Spdy,
}

/// How to reach the streaming server.
#[derive(Clone, Debug, Default, Args)]
pub struct StreamArgs {
    /// How to speak to the streaming server
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) transport: Transport,
    /// Authorities of its certificate, if it has one [default: those of this machine]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
}

/// `exec`
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Pass stdin on
    #[arg(long, short, conflicts_with = "kill_after")]
    pub(crate) interactive: bool,
    /// With a terminal
    #[arg(long, short, conflicts_with = "kill_after")]
    pub(crate) tty: bool,
    /// Seconds until the command is killed [default: never]
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub(crate) kill_after: i64,
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
    /// Id, start of an id, or name
    pub(crate) container: String,
    /// What to run
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// `attach`
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Pass stdin on
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// The container has a terminal: so has this
    #[arg(long, short)]
    pub(crate) tty: bool,
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
    /// Id, start of an id, or name
    pub(crate) container: String,
}

/// `port-forward`
#[derive(Debug, Args)]
pub struct PortForwardArgs {
    /// Where to listen; may be given several times [default: 127.0.0.1 and ::1]
    #[arg(long, value_name = "IP")]
    pub(crate) address: Vec<std::net::IpAddr>,
    #[command(flatten)]
    pub(crate) stream: StreamArgs,
    /// The pod (id, start of an id, name or NAMESPACE/NAME)
    pub(crate) pod: String,
    /// Ports; an empty LOCAL, or 0: any that is free
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = ports)]
    pub(crate) ports: Vec<(u16, u16)>,
}
