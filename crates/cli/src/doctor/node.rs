//! The machine beside its kernel: rights, cgroups, network configuration, folders.

use std::fs;
use std::path::{Path, PathBuf};

use bowline_cni::{Cni, CniConfig, NetworkStatus};
use bowline_model::cgroup::CgroupMode;
use bowline_pods::{ApparmorState, SelinuxState};
use rustix::fs::FileType;

use super::{Finding, Health};

/// The daemon's folders.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    pub root: PathBuf,
    pub state: PathBuf,
}

const TMPFS: u64 = 0x0102_1994;

/// Looks at all of it.
pub(super) fn check(folders: &Folders, cni_conf_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![root_user()];
    findings.extend(capabilities());
    findings.extend(cgroups());
    findings.push(security_modules());
    findings.push(apparmor());
    findings.push(selinux());
    findings.push(network(cni_conf_dir));
    findings.push(state_folder(&folders.state));
    findings.extend(root_folder(&folders.root));
    findings
}

fn root_user() -> Finding {
    match rustix::process::geteuid().as_raw() {
        0 => Finding::ok("rights", "root", ""),
        uid => Finding::not_ok(
            "rights",
            "root",
            Health::Wrong,
            format!("user {uid}"),
            "most checks need root, and so does the daemon; try the same as root",
        ),
    }
}

/// Capabilities by number, whether the daemon needs them, and what is off without them.
const CAPABILITIES: &[(u32, &str, Health, &str)] = &[
    (21, "CAP_SYS_ADMIN", Health::Wrong, "no mounts and no namespaces"),
    (12, "CAP_NET_ADMIN", Health::Wrong, "no network for pods"),
    (1, "CAP_DAC_OVERRIDE", Health::Wrong, "files of images cannot be written"),
    (24, "CAP_SYS_RESOURCE", Health::Off, "oom_score_adj and limits cannot be set below those of the daemon"),
    (19, "CAP_SYS_PTRACE", Health::Off, "namespaces of other users' processes cannot be entered"),
    (27, "CAP_MKNOD", Health::Off, "device nodes of images are left out"),
];

fn capabilities() -> Vec<Finding> {
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    let last = last.trim().parse().unwrap_or(40);
    let held = match bowline_linux::process::capabilities::current(last) {
        Ok((effective, _, _)) => effective,
        Err(error) => {
            return vec![Finding::not_ok("rights", "capabilities", Health::Unknown, error.to_string(), "")];
        }
    };
    let finding = |(bit, name, health, consequence): &(u32, &str, Health, &'static str)| {
        if held & (1 << bit) != 0 {
            Finding::ok("rights", *name, "")
        } else {
            Finding::not_ok("rights", *name, *health, "not held", consequence)
        }
    };
    CAPABILITIES.iter().map(finding).collect()
}

/// Controllers by their names on v1 and v2.
const CONTROLLERS: &[(&[&str], Health, &str)] = &[
    (&["memory"], Health::Wrong, "no memory limits"),
    (&["cpu"], Health::Wrong, "no CPU limits"),
    (&["pids"], Health::Wrong, "no limit on processes"),
    (&["cpuset"], Health::Off, "no static CPU or memory policy"),
    (&["io", "blkio"], Health::Off, "no I/O statistics"),
    (&["hugetlb"], Health::Off, "no limits of huge pages"),
];

fn cgroups() -> Vec<Finding> {
    const AREA: &str = "cgroups";
    let (layout, _roots) = match bowline_pods::cgroups() {
        Ok(found) => found,
        Err(error) => {
            return vec![Finding::not_ok(AREA, "hierarchies", Health::Wrong, error.to_string(), "no limits")];
        }
    };
    let mode = match layout.mode() {
        CgroupMode::V2 => Finding::ok(AREA, "mode", "v2"),
        CgroupMode::Hybrid => Finding::ok(AREA, "mode", "hybrid: controllers in v1, v2 to kill and freeze"),
        CgroupMode::V1 => Finding::not_ok(
            AREA,
            "mode",
            Health::Off,
            "v1",
            "no v2 tree: a container is killed process by process",
        ),
    };
    let mut findings = vec![mode];
    if let Ok(chosen) = bowline_pods::ChosenDriver::on_this_machine(bowline_pods::DriverWish::Auto) {
        let detail = format!("{}: {}", chosen.driver, chosen.why);
        findings.push(Finding::ok(AREA, "driver unless configured", detail));
    }
    for (names, health, consequence) in CONTROLLERS {
        let there = names.iter().find(|name| layout.find(name).is_some());
        findings.push(match there {
            Some(name) => Finding::ok(AREA, *name, ""),
            None => Finding::not_ok(AREA, names[0], *health, "not there", consequence),
        });
    }
    findings
}

fn security_modules() -> Finding {
    match fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(text) => Finding::ok("security", "modules", text.trim()),
        Err(error) => Finding::not_ok(
            "security",
            "modules",
            Health::Off,
            format!("/sys/kernel/security/lsm: {error}"),
            "no AppArmor or SELinux as far as can be seen",
        ),
    }
}

/// As seen without a daemon; one that runs has its own line.
fn apparmor() -> Finding {
    let off = |why, consequence| Finding::not_ok("security", "AppArmor", Health::Off, why, consequence);
    match bowline_pods::look_at_apparmor() {
        ApparmorState::Off(why) => {
            off(why, "containers have no AppArmor profile, and those that name one are refused")
        }
        ApparmorState::NoDefault(why) => off(why, "containers that name no AppArmor profile have none"),
        ApparmorState::Default(profile) => {
            Finding::ok("security", "AppArmor", format!("{profile} is loaded"))
        }
    }
}

/// The same for SELinux.
fn selinux() -> Finding {
    let off = |why, consequence| Finding::not_ok("security", "SELinux", Health::Off, why, consequence);
    match bowline_pods::look_at_selinux() {
        SelinuxState::Off(why) => off(why, "labels in requests are ignored"),
        SelinuxState::NoDefaults(why) => {
            off(why, "containers have no SELinux labels, and those that ask for one are refused")
        }
        SelinuxState::On { enforcing: true } => Finding::ok("security", "SELinux", "enforcing"),
        SelinuxState::On { enforcing: false } => Finding::ok("security", "SELinux", "permissive"),
    }
}

/// Reads the configuration as the daemon does, with records in a folder that goes at once.
fn network(conf_dir: &Path) -> Finding {
    const AREA: &str = "network";
    let scratch = match crate::run::random_hex(8) {
        Ok(random) => std::env::temp_dir().join(format!("bowline-doctor-{random}")),
        Err(_) => return Finding::not_ok(AREA, "configuration", Health::Unknown, "no random bytes", ""),
    };
    let mut config = CniConfig::below(&scratch);
    config.conf_dirs = vec![conf_dir.to_owned()];
    let status = Cni::new(config).map(|cni| (cni.status(), cni.needs_netns_path()));
    let _ = fs::remove_dir_all(&scratch);
    match status {
        Ok((NetworkStatus::Ready { network, problems }, external)) => {
            let how = if external { "executes plugins" } else { "built in, executes nothing" };
            if problems.is_empty() {
                Finding::ok(AREA, "configuration", format!("network `{network}`, {how}"))
            } else {
                let detail = format!("network `{network}`; passed over: {}", problems.join("; "));
                Finding::not_ok(
                    AREA,
                    "configuration",
                    Health::Wrong,
                    detail,
                    "not the network that was meant?",
                )
            }
        }
        Ok((NetworkStatus::NotReady { message, .. }, _)) => {
            let is_invalid = message.contains("no valid");
            let health = if is_invalid { Health::Wrong } else { Health::Off };
            Finding::not_ok(AREA, "configuration", health, message, "only pods on the host's network")
        }
        Err(error) => {
            let detail = bowline_pods::chain(&error);
            Finding::not_ok(AREA, "configuration", Health::Unknown, detail, "")
        }
    }
}

/// The folder, or the one above it where it would be made.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

fn state_folder(state: &Path) -> Finding {
    let name = format!("state {}", state.display());
    match rustix::fs::statfs(existing(state)) {
        Ok(stat) if stat.f_type as u64 == TMPFS => Finding::ok("folders", name, "tmpfs"),
        Ok(_) => Finding::not_ok(
            "folders",
            name,
            Health::Off,
            "not on a tmpfs",
            "a full disk can lose exit codes, and what is stale outlives a reboot",
        ),
        Err(errno) => Finding::not_ok("folders", name, Health::Unknown, errno.to_string(), ""),
    }
}

fn root_folder(root: &Path) -> Vec<Finding> {
    let there = existing(root);
    let name = |what: &str| format!("root {}: {what}", root.display());
    let mut findings = Vec::new();
    findings.push(match kinds_in_folders(there) {
        Ok(true) => Finding::ok("folders", name("d_type"), ""),
        Ok(false) => {
            let detail = "the file system has none (XFS with ftype=0?)";
            Finding::not_ok(
                "folders",
                name("d_type"),
                Health::Wrong,
                detail,
                "overlay shows whiteouts as files",
            )
        }
        Err(error) => Finding::not_ok("folders", name("d_type"), Health::Unknown, error.to_string(), ""),
    });
    let value = rustix::fs::getxattr(there, "trusted.overlay.opaque", &mut [0u8; 8][..]);
    findings.push(match value {
        Ok(_) | Err(rustix::io::Errno::NODATA) => Finding::ok("folders", name("xattr"), ""),
        Err(errno) => Finding::not_ok(
            "folders",
            name("xattr"),
            Health::Wrong,
            errno.to_string(),
            "no layer can delete what one below it has",
        ),
    });
    findings
}

fn kinds_in_folders(folder: &Path) -> std::io::Result<bool> {
    let open = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, open, rustix::fs::Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&folder)? {
        if entry?.file_type() == FileType::Unknown {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(files: &[(&str, &str)]) -> Finding {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        network(folder.path())
    }

    #[test]
    fn network_configuration() {
        assert_eq!(conf(&[]).health, Health::Off);
        assert_eq!(conf(&[("10-x.conflist", "{ this is no JSON")]).health, Health::Wrong);
        let good = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "b0", "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}}]}"#;
        let found = conf(&[("10-x.conflist", good)]);
        assert_eq!(
            (found.health, found.detail.as_str()),
            (Health::Ok, "network `pods`, built in, executes nothing")
        );
    }

    #[test]
    fn folders_that_are_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(&folder.path().join("a/b/c")), folder.path());
        assert!(kinds_in_folders(folder.path()).is_ok());
    }
}
