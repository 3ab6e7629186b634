//! A runtime for tests, on a socket of its own: it has pods and containers in name only, and writes down what it was
//! asked for.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_cri_proto::v1::image_service_server::{ImageService, ImageServiceServer};
use bowline_cri_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tonic::{Request, Response, Status};

use crate::client::Client;

/// What it was asked for, and what it answers.
#[derive(Default)]
pub(crate) struct Script {
    /// The calls, in order.
    pub calls: Vec<String>,
    /// Images that it has.
    pub images: Vec<String>,
    /// What a container writes, as lines of its log.
    pub log: String,
    /// How a container ends.
    pub exit_code: i32,
    /// Starting a container fails.
    pub fails_to_start: bool,
    /// Where the last pod wanted its logs.
    pub folder: PathBuf,
}

/// A fake runtime.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Script>>);

impl Fake {
    pub fn new(script: Script) -> Fake {
        Fake(Arc::new(Mutex::new(script)))
    }

    /// Serves on a socket in `folder`, and connects to it.
    pub async fn serve(&self, folder: &Path) -> Client {
        let socket = folder.join("fake.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(self.clone()))
            .add_service(ImageServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        let endpoint = format!("unix://{}", socket.display());
        Client::connect(&endpoint, Duration::from_secs(5)).await.unwrap()
    }

    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    fn note(&self, call: impl Into<String>) {
        self.script().calls.push(call.into());
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for Fake {
    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap_or_default();
        self.note(format!("run pod {}", config.metadata.unwrap_or_default().name));
        self.script().folder = config.log_directory.into();
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id: "p0d".into() }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap_or_default();
        self.note(format!("create {} in {}", config.args.join(" "), request.pod_sandbox_id));
        let script = self.script();
        std::fs::write(script.folder.join(config.log_path), &script.log)?;
        Ok(Response::new(v1::CreateContainerResponse { container_id: "c0".into() }))
    }

    async fn start_container(
        &self,
        _: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        self.note("start");
        match self.script().fails_to_start {
            true => Err(Status::unknown("no such program")),
            false => Ok(Response::new(v1::StartContainerResponse {})),
        }
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        let script = self.script();
        let status = v1::ContainerStatus {
            id: request.into_inner().container_id,
            state: v1::ContainerState::ContainerExited as i32,
            exit_code: script.exit_code,
            ..Default::default()
        };
        Ok(Response::new(v1::ContainerStatusResponse { status: Some(status), ..Default::default() }))
    }

    async fn stop_pod_sandbox(
        &self,
        _: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        self.note("stop pod");
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        _: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        self.note("remove pod");
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }
}

#[tonic::async_trait]
impl ImageService for Fake {
    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        let image = request.into_inner().image.unwrap_or_default().image;
        let there = self.script().images.contains(&image);
        let image = there.then(|| v1::Image { id: image, ..Default::default() });
        Ok(Response::new(v1::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        let image = request.into_inner().image.unwrap_or_default().image;
        self.note(format!("pull {image}"));
        Ok(Response::new(v1::PullImageResponse { image_ref: image }))
    }
}
