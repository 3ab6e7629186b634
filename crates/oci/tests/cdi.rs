//! CDI: files as vendors write them, and what comes of them.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::io;

use bowline_model::runtime_spec::{Mount, Process, Spec};
use bowline_oci::{CdiDevices, CdiError, HostDevice, parse_cdi, parse_cdi_name};

const GPU: &str = r#"{
  "cdiVersion": "0.6.0",
  "kind": "vendor.com/gpu",
  "annotations": {"of": "nobody's interest"},
  "containerEdits": {"env": ["DRIVER=1"], "mounts": [
    {"hostPath": "/usr/lib/driver.so", "containerPath": "/usr/lib/a/driver.so", "options": ["ro", "nosuid", "bind"]}]},
  "devices": [
    {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/gpu0"}], "env": ["GPU=0"]}},
    {"name": "1", "containerEdits": {"deviceNodes": [
      {"path": "/dev/gpu1", "hostPath": "/dev/real1", "type": "c", "major": 10, "minor": 7, "permissions": "r",
       "fileMode": 432, "uid": 5, "gid": 6}], "additionalGids": [44, 0, 44]}}]}"#;

const YAML: &str = "---
cdiVersion: 1.0.0
kind: vendor.com/gpu
containerEdits:
  env:
  - DRIVER=2
devices:
- name: all
  containerEdits:
    mounts:
    - {hostPath: tmpfs, containerPath: /run/gpu, type: tmpfs, options: [size=1m]}
";

fn look(path: &str) -> io::Result<HostDevice> {
    match path {
        "/dev/gpu0" => {
            Ok(HostDevice { kind: 'c', major: 195, minor: 0, mode: 0o20_660, ..HostDevice::default() })
        }
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn devices(files: &[(&str, &str)]) -> CdiDevices {
    let mut devices = CdiDevices::default();
    for (number, (place, text)) in files.iter().enumerate() {
        devices.folder(&format!("/folder{number}"));
        devices.file(place, parse_cdi(place, text).unwrap());
    }
    devices
}

fn spec() -> Spec {
    let mut spec = Spec { process: Some(Process::default()), ..Spec::default() };
    let process = spec.process.as_mut().unwrap();
    process.user.uid = 1000;
    process.user.gid = 1001;
    process.env.push("DRIVER=0".into());
    spec.mounts.push(Mount { destination: "/usr".into(), ..Mount::default() });
    spec
}

fn apply(devices: &CdiDevices, names: &[&str]) -> Result<(Spec, Vec<(String, String)>), CdiError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut spec = spec();
    let elsewhere = devices.apply(&names, &mut spec, &look)?;
    Ok((spec, elsewhere))
}

#[test]
fn a_device_brings_all_that_it_names() {
    let devices = devices(&[("gpu.json", GPU)]);
    let names = ["vendor.com/gpu=0", "vendor.com/gpu=1", "vendor.com/gpu=0"];
    let (spec, elsewhere) = apply(&devices, &names).unwrap();
    let process = spec.process.unwrap();
    let env: Vec<_> =
        process.env.iter().map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned()).collect();
    assert_eq!(env, ["DRIVER=1", "GPU=0"], "replaced, and once");
    assert_eq!(process.user.additional_gids, [44]);
    let linux = spec.linux.unwrap();
    let nodes: Vec<_> = linux
        .devices
        .iter()
        .map(|node| (node.path.as_str(), node.major, node.minor, node.file_mode, node.uid, node.gid))
        .collect();
    let first = ("/dev/gpu0", 195, 0, Some(0o660), Some(1000), Some(1001));
    assert_eq!(nodes, [first, ("/dev/gpu1", 10, 7, Some(0o660), Some(5), Some(6))]);
    let rules = linux.resources.unwrap().devices;
    let rules: Vec<_> =
        rules.iter().map(|rule| (rule.allow, rule.major, rule.minor, rule.access.as_str())).collect();
    assert_eq!(rules, [(true, Some(195), Some(0), "rwm"), (true, Some(10), Some(7), "r")]);
    assert_eq!(elsewhere, [("/dev/gpu1".to_owned(), "/dev/real1".to_owned())]);
    let mounts: Vec<_> =
        spec.mounts.iter().map(|mount| (mount.destination.as_str(), mount.kind.as_str())).collect();
    assert_eq!(
        mounts,
        [("/usr", ""), ("/usr/lib/a/driver.so", "bind")],
        "parents first, the common one once"
    );
}

#[test]
fn yaml_is_read_too_and_later_folders_count_first() {
    let both = GPU.replace("\"1\"", "\"all\"");
    let devices = devices(&[("old.json", &both), ("new.yaml", YAML)]);
    let (spec, _) = apply(&devices, &["vendor.com/gpu=all"]).unwrap();
    assert_eq!(spec.mounts[1].kind, "tmpfs");
    assert_eq!(spec.linux, None, "nothing of the older file");
    let process = spec.process.unwrap();
    assert_eq!(process.env.len(), 1);
    assert_eq!(process.env[0].as_bytes(), b"DRIVER=2");
}

#[test]
fn two_of_one_folder_are_a_conflict() {
    let mut devices = CdiDevices::default();
    devices.folder("/etc/cdi");
    for place in ["a.json", "b.json"] {
        devices.file(place, parse_cdi(place, GPU).unwrap());
    }
    let error = apply(&devices, &["vendor.com/gpu=0"]).unwrap_err();
    assert!(matches!(error, CdiError::Conflict { .. }), "{error}");
    assert!(error.to_string().contains("a.json") && error.to_string().contains("b.json"), "{error}");
}

#[test]
fn what_is_not_there_is_named_with_the_folders() {
    let devices = devices(&[("gpu.json", GPU)]);
    let error = apply(&devices, &["vendor.com/gpu=2"]).unwrap_err().to_string();
    assert!(error.contains("vendor.com/gpu=2") && error.contains("/folder0"), "{error}");
    let error = apply(&devices, &["vendor.com/gpu"]).unwrap_err();
    assert_eq!(error, CdiError::BadName("vendor.com/gpu".into()));
}

#[test]
fn hooks_links_and_classes_are_handed_over() {
    let text = r#"{"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": [{"name": "d", "containerEdits": {
        "hooks": [
            {"hookName": "createContainer", "path": "/bin/x", "args": ["x", "y"], "env": ["A=b"], "timeout": 7},
            {"hookName": "poststop", "path": "/bin/z"}],
        "netDevices": [{"hostInterfaceName": "eth1", "name": "net1"}],
        "intelRdt": {"closID": "gold", "schemata": ["L3:0=f"], "enableMonitoring": true}}}]}"#;
    let (spec, _) = apply(&devices(&[("f.json", text)]), &["v.com/c=d"]).unwrap();
    let hooks = spec.hooks.unwrap();
    assert_eq!((hooks.create_container.len(), hooks.poststop.len()), (1, 1));
    let hook = &hooks.create_container[0];
    assert_eq!((hook.path.as_str(), hook.args.len(), hook.timeout), ("/bin/x", 2, Some(7)));
    let linux = spec.linux.unwrap();
    assert_eq!(linux.net_devices["eth1"].name, "net1");
    let rdt = linux.intel_rdt.unwrap();
    assert_eq!((rdt.clos_id.as_str(), rdt.schemata.len(), rdt.enable_monitoring), ("gold", 1, true));
}

#[test]
fn edits_that_make_no_sense_are_refused_by_name() {
    for (edits, word) in [
        (r#"{"hooks": [{"hookName": "sometimes", "path": "/bin/x"}]}"#, "sometimes"),
        (r#"{"hooks": [{"hookName": "poststop", "path": "bin/x"}]}"#, "absolute"),
        (r#"{"netDevices": [{"name": "net1"}]}"#, "hostInterfaceName"),
        (
            r#"{"netDevices": [{"hostInterfaceName": "a", "name": "b"}, {"hostInterfaceName": "a", "name": "c"}]}"#,
            "two names",
        ),
    ] {
        let text = format!(
            r#"{{"cdiVersion": "1.1.0", "kind": "v.com/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
        );
        let error = apply(&devices(&[("f.json", &text)]), &["v.com/c=d"]).unwrap_err();
        assert!(matches!(error, CdiError::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(word) && error.to_string().contains("v.com/c=d"), "{error}");
    }
}

#[test]
fn a_file_that_makes_no_sense_says_where() {
    for (bad, word) in [
        (GPU.replace("0.6.0", "0.1.0"), "cdiVersion"),
        (GPU.replace("vendor.com/gpu", "vendor.com"), "kind"),
        (GPU.replace("\"name\": \"0\"", "\"name\": \"a b\""), "name of a device"),
        (GPU.replace("deviceNodes", "deviceNoses"), "deviceNoses"),
        ("{".to_owned(), "f.json"),
    ] {
        let error = parse_cdi("f.json", &bad).unwrap_err().to_string();
        assert!(error.starts_with("f.json: ") && error.contains(word), "{word}: {error}");
    }
    for (edits, word) in [
        (r#"{"env": ["NOTHING"]}"#, "NOTHING"),
        (r#"{"deviceNodes": [{"path": "dev/x"}]}"#, "dev/x"),
        (r#"{"deviceNodes": [{"path": "/dev/x"}]}"#, "could not look at /dev/x"),
        (r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/gpu0", "type": "b"}]}"#, "of type c"),
        (r#"{"deviceNodes": [{"path": "/dev/gpu0", "permissions": "x"}]}"#, "permissions"),
        (r#"{"mounts": [{"hostPath": "/x", "containerPath": "/"}]}"#, "containerPath"),
        (r#"{"mounts": [{"hostPath": "x", "containerPath": "/x"}]}"#, "hostPath"),
    ] {
        let text = format!(
            r#"{{"cdiVersion": "0.3.0", "kind": "v.com/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
        );
        let error = apply(&devices(&[("f.json", &text)]), &["v.com/c=d"]).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("v.com/c=d"), "{word}: {error}");
    }
}

#[test]
fn names_read_vendor_class_device() {
    assert_eq!(parse_cdi_name("vendor.com/class-1=dev:0.1"), Ok(("vendor.com/class-1", "dev:0.1")));
    for bad in ["", "=", "/=", "v/c=", "v/=d", "/c=d", "v/c", "v/c=d/e", "1v/c=d", "v/c=-d", "v c/c=d"] {
        assert_eq!(parse_cdi_name(bad), Err(CdiError::BadName(bad.to_owned())));
    }
}
