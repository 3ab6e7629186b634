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
//! used if the network and the bridge are the same when the pod comes, and given up otherwise.

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

/// What was made for a sandbox that is to come.
struct Spare {
    sandbox_id: String,
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

/// The one that is ready, and the sandbox for which one is being made or is ready.
#[derive(Default)]
pub(crate) struct Spares(Mutex<State>);

#[derive(Default)]
struct State {
    sandbox_id: Option<String>,
    ready: Option<Spare>,
}

impl Spares {
    /// Whether this sandbox is the one that is prepared for.
    pub(crate) fn is_for(&self, sandbox_id: &str) -> bool {
        self.lock().sandbox_id.as_deref() == Some(sandbox_id)
    }

    /// Begins another one; the one that was ready.
    fn begin(&self, sandbox_id: Option<&str>) -> Option<Spare> {
        let mut state = self.lock();
        state.sandbox_id = sandbox_id.map(str::to_owned);
        state.ready.take()
    }

    fn take(&self, sandbox_id: &str) -> Option<Spare> {
        let mut state = self.lock();
        if state.ready.as_ref().is_none_or(|spare| spare.sandbox_id != sandbox_id) {
            return None;
        }
        state.sandbox_id = None;
        state.ready.take()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cni {
    /// Makes what can be made of the attachment of a sandbox that does not exist yet, in its namespace, in place of what
    /// was made for another one. Where the network's first plugin is not the built-in bridge, that is nothing.
    ///
    /// The caller gives the namespace up if the sandbox never comes; [`Cni::forget_spare`] does the rest.
    pub fn prepare(&self, sandbox_id: &str, if_name: &str, netns: BorrowedFd<'_>) -> Result<(), CniError> {
        crate::request::validate_id(sandbox_id)?;
        let list = self.network()?;
        let Some(first) =
            list.plugins.first().filter(|plugin| plugin.is_built_in() && plugin.kind == "bridge")
        else {
            return Ok(());
        };
        if let Some(old) = self.spares.begin(Some(sandbox_id)) {
            self.delete(&old);
        }
        let made = self.make_spare(sandbox_id, if_name, netns, &list, &first.config);
        let mut state = self.spares.lock();
        match made {
            Ok(spare) if state.sandbox_id.as_deref() == Some(sandbox_id) => {
                state.ready = Some(spare);
                Ok(())
            }
            // Given up meanwhile.
            Ok(spare) => {
                drop(state);
                self.delete(&spare);
                Ok(())
            }
            Err(error) => {
                state.sandbox_id.take_if(|id| id == sandbox_id);
                Err(error)
            }
        }
    }

    fn make_spare(
        &self,
        sandbox_id: &str,
        if_name: &str,
        netns: BorrowedFd<'_>,
        list: &Arc<Conflist>,
        config: &Map<String, Value>,
    ) -> Result<Spare, CniError> {
        let input = PluginInput { config, runtime: &Default::default() };
        let config = BridgeConfig::parse(&list.name, &input)?;
        let ipv6 = wants_ipv6(list, &Default::default());
        let namespace = inode(netns)?;
        let at = Attachment { sandbox_id, if_name, network: &list.name };
        let entering = CniError::kernel("enter a network namespace made in advance");
        let socket = PodSocket::open(netns, ipv6).map_err(entering)?;
        let pair = bridge::make_pair(&self.node, &at, &config, None, netns)?;
        let looking = || CniError::kernel("look at a link made in advance");
        let index = self.index_of(&pair.name).map_err(looking())?;
        let socket = socket.into_inner().map_err(looking())?;
        let (sandbox_id, if_name) = (sandbox_id.to_owned(), if_name.to_owned());
        Ok(Spare { sandbox_id, if_name, netns: namespace, ipv6, list: list.clone(), pair, index, socket })
    }

    /// Gives up what was prepared. Its links go here, if the caller's namespace is not gone already.
    pub fn forget_spare(&self) {
        if let Some(spare) = self.spares.begin(None) {
            self.delete(&spare);
        }
    }

    /// The same, if it is this sandbox's.
    pub(crate) fn forget_spare_of(&self, sandbox_id: &str) {
        if let Some(spare) = self.spares.take(sandbox_id) {
            self.delete(&spare);
        }
    }

    fn index_of(&self, link: &str) -> std::io::Result<u32> {
        self.node.route.with(|socket| socket.index_of(link))
    }

    fn delete(&self, spare: &Spare) {
        // One that cannot be deleted goes with its namespace.
        let _ = self.node.route.with(|socket| {
            let mut batch = Batch::new();
            link::delete(&mut batch, spare.index);
            socket.exchange(&mut batch, |_, _| {}).map(drop)
        });
    }

    /// What was prepared for this attachment, if it still is what would be made now.
    pub(crate) fn take_spare<'a>(
        &self,
        list: &Arc<Conflist>,
        record: &Record,
        netns: BorrowedFd<'a>,
        sandbox: &str,
    ) -> Option<PodSide<'a>> {
        let spare = self.spares.take(&record.sandbox_id)?;
        let fits = Arc::ptr_eq(&spare.list, list)
            && spare.if_name == record.if_name
            && inode(netns).is_ok_and(|inode| inode == spare.netns)
            && (spare.ipv6 || !wants_ipv6(list, &record.capability_args))
            // Neither look waits for the kernel's lock of all links.
            && self.index_of(&spare.pair.name).is_ok_and(|index| index == spare.index)
            && self.index_of(&spare.pair.bridge.name).is_ok_and(|index| index == spare.pair.bridge.index);
        if !fits {
            self.delete(&spare);
            return None;
        }
        let Spare { pair, socket, .. } = spare;
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
