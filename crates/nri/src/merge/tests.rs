use bowline_nri_proto::v1alpha1::{
    CdiDevice, ContainerAdjustment, Field, Hook, Hooks, HugepageLimit, KeyValue, LinuxContainer,
    LinuxContainerAdjustment, LinuxCpu, LinuxDevice, LinuxMemory, LinuxNamespace, LinuxPids, Mount,
    OptionalInt, OptionalInt64, OptionalUInt64, PosixRlimit,
};

use super::*;

fn a_container() -> Container {
    Container {
        id: "c".into(),
        args: vec!["old".into()],
        env: vec!["PATH=/bin".into(), "A=1".into()],
        mounts: vec![Mount { destination: "/data".into(), ..Mount::default() }],
        annotations: [("k".to_owned(), "v".to_owned())].into(),
        linux: Some(LinuxContainer::default()),
        ..Container::default()
    }
}

fn answer(adjust: ContainerAdjustment) -> CreateContainerResponse {
    CreateContainerResponse { adjust: Some(adjust), ..CreateContainerResponse::default() }
}

/// Takes the answers of plugins a, b, .. in turn.
fn merged(answers: Vec<ContainerAdjustment>) -> Result<Creation, MergeError> {
    let mut creation = Creation::new(a_container());
    for (name, adjust) in ["a", "b", "c"].into_iter().zip(answers) {
        creation.take(name, answer(adjust))?;
    }
    Ok(creation)
}

fn env(pairs: &[(&str, &str)]) -> ContainerAdjustment {
    let pair = |(key, value): &(&str, &str)| KeyValue { key: (*key).into(), value: (*value).into() };
    ContainerAdjustment { env: pairs.iter().map(pair).collect(), ..ContainerAdjustment::default() }
}

fn linux(part: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(part), ..ContainerAdjustment::default() }
}

fn limits(resources: LinuxResources) -> ContainerAdjustment {
    linux(LinuxContainerAdjustment { resources: Some(resources), ..LinuxContainerAdjustment::default() })
}

fn shares(value: u64) -> LinuxResources {
    let shares = Some(OptionalUInt64 { value });
    LinuxResources { cpu: Some(LinuxCpu { shares, ..LinuxCpu::default() }), ..LinuxResources::default() }
}

fn memory(value: i64) -> LinuxResources {
    let limit = Some(OptionalInt64 { value });
    LinuxResources {
        memory: Some(LinuxMemory { limit, ..LinuxMemory::default() }),
        ..LinuxResources::default()
    }
}

/// Each of these fields, set twice, is a conflict that names both plugins; set by one, it is none.
#[test]
fn every_field_has_one_owner() {
    let with = |change: fn(&mut ContainerAdjustment)| {
        let mut adjust = ContainerAdjustment::default();
        change(&mut adjust);
        adjust
    };
    let of_linux = |change: fn(&mut LinuxContainerAdjustment)| {
        let mut part = LinuxContainerAdjustment::default();
        change(&mut part);
        linux(part)
    };
    let cases: Vec<(&str, ContainerAdjustment)> = vec![
        ("Annotations k", with(|a| drop(a.annotations.insert("k".into(), "2".into())))),
        ("Mounts /x", with(|a| a.mounts = vec![Mount { destination: "/x".into(), ..Mount::default() }])),
        ("Env A", env(&[("A", "2")])),
        ("Args", with(|a| a.args = vec!["new".into()])),
        (
            "Rlimits RLIMIT_CORE",
            with(|a| a.rlimits = vec![PosixRlimit { r#type: "RLIMIT_CORE".into(), hard: 1, soft: 1 }]),
        ),
        ("CdiDevices v/c=d", with(|a| a.cdi_devices = vec![CdiDevice { name: "v/c=d".into() }])),
        (
            "Devices /dev/x",
            of_linux(|l| l.devices = vec![LinuxDevice { path: "/dev/x".into(), ..LinuxDevice::default() }]),
        ),
        ("CPUShares", limits(shares(5))),
        ("MemLimit", limits(memory(5))),
        (
            "PidsLimit",
            limits(LinuxResources { pids: Some(LinuxPids { limit: 1 }), ..LinuxResources::default() }),
        ),
        (
            "HugepageLimits 2MB",
            limits(LinuxResources {
                hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 1 }],
                ..LinuxResources::default()
            }),
        ),
        (
            "CgroupsUnified memory.high",
            limits(LinuxResources {
                unified: [("memory.high".to_owned(), "1".to_owned())].into(),
                ..LinuxResources::default()
            }),
        ),
        ("CgroupsPath", of_linux(|l| l.cgroups_path = "/x".into())),
        ("OomScoreAdj", of_linux(|l| l.oom_score_adj = Some(OptionalInt { value: 5 }))),
        (
            "Namespace uts",
            of_linux(|l| {
                l.namespaces = vec![LinuxNamespace { r#type: "uts".into(), path: String::new() }];
            }),
        ),
        ("Sysctl net.x", of_linux(|l| drop(l.sysctl.insert("net.x".into(), "1".into())))),
    ];
    for (what, adjust) in cases {
        let creation = merged(vec![adjust.clone()]).unwrap();
        assert!(creation.others.owners().owners.contains_key("c"), "{what} has no owner");
        let error = merged(vec![adjust.clone(), adjust]).unwrap_err();
        let expected = MergeError::Conflict {
            first: "a".into(),
            second: "b".into(),
            what: what.into(),
            container: "c".into(),
        };
        assert_eq!(error, expected);
    }
}

#[test]
fn different_entries_go_together_and_the_next_plugin_sees_them() {
    let mut creation = merged(vec![env(&[("A", "2"), ("B", "3")]), env(&[("C", "4")])]).unwrap();
    assert_eq!(creation.container.env, ["PATH=/bin", "A=2", "B=3", "C=4"]);
    let keys: Vec<&str> = creation.adjust.env.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["A", "B", "C"]);
    creation.take("c", answer(limits(shares(7)))).unwrap();
    let seen = creation.container.linux.unwrap().resources.unwrap();
    assert_eq!(seen.cpu.unwrap().shares, Some(OptionalUInt64 { value: 7 }));
    let wanted = creation.adjust.linux.unwrap().resources.unwrap();
    assert_eq!(wanted.cpu.unwrap().shares, Some(OptionalUInt64 { value: 7 }));
}

#[test]
fn what_is_taken_away_first_may_be_set_again() {
    let second = env(&[("-A", ""), ("A", "9")]);
    let creation = merged(vec![env(&[("A", "2")]), second]).unwrap();
    assert_eq!(creation.container.env, ["PATH=/bin", "A=9"]);
    let entries: Vec<(&str, &str)> =
        creation.adjust.env.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
    assert_eq!(entries, [("-A", ""), ("A", "9")], "it may be in the container from the start");
    // It belongs to whoever took it away.
    let third = merged(vec![env(&[("A", "2")]), env(&[("-A", "")]), env(&[("A", "3")])]).unwrap_err();
    assert!(matches!(third, MergeError::Conflict { first, second, .. } if first == "b" && second == "c"));
}

#[test]
fn removal_reaches_every_kind() {
    let mut adjust = ContainerAdjustment::default();
    adjust.annotations.insert("-k".into(), String::new());
    adjust.mounts = vec![Mount { destination: "-/data".into(), ..Mount::default() }];
    let creation = merged(vec![adjust]).unwrap();
    assert!(creation.container.annotations.is_empty());
    assert!(creation.container.mounts.is_empty());
    assert!(creation.adjust.annotations.contains_key("-k"));
    assert_eq!(creation.adjust.mounts[0].destination, "-/data");
}

#[test]
fn arguments_may_be_taken_over() {
    let args = |list: &[&str]| ContainerAdjustment {
        args: list.iter().map(|arg| (*arg).to_owned()).collect(),
        ..ContainerAdjustment::default()
    };
    let creation = merged(vec![args(&["one"]), args(&["", "two", "x"])]).unwrap();
    assert_eq!(creation.adjust.args, ["two", "x"]);
    assert_eq!(creation.container.args, ["two", "x"]);
}

#[test]
fn hooks_add_up() {
    let hooks = |path: &str| ContainerAdjustment {
        hooks: Some(Hooks {
            prestart: vec![Hook { path: path.into(), ..Hook::default() }],
            ..Hooks::default()
        }),
        ..ContainerAdjustment::default()
    };
    let creation = merged(vec![hooks("/one"), hooks("/two")]).unwrap();
    assert_eq!(creation.adjust.hooks.unwrap().prestart.len(), 2);
    let owners = &creation.others.owners.message().owners["c"];
    assert_eq!(owners.simple[&(Field::OciHooks as i32)], "a,b");
}

fn update(id: &str, resources: LinuxResources, ignore_failure: bool) -> ContainerUpdate {
    let linux = Some(LinuxContainerUpdate { resources: Some(resources) });
    ContainerUpdate { container_id: id.into(), linux, ignore_failure }
}

#[test]
fn updates_of_others_are_merged_by_container() {
    let mut others = Others::default();
    others.take("a", vec![update("x", shares(1), true), update("y", shares(2), false)], Vec::new()).unwrap();
    others.take("b", vec![update("x", memory(3), false)], Vec::new()).unwrap();
    let merged = others.updates();
    assert_eq!(merged.len(), 2);
    let x = merged[0].linux.clone().unwrap().resources.unwrap();
    assert_eq!(x.cpu.unwrap().shares, Some(OptionalUInt64 { value: 1 }));
    assert_eq!(x.memory.unwrap().limit, Some(OptionalInt64 { value: 3 }));
    assert!(!merged[0].ignore_failure, "somebody minds");
    let error = others.take("b", vec![update("y", shares(9), false)], Vec::new()).unwrap_err();
    assert!(matches!(error, MergeError::Conflict { what, .. } if what == "CPUShares"));
}

#[test]
fn an_update_that_may_fail_is_dropped_whole() {
    let mut others = Others::default();
    others.take("a", vec![update("x", shares(1), false)], Vec::new()).unwrap();
    let both = LinuxResources { memory: memory(7).memory, ..shares(2) };
    others.take("b", vec![update("x", both, true)], Vec::new()).unwrap();
    let x = others.updates()[0].linux.clone().unwrap().resources.unwrap();
    assert_eq!((x.memory, x.cpu.unwrap().shares), (None, Some(OptionalUInt64 { value: 1 })));
    others.take("c", vec![update("x", memory(8), false)], Vec::new()).expect("nobody has set the memory");
}

#[test]
fn the_limits_that_a_client_wants_are_changed_in_turn() {
    let mut changed = Update::new("c", shares(100));
    changed.take("a", vec![update("c", shares(200), false)], Vec::new()).unwrap();
    changed
        .take("b", vec![update("c", memory(5), false), update("d", shares(1), false)], Vec::new())
        .unwrap();
    assert_eq!(changed.resources.cpu.unwrap().shares, Some(OptionalUInt64 { value: 200 }));
    assert_eq!(changed.resources.memory.unwrap().limit, Some(OptionalInt64 { value: 5 }));
    assert_eq!(changed.others.updates().len(), 1);
    let mut again = Update::new("c", shares(100));
    again.take("a", vec![update("c", shares(200), false)], Vec::new()).unwrap();
    assert!(again.take("b", vec![update("c", shares(300), false)], Vec::new()).is_err());
}

#[test]
fn a_container_that_is_being_made_is_not_updated() {
    let mut creation = Creation::new(a_container());
    let wanted = CreateContainerResponse {
        update: vec![update("c", shares(1), false)],
        ..CreateContainerResponse::default()
    };
    let error = creation.take("a", wanted).unwrap_err();
    assert_eq!(error, MergeError::NotYetMade { plugin: "a".into(), container: "c".into() });
}
