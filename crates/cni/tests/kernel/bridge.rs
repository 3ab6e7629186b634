//! One network, built in from end to end.

use std::net::IpAddr;

use bowline_cni::{Cni, CniError, NetworkStatus};

use crate::node::{Pod, at, on_a_node, reap_all};

pub const DUAL_STACK: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[
  {"type":"bridge","bridge":"bwt1","isDefaultGateway":true,"ipMasq":true,"hairpinMode":true,
   "ipam":{"type":"host-local","dataDir":"@DATA@",
           "ranges":[[{"subnet":"10.231.1.0/24"}],[{"subnet":"fd00:231:1::/64"}]]}},
  {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

#[test]
fn pods_reach_one_another_and_leave_nothing() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        assert!(!cni.needs_netns_path());
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        let net_a = a.add(&cni);
        let before_b = node.inventory();
        let net_b = b.add(&cni);
        assert_eq!(net_a.ips, ["10.231.1.2".parse::<IpAddr>().unwrap(), "fd00:231:1::2".parse().unwrap()]);

        b.serve_tcp("[::]:80");
        assert_eq!(a.ask(at(&net_b, true, 80)).unwrap(), "::ffff:10.231.1.2");
        assert_eq!(a.ask(at(&net_b, false, 80)).unwrap(), "fd00:231:1::2");
        assert_eq!(b.ask("127.0.0.1:80".parse().unwrap()).unwrap(), "::ffff:127.0.0.1");
        assert_eq!(b.ask(at(&net_b, true, 80)).unwrap(), "::ffff:10.231.1.3");
        assert_eq!(crate::node::ask(at(&net_b, true, 80)).unwrap(), "::ffff:10.231.1.1", "from the node");
        cni.check("b", std::os::fd::AsFd::as_fd(&b.netns), None).unwrap();

        b.del(&cni);
        b.del(&cni);
        assert!(matches!(
            cni.check("b", std::os::fd::AsFd::as_fd(&b.netns), None),
            Err(CniError::Differs { .. })
        ));
        assert_ne!(node.inventory(), before_b, "the address is kept until the link is gone");
        reap_all(&cni);
        assert_eq!(node.inventory(), before_b);
        b.del(&cni);
        assert_eq!(cni.leftovers(&["a"]).unwrap(), []);

        a.del(&cni);
        reap_all(&cni);
        cni.remove_networks().unwrap();
        assert_eq!(node.inventory().into_iter().collect::<Vec<_>>(), ["link lo"]);
    });
}

#[test]
fn a_pod_whose_namespace_is_gone_is_detached_all_the_same() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let pod = Pod::new("a");
        pod.add(&cni);
        let id = pod.id.clone();
        drop(pod);
        cni.del(&crate::node::pod_ref(&id)).unwrap();
        reap_all(&cni);
        cni.remove_networks().unwrap();
        assert_eq!(node.inventory().into_iter().collect::<Vec<_>>(), ["link lo"]);
    });
}

#[test]
fn the_folder_may_come_and_go() {
    on_a_node(|node| {
        let cni = node.cni();
        let reason = |cni: &Cni| match cni.status() {
            NetworkStatus::NotReady { reason, message } => format!("{reason}: {message}"),
            ready => panic!("{ready:?}"),
        };
        assert!(reason(&cni).contains("no network configuration in"));
        node.conflist("{");
        assert!(reason(&cni).contains("10-test.conflist"));
        std::fs::write(node.path("net.d/20-good.conf"), r#"{"name":"good","type":"bridge"}"#).unwrap();
        assert!(
            matches!(cni.status(), NetworkStatus::Ready { network, problems } if network == "good" && problems.len() == 1)
        );
        std::fs::remove_dir_all(node.path("net.d")).unwrap();
        assert!(reason(&cni).contains("no network configuration in"));
        node.conflist(DUAL_STACK);
        assert!(matches!(cni.status(), NetworkStatus::Ready { network, .. } if network == "pods"));
        assert!(!cni.reload_if_changed());
    });
}
