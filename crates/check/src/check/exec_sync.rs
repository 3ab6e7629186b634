//! ExecSync: what probes and hooks stand on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1;
use futures_util::future::join_all;
use tonic::Code;

use super::case::{Case, case, same};
use crate::host;
use crate::images::PROGRAM;
use crate::node::{Found, Node, refused, until};
use crate::pattern::repeats;

pub(super) const CASES: &[Case] = &[
    case!("exec-sync/output", "CK", output).quick(),
    case!("exec-sync/exit-code", "CK", exit_code).quick(),
    case!("exec-sync/timeout", "CK", timeout),
    case!("exec-sync/held-pipe", "K", held_pipe),
    case!("exec-sync/sixteen-mib", "K", sixteen_mib),
    case!("exec-sync/same-identity", "CK", same_identity),
    case!("exec-sync/refused", "S", refusals),
    case!("exec-sync/fifty-at-once", "K", fifty_at_once),
];

async fn output(node: Node) -> Result<()> {
    let container = node.pod("output").run().await?.container("main").start().await?;
    let words = [PROGRAM, "bytes", "out", "00ff0a0d80fe", ";", "bytes", "err", "0102", ";", "say", "end"];
    let answer = node.exec_sync(&container.id, &words, 10).await?;
    same!(answer.stdout, b"\x00\xff\x0a\x0d\x80\xfeend\n".to_vec(), "stdout");
    same!(answer.stderr, b"\x01\x02".to_vec(), "stderr");
    same!(answer.exit_code, 0, "exit code");
    // The only words come just before the end: an end that is heard first must not hide them.
    let words = [PROGRAM, "sleep", "3", ";", "say", "late"];
    for round in 0..2 {
        let calls = (0..6).map(|_| node.exec_sync(&container.id, &words, 10));
        for answer in join_all(calls).await {
            same!(String::from_utf8_lossy(&answer?.stdout), "late\n", "stdout in round {round}");
        }
    }
    Ok(())
}

async fn exit_code(node: Node) -> Result<()> {
    let container = node.pod("code").run().await?.container("main").start().await?;
    for code in [0, 1, 42, 255] {
        let answer = node.exec_sync(&container.id, &[PROGRAM, "exit", &code.to_string()], 10).await?;
        same!(answer.exit_code, code, "exit code");
    }
    Ok(())
}

async fn timeout(node: Node) -> Result<()> {
    // A first process that reaps, so that what is left unreaped is the runtime's.
    let container = node.pod("timeout").run().await?.container("main").cmd(&["init"]).start().await?;
    let main = container.host_pid().await?;
    let started = Instant::now();
    let words = [PROGRAM, "spawn", "pause", ";", "on", "TERM", "ignore", ";", "pause"];
    let call = crate::patience::timeout(Duration::from_secs(15), node.exec_sync(&container.id, &words, 1));
    let answer = call.await.context("a child that holds the output hangs the limit")?;
    refused(answer, &[Code::DeadlineExceeded], "a command past its limit")?;
    let took = started.elapsed();
    ensure!(took >= Duration::from_millis(900), "returned after {took:?}, before the limit");
    ensure!(
        took < crate::patience::at_most(Duration::from_secs(8)),
        "returned after {took:?}, long after the limit"
    );
    let left: Vec<u32> =
        container.host_pids().into_iter().filter(|pid| *pid != main && host::alive(*pid)).collect();
    ensure!(left.is_empty(), "when the call returned, {} processes of the command lived", left.len());
    until("the command reaped", Duration::from_secs(2), async || {
        let zombies = host::zombies_of(&[main]);
        Ok(if zombies == 0 { Found::Yes(()) } else { Found::Not(format!("{zombies} zombies")) })
    })
    .await
}

async fn held_pipe(node: Node) -> Result<()> {
    let container = node.pod("held").run().await?.container("main").start().await?;
    let started = Instant::now();
    let call = node.exec_sync(&container.id, &[PROGRAM, "detach", "pause", ";", "say", "done"], 10);
    let answer = crate::patience::timeout(Duration::from_secs(15), call)
        .await
        .context("a held pipe hangs the call")??;
    ensure!(String::from_utf8_lossy(&answer.stdout).contains("done"), "stdout {:?}", answer.stdout);
    same!(answer.exit_code, 0, "exit code");
    ensure!(
        started.elapsed() < crate::patience::at_most(Duration::from_secs(15)),
        "the call took {:?}",
        started.elapsed()
    );
    // Nor one that is never done with writing to it; what came before the end counts.
    for rest in ["0", "20"] {
        let words = [
            PROGRAM,
            "detach",
            "pattern",
            "out",
            "1000000000000",
            ";",
            "complain",
            "done",
            ";",
            "sleep",
            rest,
        ];
        let call =
            crate::patience::timeout(Duration::from_secs(15), node.exec_sync(&container.id, &words, 10));
        let answer = call.await.context("a pipe that is written to for ever hangs the call")??;
        same!(
            String::from_utf8_lossy(&answer.stderr),
            "done\n",
            "stderr beside a pipe that is written to for ever"
        );
        same!(answer.exit_code, 0, "exit code beside a pipe that is written to for ever");
    }
    let started = Instant::now();
    let words = [PROGRAM, "detach", "pause", ";", "pause"];
    let call = crate::patience::timeout(Duration::from_secs(15), node.exec_sync(&container.id, &words, 1));
    let answer = call.await.context("a held pipe hangs the limit")?;
    refused(answer, &[Code::DeadlineExceeded], "a held pipe and a limit")?;
    ensure!(
        started.elapsed() < crate::patience::at_most(Duration::from_secs(6)),
        "the limit took {:?}",
        started.elapsed()
    );
    Ok(())
}

async fn sixteen_mib(node: Node) -> Result<()> {
    const LIMIT: usize = 16 << 20;
    let volume = node.folder("volume")?;
    let container = node.pod("much").run().await?.container("main").mount(&volume, "/data").start().await?;
    let words = [PROGRAM, "pattern", "out", &(20 << 20).to_string(), ";", "write", "/data/end", "reached"];
    let answer = node.exec_sync(&container.id, &words, 50).await?;
    same!(answer.exit_code, 0, "exit code");
    let length = answer.stdout.len();
    ensure!((LIMIT - (64 << 10)..=LIMIT).contains(&length), "{length} bytes came back");
    let alphabet: Vec<u8> = (b'a'..=b'z').collect();
    let right = repeats(&alphabet.repeat(4096), 0, &answer.stdout);
    ensure!(right, "what came back is not what was written");
    same!(std::fs::read_to_string(volume.join("end")).ok().as_deref(), Some("reached"), "the command's end");
    Ok(())
}

async fn same_identity(node: Node) -> Result<()> {
    let see = ["ids", ";", "env", ";", "cwd", ";", "ns", ";", "cgroup", ";", "host", ";", "limits"];
    let pod = node.pod("identity").run().await?;
    let words: Vec<&str> = see.iter().copied().chain([";", "say", "ready=1", ";", "pause"]).collect();
    let container = pod
        .container("main")
        .cmd(&words)
        .user(1000)
        .env("GIVEN", "a b=c")
        .edit(|config| config.working_dir = "/data".to_owned())
        .security(|security| {
            security.supplemental_groups = vec![1234, 50000];
            security.no_new_privs = true;
            security.capabilities = Some(v1::Capability {
                add_capabilities: vec!["NET_ADMIN".to_owned()],
                drop_capabilities: vec!["NET_RAW".to_owned()],
                ..Default::default()
            });
            security.seccomp = Some(v1::SecurityProfile { profile_type: 0, localhost_ref: String::new() });
        })
        .start()
        .await?;
    let own = container.says("ready").await?;
    let exec = container.exec(&see).await?;
    let kept = |(key, _): &(&str, &str)| *key != "pid" && *key != "ready";
    let all = |report: &crate::container::Report| {
        let pairs: Vec<(String, String)> =
            report.all("").into_iter().filter(kept).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        pairs
    };
    let (own, exec) = (all(&own), all(&exec));
    let different: Vec<_> = own.iter().filter(|pair| !exec.contains(pair)).collect();
    ensure!(different.is_empty(), "the container has {different:?}, the exec {:?}", {
        let keys: Vec<_> = different.iter().map(|(key, _)| key).collect();
        exec.iter().filter(|(key, _)| keys.contains(&key)).collect::<Vec<_>>()
    });
    same!(exec.len(), own.len(), "what is seen");
    Ok(())
}

async fn refusals(node: Node) -> Result<()> {
    let pod = node.pod("refused").run().await?;
    let container = pod.container("main").start().await?;
    refused(node.exec_sync(&container.id, &[], 5).await, &[Code::InvalidArgument], "an empty command")?;
    let created = pod.container("created").create().await?;
    let not_running = [Code::FailedPrecondition];
    refused(node.exec_sync(&created.id, &[PROGRAM], 5).await, &not_running, "exec in a created container")?;
    let exited = pod.container("exited").cmd(&["exit", "0"]).start().await?;
    exited.exited().await?;
    refused(node.exec_sync(&exited.id, &[PROGRAM], 5).await, &not_running, "exec in an exited container")?;
    refused(
        node.exec_sync(&"d".repeat(64), &[PROGRAM], 5).await,
        &[Code::NotFound],
        "exec in an unknown container",
    )?;
    let missing =
        refused(node.exec_sync(&container.id, &["/no/such/program"], 5).await, &[], "a missing program")?;
    ensure!(
        missing.message().contains("/no/such/program"),
        "the error does not name it: {}",
        missing.message()
    );
    Ok(())
}

async fn fifty_at_once(node: Node) -> Result<()> {
    let container = node.pod("fifty").run().await?.container("main").cmd(&["init"]).start().await?;
    let main = container.host_pid().await?;
    let calls = (0..50).map(|index| {
        let (node, id) = (node.clone(), container.id.clone());
        async move {
            let word = format!("call-{index}");
            let answer = node.exec_sync(&id, &[PROGRAM, "say", &word], 50).await?;
            same!(String::from_utf8_lossy(&answer.stdout), format!("{word}\n"), "output of {word}");
            anyhow::Ok(())
        }
    });
    join_all(calls).await.into_iter().collect::<Result<Vec<_>>>()?;
    until("no process of the calls left", Duration::from_secs(5), async || {
        let left = container.host_pids().len() - 1 + host::zombies_of(&[main]);
        Ok(if left == 0 { Found::Yes(()) } else { Found::Not(format!("{left} processes")) })
    })
    .await
    .context("after fifty calls")
}
