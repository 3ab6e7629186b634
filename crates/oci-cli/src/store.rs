//! What one call leaves for the next: a folder per container below the root folder.
//!
//! ```text
//!   ROOT/ID/state.json   the record, written whole or not at all
//!   ROOT/ID/plan         the launch plan, for exec
//!   ROOT/ID/start        FIFO: the byte that ends the hold
//!   ROOT/ID/mount        empty; the root is assembled on it, in the child's mount namespace only
//!   ROOT/ID/lock         held while a call changes the container
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bowline_launch_plan::LaunchPlan;
use bowline_model::runtime_spec::{Hooks, IntelRdt};
use rustix::fs::{CWD, FlockOperation, Mode, fcntl_lock, mkfifoat};
use serde::{Deserialize, Serialize};

use crate::groups::Groups;
use crate::process::{Identity, Live};

/// All containers.
pub(crate) struct Store {
    root: PathBuf,
}

/// The folder of one container.
pub(crate) struct Folder {
    path: PathBuf,
}

/// Keeps other calls from changing the container. A POSIX lock: the child of a launch does not inherit it.
pub(crate) struct Locked {
    _file: File,
}

/// What is known of a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) oci_version: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) annotations: BTreeMap<String, String>,
    /// RFC 3339.
    pub(crate) created: String,
    pub(crate) process: Identity,
    /// The number under which the process, until it is started, has the launcher's end of its sync socket.
    pub(crate) sync: i32,
    pub(crate) groups: Groups,
    pub(crate) hooks: Hooks,
    /// Its class of service. Older records have none.
    #[serde(default)]
    pub(crate) intel_rdt: Option<IntelRdt>,
    /// `create` came to its end.
    pub(crate) ready: bool,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

/// The state as the OCI has it; `rootfs` and `created` are runc's additions.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State<'a> {
    oci_version: &'a str,
    pub(crate) id: &'a str,
    pub(crate) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<i32>,
    pub(crate) bundle: &'a Path,
    rootfs: &'a Path,
    pub(crate) created: &'a str,
    annotations: &'a BTreeMap<String, String>,
}

impl Record {
    /// Takes away its class of service, if that is its own.
    pub(crate) fn leave_class(&self) -> Result<()> {
        let Some(rdt) = &self.intel_rdt else { return Ok(()) };
        bowline_resctrl::remove(Path::new(bowline_resctrl::ROOT), &self.id, rdt)
            .context("linux.intelRdt: remove the container's class")
    }

    /// Where it stands, and its process if that has not ended.
    pub(crate) fn look(&self) -> Result<(Status, Option<Live>)> {
        let live = self.process.find()?;
        let status = match &live {
            None => Status::Stopped,
            Some(live) if live.executed => Status::Running,
            Some(_) if self.ready => Status::Created,
            Some(_) => Status::Creating,
        };
        Ok((status, live))
    }

    /// For output.
    pub(crate) fn state(&self, status: Status) -> State<'_> {
        State {
            oci_version: &self.oci_version,
            id: &self.id,
            status,
            pid: (status != Status::Stopped).then_some(self.process.pid),
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
        }
    }

    /// For hooks.
    pub(crate) fn state_json(&self, status: Status) -> Result<Vec<u8>> {
        Ok(serde_json::to_vec(&self.state(status))?)
    }
}

impl Status {
    /// The word that the OCI has for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Stopped => "stopped",
        }
    }
}

impl Store {
    pub(crate) fn new(root: PathBuf) -> Store {
        Store { root }
    }

    /// Makes the folder of a new container, whose name has been checked.
    pub(crate) fn make(&self, id: &str) -> Result<(Folder, Locked)> {
        let root = std::path::absolute(&self.root)?;
        let builder = |recursive| {
            let mut builder = DirBuilder::new();
            builder.mode(0o700).recursive(recursive);
            builder
        };
        builder(true).create(&root).with_context(|| format!("make {}", root.display()))?;
        let folder = Folder { path: root.join(id) };
        match builder(false).create(&folder.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("container {id} is there already")
            }
            made => made.with_context(|| format!("make {}", folder.path.display()))?,
        }
        let inside = || {
            builder(false).create(folder.mount_point())?;
            mkfifoat(CWD, folder.fifo(), Mode::RUSR | Mode::WUSR)?;
            folder.lock()
        };
        match inside().with_context(|| format!("fill {}", folder.path.display())) {
            Ok(locked) => Ok((folder, locked)),
            Err(error) => {
                let _ = fs::remove_dir_all(&folder.path);
                Err(error)
            }
        }
    }

    /// The folder of a container that exists.
    pub(crate) fn find(&self, id: &str) -> Result<Option<Folder>> {
        check_id(id)?;
        let folder = Folder { path: std::path::absolute(&self.root)?.join(id) };
        Ok(folder.path.is_dir().then_some(folder))
    }

    /// A container to read about.
    pub(crate) fn read(&self, id: &str) -> Result<(Folder, Record)> {
        let folder = self.find(id)?.with_context(|| format!("there is no container {id}"))?;
        let record = folder.record()?.with_context(|| unfinished(id))?;
        Ok((folder, record))
    }

    /// A container to change.
    pub(crate) fn lock(&self, id: &str) -> Result<(Folder, Record, Locked)> {
        let folder = self.find(id)?.with_context(|| format!("there is no container {id}"))?;
        let locked = folder.lock().with_context(|| format!("lock container {id}"))?;
        // Read under the lock: whoever had it before may have changed or removed the container.
        let record = folder.record()?.with_context(|| unfinished(id))?;
        Ok((folder, record, locked))
    }

    /// Everything there is, by name.
    pub(crate) fn all(&self) -> Result<Vec<Record>> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("list {}", self.root.display()))?,
        };
        let mut records = Vec::new();
        for entry in entries {
            // One that comes or goes right now is not there.
            records.extend(Folder { path: entry?.path() }.record()?);
        }
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(records)
    }
}

fn unfinished(id: &str) -> String {
    format!("container {id} was never finished or is being removed; `delete --force` clears it away")
}

/// A name is one part of a path and nothing else.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
    if id.is_empty() || id.len() > 255 || id == "." || id == ".." || !id.bytes().all(allowed) {
        bail!("container ID {id:?}: 1 to 255 of A-Z a-z 0-9 _ + . - make a name");
    }
    Ok(())
}

impl Folder {
    /// The empty folder for the root.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.path.join("mount")
    }

    /// The FIFO at which a created process waits.
    pub(crate) fn fifo(&self) -> PathBuf {
        self.path.join("start")
    }

    pub(crate) fn lock(&self) -> Result<Locked> {
        let mut options = OpenOptions::new();
        let file =
            options.write(true).create(true).truncate(false).mode(0o600).open(self.path.join("lock"))?;
        fcntl_lock(&file, FlockOperation::LockExclusive)?;
        Ok(Locked { _file: file })
    }

    pub(crate) fn record(&self) -> Result<Option<Record>> {
        let path = self.path.join("state.json");
        match fs::read(&path) {
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
                Ok(None)
            }
            text => {
                let text = text.with_context(|| format!("read {}", path.display()))?;
                let record = serde_json::from_slice(&text);
                Ok(Some(record.with_context(|| format!("{} makes no sense", path.display()))?))
            }
        }
    }

    pub(crate) fn write_record(&self, record: &Record) -> Result<()> {
        write_whole(&self.path.join("state.json"), &serde_json::to_vec(record)?, 0o600)
    }

    pub(crate) fn plan(&self) -> Result<LaunchPlan> {
        let path = self.path.join("plan");
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        LaunchPlan::decode(&bytes)
            .map_err(|error| anyhow::anyhow!("{} makes no sense: {error:?}", path.display()))
    }

    pub(crate) fn write_plan(&self, plan: &LaunchPlan) -> Result<()> {
        write_whole(&self.path.join("plan"), &plan.encode(), 0o600)
    }

    pub(crate) fn remove(&self) -> Result<()> {
        // Without its record the container is no longer there, however far the rest comes.
        let _ = fs::remove_file(self.path.join("state.json"));
        fs::remove_dir_all(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

/// Writes a file beside its place and moves it there.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// The process number, for whoever started us.
pub(crate) fn write_pid(path: Option<&Path>, pid: i32) -> Result<()> {
    path.map_or(Ok(()), |path| write_whole(path, pid.to_string().as_bytes(), 0o644))
}
