//! What the daemon says: its conditions, and what is left behind.

use std::time::Duration;

use bowline_cri_proto::{admin, v1};

use super::node::Folders;
use super::{Finding, Health};
use crate::args::DoctorArgs;
use crate::client::{Client, socket_path};

/// Looks twice, a second apart.
const LOOK: Duration = Duration::from_secs(30);

/// Asks the daemon; also where its folders are, else those of the flags.
pub(super) async fn check(endpoint: &str, timeout: Duration, args: &DoctorArgs) -> (Vec<Finding>, Folders) {
    let mut folders = Folders { root: args.root.clone(), state: args.state.clone() };
    let client = match Client::connect(endpoint, timeout).await {
        Ok(client) => client,
        Err(failure) => {
            // A machine before its first start is not ill; a socket that nobody answers is.
            let is_there = socket_path(endpoint).is_ok_and(|path| path.exists());
            let health = if is_there { Health::Wrong } else { Health::Unknown };
            let text = failure.text().unwrap_or_default();
            let text = text.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
            let consequence = "nobody can say what was left behind";
            return (vec![Finding::not_ok("daemon", "connection", health, text, consequence)], folders);
        }
    };
    let mut findings = conditions(&client).await;
    let request = client.request_within(admin::LeftoversRequest {}, LOOK);
    match client.admin().leftovers(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            if !answer.root.is_empty() {
                folders = Folders { root: answer.root.clone().into(), state: answer.state.clone().into() };
            }
            findings.extend(leftovers(answer));
        }
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            let text = "this runtime has no admin service: it is not Bowline, or an older one";
            findings.push(Finding::not_ok("leftovers", "search", Health::Unknown, text, ""));
        }
        Err(status) => {
            findings.push(Finding::not_ok("leftovers", "search", Health::Wrong, status.message(), ""));
        }
    }
    (findings, folders)
}

async fn conditions(client: &Client) -> Vec<Finding> {
    let request = client.request(v1::StatusRequest { verbose: true });
    match client.runtime().status(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let conditions = answer.status.unwrap_or_default().conditions;
            let checkpoint = answer.info.get("checkpoint").map(|text| checkpoint(text));
            let driver = answer.info.get("cgroupDriver");
            let driver = driver.map(|text| Finding::ok("daemon", "cgroup driver", text.as_str()));
            let apparmor = answer.info.get("apparmor").map(|text| apparmor(text));
            let selinux = answer.info.get("selinux").map(|text| selinux(text));
            let modules = apparmor.into_iter().chain(selinux);
            conditions.into_iter().map(condition).chain(driver).chain(checkpoint).chain(modules).collect()
        }
        Err(status) => vec![Finding::not_ok("daemon", "status", Health::Wrong, status.message(), "")],
    }
}

/// Only Bowline says a word about it.
fn checkpoint(text: &str) -> Finding {
    match text.strip_prefix("no: ") {
        None => Finding::ok("daemon", "checkpoint", text),
        Some(why) => Finding::not_ok("daemon", "checkpoint", Health::Off, why, "no checkpoint and restore"),
    }
}

/// Only Bowline says a word about this, too.
fn apparmor(text: &str) -> Finding {
    if text.starts_with("default profile ") {
        return Finding::ok("daemon", "AppArmor", text);
    }
    Finding::not_ok(
        "daemon",
        "AppArmor",
        Health::Off,
        text,
        "containers that name no AppArmor profile have none",
    )
}

/// And about this.
fn selinux(text: &str) -> Finding {
    if matches!(text, "enforcing" | "permissive") {
        return Finding::ok("daemon", "SELinux", text);
    }
    Finding::not_ok("daemon", "SELinux", Health::Off, text, "containers have no SELinux labels")
}

fn condition(condition: v1::RuntimeCondition) -> Finding {
    let detail = match (condition.reason.is_empty(), condition.message.is_empty()) {
        (false, false) => format!("{}: {}", condition.reason, condition.message),
        _ => format!("{}{}", condition.reason, condition.message),
    };
    match (condition.status, condition.r#type.as_str()) {
        (true, _) => Finding::ok("daemon", condition.r#type, detail),
        (false, "NetworkReady") => Finding::not_ok(
            "daemon",
            condition.r#type,
            Health::Off,
            detail,
            "only pods on the host's network",
        ),
        (false, _) => Finding::not_ok("daemon", condition.r#type, Health::Wrong, detail, "no pods"),
    }
}

fn leftovers(answer: admin::LeftoversResponse) -> Vec<Finding> {
    let mut findings = Vec::new();
    for text in answer.unseen {
        findings.push(Finding::not_ok("leftovers", "search", Health::Unknown, text, "there may be more"));
    }
    if answer.leftovers.is_empty() {
        findings.push(Finding::ok("leftovers", "search", format!("nothing of instance {}", answer.instance)));
    }
    for leftover in answer.leftovers {
        let detail = match leftover.detail.is_empty() {
            true => leftover.name,
            false => format!("{} ({})", leftover.name, leftover.detail),
        };
        findings.push(Finding::not_ok("leftovers", leftover.kind, Health::Wrong, detail, ""));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_wrong() {
        let leftover = admin::Leftover { kind: "mount".into(), name: "/x".into(), detail: "tmpfs".into() };
        let answer = admin::LeftoversResponse {
            leftovers: vec![leftover],
            unseen: vec!["network: no".into()],
            ..Default::default()
        };
        let found = leftovers(answer);
        assert_eq!((found[0].health, found[1].health), (Health::Unknown, Health::Wrong));
        assert_eq!(found[1].detail, "/x (tmpfs)");
        assert_eq!(leftovers(admin::LeftoversResponse::default())[0].health, Health::Ok);
    }

    #[test]
    fn a_missing_network_is_not_an_illness() {
        let absent = v1::RuntimeCondition { r#type: "NetworkReady".into(), ..Default::default() };
        assert_eq!(condition(absent).health, Health::Off);
        let down = v1::RuntimeCondition { r#type: "RuntimeReady".into(), ..Default::default() };
        assert_eq!(condition(down).health, Health::Wrong);
    }
}
