//! A node made of namespaces.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use bowline_cni::{
    Cni, CniConfig, CniError, InstanceTag, PodNetwork, PodNetworkRequest, PodRef, PortMapping, Prepared,
};
use bowline_linux::netns::unshare_network;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// No single wait in these tests is longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The network namespace of the calling thread.
pub fn own_netns() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").unwrap().into()
}

/// Runs `test` on a thread whose network namespace is new, as the node.
pub fn on_a_node(test: impl FnOnce(&Node) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let outcome = thread::spawn(|| {
        unshare_network().unwrap();
        let node = Node { dir: tempfile::tempdir().unwrap() };
        node.bring_up_lo();
        test(&node);
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Folders for everything that is on disk. The rest of the node is the thread's namespace.
pub struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn conflist(&self, text: &str) {
        fs::create_dir_all(self.path("net.d")).unwrap();
        let text = text.replace("@DATA@", self.path("ips").to_str().unwrap());
        fs::write(self.path("net.d/10-test.conflist"), text).unwrap();
    }

    pub fn config(&self, instance: &str) -> CniConfig {
        CniConfig {
            conf_dirs: vec![self.path("net.d")],
            bin_dirs: vec![self.path("bin")],
            cache_dir: self.path(&format!("cache-{instance}")),
            instance: InstanceTag::parse(instance).unwrap(),
            plugin_timeout_add: Duration::from_secs(10),
            plugin_timeout_del: Duration::from_secs(10),
            ..CniConfig::below(self.dir.path())
        }
    }

    pub fn cni(&self) -> Cni {
        Cni::new(self.config("test")).unwrap()
    }

    /// What is on the node: links, reservations, records.
    pub fn inventory(&self) -> BTreeSet<String> {
        let mut all = links();
        for dir in ["ips", "cache-test"] {
            walk(&self.path(dir), &mut all);
        }
        all.retain(|name| !name.contains("last_reserved_ip") && !name.ends_with("/lock"));
        all
    }

    fn bring_up_lo(&self) {
        self.conflist(r#"{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}"#);
        let cni = Cni::new(self.config("lo")).unwrap();
        add(&cni, "node", own_netns().as_fd(), &[]).unwrap();
        fs::remove_dir_all(self.path("net.d")).unwrap();
    }
}

/// The links of the calling thread's namespace.
pub fn links() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().skip(2).filter_map(|line| Some(format!("link {}", line.split_once(':')?.0.trim()))).collect()
}

fn walk(dir: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, into);
        } else {
            into.insert(path.display().to_string());
        }
    }
}

/// A pod's network namespace.
pub struct Pod {
    pub id: String,
    pub netns: OwnedFd,
}

impl Pod {
    pub fn new(id: &str) -> Pod {
        let netns = thread::spawn(|| {
            unshare_network().unwrap();
            own_netns()
        });
        Pod { id: id.to_owned(), netns: netns.join().unwrap() }
    }

    pub fn add(&self, cni: &Cni) -> PodNetwork {
        add(cni, &self.id, self.netns.as_fd(), &[]).unwrap()
    }

    /// With what was made in advance.
    pub fn add_prepared(&self, cni: &Cni, prepared: Prepared) -> PodNetwork {
        cni.add(&request(&self.id, self.netns.as_fd(), &[]), Some(prepared)).unwrap()
    }

    pub fn add_with(&self, cni: &Cni, ports: &[PortMapping]) -> Result<PodNetwork, CniError> {
        add(cni, &self.id, self.netns.as_fd(), ports)
    }

    pub fn del(&self, cni: &Cni) {
        cni.del(&pod_ref(&self.id)).unwrap();
    }

    /// Does `work` in the pod.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(self.netns.as_fd(), work)
    }

    /// Answers each TCP connection with the address that it comes from, until the test ends.
    pub fn serve_tcp(&self, at: &str) {
        let at: SocketAddr = at.parse().unwrap();
        let listener = self.run(|| TcpListener::bind(at).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream.peer_addr().unwrap().ip().to_string();
                let _ = stream.write_all(peer.as_bytes());
            }
        });
    }

    /// Answers each datagram with `word`, until the test ends.
    pub fn serve_udp(&self, at: &str, word: &'static str) {
        let at: SocketAddr = at.parse().unwrap();
        let socket = self.run(|| UdpSocket::bind(at).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(word.as_bytes(), from);
            }
        });
    }

    /// What the server at `to` says to this pod.
    pub fn ask(&self, to: SocketAddr) -> Result<String, std::io::Error> {
        self.run(|| ask(to))
    }
}

pub fn pod_ref(id: &str) -> PodRef<'_> {
    PodRef { sandbox_id: id, name: "web", namespace: "default", uid: "u-1" }
}

pub fn request<'a>(id: &'a str, netns: BorrowedFd<'a>, ports: &'a [PortMapping]) -> PodNetworkRequest<'a> {
    PodNetworkRequest {
        pod: pod_ref(id),
        netns,
        netns_path: None,
        if_name: "eth0",
        port_mappings: ports,
        dns: None,
        bandwidth: None,
        cgroup_path: None,
        annotations: &[],
        ips: &[],
        mac: None,
    }
}

fn add(cni: &Cni, id: &str, netns: BorrowedFd<'_>, ports: &[PortMapping]) -> Result<PodNetwork, CniError> {
    cni.add(&request(id, netns, ports), None)
}

/// Does `work` on a thread in that namespace.
pub fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// What the TCP server at `to` says to the calling thread's namespace.
pub fn ask(to: SocketAddr) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// Reaps until nothing waits; a link goes when the kernel says so.
pub fn reap_all(cni: &Cni) {
    until("the reaper to finish", || cni.reap().unwrap().pending == 0);
}

/// Waits for a condition.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::yield_now();
    }
}

/// The pod's first address of a family, with a port.
pub fn at(network: &PodNetwork, ipv4: bool, port: u16) -> SocketAddr {
    let ip: IpAddr = *network.ips.iter().find(|ip| ip.is_ipv4() == ipv4).unwrap();
    SocketAddr::new(ip, port)
}
