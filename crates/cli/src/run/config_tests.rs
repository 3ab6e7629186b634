//! What the flags of `run` come to.

use clap::Parser as _;

use super::*;
use crate::args::{ClientArgs, ClientCommand};

fn parse(line: &str) -> RunArgs {
    let words = ["bowline", "run"].into_iter().chain(line.split_whitespace());
    match ClientArgs::try_parse_from(words).unwrap().command {
        ClientCommand::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn configs(line: &str) -> (v1::PodSandboxConfig, v1::ContainerConfig) {
    let args = parse(line);
    let mut pod = v1::PodSandboxConfig::default();
    complete_pod(&mut pod, &args, "cafe").unwrap();
    (pod, container(&args, "cafe").unwrap())
}

#[test]
fn the_least_that_can_be_said() {
    let (pod, container) = configs("busybox");
    let metadata = pod.metadata.unwrap();
    assert_eq!(
        (metadata.name.as_str(), metadata.namespace.as_str(), metadata.uid.as_str()),
        ("run-cafe", "default", "cafe")
    );
    assert_eq!(pod.hostname, "run-cafe");
    let namespaces = pod.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
    assert_eq!(
        (namespaces.network(), namespaces.pid()),
        (v1::NamespaceMode::Pod, v1::NamespaceMode::Container)
    );
    assert_eq!(container.image.unwrap().image, "busybox");
    assert!(container.command.is_empty() && container.args.is_empty());
    assert_eq!(container.log_path, LOG_NAME);
}

#[test]
fn flags_end_at_the_image() {
    let (_, container) = configs("--name web -e A=b=c busybox sh -c -e --rm");
    assert_eq!(container.args, ["sh", "-c", "-e", "--rm"]);
    assert_eq!(container.metadata.unwrap().name, "web");
    assert_eq!((container.envs[0].key.as_str(), &container.envs[0].value[..]), ("A", &b"b=c"[..]));
}

#[test]
fn volumes_and_ports() {
    let (pod, container) =
        configs("-v /a:/b -v /c:/d:ro -p 80:8080 -p 53:5353/udp -p 127.0.0.1:1:2 -p [::1]:3:4 x");
    let mounts: Vec<_> = container
        .mounts
        .iter()
        .map(|mount| (mount.host_path.as_str(), mount.container_path.as_str(), mount.readonly))
        .collect();
    assert_eq!(mounts, [("/a", "/b", false), ("/c", "/d", true)]);
    let ports: Vec<_> = pod
        .port_mappings
        .iter()
        .map(|port| (port.host_ip.as_str(), port.host_port, port.container_port, port.protocol()))
        .collect();
    let (tcp, udp) = (v1::Protocol::Tcp, v1::Protocol::Udp);
    assert_eq!(
        ports,
        [("", 80, 8080, tcp), ("", 53, 5353, udp), ("127.0.0.1", 1, 2, tcp), ("::1", 3, 4, tcp)]
    );
}

#[test]
fn limits_and_security() {
    let (pod, container) =
        configs("--cpus 1.5 --memory 64m --privileged --read-only --user 7:8 --network host x");
    let linux = container.linux.unwrap();
    let resources = linux.resources.unwrap();
    assert_eq!(
        (resources.cpu_period, resources.cpu_quota, resources.cpu_shares, resources.memory_limit_in_bytes),
        (100_000, 150_000, 1536, 64 << 20)
    );
    let security = linux.security_context.unwrap();
    assert!(security.privileged && security.readonly_rootfs);
    assert_eq!(security.run_as_user.unwrap().value, 7);
    assert_eq!(security.run_as_group.unwrap().value, 8);
    let sandbox = pod.linux.unwrap().security_context.unwrap();
    assert!(sandbox.privileged);
    assert_eq!(sandbox.namespace_options.unwrap().network(), v1::NamespaceMode::Node);
    assert_eq!(security.namespace_options.unwrap().network(), v1::NamespaceMode::Node);
    assert_eq!(pod.hostname, "");
}

#[test]
fn a_flag_is_stronger_than_the_file() {
    let args = parse("--name mine x");
    let mut pod = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "file".into(),
            namespace: "n".into(),
            uid: "u".into(),
            attempt: 3,
        }),
        ..Default::default()
    };
    complete_pod(&mut pod, &args, "cafe").unwrap();
    let metadata = pod.metadata.unwrap();
    assert_eq!(
        (metadata.name.as_str(), metadata.namespace.as_str(), metadata.uid.as_str()),
        ("mine", "n", "u")
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    for bad in ["/a", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:ro:x"] {
        assert!(mount(bad).is_err(), "{bad}");
    }
    for bad in ["80", "0:1", "1:70000", "1:2/icmp", "x:1:2", "a:b"] {
        assert!(port(bad).is_err(), "{bad}");
    }
    for bad in ["--cpus 0 x", "--memory lots x", "--user a:b x"] {
        assert!(container(&parse(bad), "cafe").is_err(), "{bad}");
    }
    let both = parse("--network host -p 1:2 x");
    assert!(complete_pod(&mut v1::PodSandboxConfig::default(), &both, "cafe").is_err());
}

#[test]
fn amounts_of_memory() {
    for (text, expected) in [("4096", 4096), ("1k", 1024), ("2Mi", 2 << 20), ("3gb", 3 << 30)] {
        assert_eq!(bytes(text), Some(expected), "{text}");
    }
    for bad in ["", "m", "-1", "0", "1.5g", "9999999999t"] {
        assert_eq!(bytes(bad), None, "{bad}");
    }
}
