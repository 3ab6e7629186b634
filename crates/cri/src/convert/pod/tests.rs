use super::*;

fn request() -> v1::RunPodSandboxRequest {
    let metadata =
        v1::PodSandboxMetadata { name: "Web_1".into(), uid: "u".into(), namespace: "n".into(), attempt: 3 };
    let config = v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
    v1::RunPodSandboxRequest { config: Some(config), ..Default::default() }
}

fn with(change: impl FnOnce(&mut v1::PodSandboxConfig)) -> v1::RunPodSandboxRequest {
    let mut request = request();
    change(request.config.as_mut().unwrap());
    request
}

#[track_caller]
fn refused(request: v1::RunPodSandboxRequest, named: &str) {
    match spec(request) {
        Err(Refused::Invalid { field, .. }) => assert_eq!(field, named),
        other => panic!("{named}: {other:?}"),
    }
}

#[test]
fn metadata_alone_is_enough() {
    let spec = spec(request()).unwrap();
    assert_eq!(spec.metadata.name, "Web_1");
    assert_eq!(spec.metadata.attempt, 3);
    assert_eq!(spec.security.namespaces, Namespaces::default());
}

#[test]
fn fields_at_fault_are_named() {
    refused(v1::RunPodSandboxRequest::default(), "config");
    refused(with(|c| c.metadata = None), "config.metadata");
    for field in ["name", "namespace", "uid"] {
        refused(
            with(|c| {
                let metadata = c.metadata.as_mut().unwrap();
                match field {
                    "name" => metadata.name.clear(),
                    "namespace" => metadata.namespace.clear(),
                    _ => metadata.uid.clear(),
                }
            }),
            &format!("config.metadata.{field}"),
        );
    }
    refused(with(|c| c.metadata.as_mut().unwrap().name = "n".repeat(1 << 20)), "config.metadata.name");
    refused(with(|c| c.hostname = "h".repeat(65)), "config.hostname");
    refused(with(|c| c.hostname = "a\n127.0.0.1 b".into()), "config.hostname");
    refused(with(|c| c.log_directory = "logs".into()), "config.log_directory");
    refused(v1::RunPodSandboxRequest { runtime_handler: "kata".into(), ..request() }, "runtime_handler");
    let dns = |servers: &str| Some(v1::DnsConfig { servers: vec![servers.into()], ..Default::default() });
    refused(with(|c| c.dns_config = dns("1.1.1.1\nnameserver 2.2.2.2")), "config.dns_config.servers");
    let parent =
        |parent: &str| Some(v1::LinuxPodSandboxConfig { cgroup_parent: parent.into(), ..Default::default() });
    refused(with(|c| c.linux = parent("/pods/../..")), "config.linux.cgroup_parent");
    refused(
        with(|c| c.labels = (0..100_000).map(|n| (n.to_string(), String::new())).collect()),
        "config.labels",
    );
}

#[test]
fn ports() {
    let port = |protocol, container_port, host_port, host_ip: &str| {
        with(|c| {
            let host_ip = host_ip.to_owned();
            c.port_mappings = vec![v1::PortMapping { protocol, container_port, host_port, host_ip }];
        })
    };
    for (good, host) in [(port(0, 80, 8080, ""), 8080), (port(2, 65535, 0, "::1"), 0), (port(1, 0, 0, ""), 0)]
    {
        assert_eq!(spec(good).unwrap().port_mappings[0].host_port, host);
    }
    refused(port(3, 80, 0, ""), "config.port_mappings[0].protocol");
    refused(port(0, 65536, 0, ""), "config.port_mappings[0].container_port");
    refused(port(0, 0, 80, ""), "config.port_mappings[0].container_port");
    refused(port(0, 80, -1, ""), "config.port_mappings[0].host_port");
    refused(port(0, 80, 80, "host"), "config.port_mappings[0].host_ip");
}

#[test]
fn sysctls_of_the_pods_own_namespaces() {
    let own = Namespaces::default();
    let node = Namespaces { network: NamespaceMode::Node, ipc: NamespaceMode::Node, ..Namespaces::default() };
    let one = |name: &str| [(name.to_owned(), "1".to_owned())].into();
    for (name, kept) in [
        ("kernel.shm_rmid_forced", "kernel.shm_rmid_forced"),
        ("kernel/shmmax", "kernel.shmmax"),
        ("kernel.msgmax", "kernel.msgmax"),
        ("kernel.sem", "kernel.sem"),
        ("fs.mqueue.msg_max", "fs.mqueue.msg_max"),
        ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
        ("net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/1.forwarding"),
    ] {
        let kept: BTreeMap<_, _> = one(kept);
        assert_eq!(sysctls(one(name), &own).as_ref(), Ok(&kept), "{name}");
        assert!(sysctls(one(name), &node).is_err(), "{name} is the node's there");
    }
    for name in [
        "kernel.panic",
        "kernel",
        "vm.swappiness",
        "kernel.semaphore",
        "fs.mqueue",
        "fs.file-max",
        "",
        "net",
        "net..ipv4",
        "net/../kernel/core_pattern",
        "net.//.kernel",
        "kernel.domainname",
        "/net/ipv4/ip_forward",
    ] {
        assert!(sysctls(one(name), &own).is_err(), "{name}");
    }
    let twice = [("kernel.sem".to_owned(), "1".to_owned()), ("kernel/sem".to_owned(), "2".to_owned())];
    assert!(sysctls(twice.into(), &own).is_err());
}
