//! The kubelet's view of Bowline: CRI v1 on one side, pods and images on the other.
//!
//! Nothing is decided here that another crate should decide. A call is parsed into the types of `model`, one call of
//! `pods` or `image` does the work, and its outcome becomes a message again:
//!
//! ```text
//!   runtime.rs, image.rs        the route tables: one line per RPC
//!     └─ run_pod_sandbox.rs ..  one file per RPC that is more than a line
//!          ├─ convert/          messages to specs (refusing what cannot be honoured), views to messages
//!          └─ codes.rs          the only place that knows which error has which code
//! ```
//!
//! Lists and statuses are answered from memory and wait for nobody. An operation goes on inside `pods` when its caller
//! goes away, and the caller's next try joins it; here is nothing to cancel, but for pulls, which end with their last
//! caller. What is not built answers `Unimplemented`, because the generated stubs do.

pub mod admin;
mod answer;
mod batches;
mod calls;
mod checkpoint;
mod codes;
mod container_stats;
mod container_status;
mod convert;
mod create_container;
mod events;
mod exec_sync;
mod find;
mod image;
mod image_fs_info;
mod image_status;
mod list_containers;
mod list_images;
mod list_pod_sandbox;
mod metrics;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod prometheus;
mod pull_image;
mod run_pod_sandbox;
mod runtime;
mod status;
mod stop_container;
mod stream;
mod update_container_resources;
mod update_pod_sandbox_resources;

use std::path::PathBuf;
use std::sync::Arc;

use bowline_cri_proto::v1::image_service_server::ImageServiceServer;
use bowline_cri_proto::v1::runtime_service_server::RuntimeServiceServer;
use bowline_pods::Pods;
use bowline_streaming::Streaming;

pub use image::ImageCalls;
pub use prometheus::Exporter;
pub use runtime::RuntimeCalls;

/// The longest message either way: what the kubelet is ready to receive. A longer answer becomes an error that says so
/// (`OutOfRange`), which is what the client would make of it anyway.
const MAX_MESSAGE: usize = 16 << 20;

/// What clients may know of the daemon.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// The version, as semver.
    pub version: String,
    /// Folder of what is gone after a reboot.
    pub state: PathBuf,
    /// Folder of what lasts.
    pub root: PathBuf,
    /// The settings in force, without secrets; shown by `crictl info`.
    pub settings: serde_json::Value,
}

/// The two services of CRI. They share a socket but each works alone, for a kubelet may be given two endpoints.
pub fn services(
    pods: Pods,
    streaming: Streaming,
    info: ServerInfo,
) -> (RuntimeServiceServer<RuntimeCalls>, ImageServiceServer<ImageCalls>) {
    let images = pods.images().clone();
    let runtime = RuntimeServiceServer::new(RuntimeCalls { pods, streaming, info: Arc::new(info) });
    let images = ImageServiceServer::new(ImageCalls { images });
    (
        runtime.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE),
        images.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE),
    )
}
