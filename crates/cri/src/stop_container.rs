//! StopContainer.

use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_pods::Pods;
use tonic::Status;

use crate::convert::{Refused, invalid};
use crate::{codes, find};

/// The longest grace period; beyond it times no longer fit into nanoseconds.
const FOREVER: u64 = 100 * 365 * 24 * 3600;

/// Ends a container, by force once its grace period is over.
///
/// CRI asks for a yes when the container has already ended. We say yes for one that is gone as well: the kubelet
/// repeats the call until it hears yes.
pub(crate) async fn stop_container(
    pods: &Pods,
    request: v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse, Status> {
    let grace = grace(request.timeout).map_err(|refused| codes::of_refused(&refused))?;
    if let Some(id) = find::gone_is_fine(find::container_id(pods, &request.container_id))? {
        let stopped = pods.stop_container(&id, grace).await;
        find::gone_is_fine(stopped.map_err(|error| codes::of_pod(&error)))?;
    }
    Ok(v1::StopContainerResponse {})
}

/// Zero: kill at once.
fn grace(seconds: i64) -> Result<Duration, Refused> {
    match u64::try_from(seconds) {
        Ok(seconds) => Ok(Duration::from_secs(seconds.min(FOREVER))),
        Err(_) => Err(invalid("timeout", format!("{seconds} seconds are negative"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_periods() {
        assert_eq!(grace(0), Ok(Duration::ZERO));
        assert_eq!(grace(30), Ok(Duration::from_secs(30)));
        assert_eq!(grace(i64::MAX), Ok(Duration::from_secs(FOREVER)));
        assert!(grace(-1).is_err());
    }
}
