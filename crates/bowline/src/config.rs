//! The daemon's configuration: files, then flags. `docs/operate/configuration.md` describes every key.
//!
//! Strict: a key that nobody reads is an error with the line it is on and the key that was meant, because a misspelt
//! setting is found on the day it was needed.

mod apparmor;
mod as_text;
mod error;
mod nri;
mod selinux;
mod streaming;

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use bowline_cni::DefaultNetwork;
use bowline_pods::DriverWish;
use bowline_streaming::StreamingConfig;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::log::{Format, Level};
use crate::traces::TracesSettings;
use apparmor::ApparmorSettings;
pub(crate) use error::ConfigError;
pub(crate) use nri::Nri;
use nri::NriSettings;
use selinux::SelinuxSettings;
use streaming::StreamingSettings;

/// Read if it is there and `--config` names no other.
const DEFAULT_FILE: &str = "/etc/bowline/config.toml";
/// The state folder of a daemon that is alone on its machine.
const DEFAULT_STATE: &str = "/run/bowline";
/// Where packages put the monitor.
const LIBEXEC_MONITOR: &str = "/usr/libexec/bowline/bowline-monitor";

/// Settings as files and flags give them; what is absent has its default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Folder of what lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<PathBuf>,
    /// Folder of what is gone after a reboot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<PathBuf>,
    /// `unix:///path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<String>,
    /// The monitor's program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) monitor: Option<PathBuf>,
    /// Who makes pods' cgroups.
    pub(crate) cgroup_driver: CgroupDriver,
    /// The daemon's log.
    pub(crate) log: LogSettings,
    /// The network of a machine without Kubernetes.
    pub(crate) default_network: NetworkSettings,
    /// CNI.
    pub(crate) cni: CniSettings,
    /// Images.
    pub(crate) images: ImageSettings,
    /// Metrics of the daemon.
    pub(crate) metrics: MetricsSettings,
    /// Traces of calls.
    pub(crate) traces: TracesSettings,
    /// Devices by name.
    pub(crate) cdi: CdiSettings,
    /// Paths of the host.
    pub(crate) paths: PathSettings,
    /// Exec, attach and port-forward.
    pub(crate) streaming: StreamingSettings,
    /// Plugins.
    pub(crate) nri: NriSettings,
    /// Checkpoint and restore.
    pub(crate) checkpoint: CheckpointSettings,
    /// AppArmor.
    pub(crate) apparmor: ApparmorSettings,
    /// SELinux.
    pub(crate) selinux: SelinuxSettings,
}

/// `cgroup_driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CgroupDriver {
    /// systemd where it is the init and cgroups are v2, else cgroupfs.
    #[default]
    Auto,
    Cgroupfs,
    Systemd,
}

impl From<CgroupDriver> for DriverWish {
    fn from(driver: CgroupDriver) -> DriverWish {
        match driver {
            CgroupDriver::Auto => DriverWish::Auto,
            CgroupDriver::Cgroupfs => DriverWish::Cgroupfs,
            CgroupDriver::Systemd => DriverWish::Systemd,
        }
    }
}

/// `[checkpoint]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CheckpointSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) criu: Option<PathBuf>,
    pub(crate) restore: bool,
}

/// `[metrics]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MetricsSettings {
    /// Where Prometheus finds `/metrics`; nowhere if it is not set.
    #[serde(with = "as_text::optional", skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<std::net::SocketAddr>,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogSettings {
    pub(crate) level: Level,
    pub(crate) format: Format,
}

/// `[default_network]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NetworkSettings {
    pub(crate) enable: bool,
    #[serde(with = "as_text")]
    pub(crate) subnet: Ipv4Net,
    #[serde(with = "as_text::optional", skip_serializing_if = "Option::is_none")]
    pub(crate) subnet_v6: Option<Ipv6Net>,
    pub(crate) bridge: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl Default for NetworkSettings {
    fn default() -> Self {
        NetworkSettings {
            enable: false,
            // Of the private ranges, one that container tools and clouds do not hand out by default.
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 213, 0, 0), 16),
            subnet_v6: None,
            bridge: "bowline0".into(),
            data_dir: None,
        }
    }
}

/// `[cni]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CniSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) conf_dirs: Option<Vec<PathBuf>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bin_dirs: Option<Vec<PathBuf>>,
}

/// `[cdi]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CdiSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spec_dirs: Option<Vec<PathBuf>>,
}

/// `[paths]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PathSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout_seconds: Option<NonZeroU32>,
}

/// `[images]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ImageSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) registry_config_dirs: Option<Vec<PathBuf>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_concurrent_downloads: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stall_timeout_seconds: Option<NonZeroU32>,
    pub(crate) pinned: Vec<String>,
}

/// What the command line says; it wins over files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    pub(crate) root: Option<PathBuf>,
    pub(crate) state: Option<PathBuf>,
    pub(crate) listen: Option<String>,
    pub(crate) nri_socket: Option<PathBuf>,
    pub(crate) default_network: bool,
    pub(crate) log_level: Option<Level>,
    pub(crate) log_format: Option<Format>,
}

/// Settings with nothing left open.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    /// Path of the socket.
    pub(crate) socket: PathBuf,
    pub(crate) monitor: PathBuf,
    pub(crate) default_network: Option<DefaultNetwork>,
    pub(crate) streaming: StreamingConfig,
    /// Plugins; `None`: none.
    pub(crate) nri: Option<Nri>,
    /// All of them, for what needs no default of ours.
    pub(crate) settings: Settings,
}

/// Reads the files (`file`, else the default one if it is there; then `conf.d/*.toml` beside it in the order of their
/// names, each over what came before), then applies the flags.
pub(crate) fn load(file: Option<&Path>, flags: Flags) -> Result<Config, ConfigError> {
    let mut merged = Table::new();
    for path in files(file)? {
        let text =
            fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        merge(&mut merged, parse(&path, &text)?);
    }
    // Each file was checked on its own, with its line numbers; together they can be no worse.
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    let settings = Settings::deserialize(merged).map_err(|error| ConfigError::parse(path, "", &error))?;
    finish(apply(settings, flags))
}

fn files(file: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    let main = file.unwrap_or(Path::new(DEFAULT_FILE));
    let mut found = Vec::new();
    // A file that was asked for must be there.
    if file.is_some() || main.exists() {
        found.push(main.to_owned());
    }
    let folder = main.with_file_name("conf.d");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(source) => return Err(ConfigError::Read { path: folder, source }),
    };
    let mut drop_ins = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| ConfigError::Read { path: folder.clone(), source })?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            drop_ins.push(path);
        }
    }
    drop_ins.sort();
    found.extend(drop_ins);
    Ok(found)
}

/// One file, checked whole.
fn parse(path: &Path, text: &str) -> Result<Table, ConfigError> {
    toml::from_str::<Settings>(text).map_err(|error| ConfigError::parse(path, text, &error))?;
    text.parse::<Table>().map_err(|error| ConfigError::parse(path, text, &error))
}

/// Tables are merged key by key; anything else, lists included, is replaced.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn apply(mut settings: Settings, flags: Flags) -> Settings {
    settings.root = flags.root.or(settings.root);
    settings.state = flags.state.or(settings.state);
    settings.listen = flags.listen.or(settings.listen);
    settings.nri.socket_path = flags.nri_socket.or(settings.nri.socket_path);
    settings.default_network.enable |= flags.default_network;
    settings.log.level = flags.log_level.unwrap_or(settings.log.level);
    settings.log.format = flags.log_format.unwrap_or(settings.log.format);
    settings
}

fn finish(settings: Settings) -> Result<Config, ConfigError> {
    let root = absolute("root", settings.root.clone(), "/var/lib/bowline")?;
    let state = absolute("state", settings.state.clone(), DEFAULT_STATE)?;
    let listen = settings.listen.clone().unwrap_or_else(|| "unix:///run/bowline/bowline.sock".into());
    let socket = listen.strip_prefix("unix://").filter(|path| path.starts_with('/')).ok_or_else(|| {
        ConfigError::value("listen", format!("`{listen}` is no `unix://` and an absolute path"))
    })?;
    settings.traces.check().map_err(|(key, reason)| ConfigError::value(key, reason))?;
    let network = &settings.default_network;
    if network.bridge.is_empty() || network.bridge.len() > 15 || network.bridge.contains(['/', ' ']) {
        let reason = format!("`{}` is no name of a link: 1 to 15 characters", network.bridge);
        return Err(ConfigError::value("default_network.bridge", reason));
    }
    let lists = [
        ("cni.conf_dirs", &settings.cni.conf_dirs),
        ("cni.bin_dirs", &settings.cni.bin_dirs),
        ("cdi.spec_dirs", &settings.cdi.spec_dirs),
        ("images.registry_config_dirs", &settings.images.registry_config_dirs),
    ];
    for (key, folders) in lists {
        for folder in folders.iter().flatten() {
            absolute(key, Some(folder.clone()), "")?;
        }
    }
    settings.apparmor.check()?;
    settings.selinux.check()?;
    let default_network = match network.enable {
        true => Some(DefaultNetwork {
            subnet: network.subnet,
            subnet_v6: network.subnet_v6,
            bridge: network.bridge.clone(),
            data_dir: match &network.data_dir {
                Some(folder) => absolute("default_network.data_dir", Some(folder.clone()), "")?,
                None => root.join("networks"),
            },
        }),
        false => None,
    };
    Ok(Config {
        socket: PathBuf::from(socket),
        monitor: match &settings.monitor {
            Some(path) => absolute("monitor", Some(path.clone()), "")?,
            None => default_monitor(),
        },
        default_network,
        streaming: settings.streaming.config()?,
        nri: settings.nri.config(&state)?,
        root,
        state,
        settings,
    })
}

fn absolute(key: &'static str, path: Option<PathBuf>, default: &str) -> Result<PathBuf, ConfigError> {
    let path = path.unwrap_or_else(|| PathBuf::from(default));
    match path.is_absolute() {
        true => Ok(path),
        false => Err(ConfigError::value(key, format!("`{}` is no absolute path", path.display()))),
    }
}

/// Beside our own program, as in a build folder or one `bin` folder; else where packages put it.
fn default_monitor() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|program| program.with_file_name("bowline-monitor"));
    // `bin` and `libexec` have one prefix, whichever it is.
    let below = beside.as_deref().and_then(Path::parent).and_then(Path::parent);
    let below = below.map(|prefix| prefix.join("libexec/bowline/bowline-monitor"));
    let found = [beside, below].into_iter().flatten().find(|path| path.exists());
    found.unwrap_or_else(|| PathBuf::from(LIBEXEC_MONITOR))
}

#[cfg(test)]
mod tests;
