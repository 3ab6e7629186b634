//! Plugins.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_nri::{NriConfig, ValidatorConfig};
use serde::{Deserialize, Serialize};

use super::{ConfigError, DEFAULT_STATE, absolute};

/// `[nri]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NriSettings {
    pub(crate) enable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket_path: Option<PathBuf>,
    /// Nobody connects; only the programs of `plugin_path` are plugins.
    pub(crate) disable_connections: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) plugin_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) plugin_config_path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) registration_timeout_seconds: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_timeout_seconds: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) synchronize_timeout_seconds: Option<NonZeroU32>,
    pub(crate) required_plugins: Vec<String>,
    pub(crate) default_validator: ValidatorSettings,
}

/// `[nri.default_validator]`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ValidatorSettings {
    pub(crate) enable: bool,
    pub(crate) reject_oci_hook_adjustment: bool,
    pub(crate) reject_runtime_default_seccomp_adjustment: bool,
    pub(crate) reject_unconfined_seccomp_adjustment: bool,
    pub(crate) reject_custom_seccomp_adjustment: bool,
    pub(crate) reject_namespace_adjustment: bool,
    pub(crate) reject_sysctl_adjustment: bool,
    pub(crate) tolerate_missing_plugins_annotation: String,
}

impl Default for NriSettings {
    fn default() -> Self {
        NriSettings {
            enable: true,
            socket_path: None,
            disable_connections: false,
            plugin_path: None,
            plugin_config_path: None,
            registration_timeout_seconds: None,
            request_timeout_seconds: None,
            synchronize_timeout_seconds: None,
            required_plugins: Vec::new(),
            default_validator: ValidatorSettings::default(),
        }
    }
}

/// Plugins, with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Nri {
    pub(crate) config: NriConfig,
    /// Where plugins connect, unless nobody may.
    pub(crate) socket: Option<PathBuf>,
    /// Somebody has named the socket: it has to be there.
    pub(crate) socket_named: bool,
}

impl NriSettings {
    /// Plugins know one place. A daemon of another state folder is one of several, and has its own of everything: its
    /// socket in that folder, and no programs that are not named.
    pub(super) fn config(&self, state: &Path) -> Result<Option<Nri>, ConfigError> {
        if !self.enable {
            return Ok(None);
        }
        let mut config = NriConfig::new(env!("CARGO_PKG_VERSION"));
        let alone = state == Path::new(DEFAULT_STATE);
        let own = |name: &str| state.join(name);
        let socket = if alone { PathBuf::from(bowline_nri::DEFAULT_SOCKET) } else { own("nri.sock") };
        if !alone {
            config.plugin_folder = own("nri-plugins");
        }
        let path = |key, path: &Option<PathBuf>, default: PathBuf| match path {
            Some(path) => absolute(key, Some(path.clone()), ""),
            None => Ok(default),
        };
        config.plugin_folder = path("nri.plugin_path", &self.plugin_path, config.plugin_folder)?;
        config.config_folder =
            path("nri.plugin_config_path", &self.plugin_config_path, config.config_folder)?;
        let socket = path("nri.socket_path", &self.socket_path, socket)?;
        let seconds = |number: &Option<NonZeroU32>, default: Duration| {
            number.map_or(default, |number| Duration::from_secs(number.get().into()))
        };
        config.registration_timeout =
            seconds(&self.registration_timeout_seconds, config.registration_timeout);
        config.request_timeout = seconds(&self.request_timeout_seconds, config.request_timeout);
        config.synchronize_timeout = seconds(&self.synchronize_timeout_seconds, config.synchronize_timeout);
        config.required_plugins.clone_from(&self.required_plugins);
        let rules = &self.default_validator;
        config.validator = ValidatorConfig {
            enable: rules.enable,
            reject_oci_hooks: rules.reject_oci_hook_adjustment,
            reject_runtime_default_seccomp: rules.reject_runtime_default_seccomp_adjustment,
            reject_unconfined_seccomp: rules.reject_unconfined_seccomp_adjustment,
            reject_custom_seccomp: rules.reject_custom_seccomp_adjustment,
            reject_namespaces: rules.reject_namespace_adjustment,
            reject_sysctls: rules.reject_sysctl_adjustment,
            tolerate_missing_annotation: rules.tolerate_missing_plugins_annotation.clone(),
        };
        Ok(Some(Nri {
            config,
            socket: (!self.disable_connections).then_some(socket),
            socket_named: self.socket_path.is_some(),
        }))
    }
}
