//! What NRI can be told, by the daemon's configuration.

use std::path::PathBuf;
use std::time::Duration;

/// How plugins are found and treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NriConfig {
    /// The daemon's version, as plugins are told.
    pub runtime_version: String,
    /// Where programs lie that are started with the daemon, named `NN-name`.
    pub plugin_folder: PathBuf,
    /// Where their configuration lies, named `NN-name.conf` or `name.conf`.
    pub config_folder: PathBuf,
    /// How long a plugin may take to register.
    pub registration_timeout: Duration,
    /// How long it may take to answer.
    pub request_timeout: Duration,
    /// How long it may take for each message of Synchronize.
    pub synchronize_timeout: Duration,
    /// Plugins, as `name` or `NN-name`, without which no container is made.
    pub required_plugins: Vec<String>,
    /// The built-in validator.
    pub validator: ValidatorConfig,
}

/// What the built-in validator rejects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ValidatorConfig {
    /// It looks at adjustments at all, and at the annotation `required-plugins.noderesource.dev`.
    pub enable: bool,
    /// Hooks.
    pub reject_oci_hooks: bool,
    /// Another seccomp policy than the runtime's default, for a container that has it.
    pub reject_runtime_default_seccomp: bool,
    /// A seccomp policy for a container that has none.
    pub reject_unconfined_seccomp: bool,
    /// Another seccomp policy than a profile of the host.
    pub reject_custom_seccomp: bool,
    /// Namespaces.
    pub reject_namespaces: bool,
    /// Kernel parameters.
    pub reject_sysctls: bool,
    /// The annotation of a pod by which it does without required plugins; empty: none.
    pub tolerate_missing_annotation: String,
}

impl NriConfig {
    /// The usual places and limits.
    pub fn new(runtime_version: &str) -> NriConfig {
        NriConfig {
            runtime_version: runtime_version.to_owned(),
            plugin_folder: PathBuf::from("/opt/nri/plugins"),
            config_folder: PathBuf::from("/etc/nri/conf.d"),
            registration_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            synchronize_timeout: Duration::from_secs(10),
            required_plugins: Vec::new(),
            validator: ValidatorConfig::default(),
        }
    }
}
