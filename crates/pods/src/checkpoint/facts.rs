//! The small files of an archive: what checkpointctl, containerd and CRI-O write there too, and one of our own.
//!
//! Formats: checkpointctl's lib/metadata.go; containerd's internal/cri/store/container/status.go for `status.dump`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use bowline_model::container::Life;
use bowline_store::ContainerRecord;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::PodError;
use crate::create::Stored;
use crate::error::doing;

/// Folder of criu's images in an archive.
pub(super) const IMAGES: &str = "checkpoint";
/// What the container changed of its image, as a layer.
pub(super) const DIFF: &str = "rootfs-diff.tar";
/// What it deleted, where that is not said there; CRI-O's.
pub(super) const DELETED: &str = "deleted.files";
pub(super) const CONFIG: &str = "config.dump";
pub(super) const SPEC: &str = "spec.dump";
const STATUS: &str = "status.dump";
const NETWORK: &str = "network.status";
/// What only we need.
pub(super) const OWN: &str = "bowline.dump";
/// The longest of these that is read.
const MAX_FILE: u64 = 16 << 20;
/// Names of a container's one terminal.
const MAX_TERMINALS: usize = 2;
/// Version of [`Own`].
const VERSION: u32 = 1;

/// `config.dump`, as far as it is read.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    /// The container's id.
    pub id: String,
    /// Its name in its pod.
    pub name: String,
    /// The image as it was asked for.
    #[serde(default)]
    pub rootfs_image: String,
    /// The image's id.
    #[serde(default)]
    pub rootfs_image_ref: String,
    /// A digest reference of it.
    #[serde(default)]
    pub rootfs_image_name: String,
    #[serde(default)]
    runtime: String,
    created_time: String,
    checkpointed_time: String,
    restored_time: String,
    restored: bool,
}

/// `bowline.dump`: what criu's images do not say in words of the request.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Own {
    pub version: u32,
    /// Version of criu.
    pub criu: String,
    /// Release of the kernel.
    pub kernel: String,
    /// criu's names for standard input, output and error; empty: it is something of the container's own.
    pub descriptors: [String; 3],
    /// criu's names for the terminal: that of the device, and that of /dev/tty. Empty without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terminals: Vec<String>,
    /// Mount points, and the path in the request that each was asked for by. They differ where the image has a symlink.
    pub mounts: BTreeMap<String, String>,
}

impl Own {
    pub(super) fn new(
        criu: &str,
        descriptors: [String; 3],
        terminals: Vec<String>,
        mounts: BTreeMap<String, String>,
    ) -> Own {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Own { version: VERSION, criu: criu.to_owned(), kernel, descriptors, terminals, mounts }
    }
}

/// Writes all of them into a folder.
pub(super) fn write(
    folder: &Path,
    record: &ContainerRecord,
    stored: &Stored,
    life: &Life,
    network: &str,
    own: &Own,
) -> io::Result<()> {
    let zero = "0001-01-01T00:00:00Z".to_owned();
    let config = Config {
        id: record.id.to_string(),
        name: record.spec.name.clone(),
        rootfs_image: record.spec.image.image.clone(),
        rootfs_image_ref: record.image.id.clone(),
        rootfs_image_name: record.image.reference.clone(),
        runtime: "bowline".to_owned(),
        created_time: time(record.created_at),
        checkpointed_time: time(crate::shared::now()),
        restored_time: zero,
        restored: false,
    };
    let mut spec = serde_json::to_value(&stored.spec)?;
    // checkpointctl takes whoever writes no `io.container.manager` for containerd, and looks for the name here.
    if let Some(spec) = spec.as_object_mut() {
        let annotations = spec.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations
                .insert("io.kubernetes.cri.container-name".to_owned(), record.spec.name.clone().into());
        }
    }
    let started_at = match life {
        Life::Running { started_at, .. } | Life::Stopping { started_at, .. } => *started_at,
        _ => 0,
    };
    let status = json!({
        "CreatedAt": record.created_at, "StartedAt": started_at, "FinishedAt": 0, "ExitCode": 0,
        "Pid": life.pid().unwrap_or(0), "Reason": "", "Message": "",
    });
    let network: Value = serde_json::from_str(network).unwrap_or_else(|_| json!({}));
    for (name, value) in [
        (CONFIG, serde_json::to_value(config)?),
        (SPEC, spec),
        (STATUS, status),
        (NETWORK, network),
        (OWN, serde_json::to_value(own)?),
    ] {
        std::fs::write(folder.join(name), serde_json::to_vec_pretty(&value)?)?;
    }
    Ok(())
}

/// The names of the small files, in the order of an archive.
pub(super) const FILES: [&str; 5] = [CONFIG, SPEC, STATUS, NETWORK, OWN];

fn time(nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(nanos.into()).map(|time| time.to_string()).unwrap_or_default()
}

/// A folder that an archive was unpacked into: nothing in it is opened through a link, and nothing but plain files.
pub(crate) struct Unpacked<'a>(pub(crate) &'a Path);

impl Unpacked<'_> {
    /// Opens a file by its name in the folder.
    pub(super) fn open(&self, name: &str) -> Result<File, PodError> {
        let what = || format!("read {name} of the checkpoint");
        let open = |flags| self.open_as(name, flags);
        // Looked at before it is opened: opening a device can do anything.
        let place = match open(OFlags::PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PodError::Invalid(format!("the checkpoint has no {name}")));
            }
            other => other.map_err(doing(what()))?,
        };
        let stat = fstat(place).map_err(io::Error::from);
        let stat = stat.map_err(doing(what()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            return Err(PodError::Invalid(format!("{name} of the checkpoint is no plain file")));
        }
        Ok(open(OFlags::RDONLY).map_err(doing(what()))?.into())
    }

    /// Opens a folder, to list it.
    pub(super) fn folder(&self, name: &str) -> Result<OwnedFd, PodError> {
        let found = self.open_as(name, OFlags::RDONLY | OFlags::DIRECTORY);
        found.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                PodError::Invalid(format!("the checkpoint has no folder {name}"))
            }
            _ => doing(format!("read {name} of the checkpoint"))(error),
        })
    }

    /// Whether there is anything of that name.
    pub(super) fn has(&self, name: &str) -> Result<bool, PodError> {
        match self.open_as(name, OFlags::PATH) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(doing(format!("look for {name} of the checkpoint"))(error)),
        }
    }

    fn open_as(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(self.0, folder, Mode::empty())?;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(openat2(&folder, name, flags, Mode::empty(), inside)?)
    }

    /// Reads one of the small files.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, PodError> {
        let mut text = Vec::new();
        let mut file = self.open(name)?.take(MAX_FILE + 1);
        file.read_to_end(&mut text).map_err(doing(format!("read {name} of the checkpoint")))?;
        if text.len() as u64 > MAX_FILE {
            return Err(PodError::Invalid(format!(
                "{name} of the checkpoint is longer than {MAX_FILE} bytes"
            )));
        }
        serde_json::from_slice(&text)
            .map_err(|error| PodError::Invalid(format!("{name} of the checkpoint makes no sense: {error}")))
    }

    /// Our own file.
    pub(super) fn own(&self) -> Result<Own, PodError> {
        let own: Own = self.read(OWN)?;
        if own.version != VERSION {
            return Err(PodError::Invalid(format!(
                "{OWN} of the checkpoint has version {}, and this daemon reads {VERSION}",
                own.version
            )));
        }
        // Keys for criu: its own words, and of each kind one form.
        let known = |key: &String| key.is_empty() || key.starts_with("pipe:[") || key.starts_with("file[");
        let is_terminal = |key: &String| {
            let numbers = key.strip_prefix("tty[").and_then(|rest| rest.strip_suffix(']')?.split_once(':'));
            let hex =
                |text: &str| (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
            numbers.is_some_and(|(rdev, dev)| hex(rdev) && hex(dev))
        };
        let terminals = own.terminals.len() <= MAX_TERMINALS && own.terminals.iter().all(is_terminal);
        if !terminals || !own.descriptors.iter().all(known) {
            return Err(PodError::Invalid(format!(
                "{OWN} of the checkpoint names descriptors that there are not"
            )));
        }
        Ok(own)
    }
}

/// Mount points of an archive whose paths are all in a request.
pub(super) fn asked_for(own: &Own, wanted: &BTreeSet<String>) -> Result<BTreeSet<String>, PodError> {
    match own.mounts.iter().find(|(_, asked)| !wanted.contains(*asked)) {
        Some((_, path)) => Err(PodError::State(format!(
            "the checkpoint has a mount at {path}, which the request has not; a restored container has the mounts of its request"
        ))),
        None => Ok(own.mounts.keys().cloned().collect()),
    }
}
