//! PullImage.

use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_image::Images;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::codes;
use crate::convert::image;

/// We give up this much before the caller's deadline, for at the deadline itself the transport drops the call with a
/// code (`Cancelled`) that tells the caller less.
const MARGIN: Duration = Duration::from_millis(3);

/// Brings an image into the store. Ends when its last caller goes away or runs out of time; the kubelet sets no limit,
/// so what stalls is ended by the store's own watch.
pub(crate) async fn pull_image(
    images: &Images,
    request: Request<v1::PullImageRequest>,
) -> Result<v1::PullImageResponse, Status> {
    let limit = caller_limit(request.metadata());
    let request = request.into_inner();
    let asked = image::reference("image", request.image).map_err(|refused| codes::of_refused(&refused))?;
    let pull = images.pull(&asked.image, request.auth.map(image::auth));
    let pulled = match limit {
        None => pull.await,
        Some(limit) => tokio::time::timeout(limit.saturating_sub(MARGIN), pull).await.map_err(|_| {
            Status::deadline_exceeded(format!(
                "the caller's time of {limit:?} to pull `{}` is over",
                asked.image
            ))
        })?,
    };
    let id = pulled.map_err(|error| codes::of_pull(&error))?;
    Ok(v1::PullImageResponse { image_ref: id.to_string() })
}

/// The time that the caller gives us: up to eight digits and a unit (gRPC over HTTP/2, `grpc-timeout`).
fn caller_limit(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_callers() {
        let limit = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            caller_limit(&metadata)
        };
        assert_eq!(limit("1m"), Some(Duration::from_millis(1)));
        assert_eq!(limit("989u"), Some(Duration::from_micros(989)));
        assert_eq!(limit("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(limit("2S"), Some(Duration::from_secs(2)));
        for bad in ["", "S", "1", "123456789S", "-1S", "1x"] {
            assert_eq!(limit(bad), None, "{bad}");
        }
        assert_eq!(caller_limit(&MetadataMap::new()), None);
    }
}
