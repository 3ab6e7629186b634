//! Life of a container.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use futures_util::future::join_all;
use tonic::Code;

use super::case::{Case, case, same};
use crate::node::{Node, refused};
use crate::pod::Pod;

pub(super) const CASES: &[Case] = &[
    case!("container/create", "CK", create).quick(),
    case!("container/create-minimal", "C", create_minimal),
    case!("container/attributes", "CK", attributes),
    case!("container/sandbox-config-ignored", "T", sandbox_config_ignored),
    case!("container/image-forms", "CKT", image_forms),
    case!("container/image-missing", "K", image_missing),
    case!("container/start", "CK", start).quick(),
    case!("container/start-wrong-state", "S", start_wrong_state),
    case!("container/start-error", "K", start_error),
    case!("container/exit-facts", "K", exit_facts).quick(),
    case!("container/remove", "CK", remove),
    case!("container/stop-remove-unknown", "C", stop_remove_unknown),
    case!("container/equal-creates-join", "KS", equal_creates_join),
    case!("container/attempts", "K", attempts),
    case!("container/not-ready-sandbox", "CK", not_ready_sandbox),
    case!("container/created-at-rises", "K", created_at_rises),
    case!("container/two-in-a-pod", "C", two_in_a_pod),
];

const CREATED: i32 = v1::ContainerState::ContainerCreated as i32;
const RUNNING: i32 = v1::ContainerState::ContainerRunning as i32;
const EXITED: i32 = v1::ContainerState::ContainerExited as i32;

async fn create(node: Node) -> Result<()> {
    let container = node.pod("create").run().await?.container("main").create().await?;
    let status = container.status().await?;
    same!(status.state, CREATED, "state");
    ensure!(status.created_at > 0, "created_at is not set");
    same!((status.started_at, status.finished_at), (0, 0), "started_at and finished_at");
    let listed = node.own_containers().await?;
    same!(
        listed.iter().map(|c| (c.id.as_str(), c.state)).collect::<Vec<_>>(),
        vec![(container.id.as_str(), CREATED)],
        "list"
    );
    ensure!(container.host_pids().is_empty(), "something runs already");
    Ok(())
}

async fn create_minimal(node: Node) -> Result<()> {
    let pod = node.pod("minimal").run().await?;
    let container = pod
        .container("main")
        .edit(|config| {
            config.linux = None;
            config.command.clear();
        })
        .start()
        .await?;
    same!(container.status().await?.state, RUNNING, "state with the image's own command");
    Ok(())
}

async fn attributes(node: Node) -> Result<()> {
    let container = node
        .pod("attributes")
        .run()
        .await?
        .container("Main_1")
        .edit(|config| {
            config.metadata.get_or_insert_default().attempt = 7;
            config.labels.insert("io.kubernetes.container.name".to_owned(), "Main_1".to_owned());
            config.annotations.insert("odd".to_owned(), "{\"a\": \"\u{fc}\\n\"}\n\t ".to_owned());
        })
        .create()
        .await?;
    let status = container.status().await?;
    let listed = node.own_containers().await?.into_iter().next().context("not listed")?;
    let asked = &container.config;
    same!((&status.metadata, &listed.metadata), (&asked.metadata, &asked.metadata), "metadata");
    same!((&status.labels, &listed.labels), (&asked.labels, &asked.labels), "labels");
    same!(
        (&status.annotations, &listed.annotations),
        (&asked.annotations, &asked.annotations),
        "annotations"
    );
    same!(listed.pod_sandbox_id, container.pod.id, "pod_sandbox_id");
    Ok(())
}

async fn sandbox_config_ignored(node: Node) -> Result<()> {
    let pod = node.pod("ignored").run().await?;
    let mut other = (*pod.config).clone();
    other.metadata.get_or_insert_default().uid = "made-up-anew".to_owned();
    let mut spec = pod.container("different");
    spec.sandbox = Some(other);
    let container = spec.start().await.context("with a different sandbox_config")?;
    ensure!(container.log_path().exists(), "the log is not where the stored config says");
    let mut spec = pod.container("missing");
    spec.sandbox = None;
    let status = spec.try_create().await;
    if let Err(status) = status {
        // containerd is known to insist on one; the CRI text does not.
        anyhow::bail!("without a sandbox_config: {:?} {}", status.code(), status.message());
    }
    Ok(())
}

async fn image_forms(node: Node) -> Result<()> {
    let image = node.run.workshop.image("forms").build();
    let workshop = &node.run.workshop;
    let name = workshop.serve("forms", "latest", &image);
    let bare = name.trim_end_matches(":latest").to_owned();
    let id = node.pull(&name).await?;
    let short = id.trim_start_matches("sha256:").get(..12).context("a short image id")?.to_owned();
    let digest = format!("{bare}@{}", image.digest());
    let pod = node.pod("forms").run().await?;
    for (index, form) in [id.as_str(), &short, &name, &bare, &digest].into_iter().enumerate() {
        let container = pod.container(&format!("c{index}")).image(form).start().await;
        let status = container.with_context(|| format!("image given as {form}"))?.status().await?;
        same!(status.image_id, id, "image_id with the image given as {form}");
    }
    Ok(())
}

async fn image_missing(node: Node) -> Result<()> {
    let image = node.run.workshop.image("missing").build();
    let name = node.run.workshop.serve("not-pulled", "1", &image);
    let spec = node.pod("missing").run().await?.container("main").image(&name);
    let status = refused(spec.try_create().await, &[], "an image that is not there")?;
    ensure!(status.message().contains(&name), "the message does not name the image: {}", status.message());
    let asked = node.run.workshop.registry().count("GET", &node.run.workshop.repository("not-pulled"));
    same!(asked, 0, "requests at the registry");
    Ok(())
}

async fn start(node: Node) -> Result<()> {
    let container = node.pod("start").run().await?.container("main").start().await?;
    let status = container.status().await?;
    same!(status.state, RUNNING, "state");
    ensure!(status.started_at >= status.created_at && status.created_at > 0, "times {status:?}");
    Ok(())
}

async fn start_wrong_state(node: Node) -> Result<()> {
    let pod = node.pod("wrong").run().await?;
    let running = pod.container("running").start().await?;
    refused(running.start().await, &[Code::FailedPrecondition], "a second start")?;
    let exited = pod.container("exited").cmd(&["exit", "0"]).start().await?;
    exited.exited().await?;
    refused(exited.start().await, &[Code::FailedPrecondition], "a start after the end")?;
    refused(node.start(&"c".repeat(64)).await, &[Code::NotFound], "a start of an unknown id")?;
    Ok(())
}

async fn start_error(node: Node) -> Result<()> {
    let pod = node.pod("error").run().await?;
    for (name, program) in [("missing", "/no/such/program"), ("plain", "/etc/plain")] {
        let spec = pod.container(name).edit(|config| config.command = vec![program.to_owned()]);
        let id = match spec.try_create().await {
            Err(status) => {
                ensure!(
                    status.message().contains(program),
                    "create does not name {program}: {}",
                    status.message()
                );
                continue;
            }
            Ok(id) => id,
        };
        let status = refused(node.start(&id).await, &[], &format!("a start of {program}"))?;
        ensure!(status.message().contains(program), "start does not name {program}: {}", status.message());
        let after = node.container_status(&id).await?;
        same!(
            (after.state, after.exit_code, after.reason.as_str()),
            (EXITED, 128, "StartError"),
            "afterwards"
        );
        node.remove(&id).await?;
    }
    Ok(())
}

async fn exit_facts(node: Node) -> Result<()> {
    let pod = node.pod("facts").shared_pid().run().await?;
    let ends: [(&str, &[&str], i32, &str); 4] = [
        ("zero", &["exit", "0"], 0, "Completed"),
        ("code", &["exit", "42"], 42, "Error"),
        ("term", &["kill", "TERM", ";", "pause"], 143, "Error"),
        ("kill", &["kill", "KILL", ";", "pause"], 137, "Error"),
    ];
    for (name, words, code, reason) in ends {
        let container = pod.container(name).cmd(words).start().await?;
        let status = container.exited().await?;
        same!((status.exit_code, status.reason.as_str()), (code, reason), "exit code and reason of {name}");
        ensure!(status.finished_at > 0 && status.started_at > 0, "times of {name}");
        container.stop(1).await?;
        let later = container.status().await?;
        same!((later.exit_code, later.finished_at), (code, status.finished_at), "the facts later");
    }
    Ok(())
}

async fn remove(node: Node) -> Result<()> {
    let pod = node.pod("remove").run().await?;
    let created = pod.container("created").create().await?;
    let running = pod.container("running").start().await?;
    let exited = pod.container("exited").cmd(&["exit", "0"]).start().await?;
    exited.exited().await?;
    for container in [&created, &running, &exited] {
        container.remove().await.with_context(|| format!("removal of {}", container.config.log_path))?;
        refused(container.status().await, &[Code::NotFound], "the status of a removed container")?;
    }
    ensure!(node.own_containers().await?.is_empty(), "still listed");
    ensure!(exited.log_path().exists() && running.log_path().exists(), "a log file went with its container");
    ensure!(running.host_pids().is_empty(), "a removed container's process lives");
    Ok(())
}

async fn stop_remove_unknown(node: Node) -> Result<()> {
    let container = node.pod("unknown").run().await?.container("main").create().await?;
    container.remove().await?;
    let never = "b".repeat(64);
    for id in [container.id.as_str(), &never] {
        node.stop(id, 1).await.with_context(|| format!("stop of {id}"))?;
        node.remove(id).await.with_context(|| format!("removal of {id}"))?;
    }
    Ok(())
}

async fn equal_creates_join(node: Node) -> Result<()> {
    let spec = node.pod("joined").run().await?.container("main");
    let (first, second) = tokio::join!(spec.try_create(), spec.try_create());
    let id = first?;
    same!(second?, id, "the id of an equal create at once");
    same!(spec.try_create().await?, id, "the id of a later equal create");
    let other = spec.env("OTHER", "1");
    refused(other.try_create().await, &[Code::AlreadyExists], "another config under the same name")?;
    Ok(())
}

async fn attempts(node: Node) -> Result<()> {
    let pod = node.pod("attempts").run().await?;
    let first = pod.container("main").cmd(&["exit", "1"]).start().await?;
    first.exited().await?;
    let again = |pod: &Pod| pod.container("main").edit(|c| c.metadata.get_or_insert_default().attempt = 1);
    let second = again(&pod).start().await?;
    same!(first.status().await?.state, EXITED, "attempt 0");
    same!(second.status().await?.state, RUNNING, "attempt 1");
    Ok(())
}

async fn not_ready_sandbox(node: Node) -> Result<()> {
    let pod = node.pod("not-ready").run().await?;
    pod.stop().await?;
    let unknown = Pod { id: "a".repeat(64), ..pod.clone() };
    for (what, pod) in [("a stopped sandbox", pod), ("an unknown sandbox", unknown)] {
        let spec = pod.container("late");
        let call = crate::patience::timeout(Duration::from_secs(5), spec.try_create()).await;
        refused(
            call.with_context(|| format!("create in {what} waits"))?,
            &[],
            &format!("a create in {what}"),
        )?;
    }
    Ok(())
}

async fn created_at_rises(node: Node) -> Result<()> {
    let pod = node.pod("rises").run().await?;
    let mut last = 0;
    for index in 0..10 {
        let at = pod.container(&format!("c{index}")).create().await?.status().await?.created_at;
        ensure!(at > last, "created_at {at} after {last}");
        last = at;
    }
    let burst = join_all((10..20).map(|index| pod.container(&format!("c{index}")).create())).await;
    let mut times = Vec::new();
    for container in burst {
        times.push(container?.status().await?.created_at);
    }
    times.sort_unstable();
    ensure!(
        times.windows(2).all(|pair| pair[0] < pair[1]),
        "two containers of a burst have the same created_at"
    );
    Ok(())
}

async fn two_in_a_pod(node: Node) -> Result<()> {
    let pod = node.pod("two").run().await?;
    let mut seen = Vec::new();
    for name in ["one", "two"] {
        let container = pod
            .container(name)
            .cmd(&["say", &format!("name={name}"), ";", "ns", ";", "pause"])
            .start()
            .await?;
        container.says("ns.user").await?.is("name", name)?;
        let exec = container.exec(&["ns", ";", "write", "/tmp/own", name, ";", "read", "/tmp/own"]).await?;
        exec.is("read", name)?;
        let request = v1::ContainerStatsRequest { container_id: container.id.clone() };
        let stats = node.runtime().container_stats(crate::endpoint::ask(request)).await?.into_inner().stats;
        same!(
            stats.and_then(|stats| stats.attributes).map(|a| a.id),
            Some(container.id.clone()),
            "stats of {name}"
        );
        seen.push((exec.get("ns.net")?.to_owned(), exec.get("ns.mnt")?.to_owned()));
    }
    same!(seen[0].0, seen[1].0, "network namespaces");
    ensure!(seen[0].1 != seen[1].1, "one mount namespace for both");
    Ok(())
}
