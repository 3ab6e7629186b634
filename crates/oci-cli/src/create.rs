//! `create`: everything up to the hold point.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use bowline_launch::{Launched, Report};
use bowline_linux::clone::{Cloned, ns};
use bowline_model::signal::Signal;
use bowline_plan::{Compiled, Descriptor};
use rustix::fs::{Mode, OFlags};

use crate::args::CreateArgs;
use crate::bundle::{self, Bundle};
use crate::groups::Groups;
use crate::hierarchies::Hierarchies;
use crate::hooks::OnTheWay;
use crate::process::{self, Identity};
use crate::store::{self, Folder, Record, Status, Store};
use crate::{hooks, launching, wait};

/// How long a killed process may take to end, in milliseconds.
const KILL_LIMIT: i64 = 10_000;

/// Makes a container.
pub(crate) fn create(store: &Store, wish: &CreateArgs) -> Result<()> {
    make(store, wish).map(drop)
}

/// Makes a container; its process is our child.
pub(crate) fn make(store: &Store, wish: &CreateArgs) -> Result<OwnedFd> {
    store::check_id(&wish.id)?;
    let bundle = Bundle::load(&wish.bundle)?;
    let console = console(&bundle, wish.console_socket.as_deref())?;
    let hierarchies = Hierarchies::discover()?;
    let compiled = bundle.compile(&wish.id, &hierarchies.layout)?;
    for note in &compiled.notes {
        eprintln!("bowline oci: warning: {note}");
    }
    let (folder, _locked) = store.make(&wish.id)?;
    let groups = match Groups::look(&hierarchies, &compiled.plan.cgroups) {
        Ok(groups) => groups,
        Err(error) => {
            folder.remove()?;
            return Err(error);
        }
    };
    let mut making =
        Making { wish, bundle, compiled, hierarchies, groups, folder, child: None, record: None };
    match making.go(console.as_ref()) {
        Ok(child) => Ok(child.pidfd),
        Err(error) => {
            making.undo();
            Err(error)
        }
    }
}

/// The socket for the terminal: both are asked for, or none.
fn console(bundle: &Bundle, socket: Option<&Path>) -> Result<Option<UnixStream>> {
    match (bundle.terminal(), socket) {
        (false, None) => Ok(None),
        (true, None) => bail!("process.terminal: needs --console-socket"),
        (false, Some(_)) => bail!("--console-socket: process.terminal is not set"),
        (true, Some(path)) => {
            let connected = UnixStream::connect(path);
            connected.map(Some).with_context(|| format!("--console-socket: connect to {}", path.display()))
        }
    }
}

/// A container half made, and what to undo.
struct Making<'a> {
    wish: &'a CreateArgs,
    bundle: Bundle,
    compiled: Compiled,
    hierarchies: Hierarchies,
    groups: Groups,
    folder: Folder,
    child: Option<Cloned>,
    record: Option<Record>,
}

impl Making<'_> {
    fn go(&mut self, console: Option<&UnixStream>) -> Result<Cloned> {
        let mut on_the_way = OnTheWay::new(self.compiled.hooks.as_ref(), &self.bundle.path)?;
        let launched = self.launch(on_the_way.as_ref())?;
        let pid = launched.process.pid;
        let sync = launched.sync;
        self.child = Some(launched.process);
        let record = self.describe(pid, sync.as_raw_fd())?;
        // As early as this, so that `delete --force` finds the process if we are killed on the way.
        self.folder.write_record(&record)?;
        self.record = Some(record);
        self.wait_for_hold(pid, &sync, console, on_the_way.as_mut())?;
        self.folder.write_plan(&self.compiled.plan)?;
        let record = self.record.as_mut().context("the record is gone")?;
        record.ready = true;
        self.folder.write_record(record)?;
        store::write_pid(self.wish.pid_file.as_deref(), pid).context("--pid-file")?;
        self.child.take().context("the process is gone")
    }

    fn launch(&mut self, on_the_way: Option<&OnTheWay>) -> Result<Launched> {
        let mut descriptors = bundle::open_all(&self.compiled.descriptors)?;
        let gate = rustix::fs::open(self.folder.fifo(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        self.compiled.plan.hold =
            Some(u16::try_from(descriptors.len()).context("mounts: too many descriptors")?);
        descriptors.push(gate.context("open the FIFO")?);
        // A PID namespace is entered by being born in it.
        let is_pids = |descriptor: &Descriptor| matches!(descriptor, Descriptor::Namespace { flag, .. } if *flag == ns::PID);
        let pids = self.compiled.descriptors.iter().position(is_pids);
        let pids = pids.and_then(|at| descriptors.get(at)).map(|pids| pids.as_fd());
        let hooks = on_the_way.map(|way| (self.bundle.rootfs.as_path(), way.hooks()));
        launching::start(&self.folder, &self.hierarchies, &self.compiled.plan, &descriptors, pids, hooks)
    }

    fn describe(&self, pid: i32, sync: i32) -> Result<Record> {
        Ok(Record {
            id: self.wish.id.clone(),
            oci_version: self.bundle.spec.oci_version.clone(),
            bundle: self.bundle.path.clone(),
            rootfs: self.bundle.rootfs.clone(),
            annotations: self.bundle.spec.annotations.clone(),
            created: jiff::Timestamp::now().to_string(),
            process: Identity::of(pid)?,
            sync,
            groups: self.groups.clone(),
            hooks: self.compiled.hooks.clone().unwrap_or_default(),
            intel_rdt: self.compiled.intel_rdt.clone(),
            ready: false,
        })
    }

    /// Gives the container what is the host's: once it is in its namespaces, and before any hook looks.
    fn give(&self, pid: i32) -> Result<()> {
        if !self.compiled.net_devices.is_empty() {
            let path = format!("/proc/{pid}/ns/net");
            let network = rustix::fs::open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            let network = network.with_context(|| format!("open {path}"))?;
            for (host, name) in &self.compiled.net_devices {
                bowline_cni::move_device(network.as_fd(), host, name).context("linux.netDevices")?;
            }
        }
        match &self.compiled.intel_rdt {
            Some(rdt) => {
                Ok(bowline_resctrl::apply(Path::new(bowline_resctrl::ROOT), &self.wish.id, rdt, pid)?)
            }
            None => Ok(()),
        }
    }

    fn wait_for_hold(
        &self,
        pid: i32,
        sync: &OwnedFd,
        console: Option<&UnixStream>,
        mut on_the_way: Option<&mut OnTheWay>,
    ) -> Result<()> {
        let mut given = false;
        loop {
            let report = bowline_launch::receive(sync.as_fd()).context("hear from the process")?;
            if matches!(report, Report::Held | Report::Waiting) && !std::mem::replace(&mut given, true) {
                self.give(pid)?;
            }
            match report {
                Report::Held => return Ok(()),
                Report::Waiting => {
                    let record = self.record.as_ref().context("the process came before its record")?;
                    let hooks = on_the_way.as_mut().context("the process waits for no hook")?;
                    hooks.pass(record)?;
                }
                Report::Console(master) => {
                    let socket = console.context("a terminal came that nobody asked for")?;
                    let sent = bowline_linux::message::send(socket.as_fd(), b"/dev/ptmx", &[master.as_fd()]);
                    sent.context("--console-socket: send the terminal")?;
                }
                Report::Failed(failure) => return Err(launching::failed(&self.compiled.plan, failure)),
                // Only in a user namespace, which bundles cannot ask for.
                Report::Became(..) => {}
                Report::Running => return Err(launching::vanished()),
            }
        }
    }

    /// Leaves things as they were. Whatever cannot be undone is told; the error that led here comes after it.
    fn undo(&mut self) {
        if let Some(child) = self.child.take() {
            let _ = process::signal(&child.pidfd, Signal::KILL.number());
            if let Ok(true) = process::ended(&child.pidfd, Some(KILL_LIMIT)) {
                let _ = wait::reap(&child.pidfd);
            }
        }
        let told = |outcome: Result<()>| {
            if let Err(error) = outcome {
                eprintln!("bowline oci: warning: {error:#}");
            }
        };
        told(self.groups.signal(&self.hierarchies, Signal::KILL).map(drop));
        told(self.groups.remove(&self.hierarchies));
        if let Some(record) = &self.record {
            told(record.leave_class());
        }
        // Hooks have run, so those that clean up after them have to.
        if let Some(record) = &self.record
            && let Ok(state) = record.state_json(Status::Stopped)
        {
            hooks::run_all("poststop", &record.hooks.poststop, &record.bundle, &state);
        }
        told(self.folder.remove());
    }
}
