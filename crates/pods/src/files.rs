//! The pod's folder on the state file system: socket, exits, hosts, hostname, resolv.conf.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use bowline_model::SandboxId;
use bowline_model::spec::PodSpec;
use bowline_monitor_proto::slot::{FIRST_SLOTS, SLOT_LEN, Slot, offset};
use bowline_monitor_proto::{EXITS_NAME, SOCKET_NAME};
use rustix::fs::{FallocateFlags, Mode, OFlags};

/// The folder of a pod below the state folder.
pub fn folder(state: &Path, pod: &SandboxId) -> PathBuf {
    state.join("pods").join(pod.to_string())
}

/// What was made.
pub struct PodFiles {
    /// The exits file, with its first slots allocated.
    pub exits: OwnedFd,
    /// The bound takeover socket.
    pub listener: OwnedFd,
}

/// Makes the folder and what the monitor needs of it.
pub fn make(state: &Path, pod: &SandboxId) -> io::Result<PodFiles> {
    let path = folder(state, pod);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
    let dir = rustix::fs::open(&path, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let listener = bowline_linux::message::listen(dir.as_fd(), SOCKET_NAME)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let exits = rustix::fs::openat(&dir, EXITS_NAME, flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::fallocate(&exits, FallocateFlags::empty(), 0, offset(FIRST_SLOTS))?;
    Ok(PodFiles { exits, listener })
}

/// Makes sure that a slot has its memory before its container exists.
pub fn allocate_slot(state: &Path, pod: &SandboxId, slot: u16) -> io::Result<()> {
    if slot < FIRST_SLOTS {
        return Ok(());
    }
    let path = folder(state, pod).join(EXITS_NAME);
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), offset(slot), SLOT_LEN as u64)?)
}

/// Reads a slot; `None` where nothing was written.
pub fn read_slot(state: &Path, pod: &SandboxId, slot: u16) -> Option<Slot> {
    let path = folder(state, pod).join(EXITS_NAME);
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = [0u8; SLOT_LEN];
    let len = rustix::io::pread(&file, &mut bytes, offset(slot)).ok()?;
    if len == SLOT_LEN { Slot::from_bytes(&bytes) } else { None }
}

/// Connects to a pod's monitor.
pub fn connect(state: &Path, pod: &SandboxId) -> io::Result<OwnedFd> {
    let dir = rustix::fs::open(
        folder(state, pod),
        OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    bowline_linux::message::connect(dir.as_fd(), SOCKET_NAME)
}

/// Writes hosts, hostname and resolv.conf, as containers without mounts of their own there will see them, with an SELinux
/// label if there is one.
pub fn write_names(
    state: &Path,
    pod: &SandboxId,
    spec: &PodSpec,
    hostname: &str,
    ips: &[String],
    label: Option<&str>,
) -> io::Result<()> {
    let folder = folder(state, pod);
    let write = |name: &str, text: Vec<u8>| {
        let path = folder.join(name);
        fs::write(&path, text)?;
        label.map_or(Ok(()), |label| crate::selinux::label_file(&path, label))
    };
    write("hostname", format!("{hostname}\n").into_bytes())?;
    write("hosts", hosts(spec, hostname, ips)?)?;
    write("resolv.conf", resolv_conf(spec)?)
}

fn hosts(spec: &PodSpec, hostname: &str, ips: &[String]) -> io::Result<Vec<u8>> {
    use bowline_model::spec::NamespaceMode;
    if spec.security.namespaces.network == NamespaceMode::Node {
        return host_file("/etc/hosts");
    }
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    text.push_str(
        "fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for ip in ips {
        text.push_str(&format!("{ip}\t{hostname}\n"));
    }
    Ok(text.into_bytes())
}

/// The lines of the DNS config; without any, the host's file.
fn resolv_conf(spec: &PodSpec) -> io::Result<Vec<u8>> {
    let Some(dns) = spec
        .dns
        .as_ref()
        .filter(|dns| !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()))
    else {
        return host_file("/etc/resolv.conf");
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(text.into_bytes())
}

/// A small file of the host; a missing one is empty.
fn host_file(path: &str) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Ok(bytes) if bytes.len() <= 1 << 20 => Ok(bytes),
        Ok(bytes) => Err(io::Error::other(format!("{path} has {} bytes, which is too much", bytes.len()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Removes the pod's folder.
pub fn remove(state: &Path, pod: &SandboxId) -> io::Result<()> {
    let folder = folder(state, pod);
    crate::netns::unpin(&folder.join("netns"))?;
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bowline_model::spec::Dns;

    #[test]
    fn dns_settings_become_lines() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let dns = Dns {
            servers: words(&["10.0.0.1", "::1"]),
            searches: words(&["a.b", "c"]),
            options: words(&["ndots:5"]),
        };
        let spec = PodSpec { dns: Some(dns), ..PodSpec::default() };
        let text = String::from_utf8(resolv_conf(&spec).unwrap()).unwrap();
        assert_eq!(text, "search a.b c\nnameserver 10.0.0.1\nnameserver ::1\noptions ndots:5\n");
    }

    #[test]
    fn hosts_name_the_pod() {
        let text =
            String::from_utf8(hosts(&PodSpec::default(), "web", &["10.1.2.3".into()]).unwrap()).unwrap();
        assert!(text.contains("127.0.0.1\tlocalhost\n") && text.ends_with("10.1.2.3\tweb\n"), "{text}");
    }
}
