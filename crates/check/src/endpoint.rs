//! The way to an endpoint: gRPC over a unix socket.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bowline_cri_proto::v1::image_service_client::ImageServiceClient;
use bowline_cri_proto::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// How long any call may take that should not take long.
pub(crate) const CALL: Duration = Duration::from_secs(60);
/// More than the kubelet accepts, so that an answer that is too big for it is seen and not just refused.
const LARGEST: usize = 64 << 20;

/// The client of one service.
pub(crate) type Runtime = RuntimeServiceClient<Channel>;
/// The client of the other.
pub(crate) type Images = ImageServiceClient<Channel>;

/// Connects to `unix:///path` or a bare path. The authority is `localhost`, as the kubelet's is.
pub(crate) async fn connect(address: &str) -> Result<Channel> {
    let path = match address.strip_prefix("unix://") {
        Some(path) => path.to_owned(),
        None if address.starts_with('/') => address.to_owned(),
        None => bail!("`{address}` is not an endpoint; it should look like unix:///run/bowline/bowline.sock"),
    };
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(Duration::from_secs(5));
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("could not connect to {address}"))
}

/// A client of the runtime service.
pub(crate) fn runtime(channel: Channel) -> Runtime {
    Runtime::new(channel).max_decoding_message_size(LARGEST)
}

/// A client of the image service.
pub(crate) fn images(channel: Channel) -> Images {
    Images::new(channel).max_decoding_message_size(LARGEST)
}

/// A request that ends by itself.
pub(crate) fn ask<T>(message: T) -> Request<T> {
    within(message, crate::patience::at_most(CALL))
}

/// A request with a deadline of its own.
pub(crate) fn within<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}
