//! NRI, the Node Resource Interface 0.12.5: plugins that are told what happens to pods and containers, and may change
//! containers that are being made.
//!
//! ```text
//!   pods --event--> Nri --one after the other--> Plugin --> Link --> socket      (hub.rs, plugin.rs, link.rs, wire.rs)
//!                    |                              ^
//!                    +-- merge, validator           +-- arrival: register, configure, join, synchronise
//! ```
//!
//! - [`Nri`]: where the events of pods and containers come in
//! - `arrival`: how plugins come and go
//! - `roster`: who is asked; nobody is lost while a plugin joins
//! - `merge`: several answers made into one, pure
//! - [`stub`]: the plugin's end, for tests and checks
//!
//! Absent here: what a pod is. Pods and containers come in as messages, and go out as [`Runtime`] asks for them.
//! Formats, order and limits: docs/design/nri.md.

mod arrival;
mod config;
mod hub;
mod launched;
mod link;
mod merge;
mod plugin;
mod roster;
pub mod stub;
mod validator;
mod wire;

pub use bowline_nri_proto::v1alpha1 as api;
pub use config::{NriConfig, ValidatorConfig};
pub use hub::{Nri, PluginState, Runtime, Work};
pub use link::CallError;
pub use merge::MergeError;
pub use roster::Ticket;

/// The version of NRI that we speak, as plugins are told.
pub const NRI_VERSION: &str = "v0.12.5";
/// Where plugins look for the runtime if nobody tells them.
pub const DEFAULT_SOCKET: &str = "/var/run/nri/nri.sock";

/// Why an operation does not go on.
#[derive(Debug, thiserror::Error)]
pub enum NriError {
    /// A plugin refused it, or has failed and says that operations fail with it.
    #[error("NRI plugin {plugin} failed {call}")]
    Plugin {
        /// `NN-name`.
        plugin: String,
        /// What it was asked.
        call: &'static str,
        /// What it said, or did not say.
        source: CallError,
    },
    /// Plugins do not agree.
    #[error("NRI plugins do not agree")]
    Merge(#[from] MergeError),
    /// The outcome is not allowed.
    #[error("{by} rejects what NRI plugins want of the container: {reason}")]
    Rejected {
        /// Who says so.
        by: String,
        /// Why.
        reason: String,
    },
}
