//! What every call has in common: it is answered, counted, and told in the log.

use std::time::Instant;

use tonic::{Code, Response, Status};

/// Awaits the outcome of a call and tells of it. Requests are never logged: they hold environments, command lines and
/// credentials.
pub(crate) async fn answer<T>(
    call: &'static str,
    outcome: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    let began = Instant::now();
    let outcome = outcome.await;
    let took = began.elapsed();
    let code = outcome.as_ref().map_or_else(Status::code, |_| Code::Ok);
    crate::calls::count(call, code, took);
    let span = tracing::Span::current();
    span.record("rpc.grpc.status_code", i32::from(code));
    if is_ours(code) {
        span.record("otel.status_code", "ERROR");
    }
    let millis = took.as_millis() as u64;
    match &outcome {
        Ok(_) => tracing::debug!(call, millis, "answered"),
        Err(status) if is_ours(status.code()) => {
            tracing::warn!(call, millis, code = ?status.code(), reason = status.message(), "failed");
        }
        Err(status) => {
            tracing::info!(call, millis, code = ?status.code(), reason = status.message(), "refused");
        }
    }
    outcome.map(Response::new)
}

/// Whether an operator should look: the others are the client's mistake or its normal curiosity.
fn is_ours(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown | Code::Internal | Code::DataLoss | Code::ResourceExhausted | Code::Unavailable
    )
}
