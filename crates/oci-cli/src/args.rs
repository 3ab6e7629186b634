//! The command line.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `bowline oci ..`
#[derive(Debug, Args)]
pub struct OciArgs {
    /// Folder of the containers' states
    #[arg(long, value_name = "DIR", default_value = "/run/bowline/oci")]
    pub(crate) root: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a container from a bundle; its program does not run yet
    Create(CreateArgs),
    /// Run the program of a created container
    Start {
        /// Name of the container
        id: String,
    },
    /// Show the state of a container, as JSON
    State {
        /// Name of the container
        id: String,
    },
    /// Send a signal to a container
    Kill {
        /// To every process of the container
        #[arg(long, short)]
        all: bool,
        /// Name of the container
        id: String,
        /// Name or number
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Remove a stopped container
    Delete {
        /// Kill it first if it runs; a missing one is fine
        #[arg(long, short)]
        force: bool,
        /// Name of the container
        id: String,
    },
    /// Run a further process in a running container, and end as it does
    Exec(ExecArgs),
    /// Create, start, wait and delete; ends as the program does
    Run(CreateArgs),
    /// List the containers
    List {
        /// How
        #[arg(long, short, value_enum, default_value_t = Format::Table)]
        format: Format,
        /// Only names
        #[arg(long, short)]
        quiet: bool,
    },
    /// Show what this runtime can do, as JSON
    Features,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Folder with config.json
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// File to write the process number to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Unix socket that is sent the terminal of the program
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Name of the container
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// Further variables
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Somebody else, by number
    #[arg(long, short, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// Not supported
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Do not wait for its end
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// File to write the process number to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Name of the container
    pub(crate) id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}
