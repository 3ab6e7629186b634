//! Plugins that are executed: the protocol, and the official ones beside the built-in ones.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bowline_cni::{Cni, CniConfig, CniError, NetworkStatus, PodNetwork, PortMapping, Protocol};

use crate::node::{Node, PATIENCE, Pod, ask, on_a_node, pod_ref, reap_all, request};

/// A plugin that writes down what it is told, and does what the file of its command's name says.
const RECORDER: &str = r#"#!/bin/sh
dir=@DIR@
env | grep -c '^SECRET=' >> $dir/leaks
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS" >> $dir/runs
cat > $dir/stdin-$CNI_COMMAND
[ -f $dir/do-$CNI_COMMAND ] && . $dir/do-$CNI_COMMAND
exit 0
"#;

const RESULT: &str = r#"cat <<END
{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"x"}],
 "ips":[{"version":"4","address":"10.9.0.5/24","interface":0}],"dns":{}}
END
"#;

fn install(node: &Node, conflist: &str) -> Cni {
    let dir = node.path("bin");
    fs::create_dir_all(&dir).unwrap();
    let program = dir.join("recorder");
    fs::write(&program, RECORDER.replace("@DIR@", dir.to_str().unwrap())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    does(node, "ADD", RESULT);
    node.conflist(conflist);
    node.cni()
}

fn does(node: &Node, command: &str, script: &str) {
    fs::write(node.path("bin").join(format!("do-{command}")), script).unwrap();
}

fn told(node: &Node, file: &str) -> String {
    fs::read_to_string(node.path("bin").join(file)).unwrap_or_default()
}

fn add(cni: &Cni, pod: &Pod, ports: &[PortMapping]) -> Result<PodNetwork, CniError> {
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), pod.netns.as_raw_fd()));
    let request = bowline_cni::PodNetworkRequest {
        netns_path: Some(&path),
        ..request(&pod.id, pod.netns.as_fd(), ports)
    };
    cni.add(&request, None)
}

const CHAIN: &str = r#"{"cniVersion":"1.1.0","name":"chain","plugins":[
  {"type":"recorder","capabilities":{"portMappings":true}},{"type":"recorder","last":true}]}"#;

#[test]
fn a_plugin_is_told_what_the_specification_says() {
    on_a_node(|node| {
        let cni = install(node, CHAIN);
        assert!(cni.needs_netns_path());
        let pod = Pod::new("a");
        assert!(matches!(pod.add_with(&cni, &[]), Err(CniError::Request { field: "netns_path", .. })));
        let port =
            PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None };
        let network = add(&cni, &pod, &[port]).unwrap();
        assert_eq!(network.ips, ["10.9.0.5".parse::<std::net::IpAddr>().unwrap()]);
        assert!(network.result_json.contains(r#""cniVersion":"1.1.0""#), "the list's version");

        let runs = told(node, "runs");
        assert_eq!(runs.lines().count(), 2);
        assert!(runs.starts_with("ADD a eth0 /proc/"), "{runs}");
        assert!(runs.contains("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"), "{runs}");
        let last: serde_json::Value = serde_json::from_str(&told(node, "stdin-ADD")).unwrap();
        assert_eq!((last["name"].as_str(), last["cniVersion"].as_str()), (Some("chain"), Some("1.1.0")));
        assert_eq!(last["prevResult"]["ips"][0]["address"], "10.9.0.5/24");
        assert!(last.get("runtimeConfig").is_none(), "only plugins with the capability see ports");

        cni.check("a", pod.netns.as_fd(), None).unwrap();
        pod.del(&cni);
        pod.del(&cni);
        let first: serde_json::Value = serde_json::from_str(&told(node, "stdin-DEL")).unwrap();
        assert_eq!(
            first["runtimeConfig"]["portMappings"][0]["hostPort"], 8080,
            "the first plugin is last to DEL"
        );
        assert_eq!(first["prevResult"]["ips"][0]["address"], "10.9.0.5/24");
        let commands: Vec<_> = told(node, "runs").lines().map(|l| l[..3].to_owned()).collect();
        assert_eq!(commands, ["ADD", "ADD", "CHE", "CHE", "DEL", "DEL"], "the second DEL has nothing to do");
        assert!(told(node, "leaks").lines().all(|l| l == "0"));

        cni.gc(&[]).unwrap();
        let gc: serde_json::Value = serde_json::from_str(&told(node, "stdin-GC")).unwrap();
        assert_eq!(gc["cni.dev/valid-attachments"], serde_json::json!([]));
        reap_all(&cni);
        assert_eq!(node.inventory().into_iter().collect::<Vec<_>>(), ["link lo"]);
    });
}

#[test]
fn a_plugin_that_fails_is_undone_and_quoted() {
    on_a_node(|node| {
        let cni = install(node, CHAIN);
        let pod = Pod::new("a");
        does(node, "ADD", r#"echo '{"code":11,"msg":"no more room","details":"at all"}'; exit 1"#);
        let error = add(&cni, &pod, &[]).unwrap_err().to_string();
        assert!(error.contains("`recorder` failed to ADD: no more room; at all (code 11)"), "{error}");
        assert!(told(node, "runs").contains("DEL"));
        does(node, "ADD", "echo oops >&2; exit 3");
        let error = add(&cni, &pod, &[]).unwrap_err().to_string();
        assert!(error.contains("oops"), "{error}");
        does(node, "ADD", "echo rubbish");
        assert!(matches!(add(&cni, &pod, &[]), Err(CniError::PluginAnswer { .. })));

        // A DEL that fails is told, and done again the next time.
        does(node, "ADD", RESULT);
        add(&cni, &pod, &[]).unwrap();
        does(node, "DEL", "exit 1");
        assert!(matches!(cni.del(&pod_ref("a")), Err(CniError::PluginFailed { command: "DEL", .. })));
        does(node, "DEL", "exit 0");
        pod.del(&cni);
        reap_all(&cni);
        assert_eq!(node.inventory().into_iter().collect::<Vec<_>>(), ["link lo"]);
    });
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_helpers() {
    on_a_node(|node| {
        drop(install(node, CHAIN));
        let config = CniConfig { plugin_timeout_add: Duration::from_millis(300), ..node.config("test") };
        let cni = Cni::new(config).unwrap();
        does(
            node,
            "ADD",
            "sleep 1000 & echo $! > @/helper; wait".replace('@', node.path("bin").to_str().unwrap()).as_str(),
        );
        let begin = Instant::now();
        assert!(matches!(add(&cni, &Pod::new("a"), &[]), Err(CniError::PluginTimeout { .. })));
        assert!(begin.elapsed() < PATIENCE);
        let helper = told(node, "helper").trim().to_owned();
        let alive = || {
            let stat = fs::read_to_string(format!("/proc/{helper}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        crate::node::until("the helper to die", || !alive());
    });
}

#[test]
fn a_plugin_tells_its_state_and_may_be_missing() {
    on_a_node(|node| {
        let cni = install(node, CHAIN);
        does(node, "STATUS", r#"echo '{"code":50,"msg":"agent is down"}'; exit 1"#);
        assert!(matches!(cni.status(), NetworkStatus::Ready { .. }), "nothing is executed to tell the state");
        cni.probe_plugins();
        assert!(
            matches!(cni.status(), NetworkStatus::NotReady { message, .. } if message.contains("agent is down"))
        );
        node.conflist(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"absent"}]}"#);
        let error = add(&cni, &Pod::new("a"), &[]).unwrap_err().to_string();
        assert!(error.contains("no plugin `absent` in"), "{error}");
    });
}

/// What a pod sees of its network.
fn seen_in(pod: &Pod) -> BTreeSet<String> {
    let read = |file: &str| fs::read_to_string(Path::new("/proc/thread-self/net").join(file)).unwrap();
    pod.run(|| {
        let mut seen = crate::node::links();
        seen.extend(read("route").lines().skip(1).map(|l| format!("route {l}")));
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for line in read("if_inet6").lines().map(words).filter(|w| !w[0].starts_with("fe80")) {
            seen.insert(format!("inet6 {} /{} {}", line[0], line[2], line[5]));
        }
        for line in read("ipv6_route").lines().map(words) {
            if !line[0].starts_with("fe80") && !line[0].starts_with("ff") {
                seen.insert(format!("route6 {}/{} by {} {}", line[0], line[1], line[4], line[9]));
            }
        }
        seen.extend(read("fib_trie").lines().map(|l| format!("fib {}", l.trim())));
        seen
    })
}

#[test]
fn the_official_plugins_make_the_same_of_a_conflist() {
    const CONFLIST: &str = r#"{"cniVersion":"1.0.0","name":"same",@PREFER@"plugins":[
      {"type":"loopback"},
      {"type":"bridge","bridge":"bwt2","isDefaultGateway":true,"mtu":1400,"hairpinMode":true,
       "ipMasq":true,"ipMasqBackend":"nftables",
       "ipam":{"type":"host-local","dataDir":"@DATA@","routes":[{"dst":"10.77.0.0/16"}],
               "ranges":[[{"subnet":"10.231.2.0/24","rangeStart":"10.231.2.10"}],[{"subnet":"fd00:231:2::/64"}]]}},
      {"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}]}"#;
    let Some(bin) = std::env::var_os("BOWLINE_CNI_PLUGINS") else {
        eprintln!("skipped: BOWLINE_CNI_PLUGINS names no folder with the official plugins");
        return;
    };
    let (send, receive) = std::sync::mpsc::channel();
    for prefer in ["", r#""prefer_binaries":true,"#] {
        let (send, bin) = (send.clone(), bin.clone());
        on_a_node(move |node| {
            node.conflist(&CONFLIST.replace("@PREFER@", prefer));
            let cni = Cni::new(CniConfig { bin_dirs: vec![bin.into()], ..node.config("test") }).unwrap();
            assert_eq!(cni.needs_netns_path(), !prefer.is_empty());
            let pod = Pod::new("a");
            let port =
                PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None };
            let begin = Instant::now();
            let network = add(&cni, &pod, &[port]).unwrap();
            eprintln!(
                "{}: ADD {:?}",
                if prefer.is_empty() { "built in" } else { "official" },
                begin.elapsed()
            );
            pod.serve_tcp("0.0.0.0:80");
            let answer = ask("127.0.0.1:8080".parse().unwrap()).unwrap();
            let seen = seen_in(&pod);
            cni.check("a", pod.netns.as_fd(), None).unwrap();
            let mut result: serde_json::Value = serde_json::from_str(&network.result_json).unwrap();
            for interface in result["interfaces"].as_array_mut().unwrap() {
                // Each chooses its own.
                interface["mac"] = "".into();
                interface["sandbox"] = "".into();
                if interface["name"].as_str().unwrap().starts_with("veth") {
                    interface["name"] = "veth".into();
                }
            }
            let reservations: Vec<_> =
                fs::read_dir(node.path("ips/same")).unwrap().map(|e| e.unwrap().file_name()).collect();
            let reservations: BTreeSet<_> = reservations
                .into_iter()
                .map(|f| (f.clone(), fs::read(node.path("ips/same").join(&f)).unwrap()))
                .collect();
            pod.del(&cni);
            reap_all(&cni);
            assert!(!node.path("ips/same/10.231.2.10").exists());
            send.send((network.ips, result, answer, seen, reservations)).unwrap();
        });
    }
    let (Ok(ours), Ok(theirs)) = (receive.try_recv(), receive.try_recv()) else { return };
    assert_eq!(ours, theirs);
}
