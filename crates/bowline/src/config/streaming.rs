//! Streams to clients.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use bowline_streaming::{StreamingConfig, TlsFiles};
use serde::{Deserialize, Serialize};

use super::{ConfigError, absolute};

/// `[streaming]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StreamingSettings {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout_seconds: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_duration_seconds: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_sessions: Option<NonZeroU32>,
}

impl Default for StreamingSettings {
    fn default() -> Self {
        StreamingSettings {
            // The kubelet is on the same machine, and whoever has an address needs nothing else to use it.
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            idle_timeout_seconds: None,
            max_duration_seconds: None,
            max_sessions: None,
        }
    }
}

impl StreamingSettings {
    pub(super) fn config(&self) -> Result<StreamingConfig, ConfigError> {
        if self.address.is_unspecified() {
            let reason = format!("`{}` is every address; name one that the kubelet can reach", self.address);
            return Err(ConfigError::value("streaming.address", reason));
        }
        let path =
            |key, path: &Option<PathBuf>| path.clone().map(|path| absolute(key, Some(path), "")).transpose();
        let certificate = path("streaming.tls_cert", &self.tls_cert)?;
        let key = path("streaming.tls_key", &self.tls_key)?;
        let client_authorities = path("streaming.tls_client_ca", &self.tls_client_ca)?;
        let tls = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key, client_authorities }),
            (None, None) if client_authorities.is_none() => None,
            (Some(_), None) => {
                return Err(ConfigError::value("streaming.tls_key", "missing beside tls_cert".into()));
            }
            _ => {
                return Err(ConfigError::value(
                    "streaming.tls_cert",
                    "missing beside the other TLS files".into(),
                ));
            }
        };
        let seconds = |number: NonZeroU32| Duration::from_secs(number.get().into());
        let mut config =
            StreamingConfig { address: SocketAddr::new(self.address, self.port), tls, ..Default::default() };
        config.idle = self.idle_timeout_seconds.map_or(config.idle, seconds);
        config.longest = self.max_duration_seconds.map(seconds);
        config.max_connections = self.max_sessions.map_or(config.max_connections, |most| most.get() as usize);
        Ok(config)
    }
}
