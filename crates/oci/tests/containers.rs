//! Specs of typical containers, as golden files: `UPDATE_GOLDEN=1 cargo test` rewrites them; the diff is the review.
//! `bowline-plan` compiles the same files.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeMap;
use std::path::Path;

use bowline_model::capability;
use bowline_model::cgroup::CgroupMode;
use bowline_model::spec::{
    Capabilities, ContainerSecurity, ContainerSpec, GroupsPolicy, IdMapping, ImageRef, Mount, NamespaceMode,
    PodMetadata, PodSpec, Propagation, Resources, SecurityProfile, UserNamespace,
};
use bowline_oci::{
    Built, ContainerInputs, HostDevice, ImageDefaults, LocalhostSeccomp, NamespacePaths, NodeFacts, PodFiles,
    ResolvedUser, SeccompArch, SpecError, UserError, container_spec, merged_resources, resolve_user,
};

/// Everything that goes in, owned, so that a test changes one thing.
struct Case {
    pod: PodSpec,
    container: ContainerSpec,
    image: ImageDefaults,
    user: ResolvedUser,
    node: NodeFacts,
    files: PodFiles,
    namespaces: NamespacePaths,
    devices: Vec<HostDevice>,
    image_volumes: BTreeMap<usize, String>,
    profile: Option<&'static str>,
}

fn case() -> Case {
    let ns = |kind: &str| Some(format!("/run/pods/s1/ns/{kind}"));
    let file = |name: &str| Some(format!("/run/pods/s1/{name}"));
    Case {
        pod: PodSpec {
            metadata: PodMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 0,
            },
            ..PodSpec::default()
        },
        container: ContainerSpec {
            name: "app".into(),
            image: ImageRef { image: "registry/app:1".into(), ..ImageRef::default() },
            security: ContainerSecurity {
                masked_paths: vec!["/proc/kcore".into(), "/sys/firmware".into()],
                readonly_paths: vec!["/proc/sys".into()],
                namespaces: bowline_model::spec::Namespaces {
                    pid: NamespaceMode::Container,
                    ..Default::default()
                },
                ..ContainerSecurity::default()
            },
            ..ContainerSpec::default()
        },
        image: ImageDefaults {
            entrypoint: vec!["/app".into()],
            cmd: vec!["--serve".into()],
            env: vec!["LANG=C".into(), "PATH=/app/bin:/bin".into()],
            ..ImageDefaults::default()
        },
        user: ResolvedUser {
            home: "/root".into(),
            groups: vec![0],
            name: "root".into(),
            ..ResolvedUser::default()
        },
        node: NodeFacts {
            cgroup_mode: CgroupMode::V2,
            capabilities: u64::MAX,
            last_cap: 40,
            apparmor: false,
            apparmor_default: None,
            selinux: false,
            seccomp_arch: SeccompArch::X86_64,
            host_devices: vec![HostDevice {
                path: "/dev/fuse".into(),
                kind: 'c',
                major: 10,
                minor: 229,
                mode: 0o666,
                ..HostDevice::default()
            }],
            privileged_without_host_devices: false,
            hugetlb_sizes: vec!["2MB".into()],
            recursive_read_only: true,
            swap: true,
            default_ulimits: Vec::new(),
        },
        files: PodFiles {
            hosts: file("hosts"),
            hostname: file("hostname"),
            resolv_conf: file("resolv.conf"),
            shm: file("shm"),
        },
        namespaces: NamespacePaths {
            network: ns("net"),
            ipc: ns("ipc"),
            uts: ns("uts"),
            pid: None,
            user: None,
        },
        devices: Vec::new(),
        image_volumes: BTreeMap::new(),
        profile: None,
    }
}

impl Case {
    fn build(&self) -> Result<Built, SpecError> {
        container_spec(&ContainerInputs {
            sandbox_id: "s1",
            container_id: "c1",
            pod: &self.pod,
            container: &self.container,
            image: &self.image,
            user: &self.user,
            node: &self.node,
            files: &self.files,
            namespaces: &self.namespaces,
            cgroup_path: "/pods/p1/c1",
            hostname: "web",
            devices: &self.devices,
            image_volumes: &self.image_volumes,
            seccomp_profile: self.profile.map(|json| LocalhostSeccomp { json: json.as_bytes() }),
            selinux: None,
        })
    }

    fn error(&self) -> String {
        self.build().unwrap_err().to_string()
    }

    fn env(&self) -> Vec<String> {
        let process = self.build().unwrap().spec.process.unwrap();
        process.env.into_iter().map(String::from).collect()
    }
}

fn golden(name: &str, case: &Case) {
    let built = case.build().unwrap();
    let mut text = serde_json::to_string_pretty(&built.spec).unwrap();
    text.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(
        text,
        std::fs::read_to_string(&path).unwrap_or_default(),
        "{name}: UPDATE_GOLDEN=1 rewrites the file"
    );
}

#[test]
fn plain() {
    golden("plain", &case());
}

#[test]
fn terminal_with_limits_and_default_seccomp() {
    let mut case = case();
    case.container.tty = true;
    case.container.security.seccomp = SecurityProfile::RuntimeDefault;
    case.container.security.capabilities = Capabilities {
        add: vec!["net_admin".into()],
        drop: vec!["CAP_NET_RAW".into()],
        add_ambient: Vec::new(),
    };
    case.container.resources = Resources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit: 64 << 20,
        oom_score_adj: 900,
        cpuset_cpus: "0-1".into(),
        hugepage_limits: vec![("2MB".into(), 0), ("1GB".into(), 0)],
        ..Resources::default()
    };
    golden("terminal", &case);
}

#[test]
fn privileged() {
    let mut case = case();
    case.pod.security.privileged = true;
    case.container.security.privileged = true;
    case.container.security.seccomp = SecurityProfile::RuntimeDefault;
    golden("privileged", &case);
    let linux = case.build().unwrap().spec.linux.unwrap();
    assert!(linux.seccomp.is_none() && linux.masked_paths.is_empty() && linux.readonly_paths.is_empty());
}

#[test]
fn volumes() {
    let mut case = case();
    let mount = |to: &str, from: &str| Mount {
        container_path: to.into(),
        host_path: from.into(),
        ..Mount::default()
    };
    case.container.mounts = vec![
        mount("/data/sub/", "/host/sub"),
        Mount { readonly: true, options: vec!["noexec".into()], ..mount("/data", "/host/data") },
        Mount { readonly: true, recursive_read_only: true, ..mount("/rro", "/host/rro") },
        Mount { propagation: Propagation::Bidirectional, ..mount("/shared", "/host/shared") },
        mount("/etc/hosts", "/kubelet/hosts"),
    ];
    case.container.security.readonly_rootfs = true;
    case.image.volumes = vec!["/data".into(), "/var/lib/x".into(), "relative".into()];
    golden("volumes", &case);
    let built = case.build().unwrap();
    assert_eq!(built.directories, ["/var/lib/x"]);
    assert_eq!(built.notes.len(), 1, "{:?}", built.notes);
}

#[test]
fn user_namespace() {
    let mut case = case();
    let ids = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };
    case.pod.security.namespaces.user = Some(UserNamespace { uids: ids, gids: ids, node: false });
    case.namespaces.user = Some("/run/pods/s1/ns/user".into());
    golden("userns", &case);
}

#[test]
fn host_namespaces() {
    let mut case = case();
    case.pod.security.namespaces.network = NamespaceMode::Node;
    case.pod.security.namespaces.ipc = NamespaceMode::Node;
    case.container.security.namespaces.pid = NamespaceMode::Node;
    golden("host", &case);
}

#[test]
fn commands_replace_what_the_image_says() {
    let args = |command: &[&str], args: &[&str]| {
        let mut case = case();
        case.container.command = command.iter().map(|s| (*s).into()).collect();
        case.container.args = args.iter().map(|s| (*s).into()).collect();
        case.build().unwrap().spec.process.unwrap().args
    };
    assert_eq!(args(&[], &[]), ["/app", "--serve"]);
    assert_eq!(args(&[], &["-x"]), ["/app", "-x"]);
    assert_eq!(args(&["sh"], &[]), ["sh"]);
    assert_eq!(args(&["sh"], &["-c"]), ["sh", "-c"]);
    let mut none = case();
    none.image = ImageDefaults::default();
    assert_eq!(none.build(), Err(SpecError::NoCommand));
}

#[test]
fn the_last_value_of_a_variable_wins_and_bytes_survive() {
    let mut case = case();
    case.container.envs = vec![
        ("LANG".into(), b"de=x\ny".to_vec()),
        ("RAW".into(), vec![0xff, 0xfe]),
        ("LANG".into(), b"fr".to_vec()),
    ];
    let env = case.build().unwrap().spec.process.unwrap().env;
    assert!(env.iter().any(|line| line.as_bytes() == b"RAW=\xff\xfe"), "{env:?}");
    assert_eq!(case.env()[..3], ["PATH=/app/bin:/bin", "LANG=fr", "HOSTNAME=web"]);
    assert_eq!(case.env().last().unwrap(), "HOME=/root");
    case.container.envs = vec![("A".into(), b"x\0y".to_vec())];
    assert!(case.error().starts_with("envs[0].value"), "{}", case.error());
    case.container.envs = vec![("A=B".into(), Vec::new())];
    assert!(case.error().starts_with("envs[0].key"));
    case.container.envs.clear();
    case.container.tty = true;
    assert!(case.env().contains(&"TERM=xterm".to_owned()));
}

#[test]
fn capabilities_follow_add_and_drop() {
    let bounding = |add: &[&str], drop: &[&str]| {
        let mut case = case();
        case.container.security.capabilities = Capabilities {
            add: add.iter().map(|s| (*s).into()).collect(),
            drop: drop.iter().map(|s| (*s).into()).collect(),
            add_ambient: Vec::new(),
        };
        let sets = case.build().unwrap().spec.process.unwrap().capabilities.unwrap();
        assert_eq!((sets.inheritable.len(), sets.ambient.len()), (0, 0));
        assert_eq!((&sets.effective, &sets.permitted), (&sets.bounding, &sets.bounding));
        sets.bounding
    };
    assert_eq!(bounding(&[], &[]).len(), 14);
    assert_eq!(bounding(&["ALL"], &[]).len(), 41);
    assert_eq!(bounding(&["ALL"], &["NET_RAW"]).len(), 40);
    assert!(bounding(&[], &["ALL"]).is_empty());
    assert_eq!(bounding(&["SYS_TIME"], &["all"]), ["CAP_SYS_TIME"]);

    let mut case = case();
    case.container.security.capabilities.add = vec!["NET_MAGIC".into()];
    assert!(case.error().contains("NET_MAGIC"));
    case.container.security.capabilities =
        Capabilities { add_ambient: vec!["SYS_TIME".into()], ..Default::default() };
    let sets = case.build().unwrap().spec.process.unwrap().capabilities.unwrap();
    assert_eq!(
        (&sets.ambient[..], &sets.inheritable[..]),
        (&["CAP_SYS_TIME".into()][..], &["CAP_SYS_TIME".into()][..])
    );
    assert!(sets.permitted.contains(&"CAP_SYS_TIME".into()));
}

#[test]
fn what_the_daemon_lacks_is_left_out_and_said() {
    let mut case = case();
    case.node.capabilities = !capability::bit("SYS_RESOURCE").unwrap();
    case.pod.security.privileged = true;
    case.container.security.privileged = true;
    let built = case.build().unwrap();
    assert_eq!(built.spec.process.unwrap().capabilities.unwrap().bounding.len(), 40);
    assert!(built.notes[0].text.contains("CAP_SYS_RESOURCE"), "{:?}", built.notes);
}

#[test]
fn mistakes_name_their_field() {
    let with = |change: fn(&mut Case)| {
        let mut case = case();
        change(&mut case);
        case.error()
    };
    let mount = |to: &str| Mount { container_path: to.into(), host_path: "/x".into(), ..Mount::default() };
    let mut relative = case();
    relative.container.mounts = vec![mount("data")];
    assert!(relative.error().starts_with("mounts[0].container_path"));
    let mut options = case();
    options.container.mounts = vec![Mount { options: vec!["ro".into()], ..mount("/a") }];
    assert!(options.error().starts_with("mounts[0].mount_options"));
    for (readonly, propagation) in [(false, Propagation::Private), (true, Propagation::HostToContainer)] {
        let mut case = case();
        case.container.mounts =
            vec![Mount { readonly, propagation, recursive_read_only: true, ..mount("/a") }];
        assert!(case.error().starts_with("mounts[0].recursive_read_only"));
    }
    let mut old = case();
    old.node.recursive_read_only = false;
    old.container.mounts = vec![Mount { readonly: true, recursive_read_only: true, ..mount("/a") }];
    assert!(old.error().starts_with("RROUnsupported"));

    assert!(with(|c| c.container.security.run_as_group = Some(5)).contains("run_as_group"));
    assert!(with(|c| c.container.security.privileged = true).contains("privileged"));
    assert!(
        with(|c| {
            let permissions = "rx".into();
            c.container.devices = vec![bowline_model::spec::Device { permissions, ..Default::default() }];
        })
        .starts_with("devices[0].permissions")
    );
    assert!(with(|c| c.container.working_dir = "x".into()).starts_with("working_dir"));
    assert!(with(|c| c.container.resources.oom_score_adj = 1001).contains("oom_score_adj"));
    assert!(
        with(|c| c.container.resources.hugepage_limits = vec![("1GB".into(), 5)]).contains("hugepage_limits")
    );
    assert!(
        with(|c| {
            c.node.cgroup_mode = CgroupMode::V1;
            c.container.resources.unified.insert("memory.oom.group".into(), "1".into());
        })
        .contains("unified")
    );
    assert!(
        with(|c| c.container.security.seccomp = SecurityProfile::Localhost("/p.json".into()))
            .contains("localhost_ref")
    );
    assert!(
        with(|c| c.container.security.apparmor = SecurityProfile::Localhost("localhost/p".into()))
            .contains("AppArmor")
    );
}

#[test]
fn who_gets_which_apparmor_profile() {
    use SecurityProfile::{Localhost, RuntimeDefault, Unconfined, Unset};
    let profile = |asked: &SecurityProfile, privileged: bool, default: Option<&str>| {
        let mut case = case();
        case.node.apparmor = true;
        case.node.apparmor_default = default.map(str::to_owned);
        case.pod.security.privileged = true;
        case.container.security.privileged = privileged;
        case.container.security.apparmor = asked.clone();
        let built = case.build().unwrap();
        let said = built.notes.iter().any(|note| note.field == "security_context.apparmor");
        (built.spec.process.unwrap().apparmor_profile, said)
    };
    let named = |name: &str| (name.to_owned(), false);
    for asked in [Unset, RuntimeDefault] {
        assert_eq!(profile(&asked, false, Some("ours")), named("ours"));
        assert_eq!(profile(&asked, true, Some("ours")), named("unconfined"));
        // Without the default profile containers run, and the record says so.
        assert_eq!(profile(&asked, false, None), (String::new(), true));
    }
    assert_eq!(profile(&Unconfined, false, Some("ours")), named("unconfined"));
    for privileged in [false, true] {
        assert_eq!(profile(&Localhost("localhost/p".into()), privileged, Some("ours")), named("p"));
    }
}

#[test]
fn a_selinux_label_is_refused_only_where_it_would_matter() {
    let label = bowline_model::spec::SelinuxOptions { level: "s0:c1,c2".into(), ..Default::default() };
    let mut case = case();
    case.container.security.selinux = Some(label);
    assert!(case.build().is_ok());
    case.node.selinux = true;
    assert!(case.error().starts_with("security_context.selinux_options: "), "{}", case.error());
    case.container.security.selinux = Some(Default::default());
    assert!(case.build().is_ok());
}

#[test]
fn localhost_seccomp_is_taken_as_it_is() {
    let mut case = case();
    case.container.security.seccomp = SecurityProfile::Localhost("/p.json".into());
    case.profile = Some(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}"#,
    );
    let seccomp = case.build().unwrap().spec.linux.unwrap().seccomp.unwrap();
    assert_eq!(seccomp.syscalls[0].names, ["chmod"]);
    assert!(seccomp.architectures.is_empty());
}

#[test]
fn an_update_leaves_alone_what_it_does_not_name() {
    let old = Resources {
        cpu_shares: 512,
        memory_limit: 100,
        cpuset_cpus: "0".into(),
        hugepage_limits: vec![("2MB".into(), 1)],
        ..Resources::default()
    };
    let change = Resources {
        memory_limit: 200,
        hugepage_limits: vec![("2MB".into(), 2), ("1GB".into(), 3)],
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..Resources::default()
    };
    let merged = merged_resources(&old, &change);
    assert_eq!((merged.cpu_shares, merged.memory_limit, merged.cpuset_cpus.as_str()), (512, 200, "0"));
    assert_eq!(merged.hugepage_limits, [("2MB".into(), 2), ("1GB".into(), 3)]);
    assert_eq!(merged.unified.len(), 1);
}

#[test]
fn swap_follows_memory_unless_something_else_is_said() {
    let swap = |memory, swap, unified: bool| {
        let mut case = case();
        case.container.resources =
            Resources { memory_limit: memory, memory_swap_limit: swap, ..Resources::default() };
        if unified {
            case.container.resources.unified.insert("memory.swap.max".into(), "0".into());
        }
        case.build().map(|built| built.spec.linux.unwrap().resources.unwrap().memory.and_then(|m| m.swap))
    };
    assert_eq!(swap(0, 0, false), Ok(None));
    assert_eq!(swap(100, 0, false), Ok(Some(100)));
    assert_eq!(swap(100, 150, false), Ok(Some(150)));
    assert_eq!(swap(100, -1, false), Ok(Some(-1)));
    assert_eq!(swap(100, 150, true), Ok(None));
    assert!(swap(100, 50, false).is_err());
}

const PASSWD: &[u8] =
    b"root:x:0:0:root:/root:/bin/sh\n# note\ngarbage\nbad:x:4294967295:1::/:/\nwrap:x:4294967296:0::/:\n\
    app:x:1000:1000::/home/app:/bin/sh\nodd:x:1001:77::re\x01lative:\n";
const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:root,app\nextra:x:50000:app\nnonsense\nodd:x:77:\n";

fn resolve(image_user: &str, change: impl FnOnce(&mut ContainerSecurity)) -> Result<ResolvedUser, UserError> {
    let mut container = ContainerSpec::default();
    change(&mut container.security);
    resolve_user(&container, image_user, Some(PASSWD), Some(GROUP))
}

#[test]
fn users_of_images() {
    for (text, uid, gid, groups) in [
        ("", 0, 0, vec![0, 10]),
        ("root", 0, 0, vec![0, 10]),
        ("app", 1000, 1000, vec![1000, 10, 50000]),
        ("1000", 1000, 1000, vec![1000, 10, 50000]),
        ("1000:5", 1000, 5, vec![5, 10, 50000]),
        ("app:wheel", 1000, 10, vec![10, 50000]),
        ("4242", 4242, 0, vec![0]),
        (":wheel", 0, 10, vec![10]),
        ("4294967294", 4_294_967_294, 0, vec![0]),
    ] {
        let user = resolve(text, |_| ()).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (uid, gid, groups), "{text}");
    }
    for text in ["nobody", "app:nogroup", "4294967295", "4294967296", "2147483648000", "bad", "-1"] {
        assert!(resolve(text, |_| ()).is_err(), "{text}");
    }
    assert_eq!(resolve("app", |_| ()).unwrap().home, "/home/app");
    assert_eq!(resolve("odd", |_| ()).unwrap().home, "/");
}

#[test]
fn users_of_the_client() {
    let user = resolve("app", |s| s.run_as_user = Some(1234)).unwrap();
    assert_eq!((user.uid, user.gid, user.groups), (1234, 0, vec![0]));
    let user = resolve("root", |s| {
        s.run_as_user = Some(1000);
        s.run_as_username = "root".into();
        s.run_as_group = Some(9);
        s.supplemental_groups = vec![1234, 9];
    })
    .unwrap();
    assert_eq!((user.uid, user.gid, user.groups), (1000, 9, vec![9, 1234, 10, 50000]));
    let strict = resolve("", |s| {
        s.run_as_username = "app".into();
        s.supplemental_groups = vec![1234];
        s.groups_policy = GroupsPolicy::Strict;
    })
    .unwrap();
    assert_eq!(strict.groups, [1000, 1234]);
    assert_eq!(resolve("", |s| s.run_as_group = Some(1)), Err(UserError::GroupWithoutUser));
    assert!(resolve("", |s| s.run_as_username = "ghost".into()).is_err());
    assert!(resolve("", |s| s.run_as_user = Some(u32::MAX)).is_err());
    let big = vec![b'x'; bowline_oci::MAX_DATABASE + 1];
    assert!(resolve_user(&ContainerSpec::default(), "", Some(&big), None).is_err());
}

proptest::proptest! {
    /// Whatever an image holds: an answer or an error, no panic, and never the id that means "unchanged".
    #[test]
    fn no_database_makes_an_impossible_user(
        passwd in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        lines in "([a-z]{0,3}:x?:[0-9]{0,11}:[0-9]{0,11}:[a-z]?:/?[a-z]?:\n){0,6}",
        user in "[a-z0-9:]{0,14}",
    ) {
        for database in [&passwd[..], lines.as_bytes()] {
            if let Ok(user) = resolve_user(&ContainerSpec::default(), &user, Some(database), Some(database)) {
                assert!(user.uid != u32::MAX && !user.groups.contains(&u32::MAX));
                assert_eq!(user.groups[0], user.gid);
                assert!(user.home.starts_with('/') && !user.home.contains(char::is_control));
            }
        }
    }
}
