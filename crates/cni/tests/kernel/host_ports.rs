//! Ports of the node that lead to a pod.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use bowline_cni::{CniError, PortMapping, Protocol};

use crate::bridge::DUAL_STACK;
use crate::node::{PATIENCE, Pod, ask, at, on_a_node, reap_all, until};

fn port(protocol: Protocol, host_port: u16, container_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping { protocol, container_port, host_port, host_ip: host_ip.map(|ip| ip.parse().unwrap()) }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_port_answers_on_every_way_and_is_free_afterwards() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        let ports = [
            port(Protocol::Tcp, 8080, 80, None),
            port(Protocol::Udp, 8080, 53, None),
            port(Protocol::Sctp, 8080, 99, None),
            port(Protocol::Tcp, 0, 81, None),
        ];
        let net_a = a.add_with(&cni, &ports).unwrap();
        b.add(&cni);
        a.serve_tcp("[::]:80");

        assert_eq!(ask(addr("127.0.0.1:8080")).unwrap(), "::ffff:10.231.1.1", "127.0.0.1 is translated");
        ask(addr("10.231.1.1:8080")).expect("the node's own address");
        ask(addr("[fd00:231:1::1]:8080")).expect("the node's own IPv6 address");
        ask(at(&net_a, true, 80)).expect("the pod itself");
        b.ask(addr("10.231.1.1:8080")).expect("another pod by the node's address");
        b.ask(addr("[fd00:231:1::1]:8080")).expect("another pod by the node's IPv6 address");
        a.ask(addr("10.231.1.1:8080")).expect("the pod itself by the node's address");
        a.ask(addr("[fd00:231:1::1]:8080")).expect("the pod itself by the node's IPv6 address");
        assert!(ask(addr("127.0.0.1:81")).is_err(), "no host port, nothing published");
        assert!(b.ask(addr("127.0.0.1:8080")).is_err(), "a pod's own loopback is its own");

        a.del(&cni);
        assert!(ask(addr("127.0.0.1:8080")).is_err());
        assert_eq!(b.add_with(&cni, &ports).unwrap().ips.len(), 2, "the next pod can have it");
        b.serve_tcp("[::]:80");
        ask(addr("127.0.0.1:8080")).unwrap();
        b.del(&cni);
        reap_all(&cni);
        assert_eq!(cni.leftovers(&[]).unwrap(), []);
        cni.remove_networks().unwrap();
        assert_eq!(node.inventory().into_iter().collect::<Vec<_>>(), ["link lo"]);
    });
}

#[test]
fn a_host_address_limits_the_port_to_it() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        a.add_with(&cni, &[port(Protocol::Tcp, 8080, 80, Some("10.231.1.1"))]).unwrap();
        a.serve_tcp("0.0.0.0:80");
        ask(addr("10.231.1.1:8080")).unwrap();
        assert!(ask(addr("127.0.0.1:8080")).is_err());
        b.add_with(&cni, &[port(Protocol::Tcp, 8080, 80, Some("127.0.0.1"))]).unwrap();
        b.serve_tcp("0.0.0.0:80");
        ask(addr("127.0.0.1:8080")).unwrap();
    });
}

#[test]
fn a_taken_port_is_named_and_stays_with_its_holder() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        a.add_with(&cni, &[port(Protocol::Tcp, 8080, 80, None)]).unwrap();
        a.serve_tcp("0.0.0.0:80");
        let before = node.inventory();
        let ports = [port(Protocol::Tcp, 8081, 80, None), port(Protocol::Tcp, 8080, 80, None)];
        let error = b.add_with(&cni, &ports).unwrap_err();
        assert!(matches!(error, CniError::PortTaken { host_port: 8080, .. }), "{error}");
        assert!(error.to_string().contains("8080/tcp is taken by sandbox a"), "{error}");
        ask(addr("127.0.0.1:8080")).expect("the first is unaffected");
        reap_all(&cni);
        assert_eq!(node.inventory(), before, "nothing of the second is left");
        assert_eq!(cni.leftovers(&["a"]).unwrap(), []);
        b.add_with(&cni, &ports[..1]).expect("the port that came before the taken one is free");
    });
}

#[test]
fn a_flow_of_datagrams_moves_to_the_next_pod() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let ports = [port(Protocol::Udp, 5353, 53, None)];
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        a.add_with(&cni, &ports).unwrap();
        a.serve_udp("0.0.0.0:53", "a");
        // One socket, hence one flow.
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE / 40)).unwrap();
        let says = || {
            let mut buffer = [0; 16];
            client.send_to(b"?", "127.0.0.1:5353").ok()?;
            let (n, from) = client.recv_from(&mut buffer).ok()?;
            assert_eq!(from.ip(), "127.0.0.1".parse::<IpAddr>().unwrap());
            Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
        };
        until("the first pod's answer", || says().as_deref() == Some("a"));
        a.del(&cni);
        b.add_with(&cni, &ports).unwrap();
        b.serve_udp("0.0.0.0:53", "b");
        until("the second pod's answer", || says().as_deref() == Some("b"));
    });
}

#[test]
fn a_flushed_ruleset_is_repaired() {
    on_a_node(|node| {
        node.conflist(DUAL_STACK);
        let cni = node.cni();
        let (a, b) = (Pod::new("a"), Pod::new("b"));
        a.add_with(&cni, &[port(Protocol::Tcp, 8080, 80, None)]).unwrap();
        a.serve_tcp("0.0.0.0:80");
        ask(addr("127.0.0.1:8080")).unwrap();
        // What `nft flush ruleset` does to us.
        let other = bowline_cni::Cni::new(node.config("test")).unwrap();
        other.remove_networks().unwrap();
        assert!(ask(addr("127.0.0.1:8080")).is_err());
        b.add_with(&cni, &[port(Protocol::Tcp, 8081, 80, None)]).unwrap();
        b.serve_tcp("0.0.0.0:80");
        ask(addr("127.0.0.1:8081")).unwrap();
        ask(addr("127.0.0.1:8080")).expect("the ports of pods that were there before come back too");
    });
}
