//! Features of the kernel, found out by using them.

use std::io;

use bowline_pods::kernel::FEATURES;

use super::{Finding, Health};

const AREA: &str = "kernel";

/// Tries them all.
pub(super) fn check() -> Vec<Finding> {
    let is_root = rustix::process::geteuid().is_root();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut findings = vec![Finding::ok(AREA, "release", release)];
    for feature in FEATURES {
        findings.push(match feature.try_out() {
            Ok(detail) => Finding::ok(AREA, feature.name, detail),
            Err(error) if !is_root && error.kind() == io::ErrorKind::PermissionDenied => {
                Finding::not_ok(AREA, feature.name, Health::Unknown, "only root can try", "")
            }
            Err(error) => {
                let health = if feature.required { Health::Wrong } else { Health::Off };
                Finding::not_ok(AREA, feature.name, health, error.to_string(), feature.without)
            }
        });
    }
    findings
}
