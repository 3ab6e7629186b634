//! Addresses, handed out as the official `host-local` plugin does: same configuration, same files, same lock.

mod ranges;
mod store;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::CniError;
use crate::result::{Dns, IpConfig, Route, read_route};

pub(crate) use ranges::RangeSet;
use store::Store;
pub(crate) use store::{Owner, Queues, reservations};

/// Where host-local keeps its files unless the configuration says otherwise.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// host-local's configuration for one network.
pub(crate) struct HostLocal {
    network: String,
    sets: Vec<RangeSet>,
    routes: Vec<Route>,
    dns: Dns,
    dir: PathBuf,
    requested: Vec<IpAddr>,
}

/// What host-local gives a pod.
pub(crate) struct Allocation {
    pub(crate) ips: Vec<IpConfig>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
}

impl HostLocal {
    /// Reads the `ipam` object of a plugin's configuration. `runtime` is its `runtimeConfig`.
    pub(crate) fn parse(
        network: &str,
        config: &Map<String, Value>,
        runtime: &Map<String, Value>,
    ) -> Result<HostLocal, CniError> {
        let bad = |field: &str, problem: String| CniError::config(network, field, problem);
        let empty = Map::new();
        let ipam = config.get("ipam").and_then(Value::as_object).unwrap_or(&empty);
        let sets = ranges::parse(ipam, runtime).map_err(|(field, problem)| bad(&field, problem))?;
        let mut routes = Vec::new();
        for route in ipam.get("routes").and_then(Value::as_array).into_iter().flatten() {
            routes.push(read_route(route).map_err(|problem| bad("ipam.routes", problem))?);
        }
        let dns = match ipam.get("resolvConf").and_then(Value::as_str) {
            Some(path) if !path.is_empty() => resolv_conf(Path::new(path))?,
            _ => Dns::default(),
        };
        Ok(HostLocal {
            network: network.to_owned(),
            sets,
            routes,
            dns,
            dir: reservations_dir(network, config),
            requested: requested(config, runtime).map_err(|problem| bad("ips", problem))?,
        })
    }

    /// Whether a pod may get an IPv6 address.
    pub(crate) fn has_ipv6(&self) -> bool {
        self.sets.iter().any(|set| !set.is_ipv4())
    }

    /// Reserves one address of each set, or none at all.
    pub(crate) fn allocate(
        &self,
        queues: &Queues,
        owner: &Owner<'_>,
        patience: Duration,
    ) -> Result<Allocation, CniError> {
        queues.with(&self.dir, patience, |store| self.allocate_locked(store, owner))
    }

    fn allocate_locked(&self, store: &Store, owner: &Owner<'_>) -> Result<Allocation, CniError> {
        let mut requested = self.requested.clone();
        let mut ips = Vec::new();
        for (index, set) in self.sets.iter().enumerate() {
            let wanted = requested.iter().position(|ip| set.contains(*ip)).map(|i| requested.remove(i));
            let got = match wanted {
                Some(ip) => self.reserve_this(store, owner, set, index, ip),
                None => self.reserve_next(store, owner, set, index),
            };
            match got {
                Ok(ip) => ips.push(ip),
                Err(error) => {
                    self.give_back(store, owner, &ips);
                    return Err(error);
                }
            }
        }
        if let Some(ip) = requested.first() {
            self.give_back(store, owner, &ips);
            return Err(CniError::config(
                &self.network,
                "ips",
                format!("`{ip}` is in no range of the network"),
            ));
        }
        Ok(Allocation { ips, routes: self.routes.clone(), dns: self.dns.clone() })
    }

    fn give_back(&self, store: &Store, owner: &Owner<'_>, ips: &[IpConfig]) {
        for ip in ips {
            // What stays is released by the DEL that follows a failed ADD, which looks for it by its owner.
            let _ = store.release(owner, ip.address.addr());
        }
    }

    fn reserve_this(
        &self,
        store: &Store,
        owner: &Owner<'_>,
        set: &RangeSet,
        index: usize,
        ip: IpAddr,
    ) -> Result<IpConfig, CniError> {
        if !set.is_gateway(ip) && store.reserve(owner, ip, index)? {
            return Ok(set.config(ip));
        }
        Err(CniError::AddressTaken { network: self.network.clone(), address: ip.to_string() })
    }

    fn reserve_next(
        &self,
        store: &Store,
        owner: &Owner<'_>,
        set: &RangeSet,
        index: usize,
    ) -> Result<IpConfig, CniError> {
        /// After so many taken addresses in a row one look at the folder is cheaper than trying each.
        const TRIES: usize = 8;
        let mut taken = None;
        for (tried, ip) in set.after(store.last_reserved(index)).enumerate() {
            if tried == TRIES {
                taken = Some(store.taken()?);
            }
            if taken.as_ref().is_some_and(|taken| taken.contains(&ip)) {
                continue;
            }
            if store.reserve(owner, ip, index)? {
                return Ok(set.config(ip));
            }
        }
        Err(CniError::NoAddressLeft {
            network: self.network.clone(),
            range: set.to_string(),
            dir: self.dir.clone(),
        })
    }
}

/// The folder with the reservations of a network whose plugin has this configuration.
pub(crate) fn reservations_dir(network: &str, config: &Map<String, Value>) -> PathBuf {
    let configured = config.get("ipam").and_then(|i| i.get("dataDir")).and_then(Value::as_str);
    Path::new(configured.filter(|d| !d.is_empty()).unwrap_or(DATA_DIR)).join(network)
}

/// Addresses asked for: `args.cni.ips` in the configuration, else `runtimeConfig.ips`.
fn requested(config: &Map<String, Value>, runtime: &Map<String, Value>) -> Result<Vec<IpAddr>, String> {
    let args = config.get("args").and_then(|a| a.get("cni")).and_then(|c| c.get("ips"));
    let mut out = Vec::new();
    for value in [runtime.get("ips"), args].into_iter().flatten().filter_map(Value::as_array).flatten() {
        let text = value.as_str().unwrap_or_default();
        // With or without a prefix.
        let ip = text.split('/').next().unwrap_or_default();
        out.push(ip.parse().map_err(|_| format!("hold `{text}`, which is no address"))?);
    }
    Ok(out)
}

/// Reads a resolv.conf; at most 64 KiB of it.
fn resolv_conf(path: &Path) -> Result<Dns, CniError> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(64 * 1024).read_to_string(&mut text))
        .map_err(CniError::file("read resolver settings from", path))?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    Ok(dns)
}
