//! Compiled filters against a naive reading of the profile, on random profiles and calls.

mod interpreters;

use bowline_model::runtime_spec::{Seccomp, SeccompAction, SeccompArg, SeccompOp, SeccompSyscall};
use bowline_plan::seccomp::{Arch, MAX_INSTRUCTIONS, SeccompCache, SeccompError, compile, instructions};
use proptest::prelude::*;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = ERRNO | 38;

fn rule(names: &[&str], action: SeccompAction, args: Vec<SeccompArg>) -> SeccompSyscall {
    SeccompSyscall {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        action,
        errno_ret: None,
        args,
    }
}

fn arg(index: u32, op: SeccompOp, value: u64, value_two: u64) -> SeccompArg {
    SeccompArg { index, value, value_two, op }
}

fn profile(default_action: SeccompAction, architectures: &[&str], syscalls: Vec<SeccompSyscall>) -> Seccomp {
    Seccomp {
        default_action,
        architectures: architectures.iter().map(|arch| (*arch).to_owned()).collect(),
        syscalls,
        ..Seccomp::default()
    }
}

fn run(profile: &Seccomp, arch: Arch, name: &str, args: [u64; 6]) -> u32 {
    let filter = compile(profile, Arch::X86_64).unwrap().filter.0;
    interpreters::seccomp(&filter, arch.number(name).unwrap(), arch.audit(), args)
}

#[test]
fn a_list_of_allowed_calls() {
    let profile = profile(
        SeccompAction::Errno,
        &[],
        vec![rule(&["read", "write", "no_such_call"], SeccompAction::Allow, vec![])],
    );
    assert_eq!(run(&profile, Arch::X86_64, "read", [0; 6]), ALLOW);
    // Older than the newest call of the profile: none.
    assert_eq!(run(&profile, Arch::X86_64, "open", [0; 6]), ENOSYS);
    let filter = compile(&profile, Arch::X86_64).unwrap().filter.0;
    for (nr, arch) in [(0, Arch::X86), (0x4000_0000, Arch::X86_64), (0, Arch::Aarch64)] {
        assert_eq!(interpreters::seccomp(&filter, nr, arch.audit(), [0; 6]), KILL_PROCESS);
    }
    // What a tracer writes to skip a call.
    assert_eq!(interpreters::seccomp(&filter, u32::MAX, Arch::X86_64.audit(), [0; 6]), ERRNO | 1);
}

#[test]
fn newer_calls_do_not_exist_unless_the_default_lets_pass() {
    let rules = || vec![rule(&["read", "openat2"], SeccompAction::Allow, vec![])];
    let strict = profile(SeccompAction::Errno, &[], rules());
    assert_eq!(run(&strict, Arch::X86_64, "mseal", [0; 6]), ENOSYS);
    assert_eq!(run(&strict, Arch::X86_64, "clone3", [0; 6]), ERRNO | 1);
    let deny = profile(SeccompAction::Allow, &[], vec![rule(&["read"], SeccompAction::Errno, vec![])]);
    assert_eq!(run(&deny, Arch::X86_64, "mseal", [0; 6]), ALLOW);
    assert_eq!(run(&deny, Arch::X86_64, "read", [0; 6]), ERRNO | 1);
}

#[test]
fn three_machine_types_in_one_filter() {
    let profile = profile(
        SeccompAction::Errno,
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        vec![rule(&["ioctl", "mmap2"], SeccompAction::Allow, vec![])],
    );
    assert_eq!(Arch::X32.number("ioctl"), Some(0x4000_0000 + 514));
    for arch in [Arch::X86_64, Arch::X86, Arch::X32] {
        assert_eq!(run(&profile, arch, "ioctl", [0; 6]), ALLOW, "{arch:?}");
        assert_eq!(run(&profile, arch, "close", [0; 6]), ERRNO | 1, "{arch:?}");
    }
    assert_eq!(run(&profile, Arch::X86, "mmap2", [0; 6]), ALLOW);
}

#[test]
fn narrow_machines_compare_the_lower_half() {
    let wanted = arg(0, SeccompOp::Equal, u64::MAX, 0);
    let profile = profile(
        SeccompAction::Errno,
        &["SCMP_ARCH_X86"],
        vec![rule(&["personality"], SeccompAction::Allow, vec![wanted])],
    );
    let args = |value| [value, 0, 0, 0, 0, 0];
    assert_eq!(run(&profile, Arch::X86, "personality", args(0xffff_ffff)), ALLOW);
    assert_eq!(run(&profile, Arch::X86_64, "personality", args(0xffff_ffff)), ERRNO | 1);
    assert_eq!(run(&profile, Arch::X86_64, "personality", args(u64::MAX)), ALLOW);
}

#[test]
fn masks_without_the_bits_of_new_namespaces() {
    let mask = arg(0, SeccompOp::MaskedEqual, 0x7e02_0000, 0);
    let profile =
        profile(SeccompAction::Errno, &[], vec![rule(&["clone"], SeccompAction::Allow, vec![mask])]);
    for (flags, verdict) in [(0x11, ALLOW), (0x1000_0011, ERRNO | 1), (0xff_0000_0011, ALLOW)] {
        assert_eq!(run(&profile, Arch::X86_64, "clone", [flags, 0, 0, 0, 0, 0]), verdict, "{flags:#x}");
    }
}

#[test]
fn what_is_not_possible_is_an_error_that_says_so() {
    let bad = |change: fn(&mut Seccomp)| {
        let mut profile =
            profile(SeccompAction::Errno, &[], vec![rule(&["read"], SeccompAction::Allow, vec![])]);
        change(&mut profile);
        compile(&profile, Arch::X86_64).unwrap_err()
    };
    assert!(matches!(bad(|p| p.syscalls[0].action = SeccompAction::Notify), SeccompError::Notify { .. }));
    assert!(matches!(
        bad(|p| p.default_action = SeccompAction::Other("X".into())),
        SeccompError::Unknown { .. }
    ));
    assert!(matches!(bad(|p| p.architectures = vec!["SCMP_ARCH_VAX".into()]), SeccompError::Arch(_)));
    assert!(matches!(bad(|p| p.default_errno_ret = Some(5000)), SeccompError::Range { .. }));
    assert!(matches!(
        bad(|p| p.syscalls[0].args = vec![arg(6, SeccompOp::Equal, 0, 0)]),
        SeccompError::Range { .. }
    ));
    assert!(matches!(
        bad(|p| {
            p.syscalls = (0..3000)
                .map(|n| rule(&["read"], SeccompAction::Allow, vec![arg(0, SeccompOp::Equal, n, 0)]))
                .collect();
        }),
        SeccompError::TooLong(_)
    ));
}

#[test]
fn far_jumps_reach() {
    // One call with a body of more than 255 instructions between calls on both sides of it.
    let mut rules: Vec<_> = (0..600)
        .map(|n| rule(&["mmap"], SeccompAction::Log, vec![arg(1, SeccompOp::Equal, n << 33 | 1, 0)]))
        .collect();
    rules.push(rule(&["read", "close"], SeccompAction::Allow, vec![]));
    let profile = profile(SeccompAction::Errno, &[], rules);
    assert!(instructions(&profile, Arch::X86_64).unwrap().len() < MAX_INSTRUCTIONS);
    assert_eq!(run(&profile, Arch::X86_64, "read", [0; 6]), ALLOW);
    assert_eq!(run(&profile, Arch::X86_64, "close", [0; 6]), ALLOW);
    assert_eq!(run(&profile, Arch::X86_64, "write", [0; 6]), ERRNO | 1);
    for n in [0, 1, 299, 598, 599] {
        assert_eq!(run(&profile, Arch::X86_64, "mmap", [0, n << 33 | 1, 0, 0, 0, 0]), 0x7ffc_0000, "{n}");
    }
    assert_eq!(run(&profile, Arch::X86_64, "mmap", [0, 600 << 33 | 1, 0, 0, 0, 0]), ERRNO | 1);
}

#[test]
fn the_cache_is_bounded_and_answers_the_same() {
    let cache = SeccompCache::default();
    for n in 0..100 {
        let profile = profile(
            SeccompAction::Errno,
            &[],
            vec![rule(&["read"], SeccompAction::Allow, vec![arg(0, SeccompOp::Equal, n, 0)])],
        );
        let filter = cache.compile(&profile, Arch::X86_64).unwrap();
        assert_eq!(filter, compile(&profile, Arch::X86_64).unwrap());
        assert_eq!(cache.compile(&profile, Arch::X86_64).unwrap(), filter);
    }
    assert!(cache.len() <= 32);
}

/// The default profile of `bowline-oci`, out of its golden file.
fn default_profile() -> Seccomp {
    let spec = include_bytes!("../../oci/tests/golden/terminal.json");
    let spec = bowline_model::runtime_spec::Spec::from_json(spec).unwrap();
    spec.linux.unwrap().seccomp.unwrap()
}

#[test]
fn the_default_profile_does_what_it_is_known_for() {
    let profile = default_profile();
    let len = instructions(&profile, Arch::X86_64).unwrap().len();
    assert!(len < 600, "{len} instructions");
    let check = |name, args, verdict| assert_eq!(run(&profile, Arch::X86_64, name, args), verdict, "{name}");
    for name in ["read", "openat", "execve", "futex", "epoll_wait", "statx", "rseq", "ptrace", "chroot"] {
        check(name, [0; 6], ALLOW);
    }
    for name in [
        "mount",
        "keyctl",
        "io_uring_setup",
        "kexec_load",
        "bpf",
        "userfaultfd",
        "reboot",
        "swapon",
        "unshare",
    ] {
        check(name, [0; 6], ERRNO | 1);
    }
    check("clone3", [0; 6], ENOSYS);
    check("clone", [0x11, 0, 0, 0, 0, 0], ALLOW);
    check("clone", [0x1000_0000, 0, 0, 0, 0, 0], ERRNO | 1);
    check("socket", [2, 1, 0, 0, 0, 0], ALLOW);
    check("socket", [40, 1, 0, 0, 0, 0], ERRNO | 1);
    check("personality", [0xffff_ffff, 0, 0, 0, 0, 0], ALLOW);
    check("personality", [0x0400_0000, 0, 0, 0, 0, 0], ERRNO | 1);
}

#[test]
fn every_name_of_the_default_profile_is_a_call_somewhere() {
    let arches =
        [Arch::X86_64, Arch::X86, Arch::Aarch64, Arch::Arm, Arch::Riscv64, Arch::S390x, Arch::Ppc64le];
    let unknown: Vec<String> = default_profile()
        .syscalls
        .into_iter()
        .flat_map(|rule| rule.names)
        .filter(|name| arches.iter().all(|arch| arch.number(name).is_none()))
        // A typing mistake would show here as well; these are real: an alias, and calls newer than the tables.
        .filter(|name| !["fstatat64_old", "listns"].contains(&name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

// ---- random profiles ----

const NAMES: [&str; 14] = [
    "read",
    "write",
    "open",
    "close",
    "mmap",
    "ioctl",
    "socket",
    "clone",
    "execve",
    "openat2",
    "futex",
    "personality",
    "mseal",
    "kexec_load",
];
const ARCHES: [(&str, Arch); 4] = [
    ("SCMP_ARCH_X86_64", Arch::X86_64),
    ("SCMP_ARCH_X86", Arch::X86),
    ("SCMP_ARCH_X32", Arch::X32),
    ("SCMP_ARCH_AARCH64", Arch::Aarch64),
];

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..4,
        Just(u64::MAX),
        Just(0xffff_ffff),
        Just(0x1_0000_0000),
        Just(0x1_0000_0001),
        Just(0x8000_0000),
        any::<u64>(),
    ]
}

fn any_action() -> impl Strategy<Value = SeccompAction> {
    prop_oneof![
        Just(SeccompAction::Allow),
        Just(SeccompAction::Errno),
        Just(SeccompAction::Log),
        Just(SeccompAction::Trap),
        Just(SeccompAction::Trace),
        Just(SeccompAction::KillProcess),
        Just(SeccompAction::KillThread),
    ]
}

fn any_arg() -> impl Strategy<Value = SeccompArg> {
    let op = prop_oneof![
        Just(SeccompOp::Equal),
        Just(SeccompOp::NotEqual),
        Just(SeccompOp::Less),
        Just(SeccompOp::LessOrEqual),
        Just(SeccompOp::Greater),
        Just(SeccompOp::GreaterOrEqual),
        Just(SeccompOp::MaskedEqual),
    ];
    (0u32..6, op, any_value(), any_value())
        .prop_map(|(index, op, value, value_two)| arg(index, op, value, value_two))
}

fn any_rule() -> impl Strategy<Value = SeccompSyscall> {
    let names = prop::collection::vec(prop::sample::select(&NAMES[..]), 1..4);
    let args = prop_oneof![Just(Vec::new()), prop::collection::vec(any_arg(), 1..4)];
    (names, any_action(), prop::option::of(0u32..50), args).prop_map(|(names, action, errno_ret, args)| {
        SeccompSyscall { errno_ret, ..rule(&names, action, args) }
    })
}

fn any_profile() -> impl Strategy<Value = Seccomp> {
    let arches = prop::collection::vec(prop::sample::select(&ARCHES[..]), 0..4);
    (any_action(), prop::option::of(0u32..50), arches, prop::collection::vec(any_rule(), 0..40)).prop_map(
        |(default, errno, arches, rules)| Seccomp {
            default_errno_ret: errno,
            ..profile(default, &arches.iter().map(|(word, _)| *word).collect::<Vec<_>>(), rules)
        },
    )
}

fn value(action: &SeccompAction, errno: Option<u32>) -> u32 {
    match action {
        SeccompAction::Allow => ALLOW,
        SeccompAction::Errno => ERRNO | errno.unwrap_or(1),
        SeccompAction::Trace => 0x7ff0_0000 | errno.unwrap_or(1),
        SeccompAction::Log => 0x7ffc_0000,
        SeccompAction::Trap => 0x0003_0000,
        SeccompAction::KillProcess => KILL_PROCESS,
        _ => 0,
    }
}

fn holds(condition: &SeccompArg, arch: Arch, args: [u64; 6]) -> bool {
    let width = if matches!(arch, Arch::X86 | Arch::Arm) { 0xffff_ffff } else { u64::MAX };
    let (actual, wanted) = (args[condition.index as usize] & width, condition.value & width);
    match condition.op {
        SeccompOp::Equal => actual == wanted,
        SeccompOp::NotEqual => actual != wanted,
        SeccompOp::Less => actual < wanted,
        SeccompOp::LessOrEqual => actual <= wanted,
        SeccompOp::Greater => actual > wanted,
        SeccompOp::GreaterOrEqual => actual >= wanted,
        _ => actual & wanted == condition.value_two & wanted,
    }
}

/// The rules as seccomp.rs states them, read one by one.
fn naive(profile: &Seccomp, arch: Arch, nr: u32, args: [u64; 6]) -> u32 {
    let listed = profile.architectures.iter().any(|word| Arch::parse(word) == Ok(arch));
    if !listed && arch != Arch::X86_64 {
        return KILL_PROCESS;
    }
    let default = value(&profile.default_action, profile.default_errno_ret);
    let rules: Vec<_> =
        profile.syscalls.iter().filter(|rule| value(&rule.action, rule.errno_ret) != default).collect();
    let numbers =
        |rule: &SeccompSyscall| rule.names.iter().filter_map(|name| arch.number(name)).collect::<Vec<_>>();
    let mine: Vec<_> = rules.iter().filter(|rule| numbers(rule).contains(&nr)).collect();
    if let Some(rule) = mine.iter().find(|rule| rule.args.is_empty()) {
        return value(&rule.action, rule.errno_ret);
    }
    for rule in &mine {
        let twice =
            rule.args.iter().enumerate().any(|(i, a)| rule.args[i + 1..].iter().any(|b| a.index == b.index));
        let matches = |condition| holds(condition, arch, args);
        if if twice { rule.args.iter().any(matches) } else { rule.args.iter().all(matches) } {
            return value(&rule.action, rule.errno_ret);
        }
    }
    let last = rules.iter().flat_map(|rule| numbers(rule)).max();
    let lets_pass =
        matches!(profile.default_action, SeccompAction::Allow | SeccompAction::Log | SeccompAction::Trace);
    if !lets_pass && last.is_some_and(|last| nr > last) { ENOSYS } else { default }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn verdicts_are_those_of_the_profile(
        profile in any_profile(),
        calls in prop::collection::vec(
            (prop::sample::select(&ARCHES[..]), prop_oneof![
                prop::sample::select(&NAMES[..]).prop_map(Ok), (0u32..600).prop_map(Err)
            ], prop::array::uniform6(any_value())), 40),
    ) {
        let code = instructions(&profile, Arch::X86_64).unwrap();
        prop_assert!(code.len() <= MAX_INSTRUCTIONS);
        let filter: Vec<u8> = code.iter().flat_map(|instruction| instruction.bytes()).collect();
        for ((_, arch), call, args) in calls {
            let nr = match call {
                Ok(name) => match arch.number(name) { Some(nr) => nr, None => continue },
                Err(nr) if arch == Arch::X32 => nr | 0x4000_0000,
                Err(nr) => nr,
            };
            // The kernel hands 32-bit machines' arguments over with an empty upper half.
            let args = if arch == Arch::X86 { args.map(|arg| arg & 0xffff_ffff) } else { args };
            prop_assert_eq!(
                interpreters::seccomp(&filter, nr, arch.audit(), args),
                naive(&profile, arch, nr, args),
                "{:?} {} {:x?}", arch, nr, args
            );
        }
    }
}
