//! Ending containers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bowline_cri_proto::v1;

use super::case::{Case, case, same};
use crate::container::{Ctr, CtrSpec};
use crate::node::{Found, Node, until};

pub(super) const CASES: &[Case] = &[
    case!("stop/graceful", "CK", graceful).quick(),
    case!("stop/escalates", "K", escalates),
    case!("stop/now", "K", now).quick(),
    case!("stop/signal-order", "K", signal_order),
    case!("stop/idle-states", "CK", idle_states),
    case!("stop/shortened", "S", shortened),
    case!("stop/whole-container", "K", whole_container),
];

/// Starts it and waits until it listens to signals.
async fn ready(spec: CtrSpec, words: &[&str]) -> Result<Ctr> {
    let words: Vec<&str> = words.iter().copied().chain([";", "say", "ready=1", ";", "pause"]).collect();
    let container = spec.cmd(&words).start().await?;
    container.says("ready").await?;
    Ok(container)
}

async fn graceful(node: Node) -> Result<()> {
    let pod = node.pod("graceful").run().await?;
    let container = ready(pod.container("main"), &["on", "TERM", "7"]).await?;
    let started = Instant::now();
    container.stop(30).await?;
    ensure!(
        started.elapsed() < crate::patience::at_most(Duration::from_secs(15)),
        "took {:?}",
        started.elapsed()
    );
    let status = container.status().await?;
    same!(
        (status.state, status.exit_code),
        (v1::ContainerState::ContainerExited as i32, 7),
        "state and code"
    );
    Ok(())
}

async fn escalates(node: Node) -> Result<()> {
    let pod = node.pod("escalates").run().await?;
    let container = ready(pod.container("main"), &["on", "TERM", "ignore"]).await?;
    let started = Instant::now();
    container.stop(2).await?;
    let took = started.elapsed();
    ensure!(
        took >= Duration::from_millis(1900) && took < crate::patience::at_most(Duration::from_secs(8)),
        "a grace of 2 s took {took:?}"
    );
    same!(container.status().await?.exit_code, 137, "exit code");
    container.output()?.is("signal", "TERM")
}

async fn now(node: Node) -> Result<()> {
    let pod = node.pod("now").run().await?;
    let container = ready(pod.container("main"), &["on", "TERM", "7"]).await?;
    let started = Instant::now();
    container.stop(0).await?;
    ensure!(
        started.elapsed() < crate::patience::at_most(Duration::from_secs(8)),
        "took {:?}",
        started.elapsed()
    );
    let status = container.status().await?;
    same!(
        (status.state, status.exit_code),
        (v1::ContainerState::ContainerExited as i32, 137),
        "state and code"
    );
    Ok(())
}

async fn signal_order(node: Node) -> Result<()> {
    let image = node.run.workshop.image("signal").stop_signal("SIGUSR1").build();
    let reference = node.pull_built("signal", &image).await?;
    let listens = ["on", "TERM", "15", ";", "on", "USR1", "10", ";", "on", "USR2", "12"];
    let pod = node.pod("order").run().await?;
    let cases: [(&str, bool, v1::Signal, i32, v1::Signal); 3] = [
        ("plain", false, v1::Signal::RuntimeDefault, 15, v1::Signal::Sigterm),
        ("image", true, v1::Signal::RuntimeDefault, 10, v1::Signal::Sigusr1),
        ("config", true, v1::Signal::Sigusr2, 12, v1::Signal::Sigusr2),
    ];
    for (name, own_image, asked, code, effective) in cases {
        let mut spec = pod.container(name).edit(|config| config.stop_signal = asked as i32);
        if own_image {
            spec = spec.image(&reference);
        }
        let container = ready(spec, &listens).await?;
        same!(container.status().await?.stop_signal(), effective, "status.stop_signal of {name}");
        container.stop(10).await?;
        same!(container.status().await?.exit_code, code, "exit code of {name}");
    }
    Ok(())
}

async fn idle_states(node: Node) -> Result<()> {
    let pod = node.pod("idle").run().await?;
    let created = pod.container("created").create().await?;
    created.stop(1).await?;
    let state = created.status().await?.state;
    same!(state, v1::ContainerState::ContainerCreated as i32, "a created container after stop");
    let exited = pod.container("exited").cmd(&["exit", "5"]).start().await?;
    let before = exited.exited().await?;
    exited.stop(1).await?;
    same!(exited.status().await?, before, "an exited container after stop");
    Ok(())
}

async fn shortened(node: Node) -> Result<()> {
    let pod = node.pod("shortened").run().await?;
    let container = ready(pod.container("main"), &["on", "TERM", "ignore"]).await?;
    let started = Instant::now();
    let long = container.stop(30);
    let short = async {
        container.says("signal").await?;
        anyhow::Ok(container.stop(1).await?)
    };
    let (long, short) = tokio::join!(long, short);
    long?;
    short?;
    ensure!(
        started.elapsed() < crate::patience::at_most(Duration::from_secs(15)),
        "took {:?}",
        started.elapsed()
    );
    Ok(())
}

async fn whole_container(node: Node) -> Result<()> {
    let modes = [v1::NamespaceMode::Container, v1::NamespaceMode::Pod, v1::NamespaceMode::Node];
    for mode in modes {
        let pod = node.pod("whole").namespaces(|options| options.pid = mode as i32).run().await?;
        let words = ["spawn", "pause", ";", "detach", "on", "TERM", "ignore", ",", "pause"];
        let container = ready(pod.container("main"), &words).await?;
        // They are told by their environment, which one that was just forked has not shown yet.
        until("three processes", Duration::from_secs(3), async || {
            let count = container.host_pids().len();
            Ok(if count >= 3 { Found::Yes(()) } else { Found::Not(format!("{count} with {mode:?}")) })
        })
        .await?;
        container.stop(1).await?;
        until("the end of every process", Duration::from_secs(3), async || {
            let left = container.host_pids();
            Ok(if left.is_empty() { Found::Yes(()) } else { Found::Not(format!("{left:?} with {mode:?}")) })
        })
        .await?;
    }
    Ok(())
}
