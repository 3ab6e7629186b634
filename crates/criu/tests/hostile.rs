//! Images that no criu wrote for this request: each differs from good ones in one thing, and is refused for that.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use bowline_criu::images::{Allowed, judge};

/// A message: numbers and bytes by field.
#[derive(Clone, Default)]
struct Pb(Vec<u8>);

impl Pb {
    fn varint(mut self, mut value: u64) -> Pb {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn num(self, field: u64, value: u64) -> Pb {
        self.varint(field << 3).varint(value)
    }

    fn bytes(self, field: u64, value: &[u8]) -> Pb {
        let mut out = self.varint(field << 3 | 2).varint(value.len() as u64);
        out.0.extend_from_slice(value);
        out
    }

    fn msg(self, field: u64, value: Pb) -> Pb {
        self.bytes(field, &value.0)
    }
}

const INVENTORY: [u32; 1] = [0x5831_3116];
const COMMON: [u32; 2] = [0x5456_4319, 0x1234_5678];

fn image(magic: &[u32], entries: &[Pb]) -> Vec<u8> {
    let mut out: Vec<u8> = magic.iter().flat_map(|number| number.to_le_bytes()).collect();
    for entry in entries {
        out.extend((entry.0.len() as u32).to_le_bytes());
        out.extend(&entry.0);
    }
    out
}

/// What a good checkpoint says; tests change one thing.
#[derive(Clone)]
struct Checkpoint {
    criu: [u64; 7],
    own: [u64; 7],
    child: Option<[u64; 7]>,
    uid: u64,
    capabilities: u64,
    seccomp: Option<u64>,
    filters: Vec<Pb>,
    files: Vec<Pb>,
    terminals: Vec<Pb>,
    profile: Option<&'static [u8]>,
    mounts: Vec<Pb>,
}

const FILTER: &[u8] = b"12345678";

/// Namespaces in the order pid, net, ipc, uts, mnt, user, time.
fn ids(of: [u64; 7]) -> Pb {
    let fields = [5, 6, 7, 8, 9, 10, 12];
    let start = Pb::default().num(1, 2).num(2, 2).num(3, 2).num(4, 2);
    fields.iter().zip(of).fold(start, |message, (field, id)| message.num(*field, id))
}

fn mount(kind: u64, place: &str, key: Option<&str>) -> Pb {
    let mount = Pb::default().num(1, kind).num(2, 50).bytes(6, b"/").bytes(7, place.as_bytes());
    match key {
        Some(key) => mount.bytes(18, key.as_bytes()),
        None => mount,
    }
}

fn good() -> Checkpoint {
    Checkpoint {
        criu: [1, 2, 3, 4, 6, 7, 5],
        own: [9, 2, 3, 4, 10, 7, 5],
        child: Some([9, 2, 3, 4, 10, 7, 5]),
        uid: 1000,
        capabilities: 0,
        seccomp: Some(1),
        filters: vec![Pb::default().bytes(1, FILTER), Pb::default().bytes(1, b"own-filt").num(2, 0)],
        files: vec![
            Pb::default().num(1, 1).num(2, 1),
            Pb::default().num(1, 4).msg(4, Pb::default().num(4, 1)),
        ],
        terminals: Vec::new(),
        profile: None,
        mounts: vec![
            mount(17, "/", None),
            mount(1, "/proc", None),
            mount(1, "/proc/sys", None),
            mount(5, "/dev", Some("/dev")),
            mount(5, "/etc/hosts", Some("/etc/hosts")),
        ],
    }
}

impl Checkpoint {
    fn core(&self) -> Vec<u8> {
        let mut creds = Pb::default();
        for field in 1..=8 {
            creds = creds.num(field, self.uid);
        }
        for field in 9..=12 {
            creds = creds.num(field, self.capabilities & 0xffff_ffff).num(field, self.capabilities >> 32);
        }
        if let Some(profile) = self.profile {
            creds = creds.bytes(15, profile);
        }
        let mut thread = Pb::default().num(1, 0).msg(10, creds);
        if let Some(filter) = self.seccomp {
            thread = thread.num(11, 2).num(12, filter);
        }
        image(&COMMON, &[Pb::default().num(1, 1).msg(3, Pb::default().num(1, 1)).msg(5, thread)])
    }

    fn write(&self, folder: &Path) {
        let put = |name: &str, bytes: Vec<u8>| fs::write(folder.join(name), bytes).unwrap();
        put("inventory.img", image(&INVENTORY, &[Pb::default().num(1, 1).msg(3, ids(self.criu))]));
        let task = |pid, parent| Pb::default().num(1, pid).num(2, parent).num(3, 1).num(4, 1).num(5, pid);
        put("pstree.img", image(&COMMON, &[task(1, 0), task(7, 1)]));
        put("ids-1.img", image(&COMMON, &[ids(self.own)]));
        if let Some(child) = self.child {
            put("ids-7.img", image(&COMMON, &[ids(child)]));
        }
        put("core-1.img", self.core());
        put("core-7.img", self.core());
        put(
            "seccomp.img",
            image(&COMMON, &[self.filters.iter().cloned().fold(Pb::default(), |all, one| all.msg(1, one))]),
        );
        put("files.img", image(&COMMON, &self.files));
        if !self.terminals.is_empty() {
            put("tty-info.img", image(&COMMON, &self.terminals));
        }
        put(&format!("mountpoints-{}.img", self.own[4]), image(&COMMON, &self.mounts));
    }
}

fn judged(folder: &Path) -> Result<usize, String> {
    let mounts = BTreeSet::from(["/dev".to_owned(), "/etc/hosts".to_owned()]);
    let allowed = Allowed {
        mounts: &mounts,
        capabilities: 1 << 10,
        ids: Some((1000, 1000)),
        terminals: &["tty[8803:1c]".to_owned()],
        filter: Some(FILTER),
    };
    let folder = fs::File::open(folder).unwrap();
    judge(&folder, &allowed).map(|judged| judged.processes).map_err(|error| error.to_string())
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Checkpoint), part: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoint = good();
    change(&mut checkpoint);
    checkpoint.write(folder.path());
    let error = judged(folder.path()).expect_err("it was taken for good");
    assert!(error.contains(part), "{error}");
}

#[test]
fn what_fits_the_request_is_let_through() {
    let folder = tempfile::tempdir().unwrap();
    good().write(folder.path());
    assert_eq!(judged(folder.path()), Ok(2));
    // criu gives what it brings back a time namespace, and writes it the next time.
    let mut again = good();
    again.own[6] = 8;
    again.child = Some(again.own);
    again.write(folder.path());
    assert_eq!(judged(folder.path()), Ok(2));
    again.child = Some([9, 2, 3, 4, 10, 7, 9]);
    again.write(folder.path());
    assert!(judged(folder.path()).is_err(), "one for all");
}

#[test]
fn namespaces_of_the_host_or_of_its_own() {
    refused(|images| images.own[4] = 6, "host's mount or PID namespace");
    refused(|images| images.own[0] = 1, "host's mount or PID namespace");
    refused(|images| images.own[1] = 99, "its own network namespace");
    refused(|images| images.own[3] = 99, "its own UTS namespace");
    refused(|images| images.own[5] = 99, "its own user namespace");
    refused(|images| images.child = Some([9, 2, 3, 4, 6, 7, 5]), "namespaces of their own");
    refused(|images| images.child = None, "namespaces of their own");
}

#[test]
fn rights_beyond_the_request() {
    refused(|images| images.capabilities = 1 << 21, "more capabilities");
    refused(|images| images.capabilities = 1 << 38, "more capabilities");
    refused(|images| images.uid = 0, "other users");
    refused(|images| images.seccomp = None, "without the seccomp filter");
    refused(|images| images.filters[0] = Pb::default().bytes(1, b"anything"), "without the seccomp filter");
    refused(|images| images.seccomp = Some(9), "without the seccomp filter");
    // A chain that leads nowhere ends.
    refused(
        |images| images.filters = vec![Pb::default().bytes(1, b"anything").num(2, 0)],
        "without the seccomp",
    );
}

#[test]
fn mounts_that_the_request_has_not() {
    refused(|images| images.mounts.push(mount(5, "/x", None)), "a file system of its own at /x");
    refused(|images| images.mounts.push(mount(16, "/disk", None)), "a file system of its own at /disk");
    refused(|images| images.mounts.push(mount(1, "/etc", None)), "a file system of its own at /etc");
    refused(|images| images.mounts.push(mount(5, "/host", Some("/host"))), "a mount at /host");
    refused(|images| images.mounts.push(mount(5, "/x", Some("/dev"))), "a mount at /x");
    refused(|images| images.mounts.push(mount(5, "/dev/../host", Some("/dev"))), "damaged");
    refused(|images| images.mounts.push(mount(17, "/", None)), "damaged");
    refused(|images| images.mounts.push(mount(5, "/p", Some("/dev")).num(12, 1)), "damaged");
    // Named twice: which of the two a reader takes is not ours to guess.
    refused(|images| images.mounts.push(mount(5, "/dev", Some("/dev")).bytes(7, b"/host")), "damaged");
}

#[test]
fn files_that_take_privileges_to_open() {
    let file = |kind| Pb::default().num(1, kind).num(2, 3);
    refused(|images| images.files.push(file(10)), "packet sockets");
    refused(|images| images.files.push(file(11)), "terminals");
    // Type, device, file system.
    let terminal = |kind, device, on| Pb::default().num(1, 7).num(2, kind).num(8, device).num(13, on);
    for other in [terminal(1, 0x8803, 0x1c), terminal(5, 0x8803, 0x1d), terminal(5, 0x401, 0x1c)] {
        refused(|images| images.terminals.push(other.clone()), "not the container's own");
        let both = vec![terminal(5, 0x8803, 0x1c), other];
        refused(|images| images.terminals.clone_from(&both), "not the container's own");
    }
    refused(|images| images.terminals.push(terminal(5, 0x8803, 0x1c).num(8, 0x401)), "damaged");
    let mut images = good();
    images.files.push(file(11));
    images.terminals.push(terminal(5, 0x8803, 0x1c));
    let folder = tempfile::tempdir().unwrap();
    images.write(folder.path());
    assert_eq!(judged(folder.path()), Ok(2), "the container's own");
    refused(|images| images.files.push(file(15)), "host's administrator");
    refused(|images| images.files.push(file(19)), "host's administrator");
    refused(|images| images.files.push(file(4).msg(4, Pb::default().num(4, 3))), "raw sockets");
}

#[test]
fn a_folder_with_more_than_plain_images() {
    type Fill = fn(&Path);
    let table: [(&str, Fill, &str); 6] = [
        (
            "a link",
            |folder| std::os::unix::fs::symlink("/etc/passwd", folder.join("pages-1.img")).unwrap(),
            "no plain file",
        ),
        (
            "a second name",
            |folder| fs::hard_link(folder.join("core-1.img"), folder.join("core-2.img")).unwrap(),
            "no plain file",
        ),
        ("a folder", |folder| fs::create_dir(folder.join("pages-1.img")).unwrap(), "no plain file"),
        ("another network", |folder| fs::write(folder.join("netns-2.img"), "").unwrap(), "holds netns-2.img"),
        (
            "rules for a shell",
            |folder| fs::write(folder.join("iptables-2.img"), "").unwrap(),
            "holds iptables-2.img",
        ),
        ("a policy", |folder| fs::write(folder.join("apparmor.img"), "").unwrap(), "holds apparmor.img"),
    ];
    for (what, fill, part) in table {
        let folder = tempfile::tempdir().unwrap();
        good().write(folder.path());
        fill(folder.path());
        let error = judged(folder.path()).expect_err(what);
        assert!(error.contains(part), "{what}: {error}");
    }
}

#[test]
fn files_that_are_no_images() {
    for name in ["inventory.img", "pstree.img", "ids-1.img", "core-7.img", "files.img", "mountpoints-10.img"]
    {
        for bytes in [
            &b""[..],
            b"12",
            b"\x19\x43\x56\x54\0\0\0\0\xff\xff\xff\xff",
            b"\x16\x31\x31\x58\x02\0\0\0\xff\xff",
        ] {
            let folder = tempfile::tempdir().unwrap();
            good().write(folder.path());
            fs::write(folder.path().join(name), bytes).unwrap();
            judged(folder.path()).expect_err(name);
        }
        let folder = tempfile::tempdir().unwrap();
        good().write(folder.path());
        fs::remove_file(folder.path().join(name)).unwrap();
        judged(folder.path()).expect_err(name);
    }
}

/// As runc has them written: criu was elsewhere, and few mounts are external.
fn of_runc(folder: &Path, change: impl FnOnce(&mut Checkpoint)) {
    let mut images = good();
    images.criu = [1, 90, 91, 92, 6, 7, 5];
    images.profile = Some(b"theirs");
    images.mounts = vec![
        mount(17, "/", None),
        mount(1, "/proc", None),
        mount(1, "/proc/sys", None),
        mount(5, "/dev", None).num(13, 1),
        mount(0, "/etc/hosts", Some("/etc/hosts")),
        mount(0, "/run/.containerenv", Some("/run/.containerenv")),
    ];
    change(&mut images);
    images.write(folder);
    for name in ["netns-2.img", "route6-2.img", "tmpfs-dev-3.tar.gz.img", "utsns-4.img", "ipcns-shm-3.img"] {
        fs::write(folder.join(name), [0; 8]).unwrap();
    }
}

fn adopted(folder: &Path) -> Result<BTreeSet<String>, String> {
    bowline_criu::adopt(fs::File::open(folder).unwrap(), Some("request")).map_err(|error| error.to_string())
}

#[test]
fn images_of_another_runtime_become_ours() {
    let folder = tempfile::tempdir().unwrap();
    of_runc(folder.path(), |_| {});
    assert!(judged(folder.path()).is_err());
    assert_eq!(adopted(folder.path()), Ok(["/dev", "/etc/hosts"].map(str::to_owned).into()));
    assert_eq!(judged(folder.path()), Ok(2));
    assert!(!folder.path().join("netns-2.img").exists());
    for core in ["core-1.img", "core-7.img"] {
        let core = fs::read(folder.path().join(core)).unwrap();
        assert_eq!(core.windows(7).filter(|text| text == b"request").count(), 1, "its profile");
        assert!(!core.windows(6).any(|text| text == b"theirs"), "the other one's");
    }
    assert_eq!(
        adopted(folder.path()),
        Ok(["/dev", "/etc/hosts"].map(str::to_owned).into()),
        "once is enough"
    );
    assert_eq!(judged(folder.path()), Ok(2));
}

#[test]
fn what_another_runtime_wrote_is_allowed_no_more() {
    type Change = fn(&mut Checkpoint);
    let table: [(Change, &str); 10] = [
        (|images| images.own[4] = 6, "host's mount or PID namespace"),
        (|images| images.own[0] = 1, "host's mount or PID namespace"),
        (|images| images.own[5] = 99, "its own user namespace"),
        (|images| images.child = Some([9, 2, 99, 4, 10, 7, 5]), "namespaces of their own"),
        (|images| images.mounts.push(mount(5, "/x", None)), "a mount at /x"),
        (|images| images.mounts.push(mount(16, "/disk", Some("/dev"))), "a mount at /disk"),
        (|images| images.mounts.push(mount(1, "/etc", None)), "a mount at /etc"),
        (|images| images.mounts.push(mount(5, "/dev/../host", None)), "damaged"),
        (|images| images.capabilities = 1 << 21, "more capabilities"),
        (|images| images.seccomp = None, "without the seccomp filter"),
    ];
    for (number, (change, part)) in table.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        of_runc(folder.path(), change);
        let error = adopted(folder.path()).and_then(|_| judged(folder.path())).expect_err(part);
        assert!(error.contains(part), "{number}: {error}");
    }
    type Fill = fn(&Path);
    let table: [(Fill, &str); 4] = [
        (|folder| fs::write(folder.join("ipcns-sem-3.img"), [0; 9]).unwrap(), "System V"),
        (
            |folder| std::os::unix::fs::symlink("/etc/passwd", folder.join("netns-9.img")).unwrap(),
            "plain file",
        ),
        (|folder| fs::write(folder.join("bowline.new"), "").unwrap(), "could not read core-1.img"),
        (|folder| fs::write(folder.join("apparmor.img"), "").unwrap(), "holds apparmor.img"),
    ];
    for (fill, part) in table {
        let folder = tempfile::tempdir().unwrap();
        of_runc(folder.path(), |_| {});
        fill(folder.path());
        let error = adopted(folder.path()).and_then(|_| judged(folder.path())).expect_err(part);
        assert!(error.contains(part), "{part}: {error}");
    }
}
