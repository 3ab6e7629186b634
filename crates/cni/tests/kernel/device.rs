//! Links of the host that are moved into a pod.

use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread;

use bowline_cni::move_device;
use bowline_linux::netns::unshare_network;

use super::node::{on_a_node, own_netns};

/// `ip` in the calling thread's namespace.
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_link_moves_with_its_addresses_and_is_up() {
    on_a_node(|_| {
        let netns = thread::spawn(|| {
            unshare_network().unwrap();
            own_netns()
        });
        let netns = netns.join().unwrap();
        let inside = |words: &'static str| {
            let netns = netns.try_clone().unwrap();
            let looked = thread::spawn(move || {
                rustix::thread::move_into_link_name_space(netns.as_fd(), None).unwrap();
                ip(words)
            });
            looked.join().unwrap()
        };
        ip("link add given type veth peer name peer1");
        ip("link set given up mtu 1300");
        ip("addr add 192.0.2.7/24 dev given");
        ip("addr add 192.0.2.8/24 dev given valid_lft 1000 preferred_lft 1000");
        ip("addr add 2001:db8::7/64 dev given nodad");
        move_device(netns.as_fd(), "given", "net7").unwrap();
        let shown = inside("addr show dev net7");
        for wanted in ["192.0.2.7/24 brd 192.0.2.255", "2001:db8::7/64", "mtu 1300", "UP"] {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        assert!(!shown.contains("192.0.2.8"), "an address that ends: {shown}");
        assert!(!ip("-o link").contains(": given"), "it is on the host still");
        // A second container of the pod, or the same one again.
        move_device(netns.as_fd(), "given", "net7").unwrap();
        let error = move_device(netns.as_fd(), "absent", "net8").unwrap_err();
        assert!(bowline_text(&error).contains("`absent`"), "{error:?}");

        ip("link add other type veth peer name peer2");
        let error = move_device(netns.as_fd(), "other", "net7").unwrap_err();
        assert!(bowline_text(&error).contains("there is a link `net7` already"), "{error:?}");
        assert!(ip("-o link").contains(": other"), "it must stay where it was");
        // The kernel finds the number.
        move_device(netns.as_fd(), "other", "net%d").unwrap();
        assert!(inside("link show dev net0").contains("UP"));
    });
}

fn bowline_text(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}
