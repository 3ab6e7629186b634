//! The end of DEL: what must wait for the kernel, done for many pods in one wait.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::add::{made, sandbox_id_origin};
use crate::cache::{Record, State};
use crate::conflist::Conflist;
use crate::ipam::{Owner, reservations, reservations_dir};
use crate::netlink::Batch;
use crate::netlink::link::{self, Link};
use crate::nft::Element;
use crate::{Cni, CniError};

/// What a reaper's round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Links that were deleted.
    pub links: usize,
    /// Attachments that are gone for good, their addresses free.
    pub released: usize,
    /// Attachments that still have a link.
    pub pending: usize,
}

/// Something of ours that belongs to no sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The sandbox that it was made for, as far as known.
    pub sandbox_id: String,
    /// What it is, for people.
    pub description: String,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Link { name: String, index: u32 },
    Reservation,
    Element(Element),
    Record,
}

impl Cni {
    /// Deletes the links of detached pods, in one wait however many they are (20 to 30 ms), and frees the addresses
    /// of those that the kernel no longer has.
    pub fn reap(&self) -> Result<Reaped, CniError> {
        let _ending = self.ending();
        // The records first: a pod detached after this look keeps its address until the next round.
        let dying: Vec<_> = self
            .cache
            .all()
            .into_iter()
            .filter(|(_, i)| i.state == State::Dying)
            .map(|(key, _)| key)
            .collect();
        if dying.is_empty() {
            return Ok(Reaped::default());
        }
        let mut done = Reaped::default();
        let left = self
            .node
            .route
            .with(|socket| {
                let group = self.node.config.instance.dying_group();
                let all = link::list(socket, "veth")?;
                let (mine, others): (Vec<&Link>, Vec<&Link>) =
                    all.iter().filter(|l| l.group == group).partition(|l| self.is_tagged(l));
                if mine.is_empty() {
                    return Ok(all.into_iter().map(|l| l.name).collect::<HashSet<_>>());
                }
                let mut batch = Batch::new();
                if others.is_empty() {
                    link::delete_group(&mut batch, group);
                } else {
                    // Somebody else's link is in our group. One wait for each, then.
                    mine.iter().for_each(|l| {
                        link::delete(&mut batch, l.index);
                    });
                }
                // A link may have gone with its namespace meanwhile; the list that follows is what counts.
                socket.exchange(&mut batch, |_, _| {})?;
                let left = link::list(socket, "veth")?;
                let gone = |l: &&&Link| !left.iter().any(|still| still.index == l.index);
                done.links = mine.iter().filter(gone).count();
                Ok(left.into_iter().map(|l| l.name).collect())
            })
            .map_err(CniError::kernel("delete the links of detached pods"))?;
        let mut first_error = None;
        for key in dying {
            let name = self.node.config.instance.veth_name(&key.sandbox_id, &key.if_name);
            if left.contains(&name) {
                done.pending += 1;
                continue;
            }
            let released = match self.record(&key) {
                Ok(Some(record)) => self.release(&record),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            match released.and_then(|()| self.cache.remove(&key)) {
                Ok(()) => done.released += 1,
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(done), Err)
    }

    fn is_tagged(&self, link: &Link) -> bool {
        link.alias.starts_with(&self.node.config.instance.alias_prefix())
    }

    /// Frees the addresses of an attachment whose link is gone.
    pub(crate) fn release(&self, record: &Record) -> Result<(), CniError> {
        let list = Conflist::from_value(&record.conflist, &sandbox_id_origin(&record.sandbox_id))?;
        let owner = Owner { sandbox_id: &record.sandbox_id, if_name: &record.if_name };
        for dir in reservation_dirs(&list) {
            // Before the first reservation there is no folder, and none is made for this.
            if !dir.is_dir() {
                continue;
            }
            self.node.queues.with(&dir, self.node.config.plugin_timeout_del, |store| match made(record) {
                Some(result) => result.ips.iter().try_for_each(|ip| store.release(&owner, ip.address.addr())),
                None => store.release_all_of(&owner),
            })?;
        }
        Ok(())
    }

    /// Links, reservations, host ports and records that carry our tag but belong to none of the `valid` sandboxes,
    /// nor to one that is being taken down.
    pub fn leftovers(&self, valid: &[&str]) -> Result<Vec<Leftover>, CniError> {
        let mut out = Vec::new();
        let records = self.cache.all();
        let known = |id: &str| {
            valid.contains(&id)
                || records.iter().any(|(key, _)| key.sandbox_id == id)
                || self.spares.contains(id)
        };
        let prefix = self.node.config.instance.alias_prefix();
        let links = self
            .node
            .route
            .with(|socket| link::list(socket, "veth"))
            .map_err(CniError::kernel("list links"))?;
        for link in links {
            let Some(sandbox_id) = link.alias.strip_prefix(&prefix).map(str::to_owned) else { continue };
            if !known(&sandbox_id) {
                let description = format!("link {}", link.name);
                out.push(Leftover {
                    sandbox_id,
                    description,
                    what: What::Link { name: link.name, index: link.index },
                });
            }
        }
        for element in self.node.nft.elements()? {
            if !known(&element.sandbox_id) {
                let (sandbox_id, description) = (element.sandbox_id.clone(), element.description.clone());
                out.push(Leftover { sandbox_id, description, what: What::Element(element) });
            }
        }
        for (key, indexed) in &records {
            if valid.contains(&key.sandbox_id.as_str()) || indexed.state == State::Dying {
                continue;
            }
            out.push(Leftover {
                sandbox_id: key.sandbox_id.clone(),
                description: format!("attachment {} to network `{}`", key.if_name, indexed.network),
                what: What::Record,
            });
            out.extend(self.reservations_of(&key.sandbox_id));
        }
        Ok(out)
    }

    /// Reservations are told apart by our records alone: others may serve the same network from the same folder.
    fn reservations_of(&self, sandbox_id: &str) -> Vec<Leftover> {
        let lists =
            self.cache.of_sandbox(sandbox_id).into_iter().filter_map(|key| self.cache.read(&key).ok()?);
        let dirs: HashSet<PathBuf> = lists
            .filter_map(|record| Conflist::from_value(&record.conflist, sandbox_id).ok())
            .flat_map(|list| reservation_dirs(&list))
            .collect();
        let all = dirs.iter().filter_map(|dir| reservations(dir).ok()).flatten();
        all.filter(|r| r.sandbox_id == sandbox_id)
            .map(|r| Leftover {
                sandbox_id: sandbox_id.to_owned(),
                description: format!("reservation of {}", r.address),
                what: What::Reservation,
            })
            .collect()
    }

    /// Removes what [`Cni::leftovers`] found and gives how many are gone. An attachment goes by its DEL, and its
    /// reservations with it.
    pub fn sweep(&self, leftovers: &[Leftover]) -> Result<usize, CniError> {
        let mut elements = Vec::new();
        for leftover in leftovers {
            match &leftover.what {
                What::Link { name, index } => self.sweep_link(name, *index)?,
                What::Element(element) => elements.push(element.clone()),
                What::Record => {
                    for key in self.cache.of_sandbox(&leftover.sandbox_id) {
                        self.del_one(&key)?;
                    }
                }
                What::Reservation => {}
            }
        }
        self.node.nft.remove_elements(&elements)?;
        self.reap()?;
        Ok(leftovers.len())
    }

    /// Deletes a link if it is still the one that was found.
    fn sweep_link(&self, name: &str, index: u32) -> Result<(), CniError> {
        self.node
            .route
            .with(|socket| {
                let found = link::find(socket, name)?.filter(|l| l.index == index && self.is_tagged(l));
                if found.is_some() {
                    let mut batch = Batch::new();
                    link::delete(&mut batch, index);
                    socket.exchange(&mut batch, |_, _| {})?;
                }
                Ok(())
            })
            .map_err(CniError::kernel(format!("delete link {name}")))
    }

    /// Removes what serves all pods: the nftables table, and bridges that we made and that have no port left. For
    /// the day on which the daemon is removed from a machine, and for tests.
    ///
    /// Links without a record are what a daemon made in advance that was killed a moment ago: the kernel has not come round to
    /// them yet.
    pub fn remove_networks(&self) -> Result<(), CniError> {
        self.node.nft.remove()?;
        let prefix = self.node.config.instance.alias_prefix();
        let records = self.cache.all();
        let known = |id: &str| records.iter().any(|(key, _)| key.sandbox_id == id);
        self.node
            .route
            .with(|socket| {
                let bridges = link::list(socket, "bridge")?;
                let mut ports = link::list(socket, "veth")?;
                let is_spare = |l: &Link| l.alias.strip_prefix(&prefix).is_some_and(|id| !known(id));
                for spare in ports.iter().filter(|l| is_spare(l)) {
                    let mut batch = Batch::new();
                    link::delete(&mut batch, spare.index);
                    socket.exchange(&mut batch, |_, _| {})?;
                }
                ports.retain(|l| !is_spare(l));
                for bridge in bridges.iter().filter(|b| self.is_tagged(b)) {
                    if !ports.iter().any(|p| p.master == Some(bridge.index)) {
                        let mut batch = Batch::new();
                        link::delete(&mut batch, bridge.index);
                        socket.exchange(&mut batch, |_, _| {})?;
                    }
                }
                Ok(())
            })
            .map_err(CniError::kernel("remove bridges"))
    }
}

/// Where the built-in plugins of a list keep reservations.
fn reservation_dirs(list: &Conflist) -> Vec<PathBuf> {
    let ours = list.plugins.iter().filter(|p| p.is_built_in() && p.ipam_kind() == Some("host-local"));
    ours.map(|plugin| reservations_dir(&list.name, &plugin.config)).collect()
}
