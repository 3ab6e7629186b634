//! systemd, by its own command.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::Failure;

pub(super) const SERVICE: &str = "bowline.service";
pub(super) const SOCKET: &str = "bowline.socket";

/// Whether it is this machine's init (sd_booted(3)).
pub(super) fn runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

pub(super) fn systemctl(args: &[&str]) -> Result<(), Failure> {
    let output = Command::new("systemctl").args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure::io("run systemctl", error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::hint(
        format!("`systemctl {}` failed: {}", args.join(" "), said.trim()),
        "`journalctl -u bowline` for the daemon's own words",
    ))
}

/// Whether the daemon runs as a unit.
pub(super) fn is_active() -> bool {
    systemctl(&["is-active", "--quiet", SERVICE]).is_ok()
}

/// Whether systemd has the unit.
pub(super) fn knows(unit: &str) -> bool {
    systemctl(&["cat", unit]).is_ok()
}
