//! Pods watched from outside: events, lists as streams, stats and metrics.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bowline_cri_proto::v1::{self, ContainerEventType as Kind};
use bowline_tests::{Client, Daemon, container, pod};
use tonic::Streaming;

type Events = Streaming<v1::ContainerEventResponse>;

async fn listen(client: &Client) -> Events {
    let answer = client.clone().runtime.get_container_events(v1::GetEventsRequest {}).await;
    answer.expect("events are served").into_inner()
}

async fn next(events: &mut Events) -> v1::ContainerEventResponse {
    let event = tokio::time::timeout(Duration::from_secs(20), events.message()).await;
    event.expect("an event comes").expect("the stream is whole").expect("the stream goes on")
}

/// One pod of one container from first to last; gives (pod, container).
async fn life(client: &mut Client, daemon: &Daemon, name: &str) -> (String, String) {
    let pod_id = client.run(pod(name, &daemon.folder().join("logs"))).await.unwrap();
    let config = container(client, "main", "sleep 1000");
    let ctr = client.start(&pod_id, config).await.unwrap();
    let stop = v1::StopContainerRequest { container_id: ctr.clone(), timeout: 0 };
    client.runtime.stop_container(stop).await.unwrap();
    let remove = v1::RemoveContainerRequest { container_id: ctr.clone() };
    client.runtime.remove_container(remove).await.unwrap();
    client.remove(&pod_id).await.unwrap();
    (pod_id, ctr)
}

/// What a life is made of, in order.
fn expected(pod: &str, ctr: &str) -> Vec<(String, Kind)> {
    use Kind::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    let told = [
        (pod, Created),
        (pod, Started),
        (ctr, Created),
        (ctr, Started),
        (ctr, Stopped),
        (ctr, Deleted),
        (pod, Stopped),
        (pod, Deleted),
    ];
    told.into_iter().map(|(id, kind)| (id.to_owned(), kind)).collect()
}

fn named(event: &v1::ContainerEventResponse) -> (String, Kind) {
    (event.container_id.clone(), event.container_event_type())
}

#[test]
fn events_tell_a_whole_life_in_order_and_go_on_after_a_restart() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut daemon = Daemon::start();
    let (pod_id, ctr, last) = runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        // A life that nobody listened to is told to nobody later.
        life(&mut client, &daemon, "before").await;
        let mut readers = [listen(&client).await, listen(&client).await, listen(&client).await];
        let (pod_id, ctr) = life(&mut client, &daemon, "watched").await;
        let mut times = BTreeSet::new();
        for (index, reader) in readers.iter_mut().enumerate() {
            let mut last = 0;
            for expected in expected(&pod_id, &ctr) {
                let event = next(reader).await;
                assert_eq!(named(&event), expected, "reader {index}");
                assert!(event.created_at > last, "{} after {last}", event.created_at);
                last = event.created_at;
                times.insert(last);
                let status = event.pod_sandbox_status.as_ref().expect("with the sandbox's status");
                assert_eq!(status.id, pod_id);
                consistent(&event, &ctr);
            }
        }
        assert_eq!(times.len(), 8, "all readers are told the same times");

        // The state is there when the event is.
        let mut reader = listen(&client).await;
        let pod_id = client.run(pod("restarted", &daemon.folder().join("logs"))).await.unwrap();
        let config = container(&client, "main", "sleep 1000");
        let ctr = client.start(&pod_id, config).await.unwrap();
        let mut last = 0;
        for expected in expected(&pod_id, &ctr).into_iter().take(4) {
            let event = next(&mut reader).await;
            assert_eq!(named(&event), expected);
            last = event.created_at;
            if expected.0 == ctr && expected.1 == Kind::ContainerStartedEvent {
                assert_eq!(client.status(&ctr).await.unwrap().state(), v1::ContainerState::ContainerRunning);
            }
        }
        (pod_id, ctr, last)
    });
    daemon.kill();
    daemon.restart();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        let mut reader = listen(&client).await;
        client.remove(&pod_id).await.unwrap();
        let mut last = last;
        let mut told = Vec::new();
        for _ in 0..4 {
            let event = next(&mut reader).await;
            assert!(event.created_at > last, "later than all before the restart");
            last = event.created_at;
            told.push(named(&event));
        }
        let told: Vec<(&str, Kind)> = told.iter().map(|(id, kind)| (id.as_str(), *kind)).collect();
        use Kind::{ContainerDeletedEvent as Deleted, ContainerStoppedEvent as Stopped};
        // Nothing of before, and what comes is complete.
        assert_eq!(told, [(ctr.as_str(), Stopped), (&pod_id, Stopped), (&ctr, Deleted), (&pod_id, Deleted)]);
    });
    // A reader that waits for ever must not keep the daemon from ending.
    let reader = runtime.block_on(async { listen(&Client::connect(&daemon).await).await });
    daemon.stop();
    assert!(!daemon.log().contains("cut off"), "the daemon waited for a reader of events: {}", daemon.log());
    drop(reader);
}

/// What an event says of its container agrees with the statuses in it.
fn consistent(event: &v1::ContainerEventResponse, ctr: &str) {
    let status = event.containers_statuses.iter().find(|status| status.id == ctr);
    if event.container_id != ctr {
        return;
    }
    match event.container_event_type() {
        // The reader may be told of a state that has moved on since, but never of one before.
        Kind::ContainerCreatedEvent => assert!(status.is_some()),
        Kind::ContainerStartedEvent => assert!(status.is_some_and(|status| status.started_at > 0)),
        Kind::ContainerStoppedEvent => {
            assert_eq!(status.map(v1::ContainerStatus::state), Some(v1::ContainerState::ContainerExited));
        }
        Kind::ContainerDeletedEvent => assert!(status.is_none()),
    }
}

#[test]
fn a_reader_that_never_reads_slows_nobody() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        // A connection of its own, whose window fills up; annotations make each event big.
        let lazy = listen(&Client::connect(&daemon).await).await;
        let mut reader = listen(&client).await;
        let mut config = pod("big", &daemon.folder().join("logs"));
        config.annotations.insert("much".into(), "x".repeat(200 << 10));
        let pod_id = client.run(config).await.unwrap();
        let mut expected = Vec::new();
        for round in 0..20 {
            let config = container(&client, &format!("c{round}"), "true");
            let ctr = client.create(&pod_id, config).await.unwrap();
            let remove = v1::RemoveContainerRequest { container_id: ctr.clone() };
            client.runtime.remove_container(remove).await.unwrap();
            expected.push(ctr);
        }
        client.remove(&pod_id).await.unwrap();
        let mut created = Vec::new();
        let mut deleted = Vec::new();
        loop {
            let (id, kind) = named(&next(&mut reader).await);
            match kind {
                Kind::ContainerCreatedEvent if id != pod_id => created.push(id),
                Kind::ContainerDeletedEvent if id == pod_id => break,
                Kind::ContainerDeletedEvent => deleted.push(id),
                _ => {}
            }
        }
        assert_eq!((created, deleted), (expected.clone(), expected));
        drop(lazy);
    });
}

async fn all<T>(stream: Streaming<T>) -> Vec<T> {
    let mut stream = stream;
    let mut found = Vec::new();
    while let Some(message) = stream.message().await.expect("the stream is whole") {
        found.push(message);
    }
    found
}

#[test]
fn fifty_containers_are_measured_and_streamed() {
    const COUNT: usize = 50;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let rpc = &mut client.runtime.clone();
        let nothing = rpc.stream_container_stats(v1::StreamContainerStatsRequest::default()).await.unwrap();
        assert_eq!(all(nothing.into_inner()).await.len(), 0, "nothing to send is no error");
        let pod_id = client.run(pod("fifty", &daemon.folder().join("logs"))).await.unwrap();
        let mut ids = BTreeSet::new();
        for number in 0..COUNT {
            let config = container(&client, &format!("c{number}"), "sleep 1000");
            ids.insert(client.start(&pod_id, config).await.unwrap());
        }
        let config = container(&client, "waiting", "sleep 1000");
        client.create(&pod_id, config).await.unwrap();

        let stats = rpc.list_container_stats(v1::ListContainerStatsRequest::default()).await.unwrap();
        let stats = stats.into_inner().stats;
        let found: BTreeSet<String> =
            stats.iter().map(|one| one.attributes.as_ref().unwrap().id.clone()).collect();
        assert_eq!(found, ids, "the running ones and no other");
        for one in &stats {
            let (cpu, memory) = (one.cpu.as_ref().unwrap(), one.memory.as_ref().unwrap());
            assert!(cpu.timestamp > 0 && cpu.usage_core_nano_seconds.is_some_and(|usage| usage.value > 0));
            assert!(memory.working_set_bytes.is_some_and(|bytes| bytes.value > 0));
            assert!(one.writable_layer.as_ref().is_some_and(|layer| layer.timestamp > 0));
        }
        let times: Vec<Duration> = {
            let mut times = Vec::new();
            for _ in 0..20 {
                let began = std::time::Instant::now();
                rpc.list_container_stats(v1::ListContainerStatsRequest::default()).await.unwrap();
                times.push(began.elapsed());
            }
            times.sort();
            times
        };
        println!("ListContainerStats with {COUNT}: median {:?}, least {:?}", times[10], times[0]);

        let streamed = rpc.stream_container_stats(v1::StreamContainerStatsRequest::default()).await.unwrap();
        let streamed =
            all(streamed.into_inner()).await.into_iter().flat_map(|message| message.container_stats);
        let streamed: Vec<String> = streamed.map(|one| one.attributes.unwrap().id).collect();
        assert_eq!(streamed.iter().cloned().collect::<BTreeSet<_>>(), ids);
        assert_eq!(streamed.len(), COUNT, "each once");

        let listed = rpc.list_containers(v1::ListContainersRequest::default()).await.unwrap().into_inner();
        let streamed = rpc.stream_containers(v1::StreamContainersRequest::default()).await.unwrap();
        let streamed: Vec<_> =
            all(streamed.into_inner()).await.into_iter().flat_map(|one| one.containers).collect();
        assert_eq!(streamed, listed.containers);
        let listed = rpc.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap().into_inner();
        let streamed = rpc.stream_pod_sandboxes(v1::StreamPodSandboxesRequest::default()).await.unwrap();
        let streamed: Vec<_> =
            all(streamed.into_inner()).await.into_iter().flat_map(|one| one.pod_sandboxes).collect();
        assert_eq!(streamed, listed.items);
        let listed = client.images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner();
        let streamed = client.images.stream_images(v1::StreamImagesRequest::default()).await.unwrap();
        let streamed: Vec<_> =
            all(streamed.into_inner()).await.into_iter().flat_map(|one| one.images).collect();
        assert_eq!(streamed, listed.images);
        client.remove(&pod_id).await.unwrap();
    });
}

#[test]
fn a_pod_tells_of_its_network_its_processes_and_its_containers() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let daemon = Daemon::start();
    runtime.block_on(async {
        let mut client = Client::connect(&daemon).await;
        client.pull(&daemon).await;
        let logs = daemon.folder().join("logs");
        let pod_id = client.run(pod("measured", &logs)).await.unwrap();
        let mut host = pod("hosts", &logs);
        let namespaces =
            v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
        let security =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        host.linux =
            Some(v1::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() });
        let host_id = client.run(host).await.unwrap();
        let of = async |id: &str| {
            let request = v1::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
            let answer = client.clone().runtime.pod_sandbox_stats(request).await;
            answer.map(|answer| answer.into_inner().stats.unwrap().linux.unwrap())
        };
        let empty = of(&pod_id).await.unwrap();
        assert!(empty.cpu.unwrap().timestamp > 0, "a pod without containers has a time too");
        assert_eq!(of(&host_id).await.unwrap().network, None, "the host's network is not the pod's");
        assert_eq!(of(&"7".repeat(64)).await.unwrap_err().code(), tonic::Code::NotFound);

        let config = container(&client, "main", "sleep 1000 & sleep 1000 & echo hi >/file; wait");
        let ctr = client.clone().start(&pod_id, config).await.unwrap();
        let gateway =
            client.clone().exec(&ctr, &["sh", "-c", "ip route | awk '/default/ {print $3}'"]).await.unwrap();
        let gateway = String::from_utf8(gateway.stdout).unwrap();
        client.clone().exec(&ctr, &["ping", "-c", "2", "-i", "0.2", gateway.trim()]).await.unwrap();
        let stats = of(&pod_id[..20]).await.unwrap();
        let network = stats.network.expect("it has a network of its own");
        let eth0 = network.default_interface.expect("there is a default interface");
        assert_eq!(eth0.name, "eth0");
        assert!(eth0.rx_bytes.is_some_and(|bytes| bytes.value >= 128), "{:?}", eth0.rx_bytes);
        assert!(eth0.tx_bytes.is_some_and(|bytes| bytes.value >= 128), "{:?}", eth0.tx_bytes);
        assert!(network.interfaces.iter().all(|other| other.name != "lo" && other.name != "eth0"));
        let processes = stats.process.unwrap().process_count.unwrap().value;
        assert_eq!(processes, 3, "the shell and two sleeps");
        let inside: Vec<String> =
            stats.containers.iter().map(|one| one.attributes.as_ref().unwrap().id.clone()).collect();
        assert_eq!(inside, [ctr]);
        let own = stats.containers[0].memory.as_ref().unwrap().usage_bytes.unwrap().value;
        assert!(stats.memory.unwrap().usage_bytes.unwrap().value >= own, "a pod covers its containers");
        let list =
            client.clone().runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await;
        assert_eq!(list.unwrap().into_inner().stats.len(), 2);
        metrics(&client, &pod_id).await;
        client.clone().remove(&pod_id).await.unwrap();
        client.clone().remove(&host_id).await.unwrap();
    });
}

/// The names that a node's dashboards count on, and whether a busy pod may be without a sample.
const NAMES: &[(&str, bool)] = &[
    ("container_blkio_device_usage_total", true),
    ("container_cpu_cfs_periods_total", false),
    ("container_cpu_cfs_throttled_periods_total", false),
    ("container_cpu_cfs_throttled_seconds_total", false),
    ("container_cpu_system_seconds_total", false),
    ("container_cpu_usage_seconds_total", false),
    ("container_cpu_user_seconds_total", false),
    ("container_file_descriptors", false),
    ("container_fs_inodes_free", false),
    ("container_fs_inodes_total", false),
    ("container_fs_limit_bytes", false),
    ("container_fs_reads_bytes_total", true),
    ("container_fs_reads_total", true),
    ("container_fs_usage_bytes", false),
    ("container_fs_writes_bytes_total", true),
    ("container_fs_writes_total", true),
    ("container_hugetlb_max_usage_bytes", true),
    ("container_hugetlb_usage_bytes", true),
    ("container_last_seen", false),
    ("container_memory_cache", false),
    ("container_memory_failcnt", false),
    ("container_memory_failures_total", false),
    ("container_memory_kernel_usage", false),
    ("container_memory_mapped_file", false),
    ("container_memory_max_usage_bytes", false),
    ("container_memory_rss", false),
    ("container_memory_swap", false),
    ("container_memory_usage_bytes", false),
    ("container_memory_working_set_bytes", false),
    ("container_network_receive_bytes_total", false),
    ("container_network_receive_errors_total", false),
    ("container_network_receive_packets_dropped_total", false),
    ("container_network_receive_packets_total", false),
    ("container_network_transmit_bytes_total", false),
    ("container_network_transmit_errors_total", false),
    ("container_network_transmit_packets_dropped_total", false),
    ("container_network_transmit_packets_total", false),
    ("container_oom_events_total", false),
    ("container_pressure_cpu_stalled_seconds_total", true),
    ("container_pressure_cpu_waiting_seconds_total", true),
    ("container_pressure_io_stalled_seconds_total", true),
    ("container_pressure_io_waiting_seconds_total", true),
    ("container_pressure_memory_stalled_seconds_total", true),
    ("container_pressure_memory_waiting_seconds_total", true),
    ("container_processes", false),
    ("container_sockets", false),
    ("container_spec_cpu_period", false),
    ("container_spec_cpu_quota", true),
    ("container_spec_cpu_shares", false),
    ("container_spec_memory_limit_bytes", false),
    ("container_spec_memory_reservation_limit_bytes", true),
    ("container_spec_memory_swap_limit_bytes", false),
    ("container_start_time_seconds", false),
    ("container_threads", false),
    ("container_threads_max", false),
    ("container_ulimits_soft", true),
];

async fn metrics(client: &Client, pod_id: &str) {
    let rpc = &mut client.runtime.clone();
    let described =
        rpc.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}).await.unwrap().into_inner();
    let again = rpc.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}).await.unwrap().into_inner();
    assert_eq!(described, again);
    let keys: BTreeMap<&str, usize> =
        described.descriptors.iter().map(|one| (one.name.as_str(), one.label_keys.len())).collect();
    let answer =
        rpc.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await.unwrap().into_inner();
    let pod =
        answer.pod_metrics.iter().find(|pod| pod.pod_sandbox_id == pod_id).expect("our pod is measured");
    let all: Vec<&v1::Metric> =
        pod.metrics.iter().chain(pod.container_metrics.iter().flat_map(|one| &one.metrics)).collect();
    assert_eq!(NAMES.len(), 56);
    for (name, may_lack) in NAMES {
        let samples: Vec<_> = all.iter().filter(|metric| metric.name == *name).collect();
        assert!(!samples.is_empty() || *may_lack, "no sample of {name}");
        assert!(keys.contains_key(name) || *may_lack, "{name} is not announced");
        for sample in samples {
            assert_eq!(Some(&sample.label_values.len()), keys.get(name), "{sample:?}");
        }
    }
    for name in keys.keys() {
        assert!(NAMES.iter().any(|(known, _)| known == name), "{name} is announced, and unknown");
    }
    let streamed = rpc.stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest {}).await.unwrap();
    let streamed: Vec<_> = self::all(streamed.into_inner()).await;
    assert_eq!(streamed.iter().map(|message| message.pod_sandbox_metrics.len()).sum::<usize>(), 2);
}

#[test]
fn what_is_under_way_is_told_and_counted() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Free now; whoever takes it meanwhile makes this test fail loudly.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = Daemon::start_with(&format!("[metrics]\nlisten = \"{address}\"\n"));
    let mut client = runtime.block_on(Client::connect(&daemon));
    let (pod_id, ctr) = runtime.block_on(async {
        client.pull(&daemon).await;
        let pod_id = client.run(pod("slow", &daemon.folder().join("logs"))).await.unwrap();
        let config = container(&client, "stubborn", "trap '' TERM; echo ready; while :; do sleep 1; done");
        let ctr = client.start(&pod_id, config).await.unwrap();
        (pod_id, ctr)
    });
    let log = daemon.folder().join("logs/stubborn.log");
    bowline_tests::wait_for("the trap is set", Duration::from_secs(20), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("ready"))
    });
    let stop = {
        let (mut rpc, ctr) = (client.runtime.clone(), ctr.clone());
        let request = v1::StopContainerRequest { container_id: ctr, timeout: 600 };
        runtime.spawn(async move { rpc.stop_container(request).await })
    };
    let mut told = String::new();
    bowline_tests::wait_for("the stop is told", Duration::from_secs(20), || {
        let output = daemon.cli(&["ops", "-o", "json"]).output().unwrap();
        told = String::from_utf8_lossy(&output.stdout).into_owned();
        told.contains("StopContainer") && told.contains(&ctr)
    });
    assert!(scrape(address).contains("bowline_operations{operation=\"StopContainer\"} 1\n"));
    runtime.block_on(async {
        client.remove(&pod_id).await.unwrap();
        stop.await.unwrap().unwrap();
    });
    let text = scrape(address);
    for row in [
        "bowline_rpc_seconds_count{method=\"RunPodSandbox\",code=\"Ok\"} 1\n",
        "bowline_operation_seconds_count{operation=\"StartContainer\"} 1\n",
        "bowline_operation_stage_seconds_count{operation=\"RunPodSandbox\",stage=\"attach to the network\"} 1\n",
        "bowline_pods{state=\"ready\"} 0\n",
        "bowline_events_total 8\n",
    ] {
        assert!(text.contains(row), "no {row} in {text}");
    }
    let output = daemon.cli(&["ops", "-o", "json"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("StopContainer"), "it is over");
}

/// What Prometheus would be told.
fn scrape(address: std::net::SocketAddr) -> String {
    use std::io::{Read as _, Write as _};
    let mut socket = std::net::TcpStream::connect(address).expect("metrics are served");
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text
}
