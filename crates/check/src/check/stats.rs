//! Figures about containers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use tonic::Status;

use super::case::{Case, case, same};
use crate::container::Ctr;
use crate::endpoint::ask;
use crate::node::{Found, LABEL, Node, until};

pub(super) const CASES: &[Case] = &[
    case!("stats/container", "CK", container).quick(),
    case!("stats/list", "CK", list).quick(),
    case!("stats/moves", "KT", moves),
    case!("stats/true", "K", true_),
    case!("stats/pod", "KT", pod),
];

async fn of(node: &Node, id: &str) -> Result<v1::ContainerStats> {
    let request = v1::ContainerStatsRequest { container_id: id.to_owned() };
    node.runtime().container_stats(ask(request)).await?.into_inner().stats.context("no stats in the answer")
}

fn cpu(stats: &v1::ContainerStats) -> u64 {
    stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |usage| usage.value)
}

fn working_set(stats: &v1::ContainerStats) -> u64 {
    stats.memory.as_ref().and_then(|memory| memory.working_set_bytes).map_or(0, |bytes| bytes.value)
}

async fn container(node: Node) -> Result<()> {
    let container = node.pod("stats").run().await?.container("main").start().await?;
    let stats = of(&node, &container.id).await?;
    let attributes = stats.attributes.clone().context("no attributes")?;
    same!(attributes.id, container.id, "id");
    same!(attributes.metadata, container.config.metadata, "metadata");
    same!(attributes.labels, container.config.labels, "labels");
    ensure!(
        stats.cpu.as_ref().is_some_and(|cpu| cpu.timestamp > 0),
        "no cpu timestamp at once after the start"
    );
    ensure!(stats.memory.as_ref().is_some_and(|memory| memory.timestamp > 0), "no memory timestamp");
    ensure!(cpu(&stats) > 0, "no cpu time was used");
    ensure!(working_set(&stats) > 0, "no memory is used");
    let layer = stats.writable_layer.context("no writable layer")?;
    let mountpoint = layer.fs_id.context("no fs_id")?.mountpoint;
    ensure!(Path::new(&mountpoint).exists(), "the writable layer's mount point {mountpoint} does not exist");
    Ok(())
}

async fn ids(node: &Node, filter: Option<v1::ContainerStatsFilter>) -> Result<Vec<String>, Status> {
    let request = v1::ListContainerStatsRequest { filter };
    let stats = node.runtime().list_container_stats(ask(request)).await?.into_inner().stats;
    let mut ids: Vec<_> = stats.into_iter().filter_map(|stats| stats.attributes).map(|own| own.id).collect();
    ids.sort();
    Ok(ids)
}

async fn list(node: Node) -> Result<()> {
    let (one, two) = (node.pod("one").run().await?, node.pod("two").run().await?);
    let first = one.container("first").start().await?;
    let second =
        one.container("second").edit(|c| drop(c.labels.insert("kind".into(), "b".into()))).start().await?;
    let third = two.container("third").start().await?;
    let created = two.container("created").create().await?;
    let sorted = |containers: &[&Ctr]| {
        let mut ids: Vec<_> = containers.iter().map(|container| container.id.clone()).collect();
        ids.sort();
        ids
    };
    let by = |change: fn(&mut v1::ContainerStatsFilter, &str), value: &str| {
        let mut filter = v1::ContainerStatsFilter::default();
        change(&mut filter, value);
        Some(filter)
    };
    same!(ids(&node, by(|f, v| f.id = v.to_owned(), &first.id)).await?, sorted(&[&first]), "by id");
    same!(
        ids(&node, by(|f, v| f.pod_sandbox_id = v.to_owned(), &one.id)).await?,
        sorted(&[&first, &second]),
        "by pod"
    );
    let both = |f: &mut v1::ContainerStatsFilter, mark: &str| {
        f.label_selector = [(LABEL.to_owned(), mark.to_owned()), ("kind".to_owned(), "b".to_owned())].into();
    };
    same!(ids(&node, by(both, &node.mark())).await?, sorted(&[&second]), "by labels");
    let own = |f: &mut v1::ContainerStatsFilter, mark: &str| {
        drop(f.label_selector.insert(LABEL.to_owned(), mark.to_owned()))
    };
    same!(
        ids(&node, by(own, &node.mark())).await?,
        sorted(&[&first, &second, &third]),
        "started containers alone"
    );
    let all = ids(&node, None).await?;
    ensure!(
        all.contains(&first.id) && !all.contains(&created.id),
        "a nil filter gives other than the started ones"
    );
    let (gone, listed) = tokio::join!(async { (third.stop(0).await, third.remove().await) }, async {
        for _ in 0..20 {
            ids(&node, None).await.context("a list while a container vanishes")?;
        }
        anyhow::Ok(())
    });
    gone.0?;
    gone.1?;
    listed
}

async fn moves(node: Node) -> Result<()> {
    let container = node.pod("moves").run().await?.container("main").cmd(&["burn", "20000"]).start().await?;
    let first = of(&node, &container.id).await?;
    let at = |stats: &v1::ContainerStats| stats.cpu.as_ref().map_or(0, |cpu| cpu.timestamp);
    let mut last = cpu(&first);
    until("another cpu timestamp a second later", Duration::from_secs(12), async || {
        let stats = of(&node, &container.id).await?;
        let now = cpu(&stats);
        ensure!(now >= last, "the cpu counter fell from {last} to {now}");
        last = now;
        let done = at(&stats) > at(&first) + 900_000_000 && now > cpu(&first);
        Ok(if done { Found::Yes(()) } else { Found::Not(format!("{} and {now}", at(&stats))) })
    })
    .await
}

async fn true_(node: Node) -> Result<()> {
    let words = [
        "burn",
        "1000",
        ";",
        "eat",
        "40",
        ";",
        "fill",
        "/data/bytes",
        "20971520",
        ";",
        "say",
        "ready=1",
        ";",
        "pause",
    ];
    let container = node.pod("true").run().await?.container("main").cmd(&words).start().await?;
    container.says("ready").await?;
    // What the kernel itself counted is what has to be told.
    let status = std::fs::read_to_string(format!("/proc/{}/stat", container.host_pid().await?))?;
    let fields: Vec<&str> = status.rsplit_once(") ").context("/proc/PID/stat")?.1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let burnt = ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second();
    until("true figures", Duration::from_secs(25), async || {
        let stats = of(&node, &container.id).await?;
        let (cpu, memory) = (cpu(&stats), working_set(&stats));
        let written =
            stats.writable_layer.as_ref().and_then(|layer| layer.used_bytes).map_or(0, |bytes| bytes.value);
        let cpu_right = cpu as f64 >= burnt as f64 * 0.9;
        let memory_right = memory >= 36 << 20;
        let written_right = (18 << 20..64 << 20).contains(&written);
        let all = cpu_right && memory_right && written_right;
        Ok(if all {
            Found::Yes(())
        } else {
            Found::Not(format!("cpu {cpu} of {burnt}, memory {memory}, written {written}"))
        })
    })
    .await
}

async fn pod(node: Node) -> Result<()> {
    let pod = node.pod("pod").run().await?;
    let container =
        pod.container("main").cmd(&["burn", "300", ";", "say", "ready=1", ";", "pause"]).start().await?;
    container.says("ready").await?;
    let own = of(&node, &container.id).await?;
    let request = |id: &str| ask(v1::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() });
    let answer = match node.runtime().pod_sandbox_stats(request(&pod.id[..20])).await {
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            return crate::node::skip("the endpoint has no stats of pods");
        }
        answer => answer?.into_inner(),
    };
    let stats = answer.stats.context("no stats in the answer")?;
    same!(stats.attributes.context("no attributes")?.id, pod.id, "the id");
    let linux = stats.linux.context("no figures of linux")?;
    let burnt = linux.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |usage| usage.value);
    ensure!(burnt >= cpu(&own), "the pod has used {burnt} ns, and its container {} before", cpu(&own));
    let used = linux.memory.and_then(|memory| memory.usage_bytes).map_or(0, |bytes| bytes.value);
    ensure!(used > 0, "the pod uses no memory");
    same!(linux.containers.len(), 1, "containers in the pod's stats");
    same!(linux.containers[0].attributes, own.attributes, "the container in the pod's stats");
    let network = linux.network.context("no network")?;
    let default = network.default_interface.context("no default interface")?;
    ensure!(default.name != "lo" && !default.name.is_empty(), "the default interface is `{}`", default.name);
    let processes = linux.process.and_then(|process| process.process_count).map_or(0, |count| count.value);
    ensure!(processes >= 1, "no process in the pod");
    let id = pod.id.clone();
    let request = ask(v1::ListPodSandboxStatsRequest {
        filter: Some(v1::PodSandboxStatsFilter { id: id[..20].to_owned(), ..Default::default() }),
    });
    let listed = node.runtime().list_pod_sandbox_stats(request).await?.into_inner().stats;
    let ids: Vec<_> = listed.into_iter().filter_map(|stats| stats.attributes).map(|own| own.id).collect();
    same!(ids, vec![id], "pods by the beginning of an id");
    Ok(())
}
