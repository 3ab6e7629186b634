//! The daemon dies somewhere in an ADD or a DEL; the next one clears up.

use std::fs;

use bowline_cni::{CniError, PortMapping, Protocol};

use crate::bridge::DUAL_STACK;
use crate::node::{Node, Pod, on_a_node, pod_ref, reap_all};

fn ports() -> [PortMapping; 1] {
    [PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None }]
}

fn nothing_is_left(node: &Node, what: &str) {
    let cni = node.cni();
    cni.del(&pod_ref("a")).unwrap();
    reap_all(&cni);
    assert_eq!(cni.leftovers(&[]).unwrap(), [], "{what}");
    cni.remove_networks().unwrap();
    assert_eq!(node.inventory().into_iter().collect::<Vec<_>>(), ["link lo"], "{what}");
}

/// The record as it stands before ADD has made anything is on disk through all of ADD. So a crash anywhere in it
/// leaves that record and some of what the steps make; each step's work is taken away in turn.
#[test]
fn a_crash_anywhere_in_add_leaves_nothing_after_del() {
    on_a_node(|node| {
        for crash in [
            "after the record",
            "after the address",
            "after the link",
            "after the port",
            "within the result",
            "after all",
        ] {
            node.conflist(DUAL_STACK);
            let cni = node.cni();
            let pod = Pod::new("a");
            pod.add_with(&cni, &ports()).unwrap();
            let added = node.path("cache-test/a@eth0.added");
            let adding = node.path("cache-test/a@eth0.adding");
            let mut record = fs::read(&added).unwrap();
            let result = record.iter().position(|byte| *byte == b'\n').unwrap();
            if crash == "after all" {
                // As a daemon left it that wrote the result to a file of its own: between the two.
                fs::copy(&added, &adding).unwrap();
            } else {
                record.truncate(if crash == "within the result" { result + 10 } else { result });
                fs::write(&adding, record).unwrap();
                fs::remove_file(&added).unwrap();
            }
            if matches!(crash, "after the record" | "after the address" | "after the link") {
                cni.remove_networks().unwrap();
            }
            if matches!(crash, "after the record" | "after the address") {
                // The link goes with the namespace.
                drop(pod);
                crate::node::until("the link to go", || !node.inventory().iter().any(|l| l.contains("veth")));
            }
            if crash == "after the record" {
                fs::remove_file(node.path("ips/pods/10.231.1.2")).ok();
                fs::remove_dir_all(node.path("ips")).unwrap();
            }
            drop(cni);
            nothing_is_left(node, crash);
        }
    });
}

#[test]
fn a_crash_between_del_and_reap_frees_the_address_later() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let pod = Pod::new("a");
        pod.add_with(&cni, &ports()).unwrap();
        pod.del(&cni);
        assert!(node.path("ips/pods/10.231.1.2").exists(), "kept until the link is gone");
        drop(cni);
        nothing_is_left(node, "after DEL");
    });
}

#[test]
fn a_record_lost_with_the_power_is_known_by_its_name() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let pod = Pod::new("a");
        pod.add(&cni);
        drop(cni);
        fs::write(node.path("cache-test/a@eth0.added"), "").unwrap();
        nothing_is_left(node, "an empty record");
    });
}

#[test]
fn a_sandbox_that_is_attached_again_begins_anew() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        for state in ["attached", "dying"] {
            let pod = Pod::new("a");
            pod.add_with(&cni, &ports()).unwrap();
            if state == "dying" {
                pod.del(&cni);
            }
            let again = Pod::new("a");
            again.add_with(&cni, &ports()).unwrap();
            again.serve_tcp("0.0.0.0:80");
            crate::node::ask("127.0.0.1:8080".parse().unwrap()).unwrap();
            again.del(&cni);
        }
        nothing_is_left(node, "twice");
    });
}

#[test]
fn what_nobody_remembers_is_found_and_swept() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let pod = Pod::new("a");
        pod.add_with(&node.cni(), &ports()).unwrap();
        let cni = node.cni();
        assert_eq!(cni.leftovers(&["a"]).unwrap(), []);
        let found: Vec<_> = cni.leftovers(&[]).unwrap().into_iter().map(|l| l.description).collect();
        assert!(found.iter().any(|d| d.contains("attachment eth0")), "{found:?}");
        assert!(found.iter().any(|d| d.contains("reservation of 10.231.1.2")), "{found:?}");
        // The records are lost altogether.
        fs::remove_file(node.path("cache-test/a@eth0.added")).unwrap();
        let cni = node.cni();
        let found = cni.leftovers(&[]).unwrap();
        let texts: Vec<_> = found.iter().map(|l| l.description.as_str()).collect();
        assert!(texts.iter().any(|d| d.starts_with("link veth")), "{texts:?}");
        assert!(texts.iter().any(|d| d.contains("host port 8080/tcp")), "{texts:?}");
        cni.sweep(&found).unwrap();
        assert_eq!(cni.leftovers(&[]).unwrap(), []);
    });
}

#[test]
fn a_full_network_says_so_and_keeps_nothing() {
    const TINY: &str = r#"{"cniVersion":"1.0.0","name":"tiny","plugins":[
      {"type":"bridge","bridge":"bwt3","isGateway":true,
       "ipam":{"type":"host-local","dataDir":"@DATA@",
               "ranges":[[{"subnet":"fd00:231:3::/64"}],[{"subnet":"10.231.3.0/30"}]]}}]}"#;
    on_a_node(|node| {
        node.conflist(TINY);
        let cni = node.cni();
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        a.add(&cni);
        let error = b.add_with(&cni, &[]).unwrap_err();
        assert!(matches!(error, CniError::NoAddressLeft { .. }), "{error}");
        reap_all(&cni);
        assert!(!node.path("ips/tiny/fd00:231:3::3").exists());
        a.del(&cni);
        assert!(b.add_with(&cni, &[]).is_err(), "the address is not free before the link is gone");
        reap_all(&cni);
        b.add(&cni);
    });
}
