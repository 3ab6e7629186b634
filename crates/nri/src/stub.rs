//! The plugin's end: connects, registers, and answers by functions of its owner. For tests and `bowline check`; plugins
//! proper have the Go library.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bowline_nri_proto::v1alpha1::{
    ConfigureResponse, Container, ContainerAdjustment, ContainerEviction, ContainerUpdate,
    CreateContainerResponse, Empty, FailurePolicy, LinuxResources, OwningPlugins, PodSandbox,
    RegisterPluginRequest, StopContainerResponse, SynchronizeRequest, SynchronizeResponse,
    UpdateContainerRequest, UpdateContainerResponse, UpdateContainersRequest, UpdateContainersResponse,
    UpdatePodSandboxRequest, ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};
use prost::Message as _;
use tokio::net::UnixStream;

use crate::NRI_VERSION;
use crate::arrival::RUNTIME_SERVICE;
use crate::hub::Work;
use crate::link::{CallError, End, Link, Service, code};
use crate::plugin::{ALL_EVENTS, PLUGIN_SERVICE};

/// How long the runtime may take to answer.
const LIMIT: Duration = Duration::from_secs(30);

/// What a plugin is asked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Heard {
    /// The method.
    pub call: String,
    /// About this pod.
    pub pod: Option<PodSandbox>,
    /// Of which this container; none: about the pod itself.
    pub container: Option<Container>,
    /// Limits that a client wants.
    pub resources: Option<LinuxResources>,
    /// Who wants what of a new container, for those who validate.
    pub owners: Option<OwningPlugins>,
}

/// What it says. Most calls take nothing of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// To CreateContainer.
    pub adjust: Option<ContainerAdjustment>,
    /// To CreateContainer, UpdateContainer and StopContainer.
    pub update: Vec<ContainerUpdate>,
    /// To CreateContainer and UpdateContainer.
    pub evict: Vec<ContainerEviction>,
    /// To ValidateContainerAdjustment: why not.
    pub reject: Option<String>,
}

/// What a plugin does.
pub trait Plugin: Send + Sync + 'static {
    /// What it wants to happen when it does not answer.
    fn policy(&self) -> FailurePolicy {
        FailurePolicy::default()
    }

    /// What is there already; what it wants changed.
    fn synchronize(&self, everything: SynchronizeRequest) -> Work<'_, Result<Vec<ContainerUpdate>, String>>;

    /// Everything else. An error is in its own words.
    fn call(&self, heard: Heard) -> Work<'_, Result<Answer, String>>;
}

/// A plugin that is connected. It leaves when this goes.
pub struct Stub(Arc<Link>);

impl Stub {
    /// Connects and registers. The runtime configures and synchronises it afterwards.
    pub async fn connect(
        socket: &Path,
        index: &str,
        name: &str,
        plugin: Arc<dyn Plugin>,
    ) -> Result<Stub, CallError> {
        let socket = UnixStream::connect(socket).await.map_err(|_| CallError::Closed)?;
        let stub = Stub(Link::start(socket, End::Plugin, service(plugin)));
        let request = RegisterPluginRequest {
            plugin_name: name.to_owned(),
            plugin_idx: index.to_owned(),
            nri_version: NRI_VERSION.into(),
        };
        stub.0.call::<Empty>(RUNTIME_SERVICE, "RegisterPlugin", &request, LIMIT).await?;
        Ok(stub)
    }

    /// Asks for changes; those that failed.
    pub async fn update_containers(
        &self,
        request: &UpdateContainersRequest,
    ) -> Result<Vec<ContainerUpdate>, CallError> {
        let answer: UpdateContainersResponse =
            self.0.call(RUNTIME_SERVICE, "UpdateContainers", request, LIMIT).await?;
        Ok(answer.failed)
    }

    /// Waits until the runtime has ended the connection.
    pub async fn ended(&self) {
        self.0.ended().await;
    }

    /// Whether it has.
    pub fn is_ended(&self) -> bool {
        self.0.is_closed()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn service(plugin: Arc<dyn Plugin>) -> Service {
    let pieces: Arc<std::sync::Mutex<SynchronizeRequest>> = Arc::default();
    Arc::new(move |service, method, payload| {
        let (plugin, pieces) = (plugin.clone(), pieces.clone());
        Box::pin(async move {
            let malformed = |error: prost::DecodeError| (code::INVALID_ARGUMENT, error.to_string());
            match (service.as_str(), method.as_str()) {
                (PLUGIN_SERVICE, "Configure") => {
                    let events = ALL_EVENTS as i32;
                    let failure_policy = Some(plugin.policy());
                    Ok(ConfigureResponse { events, failure_policy }.encode_to_vec())
                }
                (PLUGIN_SERVICE, "Synchronize") => {
                    let piece = SynchronizeRequest::decode(payload.as_slice()).map_err(malformed)?;
                    let more = piece.more;
                    let whole = {
                        let mut whole = pieces.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        whole.pods.extend(piece.pods);
                        whole.containers.extend(piece.containers);
                        if more { None } else { Some(std::mem::take(&mut *whole)) }
                    };
                    let update = match whole {
                        None => Vec::new(),
                        Some(whole) => plugin.synchronize(whole).await.map_err(|why| (code::UNKNOWN, why))?,
                    };
                    Ok(SynchronizeResponse { update, more }.encode_to_vec())
                }
                (PLUGIN_SERVICE, _) => {
                    let heard = read(&method, &payload).map_err(malformed)?;
                    let answer = plugin.call(heard).await.map_err(|why| (code::UNKNOWN, why))?;
                    Ok(write(&method, answer))
                }
                _ => Err((code::UNIMPLEMENTED, format!("there is no {service}/{method}"))),
            }
        })
    })
}

/// Requests about containers have the same first three fields, all but one.
fn read(method: &str, payload: &[u8]) -> Result<Heard, prost::DecodeError> {
    let call = method.to_owned();
    match method {
        "UpdatePodSandbox" => {
            let request = UpdatePodSandboxRequest::decode(payload)?;
            Ok(Heard { call, pod: request.pod, resources: request.linux_resources, ..Heard::default() })
        }
        "ValidateContainerAdjustment" => {
            let ValidateContainerAdjustmentRequest { pod, container, owners, .. } =
                ValidateContainerAdjustmentRequest::decode(payload)?;
            Ok(Heard { call, pod, container, owners, resources: None })
        }
        _ => {
            let UpdateContainerRequest { pod, container, linux_resources } =
                UpdateContainerRequest::decode(payload)?;
            Ok(Heard { call, pod, container, resources: linux_resources, owners: None })
        }
    }
}

fn write(method: &str, answer: Answer) -> Vec<u8> {
    let Answer { adjust, update, evict, reject } = answer;
    match method {
        "CreateContainer" => CreateContainerResponse { adjust, update, evict }.encode_to_vec(),
        "UpdateContainer" => UpdateContainerResponse { update, evict }.encode_to_vec(),
        "StopContainer" => StopContainerResponse { update }.encode_to_vec(),
        "ValidateContainerAdjustment" => {
            let rejected = reject.is_some();
            let reason = reject.unwrap_or_default();
            ValidateContainerAdjustmentResponse { reject: rejected, reason }.encode_to_vec()
        }
        _ => Vec::new(),
    }
}
