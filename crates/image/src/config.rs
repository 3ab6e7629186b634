//! What the image store is told by its owner.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of the store; the daemon's configuration maps onto it.
#[derive(Clone, Debug)]
pub struct ImagesConfig {
    /// The store's folder, `<daemon root>/images`. Made if missing. Layers, blobs and work in progress lie below it.
    pub root: PathBuf,
    /// Folders that hold `hosts.toml` trees, first hit wins. Re-read at each pull.
    pub registry_config_dirs: Vec<PathBuf>,
    /// Who unpacks layers.
    pub unpacker: Unpacker,
    /// How many layers of one pull are fetched and unpacked at once.
    pub max_concurrent_downloads: usize,
    /// A request that has not moved a byte for this long is given up (and tried again, from where it stood).
    pub stall_timeout: Duration,
    /// References that `Image::pinned` is true for; `*` stands for any text.
    pub pinned: Vec<String>,
    /// Which entry of an image index to take.
    pub platform: Platform,
    /// Whether compressed layers stay in `blobs/`. Without them `export` cannot work and other tools cannot read the layout.
    pub keep_layer_blobs: bool,
}

impl ImagesConfig {
    /// The defaults, for a store at `root`.
    pub fn new(root: impl Into<PathBuf>, unpacker: Unpacker) -> ImagesConfig {
        ImagesConfig {
            root: root.into(),
            registry_config_dirs: ["/etc/bowline/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .to_vec(),
            unpacker,
            max_concurrent_downloads: 4,
            stall_timeout: Duration::from_secs(60),
            pinned: Vec::new(),
            platform: Platform::host(),
            keep_layer_blobs: true,
        }
    }
}

/// Who turns a layer's stream into a tree.
#[derive(Clone, Debug)]
pub enum Unpacker {
    /// A confined process per layer, whose `main` is [`crate::unpack_worker_main`].
    Process {
        /// The program.
        program: PathBuf,
        /// Its arguments, `["unpack"]` for the `bowline` binary.
        args: Vec<String>,
    },
    /// The same code in a thread of this process, unconfined. For tests and for the CLI's own work.
    InProcess,
}

/// What an image must be made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// GOARCH: `amd64`, `arm64`, ..
    pub architecture: String,
    /// The best variant that may be taken (`v3` of amd64, `v7` of arm); `None` when the architecture has none.
    pub variant: Option<String>,
}

impl Platform {
    /// What this machine runs.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        let variant = match architecture {
            "amd64" => Some(amd64_level()),
            "arm64" => Some("v8"),
            "arm" => Some("v7"),
            _ => None,
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }
}

/// The x86-64 micro-architecture level, by the features that set the levels apart (not all of each level's list: no processor has
/// these without the others).
fn amd64_level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512vl") {
            return "v4";
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("bmi2") {
            return "v3";
        }
        if std::is_x86_feature_detected!("sse4.2") && std::is_x86_feature_detected!("popcnt") {
            return "v2";
        }
    }
    "v1"
}
