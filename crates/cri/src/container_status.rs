//! ContainerStatus.

use std::collections::BTreeMap;

use bowline_cri_proto::v1;
use bowline_pods::{ContainerView, Pods};
use serde_json::{Value, json};
use tonic::Status;

use crate::convert::view;
use crate::find;

/// A container as it was after its last change.
pub(crate) async fn container_status(
    pods: &Pods,
    request: v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Status> {
    let container = find::container(pods, &request.container_id)?;
    let info = match request.verbose {
        true => {
            let spec = pods.runtime_spec(&container).await;
            BTreeMap::from([("info".to_owned(), info(&container, spec.as_deref()).to_string())])
        }
        false => BTreeMap::new(),
    };
    Ok(v1::ContainerStatusResponse { status: Some(view::container_status(&container)), info })
}

/// What `crictl inspect` prints.
fn info(container: &ContainerView, runtime_spec: Option<&str>) -> Value {
    let spec = runtime_spec.and_then(|text| serde_json::from_str::<Value>(text).ok()).unwrap_or(Value::Null);
    let label = |path: &str| spec.pointer(path).cloned().unwrap_or_else(|| "".into());
    json!({
        "sandboxID": container.pod.to_string(),
        "pid": container.life.pid().unwrap_or(0),
        "state": container.life.name(),
        "removing": false,
        "snapshotKey": container.id.to_string(),
        "snapshotter": "overlayfs",
        "runtimeType": "bowline",
        "runtimeOptions": Value::Null,
        "privileged": container.spec.security.privileged,
        "cgroup": &*container.cgroup,
        "notes": &*container.notes,
        "config": config(container),
        "processLabel": label("/process/selinuxLabel"),
        "mountLabel": label("/linux/mountLabel"),
        "runtimeSpec": spec,
    })
}

/// The spec, with its environment in the form that people read.
fn config(container: &ContainerView) -> Value {
    let mut config = serde_json::to_value(&*container.spec).unwrap_or(Value::Null);
    if let Value::Object(fields) = &mut config {
        let pair =
            |(key, value): &(String, Vec<u8>)| json!({ "key": key, "value": String::from_utf8_lossy(value) });
        fields.insert("envs".into(), container.spec.envs.iter().map(pair).collect());
    }
    config
}

#[cfg(test)]
mod tests {
    use bowline_model::container::Life;

    use super::*;
    use crate::convert::view::tests::a_container;

    #[test]
    fn verbose_info_is_an_object() {
        let container = a_container(1, Life::Running { pid: 77, started_at: 1 });
        let info = info(&container, Some(r#"{"ociVersion":"1.2.0"}"#));
        assert_eq!(info["pid"], 77);
        assert_eq!(info["sandboxID"], "01".repeat(32));
        assert_eq!(info["runtimeSpec"]["ociVersion"], "1.2.0");
        assert_eq!(info["config"]["name"], "c");
    }
}
