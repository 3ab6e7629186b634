//! Containers from bundles on the real kernel, by the command line: this program is both the tests and, started with
//! `AS_COMMAND` set, `bowline oci` itself. Needs root and a static busybox (Debian's busybox-static).
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod support;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, ExitCode, Stdio};

use clap::{Args as _, FromArgMatches as _};
use serde_json::{Value, json};
use support::{AS_COMMAND, Place, host_busybox, stopped};

fn main() -> ExitCode {
    if std::env::var_os(AS_COMMAND).is_some() {
        let command = bowline_oci_cli::OciArgs::augment_args(clap::Command::new("bowline oci"));
        let args = bowline_oci_cli::OciArgs::from_arg_matches(&command.get_matches()).unwrap();
        return bowline_oci_cli::run(args);
    }
    let tests: [(&str, fn()); 16] = [
        ("a_whole_life", a_whole_life),
        ("exec_takes_user_environment_and_folder", exec_takes_user_environment_and_folder),
        ("run_ends_as_its_program", run_ends_as_its_program),
        ("run_passes_signals_on", run_passes_signals_on),
        ("bad_bundles_name_the_field_and_leave_nothing", bad_bundles_name_the_field_and_leave_nothing),
        ("a_program_that_is_not_there_fails_at_start", a_program_that_is_not_there_fails_at_start),
        ("schedulers_are_told_what_the_spec_says", schedulers_are_told_what_the_spec_says),
        ("cgroups_have_the_limits_and_go", cgroups_have_the_limits_and_go),
        ("hooks_run_in_order_with_the_state", hooks_run_in_order_with_the_state),
        ("a_failing_hook_undoes_the_container", a_failing_hook_undoes_the_container),
        ("a_reused_number_is_never_signalled", a_reused_number_is_never_signalled),
        ("namespaces_of_others_are_joined", namespaces_of_others_are_joined),
        ("links_of_the_host_move_in", links_of_the_host_move_in),
        ("classes_of_service_want_resctrl", classes_of_service_want_resctrl),
        ("a_terminal_goes_to_its_socket", a_terminal_goes_to_its_socket),
        ("names_lists_and_features", names_lists_and_features),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = 0;
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let ok = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += u32::from(!ok);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn a_whole_life() {
    let place = Place::new("life");
    place.bundle(|spec| spec["process"]["args"] = json!(["sh", "-c", "echo ran > /ran; exec sleep 1000"]));
    let ran = place.path("bundle/rootfs/ran");
    place.ok(&["create", "--bundle", &place.bundle_path(), "--pid-file", &place.path("pid"), "c1"]);
    let state = place.state("c1");
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], "c1");
    assert_eq!(state["ociVersion"], "1.2.0");
    assert_eq!(state["bundle"], place.bundle_path());
    assert_eq!(state["annotations"]["a"], "b");
    let pid = state["pid"].as_i64().unwrap();
    assert_eq!(fs::read_to_string(place.path("pid")).unwrap(), pid.to_string());
    assert!(!fs::exists(&ran).unwrap(), "the program ran before its start");
    place.fails(&["exec", "c1", "true"], "is created");
    place.fails(&["delete", "c1"], "is created");
    place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "c1 is there already");

    place.ok(&["start", "c1"]);
    assert_eq!(place.state("c1")["status"], "running");
    assert_eq!(place.state("c1")["pid"], pid);
    place.fails(&["start", "c1"], "is running");
    assert_eq!(
        place.output(&["exec", "c1", "sh", "-c", "cat /ran; hostname; echo $$ > /dev/null"]),
        "ran\nbox\n"
    );
    assert_eq!(place.command(&["exec", "c1", "sh", "-c", "exit 7"]).status().unwrap().code(), Some(7));
    assert_eq!(place.command(&["exec", "c1", "sh", "-c", "kill -9 $$"]).status().unwrap().code(), Some(137));
    place.fails(&["exec", "c1", "no-such-program"], "no-such-program");
    place.fails(&["delete", "c1"], "is running");
    // Of the host's mounts none is left inside.
    let mounts = place.output(&["exec", "c1", "cat", "/proc/self/mounts"]);
    assert!(!mounts.contains("/work") && mounts.lines().count() == 3, "{mounts}");

    place.ok(&["kill", "c1", "KILL"]);
    stopped(pid);
    let state = place.state("c1");
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &Value::Null));
    place.fails(&["kill", "c1", "KILL"], "is stopped");
    place.ok(&["delete", "c1"]);
    place.fails(&["state", "c1"], "there is no container c1");
    place.nothing_left();
}

fn exec_takes_user_environment_and_folder() {
    let place = Place::new("exec");
    place.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    place.ok(&["create", "--bundle", &place.bundle_path(), "c1"]);
    place.ok(&["start", "c1"]);
    let script = "id -u; id -g; pwd; echo $A $B; cat /proc/self/cgroup | grep -c bowline";
    let args =
        ["exec", "--user", "12:34", "--cwd", "/bin", "-e", "A=x", "--env", "B=y", "c1", "sh", "-c", script];
    let output = place.output(&args);
    assert!(output.starts_with("12\n34\n/bin\nx y\n") && !output.ends_with("\n0\n"), "{output}");
    place.fails(&["exec", "--tty", "c1", "true"], "--tty");
    place.fails(&["exec", "--user", "me", "c1", "true"], "--user");
    place.fails(&["exec", "--cwd", "/nowhere", "c1", "true"], "process.cwd");
    // Left to itself, then ended together with all others.
    place.ok(&["exec", "--detach", "--pid-file", &place.path("pid"), "c1", "sleep", "1000"]);
    let further: i64 = fs::read_to_string(place.path("pid")).unwrap().parse().unwrap();
    let first = place.state("c1")["pid"].as_i64().unwrap();
    place.ok(&["kill", "--all", "c1", "9"]);
    stopped(further);
    stopped(first);
    place.ok(&["delete", "c1"]);
    place.nothing_left();
}

fn run_ends_as_its_program() {
    let place = Place::new("run");
    place.bundle(|spec| spec["process"]["args"] = json!(["sh", "-c", "echo out; exit 3"]));
    let output = place.command(&["run", "--bundle", &place.bundle_path(), "c1"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"out\n"[..]), "{output:?}");
    // Without a PID namespace of its own a process can kill itself; those that it leaves behind go too.
    place.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & kill -9 $$"]);
        spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
        spec.as_object_mut().unwrap().remove("hostname");
    });
    let output = place.command(&["run", "--bundle", &place.bundle_path(), "c1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    place.nothing_left();
}

fn run_passes_signals_on() {
    let place = Place::new("signals");
    place.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "trap 'exit 9' TERM; sleep 1000 & echo up; wait"]);
    });
    let mut command = place.command(&["run", "--bundle", &place.bundle_path(), "c1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    place.nothing_left();
}

fn bad_bundles_name_the_field_and_leave_nothing() {
    let place = Place::new("bad");
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 15] = [
        ("ociVersion", |spec| spec["ociVersion"] = json!("2.0.0")),
        ("ociVersion", |spec| drop(spec.as_object_mut().unwrap().remove("ociVersion"))),
        ("process", |spec| drop(spec.as_object_mut().unwrap().remove("process"))),
        ("process.args", |spec| spec["process"]["args"] = json!([])),
        ("process.cwd", |spec| spec["process"]["cwd"] = json!("here")),
        ("process.terminal", |spec| spec["process"]["terminal"] = json!(true)),
        ("root.path", |spec| drop(spec.as_object_mut().unwrap().remove("root"))),
        ("root.path", |spec| spec["root"]["path"] = json!("elsewhere")),
        ("mounts[0].source", |spec| {
            spec["mounts"] = json!([{"destination": "/x", "source": "nowhere", "options": ["bind"]}]);
        }),
        ("/x", |spec| spec["mounts"] = json!([{"destination": "/x", "type": "nofs", "source": "nofs"}])),
        ("hooks.startContainer[0].timeout", |spec| {
            spec["hooks"] = json!({"startContainer": [{"path": "/bin/true", "timeout": 0}]});
        }),
        ("hooks.poststop[0].path", |spec| spec["hooks"] = json!({"poststop": [{"path": "true"}]})),
        ("linux.namespaces[0]", |spec| {
            spec["linux"]["namespaces"] = json!([{"type": "user"}, {"type": "mount"}])
        }),
        ("linux.namespaces: open /nowhere", |spec| {
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network", "path": "/nowhere"}]);
            spec.as_object_mut().unwrap().remove("hostname");
        }),
        ("linux.cgroupsPath", |spec| spec["linux"]["cgroupsPath"] = json!("system.slice:bowline:c1")),
    ];
    for (words, change) in cases {
        place.bundle(change);
        place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], words);
        place.nothing_left();
    }
    fs::write(place.path("bundle/config.json"), "{").unwrap();
    place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "config.json is no runtime spec");
    place.fails(&["create", "--bundle", &place.path("none"), "c1"], "find the bundle");
    place.nothing_left();
}

fn a_program_that_is_not_there_fails_at_start() {
    let place = Place::new("noent");
    place.bundle(|spec| spec["process"]["args"] = json!(["/no/such/program"]));
    place.ok(&["create", "--bundle", &place.bundle_path(), "c1"]);
    let pid = place.state("c1")["pid"].as_i64().unwrap();
    place.fails(&["start", "c1"], "process.args: run \"/no/such/program\": No such file");
    stopped(pid);
    assert_eq!(place.state("c1")["status"], "stopped");
    place.ok(&["delete", "c1"]);
    place.fails(&["run", "--bundle", &place.bundle_path(), "c1"], "process.args");
    place.nothing_left();
}

fn schedulers_are_told_what_the_spec_says() {
    let place = Place::new("scheduling");
    // A child's, since all that a container starts inherits them: policy and niceness are fields of stat.
    let look = "cut -d' ' -f41,19 /proc/self/stat; ionice -p $$; uname -m; head -1 /proc/self/numa_maps | cut -d' ' -f2";
    place.bundle(|spec| {
        let process = &mut spec["process"];
        process["args"] = json!(["sh", "-c", look]);
        process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
        process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
        spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    let output = place.command(&["run", "--bundle", &place.bundle_path(), "c1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let machine = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    assert_eq!(said, format!("5 3\nbest-effort: prio 6\n{machine}\nbind:0\n"), "{output:?}");
    // What this machine has not got is an error that says what was being done.
    place.bundle(|spec| {
        spec["process"]["args"] = json!(["true"]);
        spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "1023"});
    });
    place.fails(&["run", "--bundle", &place.bundle_path(), "c1"], "NUMA policy");
    place.nothing_left();
}

fn cgroups_have_the_limits_and_go() {
    let place = Place::new("cgroups");
    let parent = format!("bowline-oci-test-{}", std::process::id());
    place.bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["linux"]["cgroupsPath"] = json!(format!("/{parent}/below/c1"));
        spec["linux"]["resources"] = json!({"pids": {"limit": 77}});
    });
    place.ok(&["create", "--bundle", &place.bundle_path(), "c1"]);
    let groups = support::groups_below(&parent);
    assert!(!groups.is_empty());
    let limit = groups.iter().find_map(|group| fs::read_to_string(group.join("below/c1/pids.max")).ok());
    assert_eq!(limit.as_deref(), Some("77\n"));
    let pid = place.state("c1")["pid"].to_string();
    let member =
        |group: &std::path::PathBuf| fs::read_to_string(group.join("below/c1/cgroup.procs")).unwrap();
    assert!(groups.iter().all(|group| member(group).trim() == pid));
    // The second one is refused: the group is taken.
    place.fails(&["create", "--bundle", &place.bundle_path(), "c2"], "linux.cgroupsPath");
    place.ok(&["delete", "--force", "c1"]);
    assert!(support::groups_below(&parent).is_empty());
    // What was there before stays.
    for group in &groups {
        fs::create_dir(group).unwrap();
    }
    place.ok(&["create", "--bundle", &place.bundle_path(), "c1"]);
    place.ok(&["delete", "--force", "c1"]);
    assert_eq!(support::groups_below(&parent), groups);
    for group in &groups {
        fs::remove_dir(group).unwrap();
    }
    place.nothing_left();
}

fn hooks_run_in_order_with_the_state() {
    let place = Place::new("hooks");
    let log = place.path("log");
    let busybox = host_busybox();
    let hook = |name: &str| {
        let find = "sed -n 's/.*status.:.\\([a-z]*\\).*/\\1/p'";
        let script = format!("S=$({busybox} {find}); echo \"{name} $S $A ${{OF_HOST-clean}}\" >> {log}");
        json!([{"path": busybox, "args": ["sh", "-c", script], "env": ["A=x"], "timeout": 5}])
    };
    // In the container's namespaces, where it is the first process; with the host's files, and the finished root below.
    let outside = format!(
        "S=$({busybox} cat); case $S in *'\"status\":\"creating\"'*'\"pid\":1,'*) ;; *) exit 1;; esac; \
         cd rootfs && {busybox} test -e proc/1/status && {busybox} test -c dev/null && \
         echo \"createContainer\" >> {log} && echo \"$S\" > made"
    );
    let inside = "S=$(cat); case $S in *'\"status\":\"created\"'*'\"pid\":1,'*) ;; *) exit 1;; esac; id -u > /tmp/started";
    place.bundle(|spec| {
        let script = format!("test -s /made && test $(cat /tmp/started) = 7 && ! test -e {log} && exit 4");
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["process"]["user"] = json!({"uid": 7, "gid": 7});
        spec["mounts"].as_array_mut().unwrap().push(
            json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}),
        );
        spec["hooks"] = json!({
            "poststop": hook("poststop"), "poststart": hook("poststart"),
            "createRuntime": hook("createRuntime"), "prestart": hook("prestart"),
            "createContainer": [{"path": busybox, "args": ["sh", "-c", outside]}],
            "startContainer": [{"path": "/bin/busybox", "args": ["sh", "-c", inside], "env": ["PATH=/bin"]}],
        });
    });
    let mut command = place.command(&["run", "--bundle", &place.bundle_path(), "c1"]);
    assert_eq!(command.env("OF_HOST", "dirty").status().unwrap().code(), Some(4));
    let lines = "prestart creating x clean\ncreateRuntime creating x clean\ncreateContainer\npoststart running x clean\npoststop stopped x clean\n";
    assert_eq!(fs::read_to_string(&log).unwrap(), lines);
    place.nothing_left();
}

fn a_failing_hook_undoes_the_container() {
    let place = Place::new("badhook");
    let busybox = host_busybox();
    let (stop, end) = (place.path("stop"), "exit 5");
    let bundle = |kind: &str, script: &str| {
        place.bundle(|spec| {
            spec["process"]["args"] = json!(["sleep", "1000"]);
            spec["hooks"] = json!({
                "poststop": [{"path": busybox, "args": ["touch", stop]}],
            });
            spec["hooks"][kind] = json!([{"path": busybox, "args": ["sh", "-c", script], "timeout": 1}]);
        });
    };
    bundle("createRuntime", end);
    place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "hooks.createRuntime[0]");
    assert!(fs::exists(&stop).unwrap(), "poststop did not run");
    place.nothing_left();
    bundle("prestart", "exec sleep 1000");
    place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "its timeout");
    place.nothing_left();
    bundle("createContainer", end);
    place.fails(
        &["create", "--bundle", &place.bundle_path(), "c1"],
        "hooks.createContainer[0] ended with exit code 5",
    );
    place.nothing_left();
    bundle("createContainer", "exec sleep 1000");
    place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "at the end of its time");
    place.nothing_left();
    bundle("startContainer", end);
    // The container has a program of that name too.
    let inside = "hooks.startContainer[0] ended with exit code 5";
    place.fails(&["run", "--bundle", &place.bundle_path(), "c1"], inside);
    place.nothing_left();
    bundle("poststart", end);
    place.fails(&["run", "--bundle", &place.bundle_path(), "c1"], "hooks.poststart[0]");
    place.nothing_left();
}

fn a_reused_number_is_never_signalled() {
    let place = Place::new("reused");
    place.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    place.ok(&["create", "--bundle", &place.bundle_path(), "c1"]);
    place.ok(&["start", "c1"]);
    let file = place.path("root/c1/state.json");
    let text = fs::read_to_string(&file).unwrap();
    let mut record: Value = serde_json::from_str(&text).unwrap();
    // As if the container's process had ended and ours had got its number.
    record["process"]["pid"] = json!(std::process::id());
    fs::write(&file, record.to_string()).unwrap();
    assert_eq!(place.state("c1")["status"], "stopped");
    place.fails(&["kill", "c1", "KILL"], "is stopped");
    fs::write(&file, text).unwrap();
    assert_eq!(place.state("c1")["status"], "running");
    place.ok(&["delete", "--force", "c1"]);
    place.nothing_left();
}

fn namespaces_of_others_are_joined() {
    let place = Place::new("join");
    place.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    place.ok(&["create", "--bundle", &place.bundle_path(), "c1"]);
    place.ok(&["start", "c1"]);
    let pid = place.state("c1")["pid"].as_i64().unwrap();
    let of = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    place.bundle(|spec| {
        spec["process"]["args"] =
            json!(["sh", "-c", "cd /proc/self/ns; for n in pid net uts; do busybox readlink $n; done"]);
        spec["linux"]["namespaces"] = json!([
            {"type": "mount"}, {"type": "pid", "path": of("pid")}, {"type": "network", "path": of("net")},
            {"type": "uts", "path": of("uts")},
        ]);
    });
    let output = place.output(&["run", "--bundle", &place.bundle_path(), "c2"]);
    let links =
        ["pid", "net", "uts"].map(|kind| fs::read_link(of(kind)).unwrap().display().to_string() + "\n");
    assert_eq!(output, links.concat());
    assert_eq!(place.state("c1")["status"], "running");
    place.ok(&["delete", "--force", "c1"]);
    place.nothing_left();
}

fn links_of_the_host_move_in() {
    // A "host" of its own for this thread and the commands that it starts.
    let on_a_host = || {
        bowline_linux::netns::unshare_network().unwrap();
        let ip = |words: &str| {
            let output = Command::new("ip").args(words.split(' ')).output().expect("iproute2 is installed");
            assert!(output.status.success(), "ip {words}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let place = Place::new("links");
        // The state says which process to look at.
        let look = r#"nsenter -t $(sed 's/.*"pid": *\([0-9]*\).*/\1/') -n ip -o link"#;
        let look = format!("{look} > {}", place.path("seen"));
        let devices = |devices: Value| {
            place.bundle(|spec| {
                spec["process"]["args"] = json!(["busybox", "ip", "addr", "show"]);
                spec["hooks"]["createRuntime"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", look]}]);
                spec["linux"]["netDevices"] = devices;
            });
        };
        ip("link add given type veth peer name peer1");
        ip("addr add 192.0.2.7/24 dev given");
        devices(json!({"given": {"name": "net7"}}));
        let shown = place.output(&["run", "--bundle", &place.bundle_path(), "c1"]);
        assert!(shown.contains("net7") && shown.contains("192.0.2.7/24"), "{shown}");
        let seen = fs::read_to_string(place.path("seen")).unwrap();
        assert!(seen.contains("net7"), "hooks of the runtime see the link: {seen}");
        assert!(!ip("-o link").contains("given"), "it is on the host still");

        devices(json!({"absent": {}}));
        place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "`absent`");
        devices(json!({"a/b": {}}));
        place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "linux.netDevices");
        place.bundle(|spec| {
            spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}, {"type": "uts"}]);
            spec["linux"]["netDevices"] = json!({"lo": {}});
        });
        place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "has the host's network");
        place.nothing_left();
    };
    std::thread::spawn(on_a_host).join().unwrap();
}

/// No machine that runs this is known to have resctrl; what is done with it is tested beside its code.
fn classes_of_service_want_resctrl() {
    let place = Place::new("resctrl");
    place.bundle(|spec| spec["linux"]["intelRdt"] = json!({"closID": "a/b"}));
    place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "linux.intelRdt.closID");
    place.bundle(|spec| spec["linux"]["intelRdt"] = json!({"schemata": ["L3:0=f"]}));
    if !std::path::Path::new("/sys/fs/resctrl/schemata").exists() {
        place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "mount -t resctrl");
    }
    place.nothing_left();
}

fn a_terminal_goes_to_its_socket() {
    let place = Place::new("terminal");
    place.bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "read line && test -t 0 && echo got $line; read line"]);
        spec["process"]["terminal"] = json!(true);
        let pts = json!({
            "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
        });
        spec["mounts"].as_array_mut().unwrap().push(pts);
    });
    place.fails(&["create", "--bundle", &place.bundle_path(), "c1"], "needs --console-socket");
    let socket = place.path("console");
    place.fails(
        &["create", "--bundle", &place.bundle_path(), "--console-socket", &socket, "c1"],
        "connect to",
    );
    let listener = UnixListener::bind(&socket).unwrap();
    place.ok(&["create", "--bundle", &place.bundle_path(), "--console-socket", &socket, "c1"]);
    let (stream, _) = listener.accept().unwrap();
    let (_, mut sent) = bowline_linux::message::receive(stream.as_fd(), &mut [0u8; 64]).unwrap();
    let mut terminal = File::from(sent.pop().unwrap());
    place.ok(&["start", "c1"]);
    terminal.write_all(b"word\n").unwrap();
    let lines = BufReader::new(terminal.try_clone().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "got word"));
    place.ok(&["delete", "--force", "c1"]);
    place.nothing_left();
}

fn names_lists_and_features() {
    let place = Place::new("names");
    place.bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    for bad in ["a/b", "..", "", "a b", "\u{e9}"] {
        place.fails(&["create", "--bundle", &place.bundle_path(), bad], "container ID");
    }
    assert_eq!(place.output(&["list", "--quiet"]), "");
    for id in ["z", "A_b+c.d-1"] {
        place.ok(&["create", "--bundle", &place.bundle_path(), id]);
    }
    assert_eq!(place.output(&["list", "--quiet"]), "A_b+c.d-1\nz\n");
    let table = place.output(&["list"]);
    assert_eq!(table.lines().filter(|line| line.contains("created")).count(), 2, "{table}");
    let json: Value = serde_json::from_str(&place.output(&["list", "--format", "json"])).unwrap();
    assert_eq!(json[1]["id"], "z");
    for id in ["z", "A_b+c.d-1", "never-there"] {
        place.ok(&["delete", "--force", id]);
    }
    place.fails(&["delete", "never-there"], "there is no container");
    place.fails(&["kill", "z", "SIGNOT"], "there is no signal");
    let features: Value = serde_json::from_str(&place.output(&["features"])).unwrap();
    assert!(features["mountOptions"].as_array().unwrap().contains(&json!("rro")));
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    place.nothing_left();
}
