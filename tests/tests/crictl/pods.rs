//! Pods.

use crate::Crictl;

/// The pod of the containers is called `main`; it stays.
pub(crate) fn lifecycle(crictl: &Crictl) {
    let main = crictl.id(&["runp", &crictl.pod("main")]);
    let second = crictl.id(&["runp", "--cancel-timeout", "20s", &crictl.pod("second")]);
    crictl.fails(&["runp", "--runtime", "nothing-like-it", &crictl.pod("third")], "nothing-like-it");
    assert_eq!(crictl.id(&["runp", &crictl.pod("main")]), main, "asked for again");

    crictl.says(&["pods"], &["main", "second", "Ready", &main[..13]]);
    crictl.says(&["pods", "-v"], &[&format!("ID: {main}"), "Labels:", "app -> main"]);
    crictl.says(&["pods", "--no-trunc", "-o", "json"], &[&main]);
    crictl.ids(&["pods", "-q"], &[&main, &second]);
    crictl.ids(&["pods", "-q", "--id", &main[..10]], &[&main]);
    crictl.ids(&["pods", "-q", "--label", "app=second"], &[&second]);
    crictl.ids(&["pods", "-q", "--name", "^mai"], &[&main]);
    crictl.ids(&["pods", "-q", "--namespace", "crictl"], &[&main, &second]);
    crictl.ids(&["pods", "-q", "--namespace", "elsewhere"], &[]);
    crictl.ids(&["pods", "-q", "--latest"], &[&second]);
    crictl.ids(&["pods", "-q", "--last", "1"], &[&second]);
    crictl.ids(&["pods", "-q", "--state", "notready"], &[]);

    crictl.says(&["inspectp", &main], &[&main, "SANDBOX_READY", "\"ip\"", "\"info\""]);
    let quiet = crictl.says(&["inspectp", "-q", "-o", "yaml", &main[..12]], &["state: SANDBOX_READY"]);
    assert!(!quiet.contains("runtimeSpec"), "{quiet}");
    let ip = crictl.ok(&["inspectp", "-o", "go-template", "--template", "{{.status.network.ip}}", &main]);
    assert!(ip.trim().parse::<std::net::IpAddr>().is_ok(), "{ip}");
    crictl.says(&["inspectp", "--name", "main", "-o", "table"], &["Name: main"]);
    crictl.says(&["inspectp", "--label", "app=second"], &[&second]);
    crictl.says(&["inspectp", "--namespace", "crictl", "--latest"], &[&second]);
    crictl.says(&["inspectp", "--last", "1", "--state", "ready"], &[&second]);
    crictl.fails(&["inspectp", &"0".repeat(64)], "0000");

    crictl.fails(&["rmp", &second], "running");
    crictl.says(&["stopp", &second], &[&second]);
    crictl.ids(&["pods", "-q", "--state", "notready"], &[&second]);
    crictl.ok(&["stopp", &second]);
    crictl.ok(&["rmp", &second]);
    crictl.ids(&["pods", "-q"], &[&main]);
    let third = crictl.id(&["runp", &crictl.pod("third")]);
    crictl.ok(&["rmp", "--force", &third]);
    crictl.ids(&["pods", "-q"], &[&main]);
}

pub(crate) fn observe(crictl: &Crictl) {
    let main = crictl.ok(&["pods", "-q", "--name", "main"]).trim().to_owned();
    crictl.says(&["statsp", "--seconds", "1"], &["main", &main[..13]]);
    crictl.says(&["statsp", "--id", &main, "-o", "json"], &["usageNanoCores", "\"memory\""]);
    crictl.says(&["statsp", "--label", "app=main", "-o", "yaml"], &["workingSetBytes"]);
    crictl.says(&["statsp", &main], &["main"]);
    crictl.watch(&["statsp", "--watch", "--seconds", "1"], &["main"], || {});
    crictl.says(&["metricdescs"], &["container_cpu_usage_seconds_total"]);
    crictl.says(&["metricdescs", "-o", "yaml"], &["labelKeys:"]);
    crictl.says(&["metricsp"], &["container_memory_working_set_bytes", &main]);
    crictl.says(&["metricsp", "-o", "yaml"], &["metrics:"]);
    crictl.watch(&["metricsp", "--watch"], &[&main], || {});
    crictl.watch(&["events"], &["CONTAINER_CREATED_EVENT", "CONTAINER_DELETED_EVENT"], || events(crictl));
    crictl.watch(&["events", "-o", "yaml"], &["containerEventType: CONTAINER_"], || events(crictl));
    let template = ["events", "-o", "go-template", "--template", "{{.containerEventType}}"];
    crictl.watch(&template, &["CONTAINER_STARTED_EVENT"], || events(crictl));
}

/// A pod that comes and goes.
fn events(crictl: &Crictl) {
    let id = crictl.id(&["runp", &crictl.pod("event")]);
    crictl.ok(&["rmp", "-f", &id]);
}

pub(crate) fn end(crictl: &Crictl) {
    let many = [crictl.id(&["runp", &crictl.pod("one")]), crictl.id(&["runp", &crictl.pod("two")])];
    crictl.ok(&["stopp", &many[0], &many[1]]);
    crictl.ok(&["rmp", &many[0], &many[1]]);
    crictl.id(&["runp", &crictl.pod("one")]);
    crictl.ok(&["rmp", "--all", "--force"]);
    crictl.ids(&["pods", "-q"], &[]);
}
