//! PodSandboxStatus.

use std::collections::BTreeMap;

use bowline_cri_proto::v1;
use bowline_model::spec::NamespaceMode;
use bowline_pods::{PodView, Pods, SelinuxRecord};
use serde_json::{Value, json};
use tonic::Status;

use crate::convert::view;
use crate::find;

/// A pod as it was after its last change.
pub(crate) fn pod_sandbox_status(
    pods: &Pods,
    request: &v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Status> {
    let pod = find::pod(pods, &request.pod_sandbox_id)?;
    let info = match request.verbose {
        true => BTreeMap::from([("info".to_owned(), info(&pod).to_string())]),
        false => BTreeMap::new(),
    };
    Ok(v1::PodSandboxStatusResponse { status: Some(view::pod_status(&pod)), info, ..Default::default() })
}

/// What `crictl inspectp` prints. Tools read the path of the network namespace from a runtime spec, so there is one,
/// although a pod of ours has no process that was made from a spec.
fn info(pod: &PodView) -> Value {
    json!({
        "pid": pod.monitor,
        "processStatus": if pod.ready { "running" } else { "stopped" },
        "netNamespaceClosed": pod.monitor == 0,
        // There is no pause container, so no image of one.
        "image": "",
        "snapshotKey": "",
        "snapshotter": "overlayfs",
        "runtimeHandler": pod.spec.runtime_handler,
        "runtimeType": "bowline",
        "runtimeOptions": Value::Null,
        "cgroup": &*pod.cgroup,
        "processLabel": label(pod, |labels| &labels.process),
        "mountLabel": label(pod, |labels| &labels.mount),
        "overhead": pod.resources.overhead,
        "resources": pod.resources.sum,
        "cniResult": serde_json::from_str::<Value>(&pod.cni_result).unwrap_or(Value::Null),
        "runtimeSpec": {
            "hostname": pod.spec.hostname,
            "annotations": pod.spec.annotations,
            "process": { "selinuxLabel": label(pod, |labels| &labels.process) },
            "linux": { "namespaces": namespaces(pod), "mountLabel": label(pod, |labels| &labels.mount) },
        },
        "config": serde_json::to_value(&*pod.spec).unwrap_or(Value::Null),
    })
}

/// A part of the pod's SELinux labels; empty: none.
fn label(pod: &PodView, part: impl Fn(&SelinuxRecord) -> &str) -> &str {
    pod.selinux.as_deref().map_or("", part)
}

/// The pod's own namespaces, by the process that holds them.
fn namespaces(pod: &PodView) -> Vec<Value> {
    let asked = &pod.spec.security.namespaces;
    let own = |mode: NamespaceMode| mode != NamespaceMode::Node && pod.monitor != 0;
    [("network", "net", asked.network), ("ipc", "ipc", asked.ipc), ("uts", "uts", asked.network)]
        .into_iter()
        .filter(|(_, _, mode)| own(*mode))
        .map(|(kind, file, _)| json!({ "type": kind, "path": format!("/proc/{}/ns/{file}", pod.monitor) }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::view::tests::a_pod;

    #[test]
    fn tools_find_the_network_namespace() {
        let info = info(&a_pod(1));
        assert_eq!(info["pid"], 42);
        assert_eq!(info["runtimeSpec"]["linux"]["namespaces"][0]["path"], "/proc/42/ns/net");
        assert_eq!(info["config"]["metadata"]["name"], "web");
        assert!(info["cniResult"].is_object());
    }

    #[test]
    fn a_stopped_pod_has_no_namespaces() {
        let pod = PodView { monitor: 0, ready: false, ..a_pod(1) };
        assert_eq!(info(&pod)["runtimeSpec"]["linux"]["namespaces"], json!([]));
    }
}
