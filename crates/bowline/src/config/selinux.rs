//! SELinux.

use bowline_pods::{Relabel, SelinuxConfig};
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// `[selinux]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SelinuxSettings {
    pub(crate) enable: bool,
    pub(crate) category_range: u16,
    pub(crate) relabel: RelabelSetting,
}

/// `selinux.relabel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RelabelSetting {
    /// All containers may use a volume that was relabelled.
    Shared,
    /// Its pod alone, as with containerd and CRI-O.
    #[default]
    Pod,
}

impl Default for SelinuxSettings {
    fn default() -> Self {
        let SelinuxConfig { enable, category_range, .. } = SelinuxConfig::default();
        SelinuxSettings { enable, category_range, relabel: RelabelSetting::default() }
    }
}

impl SelinuxSettings {
    pub(crate) fn config(&self) -> SelinuxConfig {
        let relabel = match self.relabel {
            RelabelSetting::Shared => Relabel::Shared,
            RelabelSetting::Pod => Relabel::Pod,
        };
        SelinuxConfig { enable: self.enable, category_range: self.category_range, relabel }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self.category_range {
            2..=1024 => Ok(()),
            range => {
                Err(ConfigError::value("selinux.category_range", format!("{range} is not from 2 to 1024")))
            }
        }
    }
}
