//! `runp` and `create`: pods and containers from files.

use std::io::Read as _;
use std::path::Path;

use bowline_cri_proto::v1;
use prost::Message;
use serde_json::Value;

use crate::args::{CreateArgs, RunpArgs};
use crate::client::Client;
use crate::failure::{Done, Failure, doing};
use crate::reflect::from_json;
use crate::render::{print_line, short};
use crate::run::random_hex;
use crate::select;

/// Nobody writes a configuration of more bytes.
const MAX_CONFIG: u64 = 4 << 20;

/// Reads a message from a file of JSON or YAML, `-` for stdin.
pub(crate) fn read_config<M: Message + Default>(kind: &str, path: &Path) -> Result<M, Failure> {
    let doing = format!("read {}", path.display());
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().take(MAX_CONFIG).read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(MAX_CONFIG).read_to_string(&mut text)),
    };
    read.map_err(|error| Failure::io(&doing, error))?;
    parse(kind, &text).map_err(|failure| {
        Failure::new(format!(
            "{}: {}",
            path.display(),
            failure.text().unwrap_or_default().replace("error: ", "")
        ))
    })
}

/// JSON is YAML too, but its own parser explains errors better.
fn parse<M: Message + Default>(kind: &str, text: &str) -> Result<M, Failure> {
    let value: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).map_err(|error| Failure::new(error.to_string()))?,
        false => serde_saphyr::from_str(text).map_err(|error| Failure::new(error.to_string()))?,
    };
    if !value.is_object() {
        return Err(Failure::hint(format!("this is no {kind}"), "a file as crictl takes it"));
    }
    from_json(kind, value)
}

/// Reads a pod's configuration. One without a uid gets one, as with crictl: two pods from one file are two pods.
pub(crate) fn read_pod_config(path: &Path) -> Result<v1::PodSandboxConfig, Failure> {
    let mut config: v1::PodSandboxConfig = read_config("PodSandboxConfig", path)?;
    let metadata = config.metadata.get_or_insert_default();
    if metadata.uid.is_empty() {
        metadata.uid = random_hex(16)?;
    }
    Ok(config)
}

pub(crate) async fn run_pod(client: &Client, args: &RunpArgs) -> Done {
    let config = read_pod_config(&args.config)?;
    print_line(&run_pod_with(client, config, &args.runtime).await?)?;
    Ok(0)
}

/// Brings up a pod and gives its id.
pub(crate) async fn run_pod_with(
    client: &Client,
    config: v1::PodSandboxConfig,
    runtime: &str,
) -> Result<String, Failure> {
    let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: runtime.to_owned() };
    let answer = client.runtime().run_pod_sandbox(client.request(request)).await;
    Ok(answer.map_err(doing("bring up the pod"))?.into_inner().pod_sandbox_id)
}

pub(crate) async fn create(client: &Client, args: &CreateArgs) -> Done {
    let pod = select::pod(client, &args.pod).await?;
    let mut config: v1::ContainerConfig = match &args.config {
        Some(path) => read_config("ContainerConfig", path)?,
        None => v1::ContainerConfig::default(),
    };
    if let Some(image) = &args.image {
        config.image = Some(crate::images::spec(image));
    }
    // Docker's way to say it: what follows are the arguments; CRI calls the entrypoint `command`.
    if !args.command.is_empty() {
        config.args = args.command.clone();
    }
    let metadata = config.metadata.get_or_insert_default();
    if let Some(name) = &args.name {
        metadata.name = name.clone();
    }
    if metadata.name.is_empty() {
        metadata.name = format!("c-{}", random_hex(4)?);
    }
    let sandbox_config = match &args.pod_config {
        Some(path) => read_pod_config(path)?,
        None => config_of(&pod),
    };
    print_line(&create_with(client, &pod.id, config, sandbox_config).await?)?;
    Ok(0)
}

/// What a list tells of a pod's configuration: enough for runtimes that look into it.
fn config_of(pod: &v1::PodSandbox) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: pod.metadata.clone(),
        labels: pod.labels.clone(),
        annotations: pod.annotations.clone(),
        ..Default::default()
    }
}

/// Makes a container and gives its id.
pub(crate) async fn create_with(
    client: &Client,
    pod: &str,
    config: v1::ContainerConfig,
    sandbox_config: v1::PodSandboxConfig,
) -> Result<String, Failure> {
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(config),
        sandbox_config: Some(sandbox_config),
    };
    let answer = client.runtime().create_container(client.request(request)).await;
    let answer = answer.map_err(doing(format!("make a container in pod {}", short(pod, false))))?;
    Ok(answer.into_inner().container_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_say_the_same() {
        let json = r#"{"metadata": {"name": "web", "namespace": "x"}, "log_directory": "/tmp"}"#;
        let yaml = "metadata:\n  name: web\n  namespace: x\nlog_directory: /tmp\n";
        let from_json: v1::PodSandboxConfig = parse("PodSandboxConfig", json).unwrap();
        let from_yaml: v1::PodSandboxConfig = parse("PodSandboxConfig", yaml).unwrap();
        assert_eq!(from_json, from_yaml);
        assert_eq!(from_json.log_directory, "/tmp");
        assert!(parse::<v1::PodSandboxConfig>("PodSandboxConfig", "just text").is_err());
    }

    #[test]
    fn a_pod_without_uid_gets_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod.json");
        std::fs::write(&path, r#"{"metadata": {"name": "web"}}"#).unwrap();
        let uid = |config: v1::PodSandboxConfig| config.metadata.unwrap().uid;
        let (one, other) = (read_pod_config(&path).unwrap(), read_pod_config(&path).unwrap());
        let (one, other) = (uid(one), uid(other));
        assert!(one.len() == 32 && one != other);
    }
}
