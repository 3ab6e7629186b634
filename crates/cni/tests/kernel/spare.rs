//! Links that are made before their pod.

use std::os::fd::AsFd as _;
use std::process::Command;

use bowline_cni::{Cni, PodNetwork, Prepared};

use crate::bridge::DUAL_STACK;
use crate::node::{Node, Pod, at, links, on_a_node, reap_all, until};

fn prepare(cni: &Cni, pod: &Pod) -> Prepared {
    cni.prepare(&pod.id, "eth0", pod.netns.as_fd()).unwrap().expect("the network is a bridge")
}

/// The host's ends of pairs.
fn pairs() -> Vec<String> {
    links().into_iter().filter(|name| name.contains("veth")).collect()
}

fn end_of(network: &PodNetwork) -> String {
    format!("link {}", network.interfaces.iter().find(|link| link.name.contains("veth")).unwrap().name)
}

fn nothing_stays(node: &Node, cni: &Cni, pods: &[&Pod]) {
    for pod in pods {
        pod.del(cni);
    }
    reap_all(cni);
    until("links to go", || pairs().is_empty());
    cni.remove_networks().unwrap();
    assert_eq!(node.inventory().into_iter().collect::<Vec<_>>(), ["link lo"]);
}

#[test]
fn a_pod_gets_the_links_that_were_made_for_it() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let (other, pod) = (Pod::new("other"), Pod::new("a"));
        let plain = other.add(&cni);
        let prepared = prepare(&cni, &pod);
        let made: Vec<String> = pairs().into_iter().filter(|name| *name != end_of(&plain)).collect();
        assert_eq!(made.len(), 1, "a pair is there before the pod");
        assert_eq!(cni.leftovers(&["other"]).unwrap(), [], "what is prepared is no leftover");
        let network = pod.add_prepared(&cni, prepared);
        assert_eq!(end_of(&network), made[0], "the pair that was made is the pod's");
        assert_eq!(pairs().len(), 2, "no other one was made");
        cni.check("a", pod.netns.as_fd(), None).unwrap();
        // As good as one that was made for a pod that was there.
        assert_eq!(network.interfaces.len(), plain.interfaces.len());
        assert_eq!(network.interfaces[1].mtu, plain.interfaces[1].mtu);
        let link = pod.run(|| Command::new("ip").args(["-o", "link", "show", "eth0"]).output().unwrap());
        let link = String::from_utf8(link.stdout).unwrap();
        assert!(link.contains(&network.interfaces[2].mac), "{network:?}: {link}");
        for ipv4 in [true, false] {
            pod.serve_tcp(&at(&network, ipv4, 80).to_string());
            assert!(other.ask(at(&network, ipv4, 80)).is_ok(), "from another pod");
            other.serve_tcp(&at(&plain, ipv4, 80).to_string());
            let seen = pod.ask(at(&plain, ipv4, 80)).unwrap();
            assert_eq!(seen, at(&network, ipv4, 80).ip().to_string(), "to another pod");
        }
        nothing_stays(node, &cni, &[&pod, &other]);
    });
}

/// The next one's were made while a pod was on its way to its own, which were deleted under it.
#[test]
fn each_pod_has_its_own() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        let for_a = prepare(&cni, &a);
        let first = pairs();
        let for_b = prepare(&cni, &b);
        assert_eq!(pairs().len(), 2);
        assert_eq!(cni.leftovers(&[]).unwrap(), [], "both are expected");
        assert_eq!([end_of(&a.add_prepared(&cni, for_a))], first[..]);
        let network = b.add_prepared(&cni, for_b);
        assert!(!first.contains(&end_of(&network)));
        assert_eq!(pairs().len(), 2);
        // Of another sandbox: given up.
        let (c, d) = (Pod::new("c"), Pod::new("d"));
        let for_c = prepare(&cni, &c);
        d.add_prepared(&cni, for_c);
        assert_eq!(pairs().len(), 3);
        nothing_stays(node, &cni, &[&a, &b, &d]);
    });
}

#[test]
fn what_is_prepared_in_vain_goes() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        cni.give_up(prepare(&cni, &a));
        assert_eq!(pairs().len(), 0);
        drop((prepare(&cni, &b), b));
        until("the pair to go with its namespace", || pairs().is_empty());
        let d = Pod::new("d");
        let prepared = prepare(&cni, &d);
        // As when the daemon is killed, and before the kernel has come round to it.
        drop((prepared, cni));
        assert_eq!(pairs().len(), 1);
        let cni = node.cni();
        assert_eq!(cni.leftovers(&[]).unwrap().len(), 1, "nobody expects it any more");
        cni.remove_networks().unwrap();
        nothing_stays(node, &cni, &[]);
    });
}

#[test]
fn what_no_longer_fits_is_made_anew() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        // The network has changed.
        let a = Pod::new("a");
        let prepared = prepare(&cni, &a);
        node.conflist(&DUAL_STACK.replace("bwt1", "bwt2"));
        let network = a.add_prepared(&cni, prepared);
        assert!(network.interfaces.iter().any(|link| link.name == "bwt2"), "{network:?}");
        cni.check("a", a.netns.as_fd(), None).unwrap();
        // Somebody has deleted the pair, or the bridge.
        for victim in ["pair", "bridge"] {
            let b = Pod::new(victim);
            let before = pairs();
            let prepared = prepare(&cni, &b);
            let made = pairs().into_iter().find(|name| !before.contains(name)).unwrap();
            let name = if victim == "bridge" { "bwt2" } else { made.strip_prefix("link ").unwrap() };
            delete_link(name);
            let network = b.add_prepared(&cni, prepared);
            cni.check(victim, b.netns.as_fd(), None).unwrap();
            assert_eq!(pairs().len(), before.len() + 1, "{network:?}");
            b.del(&cni);
            reap_all(&cni);
        }
        // A namespace of the same sandbox that is another one.
        let (d, e) = (Pod::new("d"), Pod::new("d"));
        let prepared = prepare(&cni, &d);
        let network = e.add_prepared(&cni, prepared);
        assert_eq!(pairs().iter().filter(|name| **name == end_of(&network)).count(), 1);
        cni.check("d", e.netns.as_fd(), None).unwrap();
        drop(d);
        nothing_stays(node, &cni, &[&a, &e]);
    });
}

fn delete_link(name: &str) {
    let done = Command::new("ip").args(["link", "del", name]).status();
    assert!(done.is_ok_and(|status| status.success()), "ip link del {name}");
}
