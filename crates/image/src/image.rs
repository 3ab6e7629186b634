//! What readers see of an image.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use crate::digest::{ImageId, LayerName};

/// An image in the store. Immutable: a changed image is a new value in the snapshot.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of its config.
    pub id: ImageId,
    /// Full names with tags, sorted. Empty for an image pulled by digest or one whose tags moved on.
    pub repo_tags: Vec<String>,
    /// `name@digest` for each digest that a pulled reference resolved to, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of manifest, config and compressed layers; never 0.
    pub size: u64,
    /// The parts of the config that a container needs.
    pub config: ImageConfig,
    /// The config as the registry sent it.
    pub config_json: Arc<[u8]>,
    /// Layer folders, bottom first.
    pub layers: Vec<LayerName>,
    /// What all of its manifests in the store say of it: several may share one config, and whoever can push one of them must not
    /// say something about the others.
    pub annotations: BTreeMap<String, String>,
    /// Whether the configuration pins it: the kubelet's garbage collection leaves it alone.
    pub pinned: bool,
}

/// What the image says about the process to run. Values from here are never trusted where the kubelet's are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Empty: `/`.
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty: root.
    pub user: String,
    /// Paths that want a volume, sorted.
    pub volumes: Vec<String>,
    /// The signal that asks it to end; `None`: SIGTERM.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `8080/tcp`, sorted.
    pub exposed_ports: Vec<String>,
}

/// Bytes and inodes that the store uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    /// The store's root.
    pub mountpoint: PathBuf,
    /// Layers and blobs, in bytes.
    pub used_bytes: u64,
    /// Layers and blobs, in inodes.
    pub inodes_used: u64,
    /// When this was true: now, for the numbers are running counters.
    pub timestamp_ns: i64,
}

/// The config blob, as far as we read it. Docker writes `null` where OCI omits, hence the options.
#[derive(Deserialize, Default)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub(crate) architecture: Option<String>,
    #[serde(default)]
    pub(crate) os: Option<String>,
    #[serde(default)]
    pub(crate) config: Option<ProcessConfig>,
    pub(crate) rootfs: RootFs,
}

#[derive(Deserialize, Default)]
pub(crate) struct RootFs {
    #[serde(default)]
    pub(crate) diff_ids: Option<Vec<crate::Digest>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ProcessConfig {
    entrypoint: Option<OneOrMany>,
    cmd: Option<OneOrMany>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

/// Ancient builders wrote a plain string for a one-element command.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl ConfigFile {
    pub(crate) fn diff_ids(&self) -> &[crate::Digest] {
        self.rootfs.diff_ids.as_deref().unwrap_or_default()
    }

    pub(crate) fn into_process(self) -> ImageConfig {
        let many = |value: Option<OneOrMany>| match value {
            None => Vec::new(),
            Some(OneOrMany::One(one)) => vec![one],
            Some(OneOrMany::Many(many)) => many,
        };
        let from = self.config.unwrap_or_default();
        ImageConfig {
            entrypoint: many(from.entrypoint),
            cmd: many(from.cmd),
            env: from.env.unwrap_or_default(),
            working_dir: from.working_dir.unwrap_or_default(),
            user: from.user.unwrap_or_default(),
            volumes: from.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: from.stop_signal.filter(|signal| !signal.is_empty()),
            labels: from.labels.unwrap_or_default(),
            exposed_ports: from.exposed_ports.unwrap_or_default().into_keys().collect(),
        }
    }
}
