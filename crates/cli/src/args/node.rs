//! Commands on the node itself.

use std::path::PathBuf;

use clap::Args;

use super::Output;

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
