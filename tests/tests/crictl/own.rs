//! What needs no pod: crictl's own options, and what the daemon says of itself.

use std::process::Command;

use crate::Crictl;

/// The options before the command.
pub(crate) fn globals(crictl: &Crictl) {
    let endpoint = crictl.daemon.endpoint();
    let both = ["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint];
    let said = crictl.ok_with(&both, &["images", "-o", "json"]);
    assert!(said.contains("\"images\""), "{said}");
    let (cpu, memory) = (crictl.file("cpu.pprof"), crictl.file("mem.pprof"));
    let more = ["--timeout", "10s", "--max-retries", "1", "--profile-cpu", &cpu, "--profile-mem", &memory];
    crictl.ok_with(&more, &["version"]);
    // Its spans go to a collector that is not there, which must not matter; the daemon gets a traceparent with each call.
    let traced = [
        "--debug",
        "--enable-tracing",
        "--tracing-endpoint",
        "127.0.0.1:1",
        "--tracing-sampling-rate-per-million",
        "1000000",
    ];
    crictl.ok_with(&traced, &["pods"]);
    let file = crictl.write("other.yaml", "");
    let output = Command::new("crictl").args(["--config", &file, "config", "--set", "timeout=7"]).output();
    assert!(output.unwrap().status.success());
    crictl.used.borrow_mut().entry(String::new()).or_default().insert("--config".into());
}

pub(crate) fn information(crictl: &Crictl) {
    crictl.says(&["version"], &["RuntimeName:  bowline", "RuntimeApiVersion:  v1"]);
    crictl.says(&["info"], &["RuntimeReady", "NetworkReady"]);
    crictl.says(&["info", "-q", "-o", "yaml"], &["conditions:"]);
    let ready = "{{range .status.conditions}}{{.type}}={{.status}} {{end}}";
    crictl.says(
        &["info", "-o", "go-template", "--template", ready],
        &["RuntimeReady=true", "NetworkReady=true"],
    );
    crictl.says(&["runtime-config"], &["cgroup driver:"]);
    crictl.ok(&["update-runtime-config", "--pod-cidr", "10.99.0.0/16"]);
    crictl.says(&["config", "--list"], &["runtime-endpoint"]);
    crictl.ok(&["config", "--set", "debug=false"]);
    crictl.says(&["config", "--get", "timeout"], &["20"]);
    crictl.says(&["completion", "bash"], &["complete"]);
    for args in
        [&["runp", "jsonschema"][..], &["pull", "jsonschema"], &["create", "jsonschema", "--container"]]
    {
        crictl.says(args, &["\"properties\""]);
    }
}
