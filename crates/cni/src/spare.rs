//! A pod's attachment, as far as it can be made before there is a pod.
//!
//! Making a pair of links is most of what the built-in bridge takes (1.2 to 1.5 ms on 6.18), and nothing in it depends on the
//! pod but the name, which follows from the sandbox's id. So a caller that draws the next id in advance can have the
//! pair made while nobody waits:
//!
//! ```text
//! Cni::prepare(id, netns)   settings of the namespace, pair of links, one end a port of the bridge, the other in the namespace, down
//! Cni::add(id, ..)          hardware address, addresses, routes, up
//! ```
//!
//! Nothing of this is written down: the pair goes with its namespace, which only descriptors of this process keep. It is
//! used if the network and the bridge are the same when the pod comes, and given up otherwise. It belongs to whoever has the
//! [`Prepared`], so that what is prepared for the next sandbox never touches what a sandbox on its way was given.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::fstat;
use serde_json::{Map, Value};

use crate::add::wants_ipv6;
use crate::builtin::bridge::{self, BridgeConfig};
use crate::builtin::{Attachment, PluginInput, PodSide};
use crate::cache::Record;
use crate::conflist::Conflist;
use crate::netlink::Batch;
use crate::netlink::Socket;
use crate::netlink::link::{self, Link, Mac};
use crate::netns::PodSocket;
use crate::{Cni, CniError};

/// The links of a pod, made in advance or not.
pub(crate) struct Pair {
    pub(crate) bridge: Link,
    /// The end on the host.
    pub(crate) name: String,
    pub(crate) host_mac: Mac,
}

/// What was made for a sandbox that is to come. Dropped, it goes with the namespace.
pub struct Prepared {
    sandbox: Expected,
    if_name: String,
    /// Inode of the namespace.
    netns: u64,
    ipv6: bool,
    list: Arc<Conflist>,
    pair: Pair,
    /// The host's end.
    index: u32,
    /// A socket in the namespace.
    socket: Socket,
}

/// The sandboxes for which something is being made or is ready.
#[derive(Clone, Default)]
pub(crate) struct Spares(Arc<Mutex<BTreeSet<String>>>);

impl Spares {
    /// Whether this sandbox is one that is prepared for.
    pub(crate) fn contains(&self, sandbox_id: &str) -> bool {
        self.lock().contains(sandbox_id)
    }

    fn expect(&self, sandbox_id: &str) -> Expected {
        self.lock().insert(sandbox_id.to_owned());
        Expected { id: sandbox_id.to_owned(), among: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of these, as long as it is there.
struct Expected {
    id: String,
    among: Spares,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.among.lock().remove(&self.id);
    }
}

impl Cni {
    /// Makes what can be made of the attachment of a sandbox that does not exist yet, in its namespace. Where the network's
    /// first plugin is not the built-in bridge, that is nothing.
    ///
    /// It is for [`Cni::add`]. If the sandbox never comes, the caller gives up the namespace; [`Cni::give_up`] is quicker.
    pub fn prepare(
        &self,
        sandbox_id: &str,
        if_name: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<Option<Prepared>, CniError> {
        crate::request::validate_id(sandbox_id)?;
        let list = self.network()?;
        let first = list.plugins.first().filter(|plugin| plugin.is_built_in() && plugin.kind == "bridge");
        let Some(first) = first else { return Ok(None) };
        let sandbox = self.spares.expect(sandbox_id);
        self.make_spare(sandbox, if_name, netns, &list, &first.config).map(Some)
    }

    fn make_spare(
        &self,
        sandbox: Expected,
        if_name: &str,
        netns: BorrowedFd<'_>,
        list: &Arc<Conflist>,
        config: &Map<String, Value>,
    ) -> Result<Prepared, CniError> {
        let input = PluginInput { config, runtime: &Default::default() };
        let config = BridgeConfig::parse(&list.name, &input)?;
        let ipv6 = wants_ipv6(list, &Default::default());
        let namespace = inode(netns)?;
        let at = Attachment { sandbox_id: &sandbox.id, if_name, network: &list.name };
        let entering = CniError::kernel("enter a network namespace made in advance");
        let socket = PodSocket::open(netns, ipv6).map_err(entering)?;
        let pair = bridge::make_pair(&self.node, &at, &config, None, netns)?;
        let looking = || CniError::kernel("look at a link made in advance");
        let index = self.index_of(&pair.name).map_err(looking())?;
        let socket = socket.into_inner().map_err(looking())?;
        let (if_name, list) = (if_name.to_owned(), list.clone());
        Ok(Prepared { sandbox, if_name, netns: namespace, ipv6, list, pair, index, socket })
    }

    /// Deletes what was prepared in vain, though its namespace may live on.
    pub fn give_up(&self, prepared: Prepared) {
        // One that cannot be deleted goes with its namespace.
        let _ = self.node.route.with(|socket| {
            let mut batch = Batch::new();
            link::delete(&mut batch, prepared.index);
            socket.exchange(&mut batch, |_, _| {}).map(drop)
        });
    }

    fn index_of(&self, link: &str) -> std::io::Result<u32> {
        self.node.route.with(|socket| socket.index_of(link))
    }

    /// What was prepared for this attachment, if it still is what would be made now.
    pub(crate) fn use_prepared<'a>(
        &self,
        prepared: Option<Prepared>,
        list: &Arc<Conflist>,
        record: &Record,
        netns: BorrowedFd<'a>,
        sandbox: &str,
    ) -> Option<PodSide<'a>> {
        let spare = prepared?;
        let fits = spare.sandbox.id == record.sandbox_id
            && Arc::ptr_eq(&spare.list, list)
            && spare.if_name == record.if_name
            && inode(netns).is_ok_and(|inode| inode == spare.netns)
            && (spare.ipv6 || !wants_ipv6(list, &record.capability_args))
            // Neither look waits for the kernel's lock of all links.
            && self.index_of(&spare.pair.name).is_ok_and(|index| index == spare.index)
            && self.index_of(&spare.pair.bridge.name).is_ok_and(|index| index == spare.pair.bridge.index);
        if !fits {
            self.give_up(spare);
            return None;
        }
        let Prepared { pair, socket, .. } = spare;
        Some(PodSide {
            netns,
            sandbox: sandbox.to_owned(),
            socket: PodSocket::Here(socket),
            made: Some(pair),
        })
    }
}

fn inode(netns: BorrowedFd<'_>) -> Result<u64, CniError> {
    let stat = fstat(netns.as_fd());
    Ok(stat.map_err(|errno| CniError::kernel("look at a network namespace")(errno.into()))?.st_ino)
}
