//! Many at once, and more than one daemon.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;

use bowline_cni::Cni;

use crate::bridge::DUAL_STACK;
use crate::node::{Pod, on_a_node, reap_all};

/// Adds `count` pods at once and gives their addresses.
fn add_at_once(cnis: &[&Cni], count: usize) -> (Vec<Pod>, BTreeSet<IpAddr>) {
    let pods: Vec<Pod> = (0..count).map(|i| Pod::new(&format!("pod{i}"))).collect();
    let ips = thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(i, pod)| scope.spawn(move || pod.add(cnis[i % cnis.len()]).ips))
            .collect();
        adds.into_iter().flat_map(|add| add.join().unwrap()).collect()
    });
    (pods, ips)
}

#[test]
fn twenty_pods_at_once_get_forty_addresses() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let (pods, ips) = add_at_once(&[&cni], 20);
        assert_eq!(ips.len(), 40);
        pods[0].serve_tcp("0.0.0.0:80");
        pods[19].ask("10.231.1.1:80".parse().unwrap()).unwrap_err();
        thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| pod.del(&cni));
            }
        });
        reap_all(&cni);
        cni.remove_networks().unwrap();
        assert_eq!(node.inventory().into_iter().collect::<Vec<_>>(), ["link lo"]);
    });
}

#[test]
fn two_daemons_on_one_bridge_never_share_an_address() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let (one, two) = (node.cni(), Cni::new(node.config("other")).unwrap());
        let (pods, ips) = add_at_once(&[&one, &two], 20);
        assert_eq!(ips.len(), 40);
        // Each knows its own.
        assert_eq!(one.gc(&[]).unwrap().len(), 10);
        reap_all(&one);
        assert_eq!(one.leftovers(&[]).unwrap(), []);
        let valid: Vec<&str> = pods.iter().skip(1).step_by(2).map(|pod| pod.id.as_str()).collect();
        assert_eq!(two.leftovers(&valid).unwrap(), []);
        for pod in pods.iter().skip(1).step_by(2) {
            two.check(&pod.id, std::os::fd::AsFd::as_fd(&pod.netns), None).unwrap();
        }
        assert_eq!(two.gc(&[]).unwrap().len(), 10);
        reap_all(&two);
        one.remove_networks().unwrap();
        two.remove_networks().unwrap();
        assert_eq!(node.inventory().into_iter().collect::<Vec<_>>(), ["link lo"]);
    });
}

#[test]
fn one_wait_deletes_the_links_of_many() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let (pods, _) = add_at_once(&[&cni], 10);
        for pod in &pods {
            pod.del(&cni);
        }
        let begin = std::time::Instant::now();
        let reaped = cni.reap().unwrap();
        eprintln!("reaped 10 links in {:?}", begin.elapsed());
        assert_eq!((reaped.links, reaped.released, reaped.pending), (10, 10, 0));
        assert_eq!(cni.reap().unwrap(), bowline_cni::Reaped::default());
    });
}
