//! nftables by netlink: one table of our own, `inet bowline-<instance>`.
//!
//! ```text
//! map ports4      { inet_proto . inet_service             : ipv4_addr . inet_service }   host ports on all addresses
//! map ports4_at   { ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }   .. on one address
//! map ports6, ports6_at                                                                  the same for IPv6
//! chain guard       { type filter hook prerouting priority -300  127/8 from outside: drop }
//! chain prerouting  { type nat hook prerouting priority -100     fib daddr type local jump hostports }
//! chain output      { type nat hook output priority -100         fib daddr type local jump hostports }
//! chain hostports   { dnat ip to .. map @ports4_at; dnat ip to .. map @ports4; .. }
//! chain postrouting { type nat hook postrouting priority 100     localhost; per network: hairpin, masquerade }
//! ```
//!
//! A pod with host ports adds elements, one without changes nothing.

mod expr;
mod message;
mod ports;
mod rules;

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bowline_linux::netlink::NetlinkFamily;
use ipnet::IpNet;
use rustix::io::Errno;

use crate::CniError;
use crate::config::InstanceTag;
use crate::netlink::{Batch, Socket, SocketPool};
use message::{begin, end};
pub(crate) use ports::{Element, HostPort};
use rules::{BASE, Rule};

/// Our table.
pub(crate) struct Nft {
    table: String,
    sockets: Result<SocketPool, String>,
    seen: Mutex<Seen>,
    rebuilt: AtomicBool,
}

/// What the table held when we last looked, and the ruleset's generation then.
#[derive(Default)]
struct Seen {
    generation: Option<u32>,
    rules: HashSet<String>,
}

impl Nft {
    /// Opens the first socket in the calling thread's namespace, and asks nf_tables a question, which loads its module.
    /// A kernel without it is told later, to those who need it: networks without masquerade and host ports work.
    pub(crate) fn new(instance: &InstanceTag) -> Nft {
        Nft {
            table: instance.table(),
            sockets: SocketPool::new(NetlinkFamily::Netfilter)
                .and_then(|sockets| sockets.with(message::generation).map(|_| sockets))
                .map_err(|e| e.to_string()),
            seen: Mutex::default(),
            rebuilt: AtomicBool::new(false),
        }
    }

    fn with<T>(&self, doing: &str, work: impl FnOnce(&mut Socket) -> io::Result<T>) -> Result<T, CniError> {
        let kernel =
            |source| CniError::Kernel { doing: format!("{doing} in nftables table {}", self.table), source };
        match &self.sockets {
            Ok(sockets) => sockets.with(work).map_err(kernel),
            Err(why) => Err(kernel(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the kernel has no nftables (CONFIG_NF_TABLES): {why}"),
            ))),
        }
    }

    /// What there is to take away. A kernel without nftables has nothing of ours.
    fn unless_absent<T: Default>(
        &self,
        doing: &str,
        work: impl FnOnce(&mut Socket) -> io::Result<T>,
    ) -> Result<T, CniError> {
        if self.sockets.is_err() { Ok(T::default()) } else { self.with(doing, work) }
    }

    /// One rule per subnet: what leaves it gets the host's address.
    pub(crate) fn ensure_masquerade(
        &self,
        network: &str,
        addresses: impl Iterator<Item = IpNet>,
    ) -> Result<(), CniError> {
        let rules: Vec<Rule> = addresses.map(|a| Rule::masquerade(network, a.trunc())).collect();
        self.ensure(&rules)
    }

    /// One rule per subnet: a pod that comes to another one, or to itself, by a host port gets the host's address,
    /// so that the answer comes back this way.
    pub(crate) fn ensure_hairpin(
        &self,
        network: &str,
        addresses: impl Iterator<Item = IpNet>,
    ) -> Result<(), CniError> {
        let rules: Vec<Rule> = addresses.map(|a| Rule::hairpin(network, a.trunc())).collect();
        self.ensure(&rules)
    }

    /// Whether the table was made anew since this was asked last: then what earlier pods had in it is missing.
    pub(crate) fn was_rebuilt(&self) -> bool {
        self.rebuilt.swap(false, Ordering::Relaxed)
    }

    /// Makes the table and these rules unless they are there. As long as nobody has touched the ruleset since we
    /// last looked, which its generation tells, this is one question to the kernel.
    fn ensure(&self, wanted: &[Rule]) -> Result<(), CniError> {
        let mut seen = self.seen();
        self.with("set up rules", |socket| {
            let generation = message::generation(socket)?;
            let there = |seen: &Seen| {
                BASE.iter().all(|tag| seen.rules.contains(*tag))
                    && wanted.iter().all(|rule| seen.rules.contains(&rule.tag))
            };
            if generation.is_some() && generation == seen.generation && there(&seen) {
                return Ok(());
            }
            *seen = self.look(socket)?;
            if there(&seen) {
                return Ok(());
            }
            self.repair(socket, &seen, wanted)?;
            *seen = self.look(socket)?;
            Ok(())
        })
    }

    fn look(&self, socket: &mut Socket) -> io::Result<Seen> {
        let generation = message::generation(socket)?;
        let rules = message::rules(socket, &self.table)?.into_iter().map(|rule| rule.tag).collect();
        Ok(Seen { generation, rules })
    }

    fn repair(&self, socket: &mut Socket, seen: &Seen, wanted: &[Rule]) -> io::Result<()> {
        let mut batch = Batch::new();
        begin(&mut batch);
        message::table(&mut batch, &self.table);
        rules::chains(&mut batch, &self.table);
        ports::maps(&mut batch, &self.table);
        if !BASE.iter().all(|tag| seen.rules.contains(*tag)) {
            rules::rebuild_base(&mut batch, &self.table, &seen.rules);
            self.rebuilt.store(true, Ordering::Relaxed);
        }
        for rule in wanted.iter().filter(|rule| !seen.rules.contains(&rule.tag)) {
            rule.write(&mut batch, &self.table);
        }
        end(&mut batch);
        socket.run(&mut batch)
    }

    /// Takes away the rules of networks for which `keep` says no.
    pub(crate) fn retain_networks(&self, keep: impl Fn(&str) -> bool) -> Result<(), CniError> {
        self.unless_absent("remove rules of former networks", |socket| {
            let mut batch = Batch::new();
            begin(&mut batch);
            let mut any = false;
            for rule in message::rules(socket, &self.table)? {
                if let Some(network) = rules::network_of(&rule.tag)
                    && !keep(network)
                {
                    any = true;
                    message::delete_rule(&mut batch, &self.table, &rule.chain, rule.handle);
                }
            }
            end(&mut batch);
            if any { socket.run(&mut batch) } else { Ok(()) }
        })
    }

    /// Removes the table: nobody is left who needs it.
    pub(crate) fn remove(&self) -> Result<(), CniError> {
        *self.seen() = Seen::default();
        self.unless_absent("remove everything", |socket| {
            let mut batch = Batch::new();
            begin(&mut batch);
            let index = message::delete_table(&mut batch, &self.table);
            end(&mut batch);
            match socket.exchange(&mut batch, |_, _| {})?.into_iter().nth(index).flatten() {
                Some(refusal) if refusal.errno != Errno::NOENT => Err(refusal.into_io()),
                _ => Ok(()),
            }
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // What was seen is compared with the kernel's generation before it is believed; a panic cannot harm it.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
