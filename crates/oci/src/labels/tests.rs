//! Tables of labels.

use super::*;
use bowline_model::spec::ContainerSecurity;

/// What Fedora, RHEL and (without its module) Debian have.
const FILE: &str = r#"
# a comment
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file="system_u:object_r:container_ro_file_t:s0"
sandbox_kvm_process = "system_u:system_r:svirt_qemu_net_t:s0"
"#;

fn contexts() -> ContainerContexts {
    ContainerContexts::parse(FILE).unwrap()
}

fn options(user: &str, role: &str, kind: &str, level: &str) -> SelinuxOptions {
    SelinuxOptions { user: user.into(), role: role.into(), r#type: kind.into(), level: level.into() }
}

#[test]
fn the_policys_file() {
    let found = contexts();
    assert_eq!(found.process.to_string(), "system_u:system_r:container_t:s0");
    assert_eq!(found.file.to_string(), "system_u:object_r:container_file_t:s0");
    assert_eq!(found.read_only_file.to_string(), "system_u:object_r:container_ro_file_t:s0");
    assert_eq!(found.level_with((3, 77)).as_deref(), Some("s0:c3,c77"));
    let without = ContainerContexts::parse("process=a:b:c\nfile=a:b:d\n").unwrap();
    assert_eq!((without.level_with((1, 2)), &without.read_only_file), (None, &without.file));
    for (text, why) in [
        ("", "`process = ..`"),
        ("#process = \"a:b:c\"\n", "`process = ..`"),
        ("process = \"a:b:c\"\n", "`file = ..`"),
        ("process = \"a:b\"\n", "is no label"),
        ("process = \"a:b:c:d\"\n", "is no label"),
        ("process = \"a:b:c d\"\n", "is no label"),
    ] {
        let error = ContainerContexts::parse(text).unwrap_err();
        assert!(error.contains(why), "{text:?}: {error}");
    }
}

#[test]
fn levels() {
    for good in ["s0", "s15", "s0:c1", "s0:c1,c2", "s0:c0.c1023", "s0:c1.c3,c9", "s0-s0", "s0-s15:c0.c1023"] {
        assert!(is_level(good), "{good}");
    }
    for bad in [
        "",
        "0",
        "s",
        "s16",
        "s0:",
        "s0,c4,c5",
        "s0:c1,",
        "s0:c1024",
        "s0:c3.c1",
        "s0:c1,c2:bogus:x",
        "s0:c+1",
        "s0-",
        "s0-s0-s0",
        "s0:c1\"",
        "s0:c00001",
    ] {
        assert!(!is_level(bad), "{bad}");
    }
    assert_eq!(category_pair("s0:c9,c4"), Some((4, 9)));
    for other in ["s0", "s0:c1", "s0:c1.c2", "s0:c1,c1", "s0:c1,c2,c3"] {
        assert_eq!(category_pair(other), None, "{other}");
    }
}

#[test]
fn what_cannot_be_part_of_a_label_names_its_field() {
    for (asked, field) in [
        (options("a b", "", "", ""), "f.user"),
        (options("", "a:b", "", ""), "f.role"),
        (options("", "", "a\"", ""), "f.type"),
        (options("", "", "", "s0,c4,c5"), "f.level"),
    ] {
        let error = check_selinux_options("f", &asked).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{field}: ")), "{error}");
    }
    check_selinux_options("f", &options("system_u", "system_r", "svirt_lxc_net_t", "s0:c4,c5")).unwrap();
    check_selinux_options("f", &SelinuxOptions::default()).unwrap();
}

/// A pod that asks for `pod`, a container that asks for `container`: process label | mount label.
fn merged(
    pod: SelinuxOptions,
    container: Option<SelinuxOptions>,
    change: fn(&mut PodSpec, &mut ContainerSecurity),
) -> String {
    let mut spec = PodSpec::default();
    let given = if pod.level.is_empty() { "s0:c1,c2".to_owned() } else { pod.level.clone() };
    spec.security.selinux = Some(pod);
    let mut security = ContainerSecurity { selinux: container, ..ContainerSecurity::default() };
    change(&mut spec, &mut security);
    let pids = spec.security.namespaces.pid;
    let labels = container_labels(&contexts(), &spec, (&security, pids), &given);
    let short = |label: String| {
        label.replace("system_u:system_r:", "").replace("system_u:object_r:container_file_t:", "F:")
    };
    format!("{} | {}", short(labels.process), short(labels.mount))
}

#[test]
fn who_gets_which_label() {
    let none = SelinuxOptions::default;
    let keep: fn(&mut PodSpec, &mut ContainerSecurity) = |_, _| {};
    let privileged: fn(&mut PodSpec, &mut ContainerSecurity) = |_, container| container.privileged = true;
    let host_pids: fn(&mut PodSpec, &mut ContainerSecurity) =
        |pod, _| pod.security.namespaces.pid = NamespaceMode::Node;
    let host_ipc: fn(&mut PodSpec, &mut ContainerSecurity) =
        |pod, _| pod.security.namespaces.ipc = NamespaceMode::Node;
    let level = |text| options("", "", "", text);
    for (pod, container, change, expected) in [
        (none(), None, keep, "container_t:s0:c1,c2 | F:s0:c1,c2"),
        // Nothing said in so many words is nothing said.
        (none(), Some(none()), keep, "container_t:s0:c1,c2 | F:s0:c1,c2"),
        (level("s0:c8,c9"), None, keep, "container_t:s0:c8,c9 | F:s0:c8,c9"),
        (level("s0:c8,c9"), Some(level("s0:c3,c4")), keep, "container_t:s0:c3,c4 | F:s0:c3,c4"),
        (options("", "", "web_t", ""), None, keep, "web_t:s0:c1,c2 | F:s0:c1,c2"),
        // Its own words stand for the pod's; the level stays the pod's.
        (
            options("", "", "web_t", ""),
            Some(options("", "r_r", "", "")),
            keep,
            "system_u:r_r:container_t:s0:c1,c2 | F:s0:c1,c2",
        ),
        (
            none(),
            Some(options("u_u", "", "", "")),
            keep,
            "u_u:system_r:container_t:s0:c1,c2 | u_u:object_r:container_file_t:s0:c1,c2",
        ),
        (none(), Some(level("s0")), keep, "container_t:s0 | F:s0"),
        (none(), None, privileged, "spc_t:s0 | F:s0:c1,c2"),
        (none(), Some(level("s0:c3,c4")), privileged, "spc_t:s0:c3,c4 | F:s0:c3,c4"),
        (none(), Some(options("", "", "web_t", "")), privileged, "web_t:s0 | F:s0:c1,c2"),
        (none(), None, host_pids, " | F:s0:c1,c2"),
        (none(), None, host_ipc, " | F:s0:c1,c2"),
        (none(), Some(options("", "", "web_t", "")), host_pids, "web_t:s0:c1,c2 | F:s0:c1,c2"),
    ] {
        let asked = format!("{pod:?} {container:?}");
        assert_eq!(merged(pod, container, change), expected, "{asked}");
    }
    let mut pod = PodSpec::default();
    assert_eq!(pod_labels(&contexts(), &pod, "s0:c1,c2").process, "system_u:system_r:container_t:s0:c1,c2");
    pod.security.privileged = true;
    assert_eq!(pod_labels(&contexts(), &pod, "s0:c1,c2").process, "system_u:system_r:spc_t:s0");
}
