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

#[test]
fn what_leaves_the_network_has_the_nodes_address() {
    const OUTSIDE: &str = r#"{"cniVersion":"0.3.1","name":"outside","plugins":[
      {"type":"bridge","bridge":"bwt4","isDefaultGateway":true,
       "ipam":{"type":"host-local","dataDir":"@DATA@",
               "ranges":[[{"subnet":"10.231.4.0/24"}],[{"subnet":"fd00:231:4::/64"}]]}}]}"#;
    on_a_node(|node| {
        node.conflist(OUTSIDE);
        let cni = node.cni();
        let (outside, inside) = (Pod::new("outside"), Pod::new("inside"));
        let far = outside.add(&cni);
        node.conflist(DUAL_STACK);
        let near = inside.add(&cni);
        assert_eq!((far.network.as_str(), near.network.as_str()), ("outside", "pods"));
        outside.serve_tcp("[::]:80");
        inside.serve_tcp("[::]:80");
        assert_eq!(inside.ask(at(&far, true, 80)).unwrap(), "::ffff:10.231.4.1");
        assert_eq!(inside.ask(at(&far, false, 80)).unwrap(), "fd00:231:4::1");
        assert_eq!(
            outside.ask(at(&near, true, 80)).unwrap(),
            "::ffff:10.231.4.2",
            "no ipMasq, no translation"
        );
        assert_eq!(cni.gc(&["outside", "inside"]).unwrap(), Vec::<String>::new());
        assert_eq!(inside.ask(at(&far, true, 80)).unwrap(), "::ffff:10.231.4.1", "GC keeps rules in use");
        inside.del(&cni);
        outside.del(&cni);
        reap_all(&cni);
    });
}

#[test]
fn the_default_network_needs_no_conflist() {
    on_a_node(|node| {
        let config = bowline_cni::CniConfig {
            default_network: Some(bowline_cni::DefaultNetwork {
                subnet: "10.231.5.0/24".parse().unwrap(),
                subnet_v6: Some("fd00:231:5::/64".parse().unwrap()),
                bridge: "bwt5".into(),
                data_dir: node.path("ips"),
            }),
            primary: bowline_cni::PrimaryFamily::Ipv6First,
            ..node.config("test")
        };
        let cni = Cni::new(config).unwrap();
        assert!(matches!(cni.status(), NetworkStatus::Ready { .. }));
        let pod = Pod::new("a");
        assert_eq!(
            pod.add(&cni).ips,
            ["fd00:231:5::2".parse::<IpAddr>().unwrap(), "10.231.5.2".parse().unwrap()]
        );
    });
}

#[test]
fn a_bridge_of_others_is_used_but_not_removed_nor_renumbered() {
    const OTHER: &str = r#"{"cniVersion":"1.0.0","name":"other","plugins":[
      {"type":"bridge","bridge":"bwt1","isGateway":true,@FORCE@
       "ipam":{"type":"host-local","dataDir":"@DATA@","subnet":"10.231.6.0/24"}}]}"#;
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let owner = Cni::new(node.config("owner")).unwrap();
        let first = Pod::new("first");
        first.add(&owner);
        node.conflist(&OTHER.replace("@FORCE@", ""));
        let cni = node.cni();
        let pod = Pod::new("a");
        let error = pod.add_with(&cni, &[]).unwrap_err();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains("already has address 10.231.1.1/24") && why.contains("forceAddress"), "{why}");
        node.conflist(&OTHER.replace("@FORCE@", r#""forceAddress":true,"#));
        pod.add(&cni);
        pod.del(&cni);
        reap_all(&cni);
        cni.remove_networks().unwrap();
        assert!(node.inventory().contains("link bwt1"));
        first.del(&owner);
        reap_all(&owner);
        owner.remove_networks().unwrap();
        assert!(!node.inventory().contains("link bwt1"));
    });
}
