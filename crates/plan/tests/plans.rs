//! Whole plans of the specs in bowline-oci's golden files: `UPDATE_GOLDEN=1 cargo test` rewrites them.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::fmt::Write;
use std::path::Path;

use bowline_launch_plan::{LaunchPlan, Source, Step};
use bowline_model::cgroup::{CgroupLayout, Hierarchy};
use bowline_model::runtime_spec::{Hook, Hooks, LinuxNamespace, NamespaceType, Spec};
use bowline_plan::seccomp::{Arch, SeccompCache};
use bowline_plan::{
    Compiled, Descriptor, ExecRequest, ExecUser, PlanError, PlanInputs, RootfsSource, compile, exec_plan,
};

fn overlay() -> RootfsSource {
    RootfsSource::Overlay {
        lower: vec![c"l2".into(), c"l1".into()],
        upper: c"c1/upper".into(),
        work: c"c1/work".into(),
    }
}

fn v2() -> CgroupLayout {
    CgroupLayout::v2(&["cpuset", "cpu", "io", "memory", "hugetlb", "pids"])
}

/// A host as Debian with `systemd.unified_cgroup_hierarchy=0` has it.
fn hybrid() -> CgroupLayout {
    let v1 = |folder: &str| Hierarchy {
        controllers: folder.split(',').map(str::to_owned).collect(),
        folder: folder.into(),
        ..Hierarchy::default()
    };
    let mut hierarchies: Vec<Hierarchy> =
        ["cpu,cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb"].map(v1).into();
    hierarchies.push(Hierarchy {
        name: Some("systemd".into()),
        folder: "systemd".into(),
        ..Hierarchy::default()
    });
    hierarchies.push(Hierarchy { unified: true, folder: "unified".into(), ..Hierarchy::default() });
    CgroupLayout { hierarchies }
}

fn spec(name: &str) -> Spec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oci/tests/golden").join(format!("{name}.json"));
    Spec::from_json(&std::fs::read(path).unwrap()).unwrap()
}

fn try_compile(spec: &Spec, layout: &CgroupLayout) -> Result<Compiled, PlanError> {
    compile(&PlanInputs {
        spec,
        rootfs: &overlay(),
        directories: &["/var/lib/x".to_owned()],
        cgroups: layout,
        cgroup_path: None,
        inherited: 0,
        last_cap: 40,
        arch: Arch::X86_64,
        seccomp: &SeccompCache::default(),
    })
}

/// A plan as a page of text.
fn print(compiled: &Compiled) -> String {
    let plan = &compiled.plan;
    let mut out = String::new();
    for (index, descriptor) in compiled.descriptors.iter().enumerate() {
        writeln!(out, "fd {index}: {descriptor:?}").unwrap();
    }
    writeln!(out, "argv {:?}\nenv {:?}\ncwd {:?} terminal {}", plan.argv, plan.envp, plan.cwd, plan.terminal)
        .unwrap();
    writeln!(out, "new {:#x} join {:?} maps {:?}", plan.new_namespaces, plan.join_namespaces, plan.user_maps)
        .unwrap();
    writeln!(
        out,
        "root {:?} readonly {} propagation {:#x}",
        plan.rootfs, plan.readonly_root, plan.root_propagation
    )
    .unwrap();
    for step in &plan.steps {
        writeln!(out, "{}", print_step(step)).unwrap();
    }
    for cgroup in &plan.cgroups {
        writeln!(out, "cgroup {} {:?} create {}", cgroup.hierarchy, cgroup.path, cgroup.create).unwrap();
        for write in &cgroup.writes {
            let value = String::from_utf8_lossy(&write.value.0);
            let optional = if write.optional { " optional" } else { "" };
            writeln!(out, "  {} = {value:?}{optional}", write.file.to_str().unwrap()).unwrap();
        }
    }
    writeln!(
        out,
        "device filter {:?} instructions",
        plan.device_filter.as_ref().map(|blob| blob.0.len() / 8)
    )
    .unwrap();
    writeln!(out, "rlimits {:?} oom {:?}\n{:?}", plan.rlimits, plan.oom_score_adj, plan.credentials).unwrap();
    let seccomp = plan.seccomp.as_ref().map(|seccomp| (seccomp.filter.0.len() / 8, seccomp.flags));
    writeln!(out, "seccomp {seccomp:?} apparmor {:?} selinux {:?}", plan.apparmor, plan.selinux).unwrap();
    writeln!(out, "notes {:?}", compiled.notes).unwrap();
    out
}

fn print_step(step: &Step) -> String {
    match step {
        Step::Mount { source, target, kind, attr_set, attr_clr, attr_recursive, propagation, optional } => {
            let source = match source {
                Source::Tree { fd } => format!("fd {fd}"),
                Source::Path { path, recursive } => format!("{path:?} {recursive}"),
                Source::Layers { lower, sub_path } => format!("layers {lower:?} {sub_path:?}"),
                Source::New { fstype, name, options } => format!("{fstype:?} {name:?} {options:?}"),
            };
            format!(
                "mount {source} on {target:?} {kind:?} set {attr_set:#x} clear {attr_clr:#x}{} propagation {propagation:#x}{}",
                if *attr_recursive { " recursive" } else { "" },
                if *optional { " optional" } else { "" }
            )
        }
        other => format!("{other:?}"),
    }
}

fn golden(name: &str, compiled: &Compiled) {
    let text = print(compiled);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(
        text,
        std::fs::read_to_string(&path).unwrap_or_default(),
        "{name}: UPDATE_GOLDEN=1 rewrites the file"
    );
    let plan = &compiled.plan;
    assert_eq!(LaunchPlan::decode(&plan.encode()).as_ref(), Ok(plan));
}

#[test]
fn typical_containers() {
    for name in ["plain", "terminal", "privileged", "volumes", "userns", "host"] {
        golden(&format!("{name}-v2"), &try_compile(&spec(name), &v2()).unwrap());
    }
    for name in ["plain", "terminal", "privileged"] {
        golden(&format!("{name}-hybrid"), &try_compile(&spec(name), &hybrid()).unwrap());
    }
}

#[test]
fn an_exec_has_the_containers_identity() {
    let container = try_compile(&spec("terminal"), &hybrid()).unwrap().plan;
    let request = ExecRequest {
        argv: vec![c"id".into()],
        env: vec![c"LANG=fr".into(), c"NEW=1".into()],
        ..ExecRequest::default()
    };
    let plan = exec_plan(&container, &request).unwrap();
    assert_eq!(plan.credentials, container.credentials);
    assert_eq!((&plan.seccomp, &plan.cwd), (&container.seccomp, &container.cwd));
    assert_eq!(plan.new_namespaces, 0);
    // pid, network, ipc, uts, mount, cgroup: all by the container's pidfd.
    assert_eq!(plan.join_namespaces.len(), 1);
    assert_eq!(plan.join_namespaces[0].flags, 0x6e02_0000);
    assert!(plan.rootfs.is_none() && plan.steps.is_empty());
    assert_eq!(plan.cgroups.len(), 10);
    assert!(plan.cgroups.iter().all(|step| !step.create && step.writes.is_empty()));
    assert!(plan.envp.contains(&c"LANG=fr".into()) && plan.envp.contains(&c"NEW=1".into()));
    assert_eq!(plan.envp.len(), container.envp.len() + 1);

    let user = ExecUser { uid: 1000, gid: 1000, groups: vec![1000] };
    let other = exec_plan(&container, &ExecRequest { user: Some(user), ..request }).unwrap();
    assert_eq!(other.credentials.bounding, container.credentials.bounding);
    assert_eq!((other.credentials.uid, other.credentials.effective), (1000, 0));
    assert!(exec_plan(&container, &ExecRequest::default()).is_err());
}

#[test]
fn namespaces_of_the_launcher_are_not_joined_again() {
    let spec = spec("plain");
    let compiled = compile(&PlanInputs {
        inherited: 0x4c00_0000,
        spec: &spec,
        rootfs: &RootfsSource::Tree { path: "/bundle/rootfs".into() },
        directories: &[],
        cgroups: &v2(),
        cgroup_path: Some("elsewhere/c1"),
        last_cap: 40,
        arch: Arch::X86_64,
        seccomp: &SeccompCache::default(),
    })
    .unwrap();
    assert!(compiled.plan.join_namespaces.is_empty());
    assert_eq!(compiled.descriptors[0], Descriptor::Rootfs { path: "/bundle/rootfs".into() });
    assert_eq!(compiled.plan.cgroups[0].path.to_str(), Ok("elsewhere/c1"));
}

#[test]
fn a_mount_label_reaches_every_file_system_that_is_the_containers_own() {
    let label = "system_u:object_r:container_file_t:s0:c1,c2";
    let mut labelled = spec("plain");
    labelled.linux.as_mut().unwrap().mount_label = label.into();
    for layout in [v2(), hybrid()] {
        let plan = try_compile(&labelled, &layout).unwrap().plan;
        assert_eq!(plan.mount_label.as_deref().map(|label| label.to_str().unwrap()), Some(label));
        for step in &plan.steps {
            let Step::Mount { source: Source::New { fstype, options, .. }, target, .. } = step else {
                continue;
            };
            let context = options.iter().find(|(key, _)| key.as_c_str() == c"context");
            let value = context.and_then(|(_, value)| value.as_deref()).map(|value| value.to_str().unwrap());
            let takes_one = fstype.as_c_str() == c"tmpfs" || fstype.as_c_str() == c"devpts";
            assert_eq!(value, takes_one.then_some(label), "{target:?}");
        }
    }
    // In an overlay's options it stands in quotes.
    for bad in ["a:b:c:s0\",lowerdir=/", "a:b:c:s0\n"] {
        let mut spec = spec("plain");
        spec.linux.as_mut().unwrap().mount_label = bad.into();
        let error = try_compile(&spec, &v2()).unwrap_err().to_string();
        assert!(error.contains("linux.mountLabel"), "{error}");
    }
}

#[test]
fn a_kernel_without_a_capability_gets_a_note() {
    let spec = spec("privileged");
    let compiled =
        compile(&PlanInputs { last_cap: 37, ..inputs(&spec, &overlay(), &v2(), &SeccompCache::default()) });
    let compiled = compiled.unwrap();
    assert_eq!(compiled.plan.credentials.bounding, (1 << 38) - 1);
    assert!(compiled.notes[0].contains("CAP_BPF"));
}

fn inputs<'a>(
    spec: &'a Spec,
    rootfs: &'a RootfsSource,
    cgroups: &'a CgroupLayout,
    seccomp: &'a SeccompCache,
) -> PlanInputs<'a> {
    PlanInputs {
        spec,
        rootfs,
        directories: &[],
        cgroups,
        cgroup_path: None,
        inherited: 0,
        last_cap: 40,
        arch: Arch::X86_64,
        seccomp,
    }
}

#[test]
fn hooks_are_handed_over_not_run() {
    let mut spec = spec("plain");
    spec.hooks = Some(Hooks::default());
    assert_eq!(try_compile(&spec, &v2()).unwrap().hooks, None);
    spec.hooks =
        Some(Hooks { poststop: vec![Hook { path: "/h".into(), ..Hook::default() }], ..Hooks::default() });
    assert!(try_compile(&spec, &v2()).unwrap().hooks.is_some());
}

/// Changes the plain spec, which must then be refused by an error that starts with this.
fn refused(start: &str, change: fn(&mut serde_json::Value)) {
    let mut value = serde_json::to_value(spec("plain")).unwrap();
    change(&mut value);
    let spec: Spec = serde_json::from_value(value).unwrap();
    for layout in [v2(), hybrid()] {
        let error = try_compile(&spec, &layout).expect_err(start).to_string();
        assert!(error.starts_with(start), "{start}: {error}");
    }
}

#[test]
fn what_we_do_not_do_is_refused_by_name() {
    use serde_json::json;
    refused("process.scheduler.priority", |v| v["process"]["scheduler"] = json!({"policy": "SCHED_FIFO"}));
    refused("process.ioPriority.priority", |v| {
        v["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_RT", "priority": 8})
    });
    refused("linux.memoryPolicy.nodes", |v| v["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND"}));
    refused("linux.personality.domain", |v| v["linux"]["personality"] = json!({"domain": "BSD"}));
    refused("linux.timeOffsets", |v| v["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}}));
    refused("linux.namespaces[0].type \"time\"", |v| v["linux"]["namespaces"][0] = json!({"type": "time"}));
    refused("process.args", |v| v["process"]["args"] = json!([]));
    refused("process.cwd", |v| v["process"]["cwd"] = json!("x"));
    refused("process.user.uid", |v| v["process"]["user"]["uid"] = json!(u32::MAX));
    refused("process.rlimits[0]", |v| {
        v["process"]["rlimits"] = json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}])
    });
    refused("process.capabilities.bounding", |v| {
        v["process"]["capabilities"]["bounding"] = json!(["CAP_NOPE"])
    });
    refused("process.oomScoreAdj", |v| v["process"]["oomScoreAdj"] = json!(2000));
    refused("mounts[0].options", |v| v["mounts"][0]["options"] = json!(["remount"]));
    refused("mounts[0].destination", |v| v["mounts"][0]["destination"] = json!("proc"));
    refused("linux.sysctl.kernel.core_pattern", |v| {
        v["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/x"})
    });
    refused("linux.sysctl.net/../kernel/x", |v| v["linux"]["sysctl"] = json!({"net/../kernel/x": "1"}));
    refused("linux.uidMappings", |v| {
        v["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1, "size": 1}])
    });
    refused("linux.cgroupsPath", |v| v["linux"]["cgroupsPath"] = json!("a.slice:b:c"));
    refused("linux.cgroupsPath", |v| v["linux"]["cgroupsPath"] = json!("/../"));
    refused("linux.seccomp", |v| v["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NOTIFY"}));
    refused("linux.rootfsPropagation", |v| v["linux"]["rootfsPropagation"] = json!("sideways"));
}

#[test]
fn the_hosts_names_and_parameters_are_out_of_reach() {
    let mut spec = spec("host");
    spec.hostname = "evil".into();
    assert!(try_compile(&spec, &v2()).unwrap_err().to_string().starts_with("hostname"));
    spec.hostname.clear();
    if let Some(linux) = &mut spec.linux {
        linux.sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
    }
    assert!(try_compile(&spec, &v2()).unwrap_err().to_string().contains("needs a network namespace"));
    if let Some(linux) = &mut spec.linux {
        linux.namespaces.push(LinuxNamespace { kind: NamespaceType::Network, path: String::new() });
    }
    let plan = try_compile(&spec, &v2()).unwrap().plan;
    assert_eq!(plan.sysctls, [(c"net/ipv4/ip_forward".into(), c"1".into())]);
}

#[test]
fn a_bound_dev_is_left_alone() {
    let mut spec = spec("plain");
    for mount in &mut spec.mounts {
        if mount.destination == "/dev" {
            mount.kind = "bind".into();
            mount.source = "/dev".into();
            mount.options = vec!["rbind".into()];
        }
    }
    let plan = try_compile(&spec, &v2()).unwrap().plan;
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::Mknod { .. } | Step::Symlink { .. })));
}
