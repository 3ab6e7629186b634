//! Pods, as cases write them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use bowline_cri_proto::v1;
use tonic::Status;

use crate::container::{CtrSpec, Report};
use crate::endpoint::ask;
use crate::node::{LABEL, NAMESPACE, Node};

/// A pod being described.
pub(crate) struct PodSpec {
    node: Node,
    /// What will be asked for; cases may change anything.
    pub(crate) config: v1::PodSandboxConfig,
    /// The runtime handler asked for.
    pub(crate) handler: String,
}

/// A pod that runs, or did.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) node: Node,
    pub(crate) id: String,
    pub(crate) config: Rc<v1::PodSandboxConfig>,
}

impl Node {
    /// Describes a pod the way the kubelet would: PID namespaces per container, a log folder, a label.
    pub(crate) fn pod(&self, name: &str) -> PodSpec {
        let unique = self.unique(name);
        let namespaces =
            v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() };
        let security =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: name.to_owned(),
                uid: unique.clone(),
                namespace: NAMESPACE.to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.scratch().join("logs").join(&unique).to_string_lossy().into_owned(),
            labels: [(LABEL.to_owned(), self.mark())].into(),
            linux: Some(v1::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        };
        PodSpec { node: self.clone(), config, handler: self.run.handler.clone() }
    }
}

impl PodSpec {
    /// Any change to what is asked for.
    pub(crate) fn edit(mut self, change: impl FnOnce(&mut v1::PodSandboxConfig)) -> PodSpec {
        change(&mut self.config);
        self
    }

    /// The namespaces of the pod; its containers follow unless they say otherwise.
    pub(crate) fn namespaces(mut self, change: impl FnOnce(&mut v1::NamespaceOption)) -> PodSpec {
        let linux = self.config.linux.get_or_insert_default();
        let security = linux.security_context.get_or_insert_default();
        change(security.namespace_options.get_or_insert_default());
        self
    }

    /// In the network of the host.
    pub(crate) fn host_network(mut self) -> PodSpec {
        // As the kubelet does: the host's name is not ours to set.
        self.config.hostname.clear();
        self.namespaces(|options| options.network = v1::NamespaceMode::Node as i32)
    }

    /// One PID namespace for all its containers.
    pub(crate) fn shared_pid(self) -> PodSpec {
        self.namespaces(|options| options.pid = v1::NamespaceMode::Pod as i32)
    }

    /// Allows privileged containers.
    pub(crate) fn privileged(mut self) -> PodSpec {
        let linux = self.config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().privileged = true;
        self
    }

    /// A port of the node for a port of the pod.
    pub(crate) fn port(mut self, protocol: v1::Protocol, host: u16, inside: u16, host_ip: &str) -> PodSpec {
        self.config.port_mappings.push(v1::PortMapping {
            protocol: protocol as i32,
            container_port: inside.into(),
            host_port: host.into(),
            host_ip: host_ip.to_owned(),
        });
        self
    }

    /// A kernel parameter.
    pub(crate) fn sysctl(mut self, name: &str, value: &str) -> PodSpec {
        self.config.linux.get_or_insert_default().sysctls.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Asks, and gives the bare answer.
    pub(crate) async fn try_run(&self) -> Result<String, Status> {
        let request = v1::RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: self.handler.clone(),
        };
        let answer = self.node.runtime().run_pod_sandbox(ask(request)).await?.into_inner();
        self.node.made_pod(&answer.pod_sandbox_id);
        Ok(answer.pod_sandbox_id)
    }

    /// Runs it.
    pub(crate) async fn run(self) -> Result<Pod> {
        let id = self.try_run().await.context("RunPodSandbox")?;
        Ok(Pod { node: self.node, id, config: Rc::new(self.config) })
    }
}

impl Pod {
    /// Describes a container in it.
    pub(crate) fn container(&self, name: &str) -> CtrSpec {
        CtrSpec::new(self.clone(), name)
    }

    pub(crate) async fn status(&self) -> Result<v1::PodSandboxStatus, Status> {
        self.node.pod_status(&self.id).await
    }

    /// Its first address.
    pub(crate) async fn ip(&self) -> Result<IpAddr> {
        let status = self.status().await?;
        let ip = status.network.unwrap_or_default().ip;
        ip.parse().with_context(|| format!("the pod's IP `{ip}` does not parse"))
    }

    pub(crate) async fn stop(&self) -> Result<(), Status> {
        self.node.stop_pod(&self.id).await
    }

    pub(crate) async fn remove(&self) -> Result<(), Status> {
        self.node.remove_pod(&self.id).await
    }

    /// The folder of its logs.
    pub(crate) fn logs(&self) -> PathBuf {
        PathBuf::from(&self.config.log_directory)
    }

    /// Runs a container to its end and gives what it said. It must end with 0.
    pub(crate) async fn report(&self, name: &str, words: &[&str]) -> Result<Report> {
        self.container(name).cmd(words).report().await
    }
}
