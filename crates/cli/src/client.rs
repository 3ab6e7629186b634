//! The connection to a runtime.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_cri_proto::admin::admin_service_client::AdminServiceClient;
use bowline_cri_proto::v1::image_service_client::ImageServiceClient;
use bowline_cri_proto::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::failure::Failure;

/// Where the daemon listens unless told otherwise.
const STANDARD: &str = "unix:///run/bowline/bowline.sock";

/// The longest message either way, as the kubelet's.
const MAX_MESSAGE: usize = 16 << 20;

/// A connection, and how long a call on it may take.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
    timeout: Duration,
}

/// The endpoint: flag, environment, standard.
pub(crate) fn endpoint(flag: Option<String>, environment: Option<String>) -> String {
    let given = flag.or(environment).filter(|text| !text.is_empty());
    given.unwrap_or_else(|| STANDARD.to_owned())
}

/// The socket of an endpoint.
pub(crate) fn socket_path(endpoint: &str) -> Result<PathBuf, Failure> {
    let path = match endpoint.split_once(':') {
        Some(("unix", rest)) => rest.strip_prefix("//").unwrap_or(rest),
        Some((scheme, rest)) if rest.starts_with("//") => {
            return Err(Failure::hint(format!("an endpoint cannot be of kind `{scheme}`"), "unix:///PATH"));
        }
        _ => endpoint,
    };
    match path.starts_with('/') {
        true => Ok(PathBuf::from(path)),
        false => Err(Failure::hint(format!("`{endpoint}` is not an absolute path"), "unix:///PATH")),
    }
}

fn unreachable(path: &Path, error: io::Error) -> Failure {
    let text = format!("could not connect to {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::hint(text, "is `bowline serve` running? Another runtime: --endpoint unix:///PATH")
        }
        io::ErrorKind::ConnectionRefused => {
            Failure::hint(text, "the daemon has ended; start `bowline serve`")
        }
        io::ErrorKind::PermissionDenied => Failure::hint(text, "the same as root"),
        _ => Failure::new(text),
    }
}

impl Client {
    /// Connects at once, so that a wrong endpoint is told apart from a failing call.
    pub async fn connect(endpoint: &str, timeout: Duration) -> Result<Client, Failure> {
        let path = socket_path(endpoint)?;
        let first = UnixStream::connect(&path).await.map_err(|error| unreachable(&path, error))?;
        let mut first = Some(first);
        let again = path.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (ready, path) = (first.take(), again.clone());
            async move {
                let stream = match ready {
                    Some(stream) => stream,
                    None => UnixStream::connect(path).await?,
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await;
        let channel =
            channel.map_err(|error| Failure::new(format!("no gRPC at {}: {error}", path.display())))?;
        Ok(Client { channel, timeout })
    }

    /// A call with the ordinary deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        self.request_within(message, Duration::ZERO)
    }

    /// A call that may take so much longer than an ordinary one.
    pub fn request_within<T>(&self, message: T, extra: Duration) -> Request<T> {
        let mut request = Request::new(message);
        // gRPC writes a deadline in eight digits; more than a month is as good as for ever.
        request.set_timeout(self.timeout.saturating_add(extra).min(Duration::from_secs(31 * 86_400)));
        request
    }

    /// Pods and containers.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Images.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// What is beyond CRI.
    pub fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_come_from_flag_environment_standard() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(endpoint(some("a"), some("b")), "a");
        assert_eq!(endpoint(None, some("b")), "b");
        assert_eq!(endpoint(None, some("")), STANDARD);
        assert_eq!(endpoint(None, None), STANDARD);
    }

    #[test]
    fn endpoints_are_sockets() {
        assert_eq!(socket_path("unix:///run/x.sock").unwrap(), Path::new("/run/x.sock"));
        assert_eq!(socket_path("unix:/run/x.sock").unwrap(), Path::new("/run/x.sock"));
        assert_eq!(socket_path("/run/x.sock").unwrap(), Path::new("/run/x.sock"));
        assert!(socket_path("tcp://1.2.3.4:5").is_err());
        assert!(socket_path("x.sock").is_err());
    }

    #[tokio::test]
    async fn a_missing_socket_says_what_to_try() {
        let missing = Client::connect("unix:///nonexistent/x.sock", Duration::from_secs(1)).await;
        let text = missing.map(|_| ()).unwrap_err().text().unwrap();
        assert!(text.contains("is `bowline serve` running?"), "{text}");
    }
}
