//! `exec`: a further process in a running container.

use std::ffi::CString;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail};
use bowline_launch::{Launched, Report};
use bowline_launch_plan::{Credentials, LaunchPlan};
use bowline_plan::{ExecRequest, ExecUser, exec_plan};

use crate::args::ExecArgs;
use crate::hierarchies::Hierarchies;
use crate::store::{self, Status, Store};
use crate::wait::Signals;
use crate::{launching, wait};

/// Runs it, waits for it unless told not to, and returns its exit code.
pub(crate) fn exec(store: &Store, wish: &ExecArgs) -> Result<u8> {
    if wish.tty {
        bail!("--tty is not supported");
    }
    let (folder, record) = store.read(&wish.id)?;
    let (status, live) = record.look()?;
    let live = match live {
        Some(live) if status == Status::Running => live,
        _ => bail!("container {} is {}; processes run only in a running one", wish.id, status.word()),
    };
    let container = folder.plan()?;
    let request = ExecRequest {
        argv: texts("CMD", &wish.command)?,
        env: environment(&wish.env)?,
        user: wish.user.as_deref().map(|text| user(text, &container.credentials)).transpose()?,
        cwd: wish.cwd.as_deref().map(CString::new).transpose().context("--cwd")?,
        ..ExecRequest::default()
    };
    let plan = exec_plan(&container, &request)?;
    let hierarchies = Hierarchies::discover()?.ordered_as(&record.groups.layout)?;
    let signals = if wish.detach { None } else { Some(Signals::catch()?) };
    let door = [live.pidfd];
    let launched = launching::start(&folder, &hierarchies, &plan, &door, Some(door[0].as_fd()), None)?;
    if let Err(error) = hear(&launched, &plan) {
        // Not left to whoever adopts it: until it is taken, it keeps the container's PID namespace from ending.
        wait::reap(&launched.process.pidfd)?;
        return Err(error);
    }
    store::write_pid(wish.pid_file.as_deref(), launched.process.pid).context("--pid-file")?;
    match signals {
        Some(signals) => wait::follow(&launched.process.pidfd, &signals),
        None => Ok(0),
    }
}

/// Hears that the program runs, or why the process is about to end.
fn hear(launched: &Launched, plan: &LaunchPlan) -> Result<()> {
    loop {
        match launched.report().context("hear from the process")? {
            Report::Running => return Ok(()),
            Report::Failed(failure) => return Err(launching::failed(plan, failure)),
            Report::Console(_) | Report::Held | Report::Waiting | Report::Became(..) => {}
        }
    }
}

fn texts(field: &str, list: &[String]) -> Result<Vec<CString>> {
    let texts = list.iter().map(|text| CString::new(text.as_str())).collect::<Result<_, _>>();
    texts.with_context(|| field.to_owned())
}

fn environment(lines: &[String]) -> Result<Vec<CString>> {
    if let Some(line) = lines.iter().find(|line| line.find('=').is_none_or(|at| at == 0)) {
        bail!("--env {line:?}: is no NAME=VALUE");
    }
    texts("--env", lines)
}

/// Whatever is not said is the container's.
fn user(text: &str, container: &Credentials) -> Result<ExecUser> {
    let number = |text: &str| {
        let number = text.parse().ok().filter(|number| *number != u32::MAX);
        number.with_context(|| format!("--user: {text:?} is no number of a user or group"))
    };
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (number(uid)?, number(gid)?),
        None => (number(text)?, container.gid),
    };
    Ok(ExecUser { uid, gid, groups: container.groups.clone() })
}
