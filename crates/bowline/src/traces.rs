//! Traces: a span per call, continued from the caller's if it sent one, with the operation and its stages below it, sent
//! to an OpenTelemetry collector.
//!
//! Only this module knows OpenTelemetry. Others make `tracing` spans with the target [`SPANS`]; without a collector in the
//! configuration nobody wants these, and making one is a look at a flag.

use std::task::{Context, Poll};
use std::time::Duration;

use bowline_pods::SPANS;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use serde::{Deserialize, Serialize};
use tonic::codegen::http;
use tower_layer::Layer;
use tower_service::Service;
use tracing::instrument::Instrumented;
use tracing::{Instrument as _, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

/// How long the last spans may take to be sent when the daemon ends.
const LAST: Duration = Duration::from_secs(2);
/// What the specification of OpenTelemetry's SDKs names for the address of a collector; the exporter reads them.
const ENVIRONMENT: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// `[traces]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TracesSettings {
    /// Where spans are sent (OTLP over gRPC); nowhere if it is not set here or in the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    /// Of a million calls whose caller did not decide, how many are traced.
    pub(crate) samples_per_million: u32,
}

impl Default for TracesSettings {
    fn default() -> Self {
        TracesSettings { endpoint: None, samples_per_million: 1_000_000 }
    }
}

impl TracesSettings {
    /// What is wrong with a value, and which.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.samples_per_million > 1_000_000 {
            let why = format!("{} of a million is more than all", self.samples_per_million);
            return Err(("traces.samples_per_million", why));
        }
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        let uri = endpoint.parse::<http::Uri>();
        let fits = uri
            .as_ref()
            .is_ok_and(|uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")));
        match fits {
            true => Ok(()),
            false => {
                let why =
                    format!("`{endpoint}` is no address of a collector; write http://HOST:4317, or https://");
                Err(("traces.endpoint", why))
            }
        }
    }
}

/// The way to the collector.
pub(crate) struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins, if the configuration or the environment names a collector. It need not be there: spans that cannot be
    /// sent are dropped, at most 2048 wait. Called inside the runtime that carries the connection.
    pub(crate) fn start(
        settings: &TracesSettings,
    ) -> Result<Option<Traces>, opentelemetry_otlp::ExporterBuildError> {
        let in_environment = || ENVIRONMENT.iter().any(|name| std::env::var_os(name).is_some());
        if settings.endpoint.is_none() && !in_environment() {
            return Ok(None);
        }
        let mut exporter = SpanExporter::builder().with_tonic();
        if let Some(endpoint) = &settings.endpoint {
            exporter = exporter.with_endpoint(endpoint);
        }
        let ratio = f64::from(settings.samples_per_million) / 1e6;
        let resource = Resource::builder()
            .with_service_name("bowline")
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter.build()?)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_resource(resource)
            .build();
        Ok(Some(Traces(provider)))
    }

    /// What collects spans from the whole program.
    pub(crate) fn layer<S>(&self) -> impl tracing_subscriber::Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let layer = tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("bowline"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        tracing_subscriber::Layer::with_filter(layer, Targets::new().with_target(SPANS, LevelFilter::INFO))
    }

    /// Sends what has not been sent, for a moment. Blocks.
    pub(crate) fn end(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Makes a span of each call.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpanPerCall(TraceContextPropagator);

impl<S> Layer<S> for SpanPerCall {
    type Service = InSpan<S>;

    fn layer(&self, inner: S) -> InSpan<S> {
        InSpan { inner, propagator: self.0.clone() }
    }
}

/// A service whose calls run in a span each.
#[derive(Debug, Clone)]
pub(crate) struct InSpan<S> {
    inner: S,
    propagator: TraceContextPropagator,
}

impl<S: Service<http::Request<B>>, B> Service<http::Request<B>> for InSpan<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let span = span_of(request.uri().path());
        if !span.is_disabled() {
            let parent = self.propagator.extract(&Headers(request.headers()));
            // Fails only without a layer that collects spans.
            let _ = span.set_parent(parent);
        }
        self.inner.call(request).instrument(span)
    }
}

/// The attributes are those of OpenTelemetry's semantic conventions for RPC spans.
fn span_of(path: &str) -> Span {
    let name = path.trim_start_matches('/');
    let (service, method) = name.split_once('/').unwrap_or((name, ""));
    tracing::info_span!(
        target: SPANS,
        "call",
        otel.name = name,
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = tracing::field::Empty,
        otel.status_code = tracing::field::Empty,
    )
}

/// Headers of a request, as OpenTelemetry wants to read them.
struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ratios_that_make_no_sense_are_refused() {
        let settings = |endpoint: &str, samples_per_million| TracesSettings {
            endpoint: Some(endpoint.into()),
            samples_per_million,
        };
        assert_eq!(settings("http://127.0.0.1:4317", 1).check(), Ok(()));
        assert_eq!(settings("https://collector:4317", 0).check(), Ok(()));
        for (endpoint, samples, key) in [
            ("127.0.0.1:4317", 1, "traces.endpoint"),
            ("unix:///run/collector.sock", 1, "traces.endpoint"),
            ("http://", 1, "traces.endpoint"),
            ("http://127.0.0.1:4317", 1_000_001, "traces.samples_per_million"),
        ] {
            assert_eq!(settings(endpoint, samples).check().unwrap_err().0, key, "{endpoint}");
        }
    }
}
