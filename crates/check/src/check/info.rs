//! What the endpoint says about itself.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use futures_util::future::join_all;

use super::case::{Case, case, same};
use crate::endpoint::{self, ask};
use crate::node::{Node, denied, skip};

pub(super) const CASES: &[Case] = &[
    case!("info/version", "CKT", version).quick(),
    case!("info/version-parses", "K", version_parses).quick(),
    case!("info/conditions", "CK", conditions).quick(),
    case!("info/verbose-map", "CT", verbose_map),
    case!("info/handlers", "CK", handlers),
    case!("info/features-honest", "K", features_honest),
    case!("info/runtime-config", "KT", runtime_config),
    case!("info/update-runtime-config", "KT", update_runtime_config),
    case!("info/image-service-first", "KT", image_service_first),
    case!("info/status-never-waits", "K", status_never_waits),
    case!("info/foreign-headers", "KP", foreign_headers),
];

async fn ask_version(node: &Node, version: &str) -> Result<v1::VersionResponse> {
    let request = v1::VersionRequest { version: version.to_owned() };
    Ok(node.runtime().version(ask(request)).await?.into_inner())
}

async fn version(node: Node) -> Result<()> {
    let first = ask_version(&node, "").await?;
    same!(first.version, "0.1.0", "version");
    same!(first.runtime_api_version, "v1", "runtime_api_version");
    ensure!(!first.runtime_name.is_empty() && !first.runtime_version.is_empty(), "an empty field: {first:?}");
    for asked in ["0.1.0", "v1"] {
        same!(ask_version(&node, asked).await?, first, "the answer to {asked}");
    }
    Ok(())
}

async fn version_parses(node: Node) -> Result<()> {
    let answer = ask_version(&node, "").await?;
    ensure!(!answer.runtime_name.contains([':', '/']), "runtime_name `{}`", answer.runtime_name);
    let text = answer.runtime_version.trim_start_matches('v');
    let numbers = text.split(['-', '+']).next().unwrap_or_default();
    let dotted =
        numbers.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    ensure!(dotted && numbers.contains('.'), "runtime_version `{}` is no version", answer.runtime_version);
    Ok(())
}

async fn ask_status(node: &Node, verbose: bool) -> Result<v1::StatusResponse> {
    Ok(node.runtime().status(ask(v1::StatusRequest { verbose })).await?.into_inner())
}

async fn conditions(node: Node) -> Result<()> {
    let status = ask_status(&node, false).await?.status.context("no status")?;
    for wanted in ["RuntimeReady", "NetworkReady"] {
        let condition = status.conditions.iter().find(|condition| condition.r#type == wanted);
        let condition = condition.with_context(|| format!("no condition {wanted}"))?;
        ensure!(condition.status, "{wanted} is false: {} {}", condition.reason, condition.message);
    }
    Ok(())
}

async fn verbose_map(node: Node) -> Result<()> {
    same!(ask_status(&node, false).await?.info.len(), 0, "entries of info without verbose");
    let info = ask_status(&node, true).await?.info;
    for (key, value) in info.iter().filter(|(_, value)| value.trim_start().starts_with('{')) {
        let parsed: Result<serde_json::Map<_, _>, _> = serde_json::from_str(value);
        parsed.with_context(|| format!("info[{key}] is no JSON object"))?;
    }
    let config: serde_json::Value = serde_json::from_str(info.get("config").context("no `config` in info")?)?;
    let folder = config["stateDir"].as_str().context("no stateDir in info[config]")?;
    let parent = Path::new(folder).parent().context("stateDir has no parent")?;
    ensure!(parent.is_dir(), "the parent of stateDir `{folder}` does not exist");
    Ok(())
}

async fn handlers(node: Node) -> Result<()> {
    let handlers = ask_status(&node, false).await?.runtime_handlers;
    let mut names: Vec<_> = handlers.iter().map(|handler| handler.name.as_str()).collect();
    names.sort_unstable();
    same!(names.iter().filter(|name| name.is_empty()).count(), 1, "handlers with the empty name");
    ensure!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name twice in {names:?}");
    ensure!(handlers.iter().all(|handler| handler.features.is_some()), "a handler without features");
    Ok(())
}

/// What is declared false must be refused when it is asked for; what is true is tried by its own group.
async fn features_honest(node: Node) -> Result<()> {
    let pod = node.pod("honest").run().await?;
    if !node.handler_feature(|features| features.recursive_read_only_mounts) {
        let folder = node.folder("volume")?;
        let spec = pod.container("rro").mount_as(&folder, "/data", |mount| {
            (mount.readonly, mount.recursive_read_only) = (true, true);
        });
        denied(spec.try_create().await, "a recursive read-only mount, which is not declared,")?;
    }
    if !node.handler_feature(|features| features.user_namespaces) {
        let mapping = v1::IdMapping { host_id: 200_000, container_id: 0, length: 65536 };
        let options = v1::UserNamespace {
            mode: v1::NamespaceMode::Pod as i32,
            uids: vec![mapping],
            gids: vec![mapping],
        };
        let spec = node.pod("mapped").namespaces(|namespaces| namespaces.userns_options = Some(options));
        denied(spec.try_run().await, "a user namespace, which is not declared,")?;
    }
    if !node.feature(|features| features.supplemental_groups_policy) {
        let strict = v1::SupplementalGroupsPolicy::Strict as i32;
        let spec = pod.container("strict").security(|security| security.supplemental_groups_policy = strict);
        denied(spec.try_create().await, "the policy Strict, which is not declared,")?;
    }
    Ok(())
}

async fn runtime_config(node: Node) -> Result<()> {
    let mut drivers = Vec::new();
    for _ in 0..2 {
        let answer = node.runtime().runtime_config(ask(v1::RuntimeConfigRequest {})).await?.into_inner();
        drivers.push(answer.linux.context("no opinion on the cgroup driver")?.cgroup_driver());
    }
    same!(drivers[0], drivers[1], "the driver in the second call");
    let container = node.pod("driver").run().await?.container("main").start().await?;
    let cgroup = container.cgroup().await?;
    let path = cgroup.path("memory").context("no memory controller")?;
    let systemd = path.contains(".slice") || path.ends_with(".scope");
    same!(systemd, drivers[0] == v1::CgroupDriver::Systemd, "whether {path} is systemd's shape");
    Ok(())
}

async fn update_runtime_config(node: Node) -> Result<()> {
    let cidr = |text: &str| v1::RuntimeConfig {
        network_config: Some(v1::NetworkConfig { pod_cidr: text.to_owned() }),
    };
    for config in [Some(cidr("10.99.0.0/24")), Some(cidr("")), None] {
        let request = v1::UpdateRuntimeConfigRequest { runtime_config: config };
        node.runtime().update_runtime_config(ask(request)).await?;
    }
    Ok(())
}

async fn image_service_first(node: Node) -> Result<()> {
    let mut images = endpoint::images(endpoint::connect(&node.run.endpoint).await?);
    let started = Instant::now();
    images.image_fs_info(ask(v1::ImageFsInfoRequest {})).await?;
    ensure!(
        started.elapsed() < crate::patience::at_most(Duration::from_secs(5)),
        "took {:?}",
        started.elapsed()
    );
    Ok(())
}

async fn status_never_waits(node: Node) -> Result<()> {
    if node.run.workshop.elsewhere() {
        return skip("images come from elsewhere: no slow pull to order");
    }
    let pod = node.pod("busy").run().await?;
    let stubborn =
        pod.container("stubborn").cmd(&["on", "TERM", "ignore", ";", "say", "ready=1", ";", "pause"]);
    let stubborn = stubborn.start().await?;
    stubborn.says("ready").await?;
    let image = node.run.workshop.image("slow").build();
    let slow = node.run.workshop.serve("slow/never-waits", "1", &image);
    let delay = bowline_testkit::Fault::Delay(Duration::from_secs(3));
    node.run.workshop.registry().fault("slow/never-waits", delay);
    let creates = join_all((0..10).map(|index| {
        let spec = pod.container(&format!("c{index}"));
        async move { spec.try_create().await }
    }));
    let rounds = AtomicU32::new(0);
    let work = async {
        let (created, pulled, stopped) = tokio::join!(creates, node.pull(&slow), stubborn.stop(3));
        created.into_iter().collect::<Result<Vec<_>, _>>()?;
        pulled?;
        stopped?;
        Ok(rounds.load(Ordering::Relaxed))
    };
    let watch = async {
        loop {
            let waiting = node
                .run
                .workshop
                .registry()
                .log()
                .iter()
                .any(|asked| asked.path.contains("slow/never-waits"));
            ask_status(&node, false).await?;
            node.list_containers(v1::ContainerFilter::default()).await?;
            node.list_pods(v1::PodSandboxFilter::default()).await?;
            rounds.fetch_add(u32::from(waiting), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let rounds: Result<u32> = tokio::select! {
        done = work => done,
        failed = watch => failed,
    };
    // An order, not a time: who waits for the pull or for the stop answers when these have ended.
    ensure!(rounds? > 0, "what was asked while a pull was held was not answered before its end");
    Ok(())
}

async fn foreign_headers(node: Node) -> Result<()> {
    let plain = ask_version(&node, "").await?;
    let mut request = ask(v1::VersionRequest::default());
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    request.metadata_mut().insert("traceparent", trace.parse()?);
    request.metadata_mut().insert("x-unknown", "1".parse()?);
    same!(node.runtime().version(request).await?.into_inner(), plain, "the answer with foreign headers");
    Ok(())
}
