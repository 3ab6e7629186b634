//! What can go wrong, said so that an operator can act on it.

use std::io;
use std::path::PathBuf;

use crate::request::Protocol;

/// Why the network of a pod could not be made, taken down or checked.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no usable conflist.
    #[error("the node has no pod network: {reason}")]
    NotReady {
        /// Why not.
        reason: String,
    },
    /// A network configuration is wrong.
    #[error("network configuration {origin}: `{field}` {problem}")]
    Config {
        /// The file, or the network's name.
        origin: String,
        /// The field at fault.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The caller asked for something that cannot be.
    #[error("network request: {field} {problem}")]
    Request {
        /// Which part of the request.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or folder could not be used.
    #[error("could not {doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("could not {doing}")]
    Kernel {
        /// What was being done, to what.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// No address is left.
    #[error("network `{network}` has no free address in {range}; reservations are in {}", dir.display())]
    NoAddressLeft {
        /// The network.
        network: String,
        /// The ranges that were tried.
        range: String,
        /// The folder of reservations.
        dir: PathBuf,
    },
    /// A certain address was asked for and somebody else has it.
    #[error("address {address} of network `{network}` is taken")]
    AddressTaken {
        /// The network.
        network: String,
        /// The address.
        address: String,
    },
    /// A host port is another pod's.
    #[error("host port {host_port}/{protocol} is taken by {holder}")]
    PortTaken {
        /// The port.
        host_port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Who has it, as far as we know.
        holder: String,
    },
    /// A plugin is neither built in nor installed.
    #[error("no plugin `{plugin}` in {searched}")]
    PluginMissing {
        /// The plugin's type.
        plugin: String,
        /// Folders that were searched.
        searched: String,
    },
    /// A plugin said no.
    #[error("plugin `{plugin}` failed to {command}: {message} (code {code})")]
    PluginFailed {
        /// The plugin's type.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// The CNI error code.
        code: u64,
        /// Its words, and its standard error where it had none.
        message: String,
    },
    /// A plugin took too long and was killed.
    #[error("plugin `{plugin}` did not finish {command} within {seconds} s and was killed")]
    PluginTimeout {
        /// The plugin's type.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// A plugin's answer cannot be read.
    #[error("plugin `{plugin}` answered {command} with something that is no result: {problem}")]
    PluginAnswer {
        /// The plugin's type.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// CHECK found a difference.
    #[error("the network of sandbox {sandbox} is not as it was made: {problem}")]
    Differs {
        /// The sandbox.
        sandbox: String,
        /// What differs.
        problem: String,
    },
}

impl CniError {
    pub(crate) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CniError {
        let path = path.into();
        move |source| CniError::File { doing, path, source }
    }

    pub(crate) fn kernel(doing: impl Into<String>) -> impl FnOnce(io::Error) -> CniError {
        let doing = doing.into();
        move |source| CniError::Kernel { doing, source }
    }

    pub(crate) fn config(
        origin: impl Into<String>,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> CniError {
        CniError::Config { origin: origin.into(), field: field.into(), problem: problem.into() }
    }
}
