//! Device rules against a naive reading, on random rules and accesses.

mod interpreters;

use bowline_model::runtime_spec::{DeviceRule, LinuxResources};
use bowline_plan::devices::{Rule, program, rules, v1_lines};
use proptest::prelude::*;

fn any_rule() -> impl Strategy<Value = Rule> {
    let kind = prop_oneof![Just(None), Just(Some('c')), Just(Some('b'))];
    (any::<bool>(), kind, prop::option::of(0u32..4), prop::option::of(0u32..4), 1u32..8)
        .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access })
}

fn naive(rules: &[Rule], kind: char, access: u32, major: u32, minor: u32) -> bool {
    [1, 2, 4].into_iter().filter(|bit| access & bit != 0).all(|bit| {
        rules
            .iter()
            .rfind(|rule| {
                rule.access & bit != 0
                    && rule.kind.is_none_or(|there| there == kind)
                    && rule.major.is_none_or(|there| there == major)
                    && rule.minor.is_none_or(|there| there == minor)
            })
            .is_some_and(|rule| rule.allow)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn the_program_says_what_the_rules_say(rules in prop::collection::vec(any_rule(), 0..12)) {
        let program = program(&rules);
        for (kind, number) in [('b', 1), ('c', 2)] {
            for access in 1..8 {
                for (major, minor) in [(0, 0), (1, 3), (2, 1), (3, 3), (9, 9)] {
                    prop_assert_eq!(
                        interpreters::device(&program, number, access, major, minor),
                        naive(&rules, kind, access, major, minor),
                        "{} {}:{} {}", kind, major, minor, access
                    );
                }
            }
        }
    }
}

fn limits(devices: Vec<DeviceRule>) -> LinuxResources {
    LinuxResources { devices, ..LinuxResources::default() }
}

fn lines(devices: Vec<DeviceRule>) -> Vec<String> {
    let rules = rules(&limits(devices)).unwrap();
    v1_lines(&rules).into_iter().map(|(file, line)| format!("{} {line}", file.to_str().unwrap())).collect()
}

#[test]
fn usual_devices_may_be_used_and_no_others() {
    let program =
        program(&rules(&limits(vec![DeviceRule { allow: false, ..DeviceRule::default() }])).unwrap());
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, 77)] {
        assert!(interpreters::device(&program, 2, 6, major, minor), "{major}:{minor}");
    }
    for (kind, access, major, minor) in [(2, 2, 1, 1), (1, 4, 8, 0), (2, 6, 10, 229)] {
        assert!(!interpreters::device(&program, kind, access, major, minor), "{major}:{minor}");
        assert!(interpreters::device(&program, kind, 1, major, minor), "mknod of {major}:{minor}");
    }
}

#[test]
fn v1_lines_start_from_nothing() {
    let fuse =
        DeviceRule { allow: true, kind: "c".into(), major: Some(10), minor: Some(229), access: "rw".into() };
    let got = lines(vec![DeviceRule::default(), fuse]);
    assert_eq!(
        got[..4],
        ["devices.deny a", "devices.allow c 10:229 rw", "devices.allow c *:* m", "devices.allow b *:* m"]
    );
    assert_eq!(got.last().unwrap(), "devices.allow c 136:* rwm");
    // No rules at all are as strict.
    assert_eq!(lines(Vec::new())[0], "devices.deny a");
}

#[test]
fn everything_allowed_is_one_line() {
    assert_eq!(lines(vec![DeviceRule { allow: true, ..DeviceRule::default() }]), ["devices.allow a"]);
}

#[test]
fn nonsense_names_its_field() {
    for rule in [
        DeviceRule { kind: "x".into(), ..DeviceRule::default() },
        DeviceRule { access: "q".into(), ..DeviceRule::default() },
        DeviceRule { major: Some(-2), ..DeviceRule::default() },
    ] {
        let error = rules(&limits(vec![rule])).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.devices[0]"), "{error}");
    }
}
