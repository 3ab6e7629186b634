//! A CRI client in a few words.

use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_cri_proto::v1::image_service_client::ImageServiceClient;
use bowline_cri_proto::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Daemon;

/// The runtime service.
pub type Runtime = RuntimeServiceClient<Channel>;

/// Both services of a daemon, with an image to run.
#[derive(Clone)]
pub struct Client {
    /// Pods and containers.
    pub runtime: Runtime,
    /// Images.
    pub images: ImageServiceClient<Channel>,
    /// A busybox, once [`Client::pull`] was called.
    pub image: String,
}

impl Client {
    /// Connects.
    pub async fn connect(daemon: &Daemon) -> Client {
        let image = format!("{}/busybox:1", daemon.registry.host());
        Client::reach(daemon.socket(), image).await.expect("connect to the daemon")
    }

    /// Connects to a daemon that may be away.
    pub async fn reach(socket: std::path::PathBuf, image: String) -> Result<Client, tonic::transport::Error> {
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(Duration::from_secs(60));
        let channel = endpoint.connect_with_connector(connector).await?;
        Ok(Client {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            image,
        })
    }

    /// Puts busybox into the registry and pulls it.
    pub async fn pull(&mut self, daemon: &Daemon) {
        let image = bowline_testkit::busybox().expect("a static busybox is installed").build();
        daemon.registry.push("busybox", "1", &image);
        let spec = v1::ImageSpec { image: self.image.clone(), ..Default::default() };
        self.images
            .pull_image(v1::PullImageRequest { image: Some(spec), ..Default::default() })
            .await
            .expect("pull busybox");
    }

    /// Brings a pod up.
    pub async fn run(&mut self, config: v1::PodSandboxConfig) -> Result<String, tonic::Status> {
        let request = v1::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// Makes and starts a container.
    pub async fn start(&mut self, pod: &str, config: v1::ContainerConfig) -> Result<String, tonic::Status> {
        let id = self.create(pod, config).await?;
        self.runtime.start_container(v1::StartContainerRequest { container_id: id.clone() }).await?;
        Ok(id)
    }

    /// Makes a container.
    pub async fn create(&mut self, pod: &str, config: v1::ContainerConfig) -> Result<String, tonic::Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: None,
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    /// A container's status.
    pub async fn status(&mut self, id: &str) -> Result<v1::ContainerStatus, tonic::Status> {
        let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
        Ok(self.runtime.container_status(request).await?.into_inner().status.unwrap_or_default())
    }

    /// Stops and removes a pod.
    pub async fn remove(&mut self, pod: &str) -> Result<(), tonic::Status> {
        self.runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod.into() }).await?;
        self.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: pod.into() }).await?;
        Ok(())
    }

    /// Runs a command in a container.
    pub async fn exec(&mut self, id: &str, command: &[&str]) -> Result<v1::ExecSyncResponse, tonic::Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: id.into(), cmd, timeout: 20 };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }
}

/// A pod of this name, with its logs in `logs`.
pub fn pod(name: &str, logs: &std::path::Path) -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.into(),
            uid: format!("{name}-uid"),
            namespace: "tests".into(),
            attempt: 0,
        }),
        log_directory: logs.display().to_string(),
        ..Default::default()
    }
}

/// A container that runs a script in busybox' shell.
pub fn container(client: &Client, name: &str, script: &str) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: client.image.clone(), ..Default::default() }),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        ..Default::default()
    }
}
