//! The network of pods: conflists, running plugins, and the built-in plugins.
//!
//! A conflist in the standard folder names the node's network as a list of plugins. ADD runs them in order, each
//! with the result of the one before; DEL runs them in reverse, from a record that was written before the first
//! thing was made. `loopback`, `bridge`, `host-local` and `portmap` are built in and execute nothing: they speak
//! netlink to the kernel and keep host-local's files. Any other type is executed from the standard folders.
//!
//! ```text
//! Cni::add  ── record(adding) ── plugin 1 ── plugin 2 ── .. ── record(added)
//! Cni::del  ── plugin n ── .. ── plugin 1 ── record(dying)           link down, off the bridge, in the dying group
//! Cni::reap ── delete the dying group ── release addresses ── remove the record
//! ```
//!
//! Everything here blocks; the daemon calls it from threads that may. See `docs/design/network.md`.

mod add;
mod builtin;
mod cache;
mod config;
mod conflist;
mod del;
mod device;
mod drivers;
mod error;
mod exec;
mod flows;
mod ipam;
mod load;
mod netlink;
mod netns;
mod nft;
mod plugin;
mod reap;
mod repair;
mod request;
mod result;
mod spare;
mod status;

use std::sync::{Mutex, MutexGuard, PoisonError};

use builtin::Node;
use cache::Cache;
use load::Networks;

pub use config::{CniConfig, DefaultNetwork, InstanceTag, PrimaryFamily};
pub use device::{check_names, move_device};
pub use drivers::try_link_drivers;
pub use error::CniError;
pub use reap::{Leftover, Reaped};
pub use request::{Bandwidth, DnsConfig, PodNetwork, PodNetworkRequest, PodRef, PortMapping, Protocol};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use spare::Prepared;
pub use status::NetworkStatus;

/// The node's pod network.
///
/// Its netlink sockets belong to the network namespace of the thread that made it; call it from threads that are
/// in the same one.
pub struct Cni {
    node: Node,
    networks: Networks,
    cache: Cache,
    probe: status::Probe,
    spares: spare::Spares,
    /// Held by whoever ends attachments for good, so that the reaper never ends one that was begun anew meanwhile.
    ending: Mutex<()>,
}

impl Cni {
    /// Looks at the folders of configuration and records and opens the netlink sockets.
    pub fn new(config: CniConfig) -> Result<Cni, CniError> {
        let cache = Cache::open(&config.cache_dir)?;
        let networks = Networks::new(&config);
        let route = netlink::SocketPool::new(bowline_linux::netlink::NetlinkFamily::Route)
            .map_err(CniError::kernel("open a netlink socket"))?;
        let node = Node {
            nft: nft::Nft::new(&config.instance),
            flows: flows::Flows::new(),
            queues: ipam::Queues::default(),
            config,
            route,
        };
        Ok(Cni {
            node,
            networks,
            cache,
            probe: status::Probe::default(),
            spares: Default::default(),
            ending: Mutex::new(()),
        })
    }
    fn ending(&self) -> MutexGuard<'_, ()> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
