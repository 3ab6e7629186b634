//! `doctor`: what this machine offers, what is off because of what it does not, and what was left behind.
//!
//! Nothing is changed: features are tried on objects that end with the process, folders are only looked at.

mod daemon;
mod kernel;
mod node;

use std::time::Duration;

use serde::Serialize;

use crate::args::{DoctorArgs, Output};
use crate::failure::{Done, Failure};
use crate::render::{Table, print, print_value, say};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Health {
    /// As it should be.
    Ok,
    /// Something optional is missing.
    Off,
    /// It could not be checked.
    Unknown,
    /// Something that is needed is missing, or something is here that should not be.
    Wrong,
}

/// The outcome of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub area: &'static str,
    /// What of it.
    pub check: String,
    /// How it went.
    pub health: Health,
    /// What was seen, or why it could not be.
    pub detail: String,
    /// What is off because of it.
    #[serde(skip_serializing_if = "is_empty")]
    pub consequence: &'static str,
}

impl Finding {
    /// As it should be.
    pub fn ok(area: &'static str, check: impl Into<String>, detail: impl Into<String>) -> Finding {
        Finding { area, check: check.into(), health: Health::Ok, detail: detail.into(), consequence: "" }
    }

    /// Not as it should be.
    pub fn not_ok(
        area: &'static str,
        check: impl Into<String>,
        health: Health,
        detail: impl Into<String>,
        consequence: &'static str,
    ) -> Finding {
        Finding { area, check: check.into(), health, detail: detail.into(), consequence }
    }
}

fn is_empty(text: &&str) -> bool {
    text.is_empty()
}

#[derive(Serialize)]
struct Report<'a> {
    healthy: bool,
    checks: &'a [Finding],
}

/// Looks at everything; 1 if something is wrong.
pub(crate) async fn doctor(endpoint: &str, timeout: Duration, args: &DoctorArgs) -> Done {
    let (of_daemon, folders) = daemon::check(endpoint, timeout, args).await;
    let conf_dir = args.cni_conf_dir.clone();
    // On a thread of its own: the probes block, and some enter namespaces.
    let host = tokio::task::spawn_blocking(move || {
        let mut findings = kernel::check();
        findings.extend(node::check(&folders, &conf_dir));
        findings
    });
    let mut findings = host.await.map_err(|error| Failure::new(format!("the checks died: {error}")))?;
    findings.extend(of_daemon);
    let healthy = is_healthy(&findings);
    if args.output != Output::Table {
        let report = serde_json::to_value(Report { healthy, checks: &findings });
        let report = report.map_err(|error| Failure::new(format!("could not print the report: {error}")))?;
        print_value(args.output, &report)?;
    } else {
        print(&table(&findings, args.quiet))?;
        say(&summary(&findings));
    }
    Ok(if healthy { 0 } else { 1 })
}

fn is_healthy(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.health != Health::Wrong)
}

fn table(findings: &[Finding], quiet: bool) -> String {
    let mut table = Table::new(&["AREA", "CHECK", "STATE", "DETAIL"]);
    for finding in findings.iter().filter(|finding| !quiet || finding.health != Health::Ok) {
        let state = match finding.health {
            Health::Ok => "ok",
            Health::Off => "off",
            Health::Unknown => "?",
            Health::Wrong => "WRONG",
        };
        let detail = match (finding.detail.is_empty(), finding.consequence.is_empty()) {
            (false, false) => format!("{}: {}", finding.detail, finding.consequence),
            (true, _) => finding.consequence.to_owned(),
            (_, true) => finding.detail.clone(),
        };
        table.row([finding.area, &finding.check, state, &detail]);
    }
    table.text()
}

fn summary(findings: &[Finding]) -> String {
    let count = |health| findings.iter().filter(|finding| finding.health == health).count();
    match count(Health::Wrong) {
        0 => format!("healthy; {} off, {} could not be checked", count(Health::Off), count(Health::Unknown)),
        1 => "1 thing is wrong".to_owned(),
        wrong => format!("{wrong} things are wrong"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_for_people() {
        let findings = [
            Finding::ok("kernel", "clone3", ""),
            Finding::not_ok(
                "kernel",
                "userns",
                Health::Off,
                "not permitted",
                "no pods with users of their own",
            ),
            Finding::not_ok("leftover", "mount", Health::Wrong, "/x", ""),
        ];
        let expected = "\
AREA       CHECK    STATE   DETAIL
kernel     clone3   ok
kernel     userns   off     not permitted: no pods with users of their own
leftover   mount    WRONG   /x
";
        assert_eq!(table(&findings, false), expected);
        assert!(!table(&findings, true).contains("clone3"));
        assert_eq!(summary(&findings), "1 thing is wrong");
        assert!(!is_healthy(&findings) && is_healthy(&findings[..2]));
    }

    #[test]
    fn the_host_can_be_looked_at_by_anybody() {
        // Whatever the machine: every check has an outcome, and none hangs or leaves a mount.
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
        let before = mounts();
        let findings = kernel::check();
        assert!(findings.len() > 10, "{findings:?}");
        assert_eq!(mounts(), before);
    }
}
