//! Who the process becomes: labels, groups, user, capabilities.

use bowline_launch_plan::LaunchPlan;
use bowline_linux::process::capabilities;
use rustix::fs::{Gid, Mode, OFlags, Uid};

use crate::Prepared;
use crate::child::{Outcome, at, io_at};
use crate::report::Stage;

/// The highest capability number that any kernel has had so far may be passed; unknown ones are skipped.
const LAST: u32 = 63;

/// Names the label that exec takes, through a procfs that no container has touched.
pub(crate) fn label(prepared: &Prepared<'_>) -> Outcome {
    let plan = prepared.request.plan;
    if let Some(profile) = &plan.apparmor {
        // "exec NAME", joined on the stack.
        let mut text = [0u8; 512];
        let name = profile.as_bytes();
        let len = 5 + name.len();
        if len > text.len() {
            return Err(at(Stage::Label, 0)(rustix::io::Errno::NAMETOOLONG));
        }
        text[..5].copy_from_slice(b"exec ");
        text[5..len].copy_from_slice(name);
        write(prepared, c"thread-self/attr/apparmor/exec", &text[..len]).map_err(at(Stage::Label, 0))?;
    }
    if let Some(label) = &plan.selinux {
        write(prepared, c"thread-self/attr/exec", label.as_bytes()).map_err(at(Stage::Label, 1))?;
        // Keys are asked for by label as files are. The session's keyring is the daemon's until here; a kernel without
        // keyrings has none to share.
        match write(prepared, c"thread-self/attr/keycreate", label.as_bytes()) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(at(Stage::Label, 2)(errno)),
        }
        match bowline_linux::process::new_session_keyring() {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOSYS.raw_os_error()) => {}
            other => other.map_err(io_at(Stage::Label, 3))?,
        }
    }
    Ok(())
}

fn write(prepared: &Prepared<'_>, path: &std::ffi::CStr, text: &[u8]) -> Result<(), rustix::io::Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(prepared.launcher.procfs, path, flags, Mode::empty())?;
    rustix::io::write(&file, text).map(drop)
}

/// Takes groups, user and capability sets of the plan. The order matters: the bounding set can be cut only while
/// CAP_SETPCAP is there, groups set only while CAP_SETGID is.
pub(crate) fn take(plan: &LaunchPlan) -> Outcome {
    let wish = &plan.credentials;
    let failed = || io_at(Stage::Credentials, 0);
    rustix::process::umask(Mode::from_raw_mode(wish.umask.unwrap_or(0o022)));
    capabilities::limit_bounding(wish.bounding, LAST).map_err(failed())?;
    capabilities::keep_over_setuid(true).map_err(failed())?;
    set_groups(&wish.groups)?;
    let (uid, gid) = (Uid::from_raw(wish.uid), Gid::from_raw(wish.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(Stage::Credentials, 2))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(Stage::Credentials, 3))?;
    capabilities::set(wish.effective, wish.permitted, wish.inheritable)
        .map_err(io_at(Stage::Credentials, 4))?;
    capabilities::keep_over_setuid(false).map_err(failed())?;
    capabilities::raise_ambient(wish.ambient, LAST).map_err(io_at(Stage::Credentials, 5))?;
    if wish.no_new_privs {
        rustix::thread::set_no_new_privs(true).map_err(at(Stage::Credentials, 6))?;
    }
    Ok(())
}

fn set_groups(groups: &[u32]) -> Outcome {
    bowline_linux::process::set_groups(groups).map_err(io_at(Stage::Credentials, 1))
}
