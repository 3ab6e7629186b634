//! AppArmor.

use bowline_pods::ApparmorConfig;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// `[apparmor]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ApparmorSettings {
    pub(crate) enable: bool,
    /// A profile that somebody else loads, instead of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) default_profile: Option<String>,
}

impl Default for ApparmorSettings {
    fn default() -> Self {
        ApparmorSettings { enable: true, default_profile: None }
    }
}

impl ApparmorSettings {
    pub(crate) fn config(&self) -> ApparmorConfig {
        ApparmorConfig { enable: self.enable, default_profile: self.default_profile.clone() }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match &self.default_profile {
            Some(name) if name.is_empty() || name.contains(char::is_control) => Err(ConfigError::value(
                "apparmor.default_profile",
                format!("{name:?} is no name of a profile"),
            )),
            _ => Ok(()),
        }
    }
}
