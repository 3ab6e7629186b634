//! Images.

use std::os::fd::AsFd as _;
use std::process::Stdio;

use crate::{Crictl, LIMIT, terminal};

pub(crate) fn pull(crictl: &Crictl) {
    let (busybox, other) = (crictl.image("busybox:1"), crictl.image("other:1"));
    let locked = format!("{}/locked:1", crictl.locked.host());
    crictl.says(&["pull", &busybox], &["Image is up to date"]);
    let config = crictl.pod("pull");
    crictl.ok(&[
        "pull",
        "--pod-config",
        &config,
        "--annotation",
        "why=test",
        "--pull-timeout",
        "20s",
        &other,
    ]);
    crictl.fails(&["pull", &locked], "401");
    crictl.fails(&["pull", "--creds", "anna:wrong", &locked], "401");
    crictl.ok(&["pull", "--creds", "anna:secret", &locked]);
    // base64 of anna:secret.
    crictl.ok(&["pull", "--auth", "YW5uYTpzZWNyZXQ=", &locked]);
    let (master, slave) = terminal(24, 80);
    let mut command = crictl.command(&[], &["pull", "--username", "anna", &locked]);
    let mut asked = command.stdin(slave).stdout(Stdio::piped()).spawn().expect("start crictl");
    rustix::io::write(master.as_fd(), b"secret\n").unwrap();
    assert!(succeeds(&mut asked), "pull with a password from a terminal");
    crictl.fails(&["pull", &crictl.image("missing:1")], "missing");
    crictl.fails(&["pull", "a b"], "a b");
}

fn succeeds(child: &mut std::process::Child) -> bool {
    let mut status = None;
    bowline_tests::wait_for("crictl ends", LIMIT, || {
        status = child.try_wait().expect("wait for crictl");
        status.is_some()
    });
    status.is_some_and(|status| status.success())
}

pub(crate) fn look(crictl: &Crictl) {
    let (busybox, other) = (crictl.image("busybox:1"), crictl.image("other:1"));
    let host = crictl.daemon.registry.host();
    crictl.says(&["images"], &[&host, "busybox", "other", "locked"]);
    crictl.says(&["images", "--digests", "--pinned"], &["DIGEST", "PINNED", "false"]);
    crictl.says(&["images", "-v"], &["ID: sha256:", "RepoTags: ", "Size: "]);
    crictl.says(&["images", "-o", "yaml"], &["repoTags:"]);
    let all = crictl.ok(&["images", "-q", "--no-trunc"]);
    assert_eq!(all.lines().count(), 3, "{all}");
    let id = crictl.ok(&["images", "-q", "--no-trunc", &busybox]).trim().to_owned();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{id}");
    let found = crictl.ok(&["images", "-q", "--no-trunc", "--filter", "reference=.*busybox.*"]);
    assert_eq!(found.trim(), id);
    assert_eq!(crictl.ok(&["images", "-q", "--filter", "dangling=true"]), "");

    crictl.says(&["inspecti", &busybox], &["\"repoTags\"", &busybox, "\"imageSpec\""]);
    crictl.says(&["inspecti", "-q", "-o", "yaml", &id], &["repoDigests:"]);
    let size = crictl.ok(&["inspecti", "-o", "go-template", "--template", "{{.status.size}}", &id[7..20]]);
    assert!(size.trim().parse::<u64>().is_ok_and(|size| size > 10_000), "{size}");
    crictl.says(&["inspecti", "--name", &busybox, "-o", "table"], &["busybox"]);
    crictl.says(&["inspecti", "--filter", "dangling=false", "-o", "json"], &["other"]);
    crictl.fails(&["inspecti", &crictl.image("missing:1")], "missing");
    crictl.says(&["imagefsinfo"], &["mountpoint"]);
    crictl.says(&["imagefsinfo", "-o", "table"], &["Image Filesystem", "Inodes"]);
    let template = "{{range .status.imageFilesystems}}{{.usedBytes.value}}{{end}}";
    let used = crictl.ok(&["imagefsinfo", "-o", "go-template", "--template", template]);
    assert!(used.trim().parse::<u64>().is_ok_and(|used| used > 10_000), "{used}");
    crictl.ok(&["rmi", &other]);
    crictl.fails(&["inspecti", &other], "other");
    crictl.ok(&["pull", &other]);
}

pub(crate) fn remove(crictl: &Crictl) {
    let id = crictl.ok(&["images", "-q", "--no-trunc", &crictl.image("other:1")]);
    crictl.ok(&["rmi", id.trim()]);
    crictl.fails(&["rmi", &crictl.image("missing:1")], "missing");
    crictl.ok(&["rmi", "--prune"]);
    assert_eq!(crictl.ok(&["images", "-q"]), "");
    crictl.ok(&["pull", &crictl.image("busybox:1")]);
    crictl.ok(&["rmi", "--all"]);
    assert_eq!(crictl.ok(&["images", "-q"]), "");
}
