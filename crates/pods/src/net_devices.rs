//! Network devices of the host that a container asks for: into its pod's network namespace, before it is launched.
//!
//! They stay there for as long as the pod does, so a container that is started again finds them; then the kernel gives
//! physical ones back to the host, and removes the others.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use bowline_model::spec::{NamespaceMode, PodSpec};
use bowline_plan::Compiled;
use bowline_store::ContainerRecord;

use crate::error::doing;
use crate::monitor::Monitor;
use crate::operations::stage;
use crate::shared::{Shared, blocking};
use crate::{PodError, netns};

/// Refuses what cannot be given to a container of this pod.
pub(crate) fn check(pod: &PodSpec, own_network: bool, devices: &[(String, String)]) -> Result<(), PodError> {
    if devices.is_empty() {
        return Ok(());
    }
    if pod.security.namespaces.network == NamespaceMode::Node {
        let text = "linux.netDevices: the pod has the host's network, where the device is already";
        return Err(PodError::Invalid(text.into()));
    }
    if own_network {
        let text = "linux.netDevices: the container has another network than its pod";
        return Err(PodError::Unsupported(text.into()));
    }
    bowline_cni::check_names(devices).map_err(PodError::Invalid)
}

/// Moves them.
pub(crate) async fn give(
    shared: &Shared,
    monitor: &Arc<Monitor>,
    record: &ContainerRecord,
    compiled: &Compiled,
) -> Result<(), PodError> {
    let _stage = stage("network devices");
    let pod = shared.views.pod(&record.pod.to_string())?;
    let netns = match crate::user::of_pod(&pod.spec) {
        Some(_) => {
            let [_, network] = crate::run_pod::namespaces(monitor).await?;
            network
        }
        None => {
            let opened = netns::of_monitor(monitor, pod.monitor);
            let opened = opened.map_err(doing("open the pod's network namespace"))?;
            opened.ok_or_else(|| PodError::State("the pod is going away".into()))?
        }
    };
    let devices = compiled.net_devices.clone();
    blocking("move network devices into the pod", move || {
        devices.iter().try_for_each(|(host, name)| {
            bowline_cni::move_device(netns.as_fd(), host, name)
                .map_err(doing("give the container its network devices"))
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_needs_a_network_of_its_own() {
        let device = |host: &str, name: &str| vec![(host.to_owned(), name.to_owned())];
        let mut pod = PodSpec::default();
        check(&pod, false, &device("eth1", "net%d")).unwrap();
        for (bad, word) in [(device("a/b", "x"), "a/b"), (device("eth1", "a b"), "eth1.name")] {
            let error = check(&pod, false, &bad).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(matches!(check(&pod, true, &device("a", "a")), Err(PodError::Unsupported(_))));
        pod.security.namespaces.network = NamespaceMode::Node;
        assert!(matches!(check(&pod, false, &device("a", "a")), Err(PodError::Invalid(_))));
        check(&pod, false, &[]).unwrap();
    }
}
