//! User, groups and capabilities.

use bowline_launch_plan::Credentials;
use bowline_model::capability::{all, bit, names};
use bowline_model::runtime_spec::Process;

use crate::PlanError;

/// Who the process is. Capabilities that this kernel does not know are left out, with a note; names that nobody
/// knows are errors.
pub(crate) fn credentials(
    process: &Process,
    last_cap: u32,
    notes: &mut Vec<String>,
) -> Result<Credentials, PlanError> {
    let user = &process.user;
    // The last number means "unchanged" to setuid(2).
    if user.uid == u32::MAX {
        return Err(PlanError::invalid("process.user.uid", "4294967295 is no user id"));
    }
    if user.gid == u32::MAX || user.additional_gids.contains(&u32::MAX) {
        return Err(PlanError::invalid("process.user.gid", "4294967295 is no group id"));
    }
    if user.umask.is_some_and(|umask| umask > 0o777) {
        return Err(PlanError::invalid("process.user.umask", "goes from 0 to 0777"));
    }
    let sets = process.capabilities.clone().unwrap_or_default();
    let mut unknown = 0;
    let mut set = |field: &str, list: &[String]| {
        let set = parse(field, list)?;
        unknown |= set & !all(last_cap);
        Ok::<u64, PlanError>(set & all(last_cap))
    };
    let credentials = Credentials {
        uid: user.uid,
        gid: user.gid,
        groups: user.additional_gids.clone(),
        umask: user.umask,
        no_new_privs: process.no_new_privileges,
        bounding: set("process.capabilities.bounding", &sets.bounding)?,
        effective: set("process.capabilities.effective", &sets.effective)?,
        permitted: set("process.capabilities.permitted", &sets.permitted)?,
        inheritable: set("process.capabilities.inheritable", &sets.inheritable)?,
        ambient: set("process.capabilities.ambient", &sets.ambient)?,
    };
    if unknown != 0 {
        notes.push(format!(
            "capabilities left out, this kernel has none of them: {}",
            names(unknown).join(", ")
        ));
    }
    if credentials.effective & !credentials.permitted != 0 {
        return Err(PlanError::invalid(
            "process.capabilities.effective",
            "holds more than the permitted set",
        ));
    }
    if credentials.ambient & !(credentials.permitted & credentials.inheritable) != 0 {
        let reason = "holds more than the permitted and inheritable sets";
        return Err(PlanError::invalid("process.capabilities.ambient", reason));
    }
    Ok(credentials)
}

fn parse(field: &str, list: &[String]) -> Result<u64, PlanError> {
    list.iter().try_fold(0, |set, name| {
        let bit =
            bit(name).ok_or_else(|| PlanError::invalid(field, format!("there is no capability {name:?}")))?;
        Ok(set | bit)
    })
}
