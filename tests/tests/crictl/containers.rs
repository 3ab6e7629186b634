//! Containers: made, listed, changed, read and removed.

use crate::{Crictl, LIMIT, text};
use bowline_tests::wait_for;

/// Prints, and waits; prints more or ends when told to.
const TALKS: &str = "echo to stdout; echo to stderr >&2; echo $$ > /pid; \
                     trap 'exit 3' TERM; trap 'echo later' USR1; while :; do sleep 1 & wait; done";

fn main_pod(crictl: &Crictl) -> String {
    crictl.ok(&["pods", "-q", "--name", "main"]).trim().to_owned()
}

pub(crate) fn find(crictl: &Crictl, name: &str) -> String {
    crictl.ok(&["ps", "-a", "-q", "--no-trunc", "--name", &format!("^{name}$")]).trim().to_owned()
}

pub(crate) fn make(crictl: &Crictl) {
    let main = main_pod(crictl);
    let (busybox, pod) = (crictl.image("busybox:1"), crictl.pod("main"));
    let locked = format!("{}/locked:1", crictl.locked.host());
    let talks = crictl.container("talks", &busybox, TALKS, "");
    let id = crictl.id(&["create", "--no-pull", "--cancel-timeout", "20s", &main, &talks, &pod]);
    crictl.says(&["start", &id], &[&id]);
    crictl.ok(&["rmi", &locked]);
    let private = crictl.container("private", &locked, "sleep 1000", "");
    crictl.fails(&["create", "--with-pull", &main, &private, &pod], "401");
    let by_creds =
        ["create", "--with-pull", "--creds", "anna:secret", "--pull-timeout", "20s", &main, &private, &pod];
    let private_id = crictl.id(&by_creds);
    crictl.ok(&["rm", &private_id]);
    crictl.ok(&["rmi", &locked]);
    let by_auth = ["create", "--with-pull", "--auth", "YW5uYTpzZWNyZXQ=", &main, &private, &pod];
    crictl.ok(&["rm", &crictl.id(&by_auth)]);

    crictl.ok(&["rmi", &locked]);
    let run = crictl.pod("run");
    crictl.fails(&["run", "--no-pull", &private, &run], "locked");
    let ran =
        crictl.id(&["run", "--with-pull", "--creds", "anna:secret", "--pull-timeout", "20s", &private, &run]);
    crictl.says(&["ps"], &[&ran[..13]]);
    crictl.ok(&["rmp", "-f", crictl.ok(&["pods", "-q", "--name", "^run$"]).trim()]);
    let more =
        ["run", "--with-pull", "--auth", "YW5uYTpzZWNyZXQ=", "--cancel-timeout", "20s", &private, &run];
    crictl.id(&more);
    crictl.ok(&["rmp", "-f", crictl.ok(&["pods", "-q", "--name", "^run$"]).trim()]);
    crictl.fails(&["run", "--no-pull", "--runtime", "nothing-like-it", &talks, &run], "nothing-like-it");
}

pub(crate) fn lists(crictl: &Crictl) {
    let (main, busybox, pod) = (main_pod(crictl), crictl.image("busybox:1"), crictl.pod("main"));
    let talks = find(crictl, "talks");
    let quiet = crictl.container("quiet", &busybox, "true", "");
    let quiet = crictl.id(&["create", &main, &quiet, &pod]);
    crictl.says(&["ps"], &["talks", "Running", "main", &talks[..13]]);
    crictl.says(&["ps", "-a", "-v"], &[&format!("ID: {quiet}"), "State: Created", "role -> quiet"]);
    crictl.says(&["ps", "--no-trunc", "-o", "yaml"], &[&talks]);
    crictl.says(&["ps", "-a", "--resolve-image-path"], &["busybox:1"]);
    crictl.ids(&["ps", "-q"], &[&talks]);
    crictl.ids(&["ps", "-a", "-q"], &[&talks, &quiet]);
    crictl.ids(&["ps", "-a", "-q", "--id", &quiet[..12]], &[&quiet]);
    crictl.ids(&["ps", "-a", "-q", "--label", "role=quiet"], &[&quiet]);
    crictl.ids(&["ps", "-a", "-q", "--name", "quiet"], &[&quiet]);
    crictl.ids(&["ps", "-a", "-q", "--namespace", "^crictl$"], &[&talks, &quiet]);
    crictl.ids(&["ps", "-a", "-q", "--namespace", "elsewhere"], &[]);
    crictl.ids(&["ps", "-a", "-q", "--pod", &main], &[&talks, &quiet]);
    crictl.ids(&["ps", "-a", "-q", "--image", &busybox], &[&talks, &quiet]);
    crictl.ids(&["ps", "-q", "--state", "created"], &[&quiet]);
    crictl.ids(&["ps", "-q", "--latest"], &[&quiet]);
    crictl.ids(&["ps", "-q", "--last", "1"], &[&quiet]);

    crictl.says(&["inspect", &talks], &["CONTAINER_RUNNING", "\"pid\"", "\"runtimeSpec\"", "\"logPath\""]);
    let brief = crictl.says(&["inspect", "-q", "-o", "yaml", &talks[..12]], &["state: CONTAINER_RUNNING"]);
    assert!(!brief.contains("runtimeSpec"), "{brief}");
    let template = ["inspect", "-o", "go-template", "--template", "{{.info.pid}}", &talks];
    let pid: u32 = crictl.ok(&template).trim().parse().expect("a pid");
    assert!(text(format!("/proc/{pid}/cmdline").as_ref()).contains("to stdout"));
    crictl.says(&["inspect", "-o", "table", "--name", "^quiet$", "--all"], &["quiet"]);
    crictl.says(&["inspect", "--latest"], &[&quiet]);
    crictl.says(&["inspect", "--last", "1", "--state", "created"], &[&quiet]);
    crictl.says(&["inspect", "--label", "role=talks", "--namespace", "crictl"], &[&talks]);
    crictl.says(&["inspect", "--pod", &main, "--image", &busybox], &[&talks]);
    crictl.fails(&["inspect", &"0".repeat(64)], "0000");
    crictl.ok(&["rm", &quiet]);
}

pub(crate) fn change(crictl: &Crictl) {
    let talks = find(crictl, "talks");
    let limits =
        ["--cpu-period", "50000", "--cpu-quota", "20000", "--cpu-share", "512", "--memory", "67108864"];
    let more = ["--cpuset-cpus", "0", "--cpuset-mems", "0", "--oom-score-adj", "900"];
    crictl.says(&[&["update"][..], &limits, &more, &[&talks]].concat(), &[&talks]);
    let inspected = crictl.ok(&["inspect", &talks]);
    for word in ["\"cpuQuota\": \"20000\"", "\"cpuShares\": \"512\"", "\"memoryLimitInBytes\": \"67108864\""]
    {
        assert!(inspected.contains(word), "{word}: {inspected}");
    }
    let (v1, v2) = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max");
    let limit = crictl.ok(&["exec", "-s", &talks, "sh", "-c", &format!("cat {v1} 2>/dev/null || cat {v2}")]);
    assert_eq!(limit.trim(), "67108864", "in the container");
    crictl.fails(&["update", "--cpuset-cpus", "4000", &talks], "cpuset");
    crictl.says(&["stats"], &["talks", &talks[..13]]);
    crictl.says(&["stats", "-a", "--id", &talks, "-o", "json"], &["usageCoreNanoSeconds", "workingSetBytes"]);
    crictl.says(&["stats", "--label", "role=talks", "-o", "yaml"], &["writableLayer"]);
    crictl.says(&["stats", "--pod", &main_pod(crictl), "--seconds", "1"], &["talks"]);
    crictl.says(&["stats", &talks], &["talks"]);
    crictl.watch(&["stats", "--watch", "--seconds", "1"], &["talks"], || {});
}

pub(crate) fn logs(crictl: &Crictl) {
    let talks = find(crictl, "talks");
    let both = || crictl.ok(&["logs", &talks]).lines().count() == 1;
    wait_for("both lines are in the log", LIMIT, || {
        let output = crictl.command(&[], &["logs", &talks]).output().expect("start crictl");
        output.stdout == b"to stdout\n" && output.stderr == b"to stderr\n"
    });
    assert!(both());
    assert_eq!(crictl.ok(&["logs", "--stream", "stderr", &talks]), "");
    assert_eq!(crictl.ok(&["logs", "--stream", "stdout", &talks]), "to stdout\n");
    assert_eq!(crictl.ok(&["logs", "--tail", "0", &talks]), "");
    assert_eq!(crictl.ok(&["logs", "--limit-bytes", "2", "--stream", "stdout", &talks]), "to");
    assert_eq!(crictl.ok(&["logs", "--since", "1h", &talks]), "to stdout\n");
    assert_eq!(crictl.ok(&["logs", "--since", "2090-01-01T00:00:00", &talks]), "");
    let stamped = crictl.ok(&["logs", "--timestamps", "--stream", "stdout", &talks]);
    assert!(
        stamped.starts_with("20") && stamped.contains("T") && stamped.ends_with("to stdout\n"),
        "{stamped}"
    );
    let write = || {
        crictl.ok(&["exec", "-s", &talks, "sh", "-c", "kill -USR1 $(cat /pid)"]);
    };
    crictl.watch(&["logs", "--follow", &talks], &["to stdout", "later"], write);
    let log = crictl.path("logs/talks.log");
    let old = crictl.path("logs/talks.log.1");
    std::fs::rename(&log, &old).unwrap();
    crictl.ok(&["logs", "--reopen", &talks]);
    write();
    wait_for("the new file has the line", LIMIT, || text(&log).contains("later"));
    assert!(text(&old).contains("to stdout") && !text(&log).contains("to stdout"));
    previous(crictl);
}

/// The log of the attempt before.
fn previous(crictl: &Crictl) {
    let (main, busybox, pod) = (main_pod(crictl), crictl.image("busybox:1"), crictl.pod("main"));
    let mut ids = Vec::new();
    for attempt in ["1", "2"] {
        let text = format!(
            r#"{{"metadata": {{"name": "again", "attempt": {attempt}}}, "image": {{"image": "{busybox}"}},
                "labels": {{"io.kubernetes.container.name": "again"}},
                "command": ["/bin/echo", "attempt {attempt}"], "log_path": "again/{attempt}.log"}}"#
        );
        let id = crictl.id(&["create", &main, &crictl.write("again.json", &text), &pod]);
        crictl.ok(&["start", &id]);
        wait_for("it ended", LIMIT, || {
            crictl.ok(&["ps", "-q", "--state", "exited", "--id", &id]).contains(&id)
        });
        ids.push(id);
    }
    assert_eq!(crictl.ok(&["logs", &ids[1]]), "attempt 2\n");
    assert_eq!(crictl.ok(&["logs", "--previous", &ids[1]]), "attempt 1\n");
    crictl.ok(&["rm", "--keep-logs", &ids[0]]);
    assert!(crictl.path("logs/again/1.log").exists());
    crictl.ok(&["rm", &ids[1]]);
    assert!(!crictl.path("logs/again/2.log").exists());
}

pub(crate) fn end(crictl: &Crictl) {
    let talks = find(crictl, "talks");
    checkpoint(crictl, &talks);
    crictl.fails(&["rm", &talks], "running");
    crictl.says(&["stop", "--timeout", "10", &talks], &[&talks]);
    let code =
        ["inspect", "-o", "go-template", "--template", "{{.status.exitCode}} {{.status.reason}}", &talks];
    assert_eq!(crictl.ok(&code).trim(), "3 Error");
    crictl.ok(&["rm", &talks]);
    let (main, busybox, pod) = (main_pod(crictl), crictl.image("busybox:1"), crictl.pod("main"));
    for name in ["a", "b"] {
        let id = crictl.id(&["create", &main, &crictl.container(name, &busybox, "sleep 1000", ""), &pod]);
        crictl.ok(&["start", &id]);
    }
    crictl.ok(&["stop", "--all"]);
    crictl.ids(&["ps", "-q"], &[]);
    let id = crictl.id(&["create", &main, &crictl.container("c", &busybox, "sleep 1000", ""), &pod]);
    crictl.ok(&["start", &id]);
    crictl.ok(&["rm", "--force", &id]);
    crictl.ok(&["rm", "--all"]);
    crictl.ids(&["ps", "-a", "-q"], &[]);
}

/// Where criu works an archive is written; elsewhere the answer says why not.
fn checkpoint(crictl: &Crictl, id: &str) {
    let archive = crictl.file("checkpoint.tar");
    let output =
        crictl.command(&[], &["checkpoint", "--export", &archive, id]).output().expect("start crictl");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        assert!(std::fs::metadata(&archive).is_ok_and(|meta| meta.len() > 1000), "{said}");
    } else {
        assert!(said.contains("Unimplemented"), "{said}");
    }
}
