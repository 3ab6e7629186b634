//! What the process sees of itself and around it.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::unix::ffi::OsStrExt as _;

use crate::say;

/// The fields of /proc/self/status that are shown, with the names they get.
const STATUS: &[(&str, &str)] = &[
    ("Uid", "uids"),
    ("Gid", "gids"),
    ("Groups", "groups"),
    ("CapInh", "cap.inheritable"),
    ("CapPrm", "cap.permitted"),
    ("CapEff", "cap.effective"),
    ("CapBnd", "cap.bounding"),
    ("CapAmb", "cap.ambient"),
    ("NoNewPrivs", "no_new_privs"),
    ("Seccomp", "seccomp"),
    ("Seccomp_filters", "seccomp.filters"),
];

pub(crate) fn perform(name: &str, rest: &[&str]) -> Option<io::Result<()>> {
    Some(match (name, rest) {
        ("ids", []) => ids(),
        ("env", []) => env(),
        ("args", []) => args(),
        ("cwd", []) => std::env::current_dir().map(|path| say("cwd", path.as_os_str().as_bytes())),
        ("host", []) => host(),
        ("ns", []) => namespaces(),
        ("mounts", []) => lines("mount", "/proc/self/mountinfo"),
        ("cgroup", []) => lines("cgroup", "/proc/self/cgroup"),
        ("limits", []) => lines("limit", "/proc/self/limits"),
        ("fds", []) => {
            fs::read_dir("/proc/self/fd").map(|entries| say("fds", entries.count().to_string().as_bytes()))
        }
        ("terminal", []) => terminal(),
        ("stdin", []) => stdin(),
        ("procs", []) => processes(),
        ("attr", []) => label(),
        ("oom-score", []) => read_into("oom_score_adj", "/proc/self/oom_score_adj"),
        _ => return None,
    })
}

fn ids() -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    for line in status.lines() {
        let Some((field, value)) = line.split_once(':') else { continue };
        if let Some((_, name)) = STATUS.iter().find(|(wanted, _)| *wanted == field) {
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            say(name, value.as_bytes());
        }
    }
    let process = std::process::id();
    say("pid", process.to_string().as_bytes());
    Ok(())
}

/// Each variable as it is in the process' own block, doubles and all.
fn env() -> io::Result<()> {
    let block = fs::read("/proc/self/environ")?;
    for variable in block.split(|byte| *byte == 0).filter(|variable| !variable.is_empty()) {
        let at = variable.iter().position(|byte| *byte == b'=').unwrap_or(variable.len());
        let value = variable.get(at + 1..).unwrap_or_default();
        say(&format!("env.{}", variable[..at].escape_ascii()), value);
    }
    Ok(())
}

fn args() -> io::Result<()> {
    for (index, word) in std::env::args_os().enumerate() {
        say(&format!("args.{index}"), word.as_bytes());
    }
    Ok(())
}

fn host() -> io::Result<()> {
    let uname = rustix::system::uname();
    say("hostname", uname.nodename().to_bytes());
    Ok(())
}

fn namespaces() -> io::Result<()> {
    for kind in ["net", "ipc", "pid", "uts", "mnt", "cgroup", "user"] {
        let link = fs::read_link(format!("/proc/self/ns/{kind}"))?;
        say(&format!("ns.{kind}"), link.as_os_str().as_bytes());
    }
    Ok(())
}

fn lines(key: &str, path: &str) -> io::Result<()> {
    for (index, line) in fs::read_to_string(path)?.lines().enumerate() {
        say(&format!("{key}.{index}"), line.as_bytes());
    }
    Ok(())
}

fn read_into(key: &str, path: &str) -> io::Result<()> {
    let bytes = fs::read(path)?;
    say(key, bytes.trim_ascii_end());
    Ok(())
}

/// SELinux has the NUL at a label's end shown, AppArmor a newline.
fn label() -> io::Result<()> {
    let bytes = fs::read("/proc/self/attr/current")?;
    let text = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    say("attr", text.trim_ascii_end());
    Ok(())
}

fn terminal() -> io::Result<()> {
    let on = [io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal()];
    say("terminal", on.map(|yes| if yes { b'y' } else { b'n' }).as_slice());
    Ok(())
}

fn stdin() -> io::Result<()> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    say("stdin.bytes", bytes.len().to_string().as_bytes());
    say("stdin", &bytes[..bytes.len().min(4096)]);
    Ok(())
}

/// `proc.PID=PPID STATE COMM ARGUMENTS` for each process that /proc shows.
fn processes() -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let Some((start, fields)) = stat.rsplit_once(") ") else { continue };
        let comm = start.split_once('(').map_or("", |(_, comm)| comm);
        let mut fields = fields.split(' ');
        let (state, parent) = (fields.next().unwrap_or("?"), fields.next().unwrap_or("?"));
        say(&format!("proc.{pid}"), format!("{parent} {state} {comm} {words}").as_bytes());
    }
    Ok(())
}
