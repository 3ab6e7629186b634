//! ADD and CHECK.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::fstat;
use serde_json::{Map, Value};

use crate::builtin::{PodSide, loopback};
use crate::cache::{Key, Record, State};
use crate::conflist::Conflist;
use crate::netlink::Batch;
use crate::netns::PodSocket;
use crate::plugin::Step;
use crate::result::CniResult;
use crate::spare::Prepared;
use crate::{Cni, CniError, PodNetwork, PodNetworkRequest};

impl Cni {
    /// Attaches the pod to the node's network. On failure what was made is taken down again; what cannot be, DEL
    /// finds later.
    ///
    /// `prepared` is what [`Cni::prepare`] made for this sandbox, if it did; it is used if it still fits.
    ///
    /// An attachment of the same sandbox that exists already is taken down first: the caller would not ask again
    /// if it knew of it.
    pub fn add(
        &self,
        pod: &PodNetworkRequest<'_>,
        prepared: Option<Prepared>,
    ) -> Result<PodNetwork, CniError> {
        pod.validate()?;
        let list = self.network()?;
        if list.has_external() && pod.netns_path.is_none() {
            return Err(CniError::Request {
                field: "netns_path",
                problem: format!("is missing: network `{}` has plugins that must be executed", list.name),
            });
        }
        let key = Key::new(pod.pod.sandbox_id, pod.if_name);
        if self.cache.get(&key).is_some() {
            self.del_one(&key)?;
            self.finish_now(&key)?;
        }
        let mut record = Record {
            sandbox_id: pod.pod.sandbox_id.to_owned(),
            if_name: pod.if_name.to_owned(),
            netns_path: pod.netns_path.map(|p| p.to_string_lossy().into_owned()),
            args: pod.args(),
            capability_args: pod.capability_args(),
            conflist: list.to_value(),
            result: None,
        };
        self.cache.write(&record, State::Adding)?;
        match self.run_add(&list, &mut record, pod, prepared) {
            Ok(result) => Ok(self.describe(&list, result)),
            Err(error) => {
                // The first failure is the one to tell. A second one leaves the record, and DEL tries again.
                let _ = self.del_one(&key);
                Err(error)
            }
        }
    }

    fn run_add(
        &self,
        list: &Arc<Conflist>,
        record: &mut Record,
        request: &PodNetworkRequest<'_>,
        prepared: Option<Prepared>,
    ) -> Result<CniResult, CniError> {
        let (netns, path) = (request.netns, request.netns_path);
        let sandbox = sandbox_name(netns, path)?;
        let mut pod = match self.use_prepared(prepared, list, record, netns, &sandbox) {
            Some(pod) => pod,
            None => pod_side(netns, path, wants_ipv6(list, &record.capability_args))?,
        };
        let mut result = None;
        for plugin in &list.plugins {
            let step = Step { node: &self.node, list, record };
            result = step.add(plugin, result, &mut pod)?;
        }
        self.bring_up_lo(&mut pod, record)?;
        let result = result.unwrap_or_default();
        // In the newest version, whatever the list's: older ones have no room for all addresses.
        record.result = Some(result.to_json(crate::conflist::NEWEST));
        self.cache.complete(record)?;
        self.repair_if_rebuilt();
        Ok(result)
    }

    /// Runtimes run `loopback` beside each network; for us it is one message.
    fn bring_up_lo(&self, pod: &mut PodSide<'_>, record: &Record) -> Result<(), CniError> {
        let mut batch = Batch::new();
        loopback::up(&mut batch);
        let socket = pod.socket.get();
        socket
            .and_then(|socket| socket.run(&mut batch))
            .map_err(CniError::kernel(format!("bring up lo of sandbox {}", record.sandbox_id)))
    }

    fn describe(&self, list: &Conflist, result: CniResult) -> PodNetwork {
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in &result.ips {
            // Addresses on links of the host are no addresses of the pod.
            let link = ip.interface.and_then(|i| result.interfaces.get(i));
            if link.is_none_or(|link| !link.sandbox.is_empty()) && !ip.address.addr().is_loopback() {
                ips.push(ip.address.addr());
            }
        }
        self.node.config.primary.order(&mut ips);
        PodNetwork {
            network: list.name.clone(),
            ips,
            interfaces: result.interfaces.clone(),
            result_json: result.to_json(&list.version).to_string(),
            result,
        }
    }

    /// Looks whether the pod's network is as ADD made it.
    pub fn check(
        &self,
        sandbox_id: &str,
        netns: BorrowedFd<'_>,
        netns_path: Option<&Path>,
    ) -> Result<(), CniError> {
        let keys = self.cache.of_sandbox(sandbox_id);
        let differs =
            |problem: &str| CniError::Differs { sandbox: sandbox_id.to_owned(), problem: problem.to_owned() };
        if keys.is_empty() {
            return Err(differs("it has none"));
        }
        for key in keys {
            let record = self.cache.read(&key)?.ok_or_else(|| differs("its record is gone"))?;
            let list = Conflist::from_value(&record.conflist, &sandbox_id_origin(sandbox_id))?;
            let made = made(&record).ok_or_else(|| differs("it was not made to the end"))?;
            // CHECK came with 0.4.0.
            if list.disable_check || !list.at_least("0.4.0") {
                continue;
            }
            let mut pod = pod_side(netns, netns_path, false)?;
            for plugin in &list.plugins {
                Step { node: &self.node, list: &list, record: &record }.check(plugin, &made, &mut pod)?;
            }
        }
        Ok(())
    }

    pub(crate) fn network(&self) -> Result<Arc<Conflist>, CniError> {
        let (loaded, _) = self.networks.current(&self.node.config);
        let problems = loaded.problems.join("; ");
        loaded.network.ok_or_else(|| CniError::NotReady {
            reason: if problems.is_empty() { crate::status::no_config(&self.node.config) } else { problems },
        })
    }
}

/// What errors about a kept conflist call it.
pub(crate) fn sandbox_id_origin(sandbox_id: &str) -> String {
    format!("kept for sandbox {sandbox_id}")
}

/// The result that ADD ended with.
pub(crate) fn made(record: &Record) -> Option<CniResult> {
    record.result.as_ref().and_then(|value| CniResult::from_json(value).ok())
}

fn pod_side<'a>(netns: BorrowedFd<'a>, path: Option<&Path>, ipv6: bool) -> Result<PodSide<'a>, CniError> {
    let sandbox = sandbox_name(netns, path)?;
    let socket =
        PodSocket::open(netns, ipv6).map_err(CniError::kernel("enter the pod's network namespace"))?;
    Ok(PodSide { netns, sandbox, socket, made: None })
}

/// What results call the namespace: its path, or as /proc/<pid>/ns/net reads.
fn sandbox_name(netns: BorrowedFd<'_>, path: Option<&Path>) -> Result<String, CniError> {
    match path {
        Some(path) => Ok(path.to_string_lossy().into_owned()),
        None => match fstat(netns) {
            Ok(stat) => Ok(format!("net:[{}]", stat.st_ino)),
            Err(errno) => Err(CniError::kernel("look at the pod's network namespace")(errno.into())),
        },
    }
}

/// Whether the pod may get an IPv6 address; where others hand them out, we cannot know.
pub(crate) fn wants_ipv6(list: &Conflist, capability_args: &Map<String, Value>) -> bool {
    list.plugins.iter().any(|plugin| match plugin.ipam_kind() {
        Some("host-local") => crate::ipam::HostLocal::parse(&list.name, &plugin.config, capability_args)
            .is_ok_and(|ipam| ipam.has_ipv6()),
        Some(_) => plugin.is_built_in(),
        None => false,
    })
}
