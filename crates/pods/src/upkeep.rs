//! What is done while nobody asks: parts for the next pod, workers that nobody needs, links of pods that are gone.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::shared::Shared;

/// How long ends are gathered before they are carried out. The kernel holds its network lock for 20 ms and more while it
/// deletes a link or a namespace, however many there are; a pod that starts just then waits for it.
const REAP_AFTER: Duration = Duration::from_secs(1);

/// How often workers that open paths are looked at.
const TIDY_EVERY: Duration = Duration::from_secs(30);

/// Has a worker and a network namespace ready for the first container, and ends workers that nobody needs any more.
pub(crate) async fn tidy_paths(shared: Arc<Shared>) {
    let owner = shared.clone();
    let warm = move || {
        // Without links: nothing shows on the host before there is a pod.
        owner.spare.fill(&owner, false);
        owner.paths.warm(&owner.program);
    };
    let _ = tokio::task::spawn_blocking(warm).await;
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        let shared = shared.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || shared.paths.tidy()).await {
            tracing::error!(%error, "workers that open paths could not be looked at");
        }
    }
}

/// Deletes links of removed pods, in batches: the kernel waits for RCU once for all of a batch.
pub(crate) async fn reap_links(shared: Arc<Shared>) {
    loop {
        shared.dying_links.notified().await;
        tokio::time::sleep(REAP_AFTER).await;
        let namespaces =
            std::mem::take(&mut *shared.dying_namespaces.lock().unwrap_or_else(PoisonError::into_inner));
        let cni = shared.cni.clone();
        match tokio::task::spawn_blocking(move || cni.reap()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %crate::chain(&error), "dying links could not be deleted; tried again")
            }
            Err(error) => tracing::error!(%error, "the reaper of links failed"),
        }
        // The kernel takes them all down in one go.
        drop(namespaces);
    }
}
