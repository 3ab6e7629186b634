//! A pod's whole life, shown with the real daemon and the real command line.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use bowline_testkit::busybox;
use bowline_tests::{Daemon, Inventory, wait_for};

fn main() -> ExitCode {
    say("an image from this machine's busybox, in a registry on loopback");
    let Some(image) = busybox() else {
        eprintln!("there is no static busybox: install busybox-static");
        return ExitCode::FAILURE;
    };
    say("the daemon, with folders, socket and network of its own");
    let mut daemon = Daemon::start().without_limit();
    daemon.registry.push("busybox", "1", &image.build());
    let name = format!("{}/busybox:1", daemon.registry.host());
    let before = Inventory::take(daemon.folder());
    let demo = Demo { endpoint: daemon.endpoint() };

    demo.run(&["version"]);
    demo.run(&["pull", &name]);
    demo.run(&["images"]);

    say("two pods");
    let server = "echo 'serving'; mkdir /www; echo 'hello from the other pod' >/www/index.html; exec httpd -f -p 80 -h /www";
    demo.run(&["run", "-d", "--name", "server", &name, "sh", "-c", server]);
    demo.run(&[
        "run",
        "-d",
        "--name",
        "client",
        &name,
        "sh",
        "-c",
        "i=0; while true; do echo line $i; i=$((i+1)); sleep 1; done",
    ]);
    demo.run(&["pods"]);
    demo.run(&["ps"]);

    say("logs, a command in a container, a request from pod to pod");
    wait_for("the server's log", Duration::from_secs(10), || {
        demo.output(&["logs", "server"]).contains("serving")
    });
    demo.run(&["logs", "server"]);
    demo.run(&["exec", "client", "sh", "-c", "hostname; id -u; ip -4 addr show eth0"]);
    let ip = demo.output(&["exec", "server", "sh", "-c", "hostname -i"]).trim().to_owned();
    let url = format!("http://{}/", ip.split_whitespace().next().unwrap_or_default());
    wait_for("the server answers", Duration::from_secs(10), || {
        demo.output(&["exec", "client", "wget", "-qO-", &url]).contains("hello")
    });
    demo.run(&["exec", "client", "wget", "-qO-", &url]);

    say("kill -9 of the daemon; the pods go on, and the next daemon takes them over");
    let lines = demo.output(&["logs", "client"]).lines().count();
    daemon.kill();
    daemon.restart();
    demo.run(&["ps"]);
    wait_for("the log went on", Duration::from_secs(20), || {
        demo.output(&["logs", "client"]).lines().count() > lines + 1
    });
    demo.run(&["logs", "--tail", "3", "client"]);
    demo.run(&["exec", "client", "wget", "-qO-", &url]);

    say("removal, and what is left on the machine");
    demo.run(&["rmp", "-f", "server", "client"]);
    demo.run(&["pods"]);
    before.wait_equal(daemon.folder());
    println!("nothing: mounts, cgroups, links, processes and files are as before the first pod");
    daemon.stop();
    println!("\nthe demo is complete");
    ExitCode::SUCCESS
}

fn say(what: &str) {
    println!("\n== {what}");
}

struct Demo {
    endpoint: String,
}

impl Demo {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bowline_tests::programs().join("bowline"));
        command.args(["--endpoint", &self.endpoint]).args(args).stdin(Stdio::null());
        command
    }

    /// Shows a command and what it says; it must work.
    fn run(&self, args: &[&str]) {
        println!("\n$ bowline {}", args.join(" "));
        let status = self.command(args).status().expect("run bowline");
        assert!(status.success(), "bowline {} failed: {status}", args.join(" "));
    }

    /// What a command says.
    fn output(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("run bowline");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
