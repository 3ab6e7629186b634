//! criu as a child of a pod's monitor: in the pod's network, IPC and UTS namespace, so that criu takes them for its own and
//! leaves them alone, but in the host's mount and PID namespace, where its files and processes are.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use bowline_criu::Service;
use bowline_launch_plan::{Credentials, JoinNamespace, LaunchPlan};
use bowline_linux::clone::ns;
use bowline_monitor_proto::{Answer, Request};
use tokio::sync::oneshot;

use super::Criu;
use crate::PodError;
use crate::error::doing;
use crate::monitor::{Monitor, MonitorError, sealed};

/// The highest capability number that there can be; unknown ones are not held.
const LAST: u32 = 63;

/// Its end is waited for by this.
pub(super) type Ended = oneshot::Receiver<i32>;

/// criu's command line, for one request over its standard input.
pub(super) fn argv(criu: &Criu) -> Result<Vec<CString>, PodError> {
    let path = CString::new(criu.path.as_os_str().as_bytes()).map_err(doing("name criu"))?;
    Ok(vec![path, c"swrk".into(), c"0".into()])
}

/// The mount namespace that criu runs in.
pub(super) fn mounts() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/self/ns/mnt")?.into())
}

/// Starts criu, and tells of its end. `output` is where it prints to.
pub(super) async fn start(
    monitor: &Monitor,
    criu: &Criu,
    output: BorrowedFd<'_>,
) -> Result<(Service, u64, Ended), PodError> {
    let what = "start criu";
    let plan = plan(criu)?;
    let memory = sealed(&plan.encode()).map_err(doing(what))?;
    let mounts = mounts().map_err(doing(what))?;
    let (ours, theirs) = bowline_linux::message::pair().map_err(doing(what))?;
    let descriptors = [memory.as_fd(), theirs.as_fd(), output, output, mounts.as_fd()];
    let (operation, reply, ended) = monitor.exec(Request::Run, &descriptors).map_err(doing(what))?;
    let (answer, _) = reply.await.map_err(|_| doing(what)(MonitorError::Lost))?;
    match answer {
        Answer::Launched { .. } => Ok((Service::new(ours), operation, ended)),
        Answer::Failed { stage, detail, errno, text } => {
            Err(crate::start::launch_error(&plan, stage, detail, errno, &text))
        }
        other => Err(PodError::failed(what, format!("the monitor answered {other:?}"))),
    }
}

fn plan(criu: &Criu) -> Result<LaunchPlan, PodError> {
    // All that we have: so has the monitor.
    let own =
        bowline_linux::process::capabilities::current(LAST).map_err(doing("look at our own capabilities"))?;
    let (_, permitted, bounding) = own;
    let mut plan = LaunchPlan::new(argv(criu)?);
    plan.envp = vec![c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()];
    plan.join_namespaces = vec![JoinNamespace { fd: 0, flags: ns::MOUNT }];
    plan.credentials = Credentials { bounding, effective: permitted, permitted, ..Credentials::default() };
    Ok(plan)
}
