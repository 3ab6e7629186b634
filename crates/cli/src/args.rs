//! What can be said on the command line.

mod node;
mod streams;
mod watching;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::run::RunArgs;

pub use node::{DoctorArgs, InstallArgs, ResetArgs, UninstallArgs};
pub use streams::{AttachArgs, ExecArgs, LogsArgs, PortForwardArgs, StreamArgs, Transport};
pub use watching::{EventsArgs, OpsArgs, SortBy, StatsArgs, TopArgs};

/// The client part of `bowline`, complete with its global flags.
#[derive(Debug, Parser)]
#[command(name = "bowline", about = "Talk to a Kubernetes container runtime")]
pub struct ClientArgs {
    /// Where the runtime listens [default: $BOWLINE_ENDPOINT, else unix:///run/bowline/bowline.sock]
    #[arg(long, short = 'r', global = true, value_name = "unix:///PATH")]
    pub endpoint: Option<String>,
    /// How long a call may take, in seconds [default: 30]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<f64>,
    /// What to do.
    #[command(subcommand)]
    pub command: ClientCommand,
}

/// A client command.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Show the versions of the runtime and its interface
    Version(OutputArgs),
    /// Show the state of the runtime and its network
    Info(OutputArgs),
    /// List pods
    Pods(PodsArgs),
    /// List containers: those that run, or all with -a
    Ps(PsArgs),
    /// List images
    Images(ImagesArgs),
    /// Pull an image
    Pull(PullArgs),
    /// Run a command in a new pod of one container
    Run(Box<RunArgs>),
    /// Bring up a pod from a JSON or YAML file
    Runp(RunpArgs),
    /// Make a container in a pod, without starting it
    Create(CreateArgs),
    /// Start containers that were made
    Start(ContainersArgs),
    /// Stop containers
    Stop(StopArgs),
    /// Write a running container into an archive; it goes on
    Checkpoint(CheckpointArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Stop pods
    Stopp(PodNamesArgs),
    /// Remove pods
    Rmp(RmpArgs),
    /// Show what a container wrote
    Logs(LogsArgs),
    /// Run a command in a container
    Exec(ExecArgs),
    /// Take part in what a container's own process reads and writes
    Attach(AttachArgs),
    /// Reach ports of a pod from this machine
    PortForward(PortForwardArgs),
    /// Show all about containers
    Inspect(InspectArgs),
    /// Show all about pods
    Inspectp(InspectArgs),
    /// Show all about images
    Inspecti(InspectArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Show what containers use
    Stats(StatsArgs),
    /// Watch pods and containers: what they use, and what is being done to them
    Top(TopArgs),
    /// Show what happens to pods and containers, from now on
    Events(EventsArgs),
    /// Show what is being done right now, at which stage, and for how long
    Ops(OpsArgs),
    /// Bring images in from archives, write them to archives
    Image(ImageArgs),
    /// Check this machine, and look for anything left behind
    Doctor(DoctorArgs),
    /// Install the programs, the units and a configuration
    Install(InstallArgs),
    /// Remove what `install` wrote
    Uninstall(UninstallArgs),
    /// Give back what a daemon that has ended keeps on this machine: networks and cgroups
    Reset(ResetArgs),
    /// Print a completion script for a shell
    Completion {
        /// Which shell
        shell: Shell,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// As crictl prints it
    Json,
    /// The same as YAML
    Yaml,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// How to print
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
}

/// How to print, and ids only.
#[derive(Clone, Copy, Debug, Args)]
pub struct ListArgs {
    /// How to print
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
    /// Print ids only
    #[arg(long, short)]
    pub quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
}

/// `pods`
#[derive(Debug, Args)]
pub struct PodsArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Only this id, or ids that start like this
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Only names that contain this
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Only this Kubernetes namespace
    #[arg(long)]
    pub(crate) namespace: Option<String>,
    /// Only with this label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
    /// Only in this state
    #[arg(long, short, value_enum)]
    pub(crate) state: Option<PodState>,
    /// Only the newest
    #[arg(long, short)]
    pub(crate) latest: bool,
    /// Only the newest so many
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub(crate) last: Option<usize>,
}

/// States of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PodState {
    /// It can take containers
    Ready,
    /// It is down
    #[value(alias = "not-ready")]
    Notready,
}

/// `ps`
#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Those that do not run as well
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Only this id, or ids that start like this
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Only names that contain this
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Only of this pod (id or name)
    #[arg(long, short)]
    pub(crate) pod: Option<String>,
    /// Only of this image (name, tag, digest or id)
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Only with this label; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) label: Vec<(String, String)>,
    /// Only in this state
    #[arg(long, short, value_enum)]
    pub(crate) state: Option<State>,
    /// Only the newest, whatever its state
    #[arg(long, short)]
    pub(crate) latest: bool,
    /// Only the newest so many, whatever their state
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub(crate) last: Option<usize>,
}

/// States of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum State {
    /// Made, not started
    Created,
    /// It runs
    Running,
    /// It has ended
    Exited,
    /// The runtime cannot tell
    Unknown,
}

/// `images`
#[derive(Debug, Args)]
pub struct ImagesArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Show digests
    #[arg(long)]
    pub(crate) digests: bool,
    /// Only images with this name, tag, digest or id
    pub(crate) image: Option<String>,
}

/// Who to be at a registry.
#[derive(Debug, Default, Clone, Args)]
pub struct CredentialArgs {
    /// User and password for the registry [default: $BOWLINE_CREDS]
    #[arg(long, value_name = "USER:PASSWORD")]
    pub(crate) creds: Option<String>,
    /// The same as base64, as in a Docker config
    #[arg(long, value_name = "BASE64", conflicts_with = "creds")]
    pub(crate) auth: Option<String>,
}

/// `pull`
#[derive(Debug, Args)]
pub struct PullArgs {
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
    /// Print the id only
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// What to pull
    #[arg(required = true)]
    pub(crate) images: Vec<String>,
}

/// `runp`
#[derive(Debug, Args)]
pub struct RunpArgs {
    /// Which runtime handler to use
    #[arg(long, default_value = "")]
    pub(crate) runtime: String,
    /// The pod: JSON or YAML of PodSandboxConfig, `-` for stdin
    pub(crate) config: PathBuf,
}

/// `create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The pod (id or name)
    pub(crate) pod: String,
    /// The container: JSON or YAML of ContainerConfig, `-` for stdin
    #[arg(required_unless_present = "image")]
    pub(crate) config: Option<PathBuf>,
    /// The pod's configuration, where the runtime wants it again
    pub(crate) pod_config: Option<PathBuf>,
    /// Instead of a file: the image
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// The container's name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// With --image: what to run
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

/// Containers.
#[derive(Debug, Args)]
pub struct ContainersArgs {
    /// Ids, starts of ids, or names
    #[arg(required = true)]
    pub(crate) containers: Vec<String>,
}

/// `stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds until it is killed
    #[arg(long, short, default_value_t = 10)]
    pub(crate) time: i64,
    /// Ids, starts of ids, or names
    #[arg(required = true)]
    pub(crate) containers: Vec<String>,
}

/// `checkpoint`
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Seconds that it may take; 0 is no limit
    #[arg(long, short, default_value_t = 600)]
    pub(crate) time: i64,
    /// Id, start of an id, or name
    pub(crate) container: String,
    /// The archive; one that is there is replaced
    pub(crate) archive: std::path::PathBuf,
}

/// `rm`
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Stop those that run first
    #[arg(long, short)]
    pub(crate) force: bool,
    /// All that do not run; with --force all
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Ids, starts of ids, or names
    #[arg(required_unless_present = "all")]
    pub(crate) containers: Vec<String>,
}

/// Pods.
#[derive(Debug, Args)]
pub struct PodNamesArgs {
    /// Ids, starts of ids, names or NAMESPACE/NAME
    #[arg(required = true)]
    pub(crate) pods: Vec<String>,
}

/// `rmp`
#[derive(Debug, Args)]
pub struct RmpArgs {
    /// Stop those that are up first
    #[arg(long, short)]
    pub(crate) force: bool,
    /// All that are down; with --force all
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Ids, starts of ids, names or NAMESPACE/NAME
    #[arg(required_unless_present = "all")]
    pub(crate) pods: Vec<String>,
}

/// `inspect`, `inspectp`, `inspecti`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// How to print
    #[arg(long, short, value_enum, default_value = "json")]
    pub(crate) output: Output,
    /// Leave out the runtime's own information
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Ids, starts of ids, or names
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

/// `rmi`
#[derive(Debug, Args)]
pub struct RmiArgs {
    /// All images
    #[arg(long, short)]
    pub(crate) all: bool,
    /// All images that no container uses
    #[arg(long)]
    pub(crate) prune: bool,
    /// Names, tags, digests or ids
    #[arg(required_unless_present_any = ["all", "prune"])]
    pub(crate) images: Vec<String>,
}

/// `image`
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

/// `image ..`
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Take in the images of an archive (OCI layout or `docker save`; tar, gzip or zstd)
    Import {
        /// Names the image of an archive that holds one
        #[arg(long)]
        name: Option<String>,
        /// The archive, `-` for stdin
        file: PathBuf,
    },
    /// Write images into one OCI archive that `docker load` reads too
    Export {
        /// The archive, `-` for stdout
        #[arg(long, short)]
        output: PathBuf,
        /// Names, digests or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// `KEY=VALUE`
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// `REMOTE`, `LOCAL:REMOTE` or `:REMOTE`: (local, remote).
fn ports(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| text.parse::<u16>().map_err(|_| format!("`{text}` is no port"));
    let (local, remote) = match text.split_once(':') {
        Some(("", remote)) => (0, number(remote)?),
        Some((local, remote)) => (number(local)?, number(remote)?),
        None => (number(text)?, number(text)?),
    };
    if remote == 0 { Err("a remote port is 1 to 65535".to_owned()) } else { Ok((local, remote)) }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 1e9 => Ok(seconds),
        _ => Err("expected a number of seconds above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_to_forward() {
        assert_eq!(ports("80"), Ok((80, 80)));
        assert_eq!(ports("8080:80"), Ok((8080, 80)));
        assert_eq!(ports(":80"), Ok((0, 80)));
        for bad in ["", "0", "80:", "a:80", "80:70000", "1:2:3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
