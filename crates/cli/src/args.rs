//! What can be said on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::run::RunArgs;

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

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// How to print
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) output: Output,
    /// Only what is wrong
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Where networks are configured
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "FOLDER")]
    pub(crate) cni_conf_dir: PathBuf,
    /// The daemon's root folder, where no daemon runs to ask
    #[arg(long, default_value = "/var/lib/bowline", value_name = "FOLDER")]
    pub(crate) root: PathBuf,
    /// The daemon's state folder, where no daemon runs to ask
    #[arg(long, default_value = "/run/bowline", value_name = "FOLDER")]
    pub(crate) state: PathBuf,
}

/// `install`
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Where programs and units go
    #[arg(long, default_value = "/usr/local", value_name = "FOLDER")]
    pub(crate) prefix: PathBuf,
    /// Install below this folder, for another machine: nothing is enabled or started
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["enable", "start"])]
    pub(crate) root_dir: Option<PathBuf>,
    /// Only what belongs into a package: no /etc/crictl.yaml, and no record for `uninstall`
    #[arg(long, requires = "root_dir")]
    pub(crate) package: bool,
    /// Start the daemon with the machine
    #[arg(long)]
    pub(crate) enable: bool,
    /// Start the daemon now, or anew if it runs; pods go on
    #[arg(long)]
    pub(crate) start: bool,
    /// Replace configuration files that are not as we wrote them
    #[arg(long)]
    pub(crate) force: bool,
    /// Only say what would be written
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `uninstall`
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Where programs and units are
    #[arg(long, default_value = "/usr/local", value_name = "FOLDER")]
    pub(crate) prefix: PathBuf,
    /// Uninstall below this folder: nothing is stopped
    #[arg(long, value_name = "FOLDER", conflicts_with = "purge")]
    pub(crate) root_dir: Option<PathBuf>,
    /// Go on although pods run (they stay), and remove files that were changed
    #[arg(long)]
    pub(crate) force: bool,
    /// Remove all pods, images and records, and /etc/bowline
    #[arg(long)]
    pub(crate) purge: bool,
    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The daemon's root folder
    #[arg(long, default_value = "/var/lib/bowline", value_name = "FOLDER")]
    pub(crate) root: PathBuf,
    /// The daemon's state folder
    #[arg(long, default_value = "/run/bowline", value_name = "FOLDER")]
    pub(crate) state: PathBuf,
}

/// `reset`
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The daemon's root folder
    #[arg(long, default_value = "/var/lib/bowline", value_name = "FOLDER")]
    pub(crate) root: PathBuf,
    /// The daemon's state folder
    #[arg(long, default_value = "/run/bowline", value_name = "FOLDER")]
    pub(crate) state: PathBuf,
    /// Remove records and images too
    #[arg(long)]
    pub(crate) all: bool,
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
