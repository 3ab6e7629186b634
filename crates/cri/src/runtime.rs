//! The route table of RuntimeService.

use std::sync::Arc;

use bowline_cri_proto::v1;
use bowline_cri_proto::v1::runtime_service_server::RuntimeService;
use bowline_pods::{CgroupDriver, Pods};
use bowline_streaming::Streaming;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use crate::answer::answer;
use crate::batches::batches;
use crate::container_stats::{container_stats, list_container_stats};
use crate::container_status::container_status;
use crate::create_container::create_container;
use crate::events::container_events;
use crate::exec_sync::exec_sync;
use crate::list_containers::list_containers;
use crate::list_pod_sandbox::list_pod_sandbox;
use crate::metrics::{list_metric_descriptors, list_pod_sandbox_metrics};
use crate::pod_sandbox_stats::{list_pod_sandbox_stats, pod_sandbox_stats};
use crate::pod_sandbox_status::pod_sandbox_status;
use crate::run_pod_sandbox::run_pod_sandbox;
use crate::status::status;
use crate::stop_container::stop_container;
use crate::update_container_resources::update_container_resources;
use crate::update_pod_sandbox_resources::update_pod_sandbox_resources;
use crate::{ServerInfo, checkpoint, codes, find, stream};

/// The calls of RuntimeService.
pub struct RuntimeCalls {
    pub(crate) pods: Pods,
    pub(crate) streaming: Streaming,
    pub(crate) info: Arc<ServerInfo>,
}

/// What every call gives.
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RuntimeService for RuntimeCalls {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        answer("Version", async { Ok(version(&self.info)) }).await
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        answer("Status", async { Ok(status(&self.pods, &self.info, request.into_inner().verbose)) }).await
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Answer<v1::RuntimeConfigResponse> {
        answer("RuntimeConfig", async {
            let driver = match self.pods.cgroup_driver().driver {
                CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
                CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
            };
            let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
            Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
        })
        .await
    }

    /// Tells the pod CIDR, which the conflist says better.
    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        answer("UpdateRuntimeConfig", async { Ok(v1::UpdateRuntimeConfigResponse {}) }).await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Answer<v1::RunPodSandboxResponse> {
        answer("RunPodSandbox", run_pod_sandbox(&self.pods, request.into_inner())).await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        answer("StopPodSandbox", async {
            let id = find::pod_id(&self.pods, &request.into_inner().pod_sandbox_id);
            if let Some(id) = find::gone_is_fine(id)? {
                let stopped = self.pods.stop_pod(&id).await;
                find::gone_is_fine(stopped.map_err(|error| codes::of_pod(&error)))?;
            }
            Ok(v1::StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        answer("RemovePodSandbox", async {
            let id = find::pod_id(&self.pods, &request.into_inner().pod_sandbox_id);
            if let Some(id) = find::gone_is_fine(id)? {
                let removed = self.pods.remove_pod(&id).await;
                find::gone_is_fine(removed.map_err(|error| codes::of_pod(&error)))?;
            }
            Ok(v1::RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        answer("PodSandboxStatus", async { pod_sandbox_status(&self.pods, &request.into_inner()) }).await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        answer("ListPodSandbox", async {
            let items = list_pod_sandbox(&self.pods, request.into_inner().filter)?.collect();
            Ok(v1::ListPodSandboxResponse { items })
        })
        .await
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<BoxStream<v1::StreamPodSandboxesResponse>> {
        answer("StreamPodSandboxes", async {
            let found = list_pod_sandbox(&self.pods, request.into_inner().filter)?;
            Ok(batches(found, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes }))
        })
        .await
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        answer("CreateContainer", create_container(&self.pods, request.into_inner())).await
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Answer<v1::StartContainerResponse> {
        answer("StartContainer", async {
            let id = find::container_id(&self.pods, &request.into_inner().container_id)?;
            self.pods.start_container(&id).await.map_err(|error| codes::of_pod(&error))?;
            Ok(v1::StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Answer<v1::StopContainerResponse> {
        answer("StopContainer", stop_container(&self.pods, request.into_inner())).await
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        answer("RemoveContainer", async {
            let id = find::container_id(&self.pods, &request.into_inner().container_id);
            if let Some(id) = find::gone_is_fine(id)? {
                let removed = self.pods.remove_container(&id).await;
                find::gone_is_fine(removed.map_err(|error| codes::of_pod(&error)))?;
            }
            Ok(v1::RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Answer<v1::ListContainersResponse> {
        answer("ListContainers", async {
            let containers = list_containers(&self.pods, request.into_inner().filter)?.collect();
            Ok(v1::ListContainersResponse { containers })
        })
        .await
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<BoxStream<v1::StreamContainersResponse>> {
        answer("StreamContainers", async {
            let found = list_containers(&self.pods, request.into_inner().filter)?;
            Ok(batches(found, |containers| v1::StreamContainersResponse { containers }))
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        answer("ContainerStatus", container_status(&self.pods, request.into_inner())).await
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        answer("UpdateContainerResources", update_container_resources(&self.pods, request.into_inner())).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        answer("ReopenContainerLog", async {
            let id = find::container_id(&self.pods, &request.into_inner().container_id)?;
            self.pods.reopen_log(&id).await.map_err(|error| codes::of_pod(&error))?;
            Ok(v1::ReopenContainerLogResponse {})
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        request: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        answer("CheckpointContainer", checkpoint::container(&self.pods, request.into_inner())).await
    }

    async fn checkpoint_pod(
        &self,
        request: Request<v1::CheckpointPodRequest>,
    ) -> Answer<v1::CheckpointPodResponse> {
        let deadline = checkpoint::deadline(request.metadata());
        answer("CheckpointPod", checkpoint::pod(&self.pods, request.into_inner(), deadline)).await
    }

    async fn restore_pod(&self, request: Request<v1::RestorePodRequest>) -> Answer<v1::RestorePodResponse> {
        answer("RestorePod", checkpoint::restore_pod(&self.pods, request.into_inner())).await
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        answer("ExecSync", exec_sync(&self.pods, request.into_inner())).await
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        answer("Exec", async { stream::exec(&self.pods, &self.streaming, request.into_inner()) }).await
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        answer("Attach", async { stream::attach(&self.pods, &self.streaming, &request.into_inner()) }).await
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Answer<v1::PortForwardResponse> {
        answer("PortForward", async {
            stream::port_forward(&self.pods, &self.streaming, &request.into_inner())
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Answer<v1::ContainerStatsResponse> {
        answer("ContainerStats", container_stats(&self.pods, request.into_inner())).await
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        answer("ListContainerStats", async {
            let stats = list_container_stats(&self.pods, request.into_inner().filter).await?;
            Ok(v1::ListContainerStatsResponse { stats })
        })
        .await
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<BoxStream<v1::StreamContainerStatsResponse>> {
        answer("StreamContainerStats", async {
            let stats = list_container_stats(&self.pods, request.into_inner().filter).await?;
            let wrap = |container_stats| v1::StreamContainerStatsResponse { container_stats };
            Ok(batches(stats.into_iter(), wrap))
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        answer("PodSandboxStats", pod_sandbox_stats(&self.pods, request.into_inner())).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        answer("ListPodSandboxStats", async {
            let stats = list_pod_sandbox_stats(&self.pods, request.into_inner().filter).await?;
            Ok(v1::ListPodSandboxStatsResponse { stats })
        })
        .await
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<BoxStream<v1::StreamPodSandboxStatsResponse>> {
        answer("StreamPodSandboxStats", async {
            let stats = list_pod_sandbox_stats(&self.pods, request.into_inner().filter).await?;
            let wrap = |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
            Ok(batches(stats.into_iter(), wrap))
        })
        .await
    }

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Answer<BoxStream<v1::ContainerEventResponse>> {
        answer("GetContainerEvents", async { Ok(container_events(&self.pods)) }).await
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        answer("ListMetricDescriptors", async { Ok(list_metric_descriptors(&self.pods)) }).await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        answer("ListPodSandboxMetrics", async {
            let pod_metrics = list_pod_sandbox_metrics(&self.pods).await;
            Ok(v1::ListPodSandboxMetricsResponse { pod_metrics })
        })
        .await
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<BoxStream<v1::StreamPodSandboxMetricsResponse>> {
        answer("StreamPodSandboxMetrics", async {
            let metrics = list_pod_sandbox_metrics(&self.pods).await;
            let wrap = |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
            Ok(batches(metrics.into_iter(), wrap))
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let done = update_pod_sandbox_resources(&self.pods, request.into_inner());
        answer("UpdatePodSandboxResources", done).await
    }
}

/// The same whatever version the client names. The kubelet refuses any `version` but this one.
fn version(info: &ServerInfo) -> v1::VersionResponse {
    v1::VersionResponse {
        version: "0.1.0".into(),
        // Becomes the front of every container id in the Kubernetes API: `bowline://<id>`.
        runtime_name: "bowline".into(),
        runtime_version: info.version.clone(),
        runtime_api_version: "v1".into(),
    }
}
