//! Making images that another runtime had criu write into such as we have it write.
//!
//! runc, and with it containerd and CRI-O, starts criu in the host's namespaces. Its images differ from ours in four things:
//!
//! - criu was not in the pod's network, IPC and UTS namespace, so that it would make new ones. Here it is: the inventory,
//!   which names criu's own, is made to say so. What was written of those namespaces is left out.
//! - Only some mounts are external. Here all are, but the root and procfs: each gets its own place as its key, and what was
//!   written of file systems in memory is left out.
//! - Some mounts are the other runtime's own, and their places are in no request. They are left out; criu ends if anything
//!   holds on to one.
//!
//! - Its AppArmor profile is not known here, and the request's is another.
//!
//! Nothing becomes more allowed by that: what comes out is judged ([`crate::images::judge`]) as any other.
//!
//! Formats: images/inventory.proto, core.proto and mnt.proto of criu 3.17.

use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::images::{COMMON, Folder, INVENTORY, Objection, PROC, damaged, io_of, not_allowed, within};
use crate::wire::{Malformed, Message, Writer, fields};

/// Images of what the pod has already: its namespaces, and file systems that are mounted anew.
const LEFT_OUT: [&str; 14] = [
    "ifaddr-",
    "ip6tables-",
    "ipcns-msg-",
    "ipcns-sem-",
    "ipcns-shm-",
    "ipcns-var-",
    "iptables-",
    "netdev-",
    "netns-",
    "nftables-",
    "route",
    "rule-",
    "tmpfs-",
    "utsns-",
];
/// Of these only those without content: no pod gets System V objects back.
const MUST_BE_EMPTY: [&str; 3] = ["ipcns-msg-", "ipcns-sem-", "ipcns-shm-"];
/// Two magic numbers.
const EMPTY: u64 = 8;
/// Mounts that CRI-O makes of its own accord.
const FOREIGN_MOUNTS: [&str; 1] = ["/run/.containerenv"];
/// Network, IPC and UTS namespace in `task_kobj_ids_entry`.
const SHARED: [u32; 3] = [6, 7, 8];
/// `lsmtype` of the inventory.
const SELINUX: u64 = 1;
const APPARMOR: u64 = 2;
/// While an image is written anew.
const NEW: &str = "bowline.new";

/// Rewrites the images in a folder, and gives the mount points that are external now. The folder is nobody else's. `profile`:
/// that of AppArmor for all processes; without one they have none.
pub fn adopt(folder: impl AsFd, profile: Option<&str>) -> Result<BTreeSet<String>, Objection> {
    let folder = Folder::of(folder)?;
    for name in folder.names()? {
        if !LEFT_OUT.iter().any(|known| name.starts_with(known)) {
            continue;
        }
        let (_, size) = folder.open(&name)?;
        if size > EMPTY && MUST_BE_EMPTY.iter().any(|known| name.starts_with(known)) {
            return not_allowed("has System V shared memory, semaphores or queues");
        }
        rustix::fs::unlinkat(&folder.fd, name.as_str(), AtFlags::empty())
            .map_err(|errno| io_of(&name, errno.into()))?;
    }
    let tasks = folder.tasks()?;
    let first = tasks.first().ok_or_else(|| damaged("pstree.img"))?;
    let ids_name = format!("ids-{}.img", first.pid);
    let ids = folder.one(&ids_name)?;
    let inventory = folder.one("inventory.img")?;
    let module = within("inventory.img", || Message::parse(&inventory)?.number(6))?;
    // A label of SELinux stays: what the second look makes of it is another matter.
    if module != Some(SELINUX) {
        for thread in tasks.iter().flat_map(|task| task.threads()) {
            folder.label(thread, profile)?;
        }
    }
    let module = if profile.is_some() { Some(APPARMOR) } else { module };
    let inventory = within("inventory.img", || inventory_with(&inventory, &ids, module))?;
    folder.replace("inventory.img", &[INVENTORY], &[inventory])?;
    let namespace =
        within(&ids_name, || Message::parse(&ids)?.number(9)?.filter(|id| *id != 0).ok_or(Malformed))?;
    adopt_mounts(&folder, &format!("mountpoints-{namespace}.img"))
}

/// The inventory, with criu in the first process' network, IPC and UTS namespace.
fn inventory_with(inventory: &[u8], first: &[u8], module: Option<u64>) -> Result<Vec<u8>, Malformed> {
    let criu = Message::parse(inventory)?.bytes(3)?.ok_or(Malformed)?;
    let own = Message::parse(first)?;
    let mut ids = Writer::default();
    for (field, bytes) in fields(criu)? {
        if !SHARED.contains(&field) {
            ids.raw(bytes);
        }
    }
    for field in SHARED {
        if let Some(id) = own.number(field)? {
            ids.number(field, id);
        }
    }
    with(inventory, &[3, 6], |written| {
        written.bytes(3, &ids.finish());
        if let Some(module) = module {
            written.number(6, module);
        }
    })
}

/// A message without some fields, and with others.
fn with(message: &[u8], without: &[u32], add: impl FnOnce(&mut Writer)) -> Result<Vec<u8>, Malformed> {
    let mut written = Writer::default();
    for (field, bytes) in fields(message)? {
        if !without.contains(&field) {
            written.raw(bytes);
        }
    }
    add(&mut written);
    Ok(written.finish())
}

fn adopt_mounts(folder: &Folder, name: &str) -> Result<BTreeSet<String>, Objection> {
    let mut places = BTreeSet::new();
    let mut entries = Vec::new();
    for entry in folder.entries(name)? {
        let (kind, place) = within(name, || {
            let entry = Message::parse(&entry)?;
            let place = entry.text(7)?.ok_or(Malformed)?;
            Ok((entry.number(1)?, place.strip_prefix('.').unwrap_or(place).to_owned()))
        })?;
        if FOREIGN_MOUNTS.contains(&place.as_str()) {
            continue;
        }
        let is_proc = kind == Some(PROC) && (place == "/proc" || place.starts_with("/proc/"));
        if place == "/" || is_proc {
            entries.push(entry);
            continue;
        }
        // External by the key alone; the older way to say it would contradict that.
        let external =
            within(name, || with(&entry, &[13, 18], |written| written.bytes(18, place.as_bytes())))?;
        entries.push(external);
        places.insert(place);
    }
    folder.replace(name, &[COMMON, MOUNTPOINTS], &entries)?;
    Ok(places)
}

/// `CORE_MAGIC` and `MNTS_MAGIC` of criu/include/magic.h.
const CORE: u32 = 0x5505_3847;
const MOUNTPOINTS: u32 = 0x5556_3928;

impl Folder {
    /// Gives a thread its profile. Those of the dead have no credentials.
    fn label(&self, thread: u64, profile: Option<&str>) -> Result<(), Objection> {
        let name = format!("core-{thread}.img");
        let core = self.one(&name)?;
        let labelled = within(&name, || {
            let parsed = Message::parse(&core)?;
            let Some(inner) = parsed.bytes(5)? else { return Ok(None) };
            let Some(creds) = Message::parse(inner)?.bytes(10)? else { return Ok(None) };
            // The profile, for sockets made later, and what only criu's AppArmor has.
            let creds = with(creds, &[15, 16, 17], |written| {
                if let Some(profile) = profile {
                    written.bytes(15, profile.as_bytes());
                }
            })?;
            let inner = with(inner, &[10], |written| written.bytes(10, &creds))?;
            with(&core, &[5], |written| written.bytes(5, &inner)).map(Some)
        })?;
        match labelled {
            Some(core) => self.replace(&name, &[COMMON, CORE], &[core]),
            None => Ok(()),
        }
    }

    /// Writes an image anew.
    fn replace(&self, name: &str, magic: &[u32], entries: &[Vec<u8>]) -> Result<(), Objection> {
        let mut bytes: Vec<u8> = magic.iter().flat_map(|number| number.to_le_bytes()).collect();
        for entry in entries {
            let len = u32::try_from(entry.len()).map_err(|_| damaged(name))?;
            bytes.extend(len.to_le_bytes());
            bytes.extend(entry);
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = || -> io::Result<()> {
            let file = rustix::fs::openat(&self.fd, NEW, flags, Mode::from_raw_mode(0o600))?;
            std::fs::File::from(file).write_all(&bytes)?;
            Ok(rustix::fs::renameat(&self.fd, NEW, &self.fd, name)?)
        };
        write().map_err(|error| io_of(name, error))
    }
}
