//! Limits, when created and changed later.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use bowline_cri_proto::v1::{self, HugepageLimit, LinuxContainerResources};
use tonic::{Code, Status};

use super::case::{Case, case, same};
use crate::container::Ctr;
use crate::endpoint::ask;
use crate::host;
use crate::node::{Node, refused, skip};

pub(super) const CASES: &[Case] = &[
    case!("resources/create-echo", "K", create_echo).quick(),
    case!("resources/update", "KT", update).quick(),
    case!("resources/update-atomic", "P", update_atomic),
    case!("resources/hugepages-zero", "K", hugepages_zero),
    case!("resources/unified", "K", unified),
    case!("resources/cgroup-place", "CK", cgroup_place),
    case!("resources/pod-update", "K", pod_update),
];

const MIB: i64 = 1 << 20;

async fn change(container: &Ctr, linux: LinuxContainerResources) -> Result<(), Status> {
    let request = v1::UpdateContainerResourcesRequest {
        container_id: container.id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    container.pod.node.runtime().update_container_resources(ask(request)).await?;
    Ok(())
}

async fn told(container: &Ctr) -> Result<LinuxContainerResources> {
    let resources = container.status().await?.resources.and_then(|resources| resources.linux);
    resources.context("no resources in the status")
}

async fn create_echo(node: Node) -> Result<()> {
    let pod = node.pod("echo").run().await?;
    let container = pod
        .container("main")
        .resources(|linux| {
            (linux.cpu_period, linux.cpu_quota, linux.cpu_shares) = (50_000, 25_000, 307);
            linux.memory_limit_in_bytes = 64 * MIB;
            linux.oom_score_adj = 900;
            linux.cpuset_cpus = "0".to_owned();
        })
        .start()
        .await?;
    let cgroup = container.cgroup().await?;
    same!(cgroup.cpu_quota(), Some((25_000, 50_000)), "quota and period");
    same!(cgroup.memory_limit(), Some(64 << 20), "the memory limit");
    same!(cgroup.cpuset().as_deref(), Some("0"), "the cpuset");
    if !host::is_unified() {
        same!(cgroup.cpu_weight(), Some(307), "cpu shares");
    }
    container.exec(&["oom-score"]).await?.is("oom_score_adj", "900")?;
    let linux = told(&container).await?;
    same!((linux.cpu_period, linux.cpu_quota, linux.cpu_shares), (50_000, 25_000, 307), "cpu in the status");
    same!(linux.memory_limit_in_bytes, 64 * MIB, "memory in the status");
    same!(linux.cpuset_cpus, "0", "cpuset in the status");
    same!(linux.oom_score_adj, 900, "oom_score_adj in the status");
    Ok(())
}

async fn update(node: Node) -> Result<()> {
    let pod = node.pod("update").run().await?;
    let spec = |name: &str| {
        pod.container(name).resources(|linux| {
            (linux.cpu_period, linux.cpu_quota, linux.cpu_shares) = (100_000, 50_000, 512);
            linux.memory_limit_in_bytes = 64 * MIB;
        })
    };
    let container = spec("running").start().await?;
    let cgroup = container.cgroup().await?;
    for (quota, memory) in [(80_000, 96), (20_000, 48)] {
        let linux = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: quota,
            memory_limit_in_bytes: memory * MIB,
            ..Default::default()
        };
        change(&container, linux).await?;
        same!(cgroup.cpu_quota(), Some((quota, 100_000)), "quota");
        same!(cgroup.memory_limit().map(u64::cast_signed), Some(memory * MIB), "memory");
        let linux = told(&container).await?;
        same!((linux.cpu_quota, linux.memory_limit_in_bytes), (quota, memory * MIB), "the status");
        same!(linux.cpu_shares, 512, "shares, which were not mentioned");
    }
    let created = spec("created").create().await?;
    change(&created, LinuxContainerResources { memory_limit_in_bytes: 80 * MIB, ..Default::default() })
        .await?;
    same!(told(&created).await?.memory_limit_in_bytes, 80 * MIB, "the status in CREATED");
    created.start().await?;
    same!(created.cgroup().await?.memory_limit(), Some(80 << 20), "memory after the start");
    Ok(())
}

async fn update_atomic(node: Node) -> Result<()> {
    let spec = node.pod("atomic").run().await?.container("main").resources(|linux| {
        (linux.cpu_period, linux.cpu_quota) = (100_000, 50_000);
        linux.memory_limit_in_bytes = 64 * MIB;
        linux.cpuset_cpus = "0".to_owned();
    });
    let container = spec.start().await?;
    let before = told(&container).await?;
    let half = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 70_000,
        memory_limit_in_bytes: 80 * MIB,
        cpuset_cpus: "4000".to_owned(),
        ..Default::default()
    };
    refused(change(&container, half).await, &[], "a cpu that does not exist")?;
    let cgroup = container.cgroup().await?;
    same!(cgroup.cpu_quota(), Some((50_000, 100_000)), "quota afterwards");
    same!(cgroup.memory_limit(), Some(64 << 20), "memory afterwards");
    same!(cgroup.cpuset().as_deref(), Some("0"), "cpuset afterwards");
    same!(told(&container).await?, before, "the status afterwards");
    Ok(())
}

async fn hugepages_zero(node: Node) -> Result<()> {
    let sizes = ["2MB", "1GB"].map(|size| HugepageLimit { page_size: size.to_owned(), limit: 0 });
    let pod = node.pod("huge").run().await?;
    let spec = pod.container("main").resources(|linux| linux.hugepage_limits = sizes.to_vec());
    let container = spec.start().await?;
    let again =
        LinuxContainerResources { hugepage_limits: sizes.to_vec(), cpu_shares: 100, ..Default::default() };
    change(&container, again).await.context("an update with limits of zero")
}

async fn unified(node: Node) -> Result<()> {
    let pod = node.pod("unified").run().await?;
    let with = |name: &str, key: &str, value: &str| {
        let map: BTreeMap<String, String> = [(key.to_owned(), value.to_owned())].into();
        pod.container(name).resources(move |linux| linux.unified = map)
    };
    if !host::is_unified() {
        with("legacy", "memory.oom.group", "1").refused("a key of cgroup v2 on cgroup v1").await?;
        return Ok(());
    }
    let container = with("group", "memory.oom.group", "1").start().await?;
    same!(
        container.cgroup().await?.read("memory", "memory.oom.group").as_deref(),
        Some("1"),
        "memory.oom.group"
    );
    with("unknown", "memory.no_such_key", "1").refused("an unknown key").await?;
    Ok(())
}

async fn cgroup_place(node: Node) -> Result<()> {
    let answer = node.runtime().runtime_config(ask(v1::RuntimeConfigRequest {})).await;
    let driver = answer.ok().and_then(|answer| answer.into_inner().linux).map(|linux| linux.cgroup_driver());
    let (parent, below) = match driver {
        Some(v1::CgroupDriver::Systemd) => {
            let slice = format!("check{}.slice", node.run.name);
            (format!("/{slice}"), slice)
        }
        _ => {
            let parent = format!("check-{}/pod", node.mark());
            if host::is_unified() {
                // The kubelet makes the pod's group, and enables no controllers for the groups below it.
                let folder = std::path::Path::new("/sys/fs/cgroup").join(&parent);
                std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
            }
            (format!("/{parent}"), parent)
        }
    };
    let placed =
        node.pod("placed").edit(|config| config.linux.get_or_insert_default().cgroup_parent = parent);
    let spec =
        placed.run().await?.container("main").resources(|linux| linux.memory_limit_in_bytes = 64 * MIB);
    let container = spec.start().await?;
    let cgroup = container.cgroup().await?;
    same!(cgroup.memory_limit(), Some(64 << 20), "the memory limit below a parent that is not ours");
    let path = cgroup.path("memory").context("no memory cgroup")?.to_owned();
    let leaf = path.rsplit('/').next().unwrap_or_default();
    ensure!(path.contains(&below), "{path} is not below {below}");
    ensure!(leaf.contains(&container.id), "the leaf of {path} does not carry the id");
    let plain = node.pod("plain").run().await?.container("main").start().await.context("an empty parent")?;
    ensure!(plain.cgroup().await?.path("memory").is_some(), "no cgroup with an empty parent");
    container.pod.stop().await?;
    container.pod.remove().await?;
    // The parent is ours, as the kubelet's is the kubelet's.
    remove_parent(&node);
    Ok(())
}

fn remove_parent(node: &Node) {
    for folder in host::cgroups_naming(&[format!("check-{}", node.mark())]) {
        let _ = std::fs::remove_dir(folder.join("pod"));
        let _ = std::fs::remove_dir(folder);
    }
}

async fn pod_update(node: Node) -> Result<()> {
    let pod = node.pod("pod").run().await?;
    let linux =
        |memory: i64| LinuxContainerResources { memory_limit_in_bytes: memory * MIB, ..Default::default() };
    for memory in [64, 128, 128, 64] {
        let request = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            overhead: Some(linux(8)),
            resources: Some(linux(memory)),
        };
        match node.runtime().update_pod_sandbox_resources(ask(request)).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::Unimplemented => {
                return skip("the endpoint does not implement it");
            }
            Err(status) => return Err(status.into()),
        }
    }
    Ok(())
}
