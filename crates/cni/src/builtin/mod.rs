//! The plugins that we are ourselves: what the official ones do, without executing them.

pub(crate) mod bridge;
mod bridge_config;
pub(crate) mod loopback;
pub(crate) mod portmap;

use serde_json::{Map, Value};

use crate::config::CniConfig;
use crate::flows::Flows;
use crate::ipam::Queues;
use crate::netlink::SocketPool;
use crate::netns::PodSocket;
use crate::nft::Nft;
use crate::spare::Pair;

/// The node, as the built-in plugins see it.
pub(crate) struct Node {
    pub(crate) config: CniConfig,
    /// Netlink in the namespace of whoever made the [`Cni`](crate::Cni).
    pub(crate) route: SocketPool,
    pub(crate) nft: Nft,
    pub(crate) queues: Queues,
    pub(crate) flows: Flows,
}

/// One attachment, as the built-in plugins see it.
pub(crate) struct Attachment<'a> {
    pub(crate) sandbox_id: &'a str,
    pub(crate) if_name: &'a str,
    pub(crate) network: &'a str,
}

/// The pod's side of an ADD.
pub(crate) struct PodSide<'a> {
    pub(crate) netns: std::os::fd::BorrowedFd<'a>,
    /// What results call the namespace.
    pub(crate) sandbox: String,
    pub(crate) socket: PodSocket,
    /// The pair of links, if it was made in advance.
    pub(crate) made: Option<Pair>,
}

/// A plugin's own configuration and what capabilities add to it.
pub(crate) struct PluginInput<'a> {
    pub(crate) config: &'a Map<String, Value>,
    pub(crate) runtime: &'a Map<String, Value>,
}
