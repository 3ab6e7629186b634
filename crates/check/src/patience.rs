//! How much slower this machine is than the one for which the limits in the cases were written.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::error::Elapsed;

static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Sets the factor for the whole run.
pub(crate) fn set(factor: u32) {
    FACTOR.store(factor.max(1), Ordering::Relaxed);
}

/// A limit from above, as long as it has to be here. What must take at least some time is never stretched.
pub(crate) fn at_most(limit: Duration) -> Duration {
    limit * FACTOR.load(Ordering::Relaxed)
}

/// Waits for something as long as that may take here.
pub(crate) async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Elapsed> {
    tokio::time::timeout(at_most(limit), work).await
}
