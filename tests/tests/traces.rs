//! Traces, as a collector gets them: the collector's side is OpenTelemetry's own definition of OTLP.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bowline_cri_proto::v1;
use bowline_tests::{Client, Daemon, container, pod};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tonic::{Request, Response, Status};

/// What was exported, with the name of the service that did.
type Exported = Arc<Mutex<Vec<(String, Span)>>>;

#[derive(Clone, Default)]
struct Collector(Exported);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut exported = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = match service.and_then(|attribute| attribute.value?.value) {
                Some(Value::StringValue(name)) => name,
                _ => String::new(),
            };
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            exported.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// A caller that has decided against a trace.
const SILENT: &str = "00-0af7651916cd43dd8448eb211c803190-b7ad6b7169203332-00";

fn with_trace<T>(message: T, traceparent: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    request
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn calls_continue_the_trace_of_their_caller() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let collector = Collector::default();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let service = TraceServiceServer::new(collector.clone());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let serving =
        runtime.spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));

    let mut daemon = Daemon::start_with(&format!("[traces]\nendpoint = \"http://{address}\"\n"));
    let mut client = runtime.block_on(Client::connect(&daemon));
    let pod_id = runtime.block_on(async {
        client.pull(&daemon).await;
        let config = pod("traced", &daemon.folder().join("logs"));
        let request = v1::RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let answer = client.runtime.run_pod_sandbox(with_trace(request, CALLER)).await.unwrap();
        let pod_id = answer.into_inner().pod_sandbox_id;
        let config = container(&client, "main", "sleep 1000");
        let container_id = client.start(&pod_id, config).await.unwrap();
        client.runtime.remove_container(v1::RemoveContainerRequest { container_id }).await.unwrap();
        let missing = || v1::ContainerStatusRequest { container_id: "0".repeat(64), verbose: false };
        client.runtime.container_status(with_trace(missing(), CALLER)).await.unwrap_err();
        client.runtime.container_status(with_trace(missing(), SILENT)).await.unwrap_err();
        client.remove(&pod_id).await.unwrap();
        pod_id
    });
    // What is left is sent when the daemon ends.
    daemon.stop();
    let spans = std::mem::take(&mut *collector.0.lock().unwrap());
    assert!(spans.iter().all(|(service, _)| service == "bowline"));
    let spans: Vec<Span> = spans.into_iter().map(|(_, span)| span).collect();
    let by_id: BTreeMap<String, &Span> = spans.iter().map(|span| (hex(&span.span_id), span)).collect();

    let [trace, parent] = ["0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"];
    let named =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}"));
    let call = named("runtime.v1.RuntimeService/RunPodSandbox");
    assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (trace.into(), parent.into()));
    assert_eq!(call.kind(), SpanKind::Server);
    let code = call.attributes.iter().find(|attribute| attribute.key == "rpc.grpc.status_code");
    let code = code.and_then(|attribute| attribute.value.clone()?.value);
    assert_eq!(code, Some(Value::IntValue(0)));
    let operation = named("RunPodSandbox");
    assert_eq!(operation.parent_span_id, call.span_id, "the operation is part of its call");
    let id = operation.attributes.iter().find(|attribute| attribute.key == "id");
    let id = id.and_then(|attribute| attribute.value.clone()?.value);
    assert_eq!(id, Some(Value::StringValue(pod_id)));
    let stage = named("attach to the network");
    assert_eq!((hex(&stage.trace_id), &stage.parent_span_id), (trace.into(), &operation.span_id));
    for (outer, inner) in [(call, operation), (operation, stage)] {
        assert!(outer.start_time_unix_nano <= inner.start_time_unix_nano);
        assert!(inner.end_time_unix_nano <= outer.end_time_unix_nano, "{} outlives its parent", inner.name);
    }

    // Work that an actor has done beside itself belongs to whoever asked for it.
    for operation in ["CreateContainer", "StartContainer", "RemoveContainer", "StopPodSandbox"] {
        let parent = by_id.get(&hex(&named(operation).parent_span_id));
        let parent = parent.unwrap_or_else(|| panic!("{operation} belongs to no call"));
        assert!(parent.name.starts_with("runtime.v1.RuntimeService/"), "{operation}: {}", parent.name);
    }
    let refused = spans.iter().filter(|span| span.name == "runtime.v1.RuntimeService/ContainerStatus");
    let refused: Vec<String> = refused.map(|span| hex(&span.trace_id)).collect();
    assert_eq!(refused, [trace], "a call of somebody who wants no trace leaves none");
    serving.abort();
}

#[test]
fn a_collector_that_is_not_there_costs_nothing_but_its_spans() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut daemon = Daemon::start_with(&format!("[traces]\nendpoint = \"http://{address}\"\n"));
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let pod_id = client.run(pod("untraced", &daemon.folder().join("logs"))).await.unwrap();
        client.remove(&pod_id).await.unwrap();
    });
    let began = std::time::Instant::now();
    daemon.stop();
    assert!(began.elapsed() < Duration::from_secs(20), "ending waits for nobody");
    let log = daemon.log();
    assert!(!log.contains("panicked"), "{log}");
}
