//! Conversion tables, and updates against a model of the kernel's rules.

use bowline_model::cgroup::{CgroupLayout, Hierarchy};
use bowline_model::runtime_spec::{
    BlockIo, CpuResources, HugepageLimit, LinuxResources, MemoryResources, PidsResources,
};
use bowline_plan::resources::{cpu_weight, io_weight, linear_cpu_weight, swap_max, values};
use bowline_plan::update;
use proptest::prelude::*;

fn v2() -> CgroupLayout {
    CgroupLayout::v2(&["cpuset", "cpu", "io", "memory", "pids"])
}

fn v1() -> CgroupLayout {
    let v1 = |name: &str| Hierarchy {
        controllers: vec![name.into()],
        folder: name.into(),
        ..Hierarchy::default()
    };
    CgroupLayout { hierarchies: ["cpu", "cpuset", "memory", "pids", "blkio"].map(v1).into() }
}

fn text(limits: &LinuxResources, layout: &CgroupLayout) -> Vec<String> {
    values(limits, layout).unwrap().iter().map(|value| format!("{}={}", value.file, value.value)).collect()
}

fn memory(limit: i64, swap: i64) -> LinuxResources {
    let memory = MemoryResources { limit: Some(limit), swap: Some(swap), ..MemoryResources::default() };
    LinuxResources { memory: Some(memory), ..LinuxResources::default() }
}

fn cpu(cpu: CpuResources) -> LinuxResources {
    LinuxResources { cpu: Some(cpu), ..LinuxResources::default() }
}

#[test]
fn shares_to_weight() {
    // (shares, weight, weight by the older line)
    for (shares, curve, line) in [
        (0, 1, 0),
        (1, 1, 1),
        (2, 1, 1),
        (100, 17, 4),
        (256, 35, 10),
        (512, 59, 20),
        (1000, 99, 39),
        (1024, 100, 39),
        (1025, 101, 40),
        (2048, 170, 79),
        (4096, 292, 157),
        (262_143, 10_000, 9999),
        (262_144, 10_000, 10_000),
        (u64::MAX, 10_000, 10_000),
    ] {
        assert_eq!((cpu_weight(shares), linear_cpu_weight(shares)), (curve, line), "{shares}");
    }
    let all: Vec<u64> = (0..5000).map(cpu_weight).collect();
    assert!(all.is_sorted());
}

#[test]
fn block_weights() {
    assert_eq!([10, 500, 1000, 0].map(io_weight), [1, 4950, 10_000, 1]);
}

#[test]
fn swap_conversion() {
    for (limit, swap, wanted) in [
        (None, None, Ok(None)),
        (Some(100), None, Ok(None)),
        (Some(100), Some(0), Ok(None)),
        (Some(100), Some(100), Ok(Some("0"))),
        (Some(100), Some(150), Ok(Some("50"))),
        (Some(100), Some(-1), Ok(Some("max"))),
        (Some(-1), None, Ok(Some("max"))),
        (None, Some(-1), Ok(Some("max"))),
        (Some(100), Some(50), Err(())),
        (None, Some(50), Err(())),
        (Some(-1), Some(50), Err(())),
    ] {
        let got = swap_max(limit, swap).map_err(|_| ());
        assert_eq!(got, wanted.map(|wanted| wanted.map(str::to_owned)), "{limit:?} {swap:?}");
    }
}

#[test]
fn files_of_both_versions() {
    let limits = LinuxResources {
        cpu: Some(CpuResources {
            shares: Some(1024),
            quota: Some(50_000),
            period: Some(100_000),
            cpus: "0-1".into(),
            ..CpuResources::default()
        }),
        pids: Some(PidsResources { limit: Some(7) }),
        block_io: Some(BlockIo { weight: Some(1000), ..BlockIo::default() }),
        ..memory(1 << 20, 3 << 20)
    };
    assert_eq!(
        text(&limits, &v2()),
        [
            "cpu.weight=100",
            "cpu.max=50000 100000",
            "cpuset.cpus=0-1",
            "memory.swap.max=2097152",
            "memory.max=1048576",
            "pids.max=7",
            "io.bfq.weight=1000",
            "io.weight=default 10000"
        ]
    );
    assert_eq!(
        text(&limits, &v1()),
        [
            "cpu.shares=1024",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "cpuset.cpus=0-1",
            "memory.limit_in_bytes=1048576",
            "memory.memsw.limit_in_bytes=3145728",
            "pids.max=7",
            "blkio.bfq.weight=1000",
            "blkio.weight=1000"
        ]
    );
    let none = cpu(CpuResources { quota: Some(-1), ..CpuResources::default() });
    assert_eq!(text(&none, &v2()), ["cpu.max=max"]);
    assert_eq!(text(&memory(-1, 0), &v2()), ["memory.swap.max=max", "memory.max=max"]);
}

#[test]
fn unified_keys_count_last_and_only_on_v2() {
    let mut limits = memory(1 << 20, 3 << 20);
    limits.unified.insert("memory.swap.max".into(), "0".into());
    limits.unified.insert("memory.oom.group".into(), "1".into());
    assert_eq!(text(&limits, &v2()), ["memory.max=1048576", "memory.oom.group=1", "memory.swap.max=0"]);
    let error = values(&limits, &v1()).unwrap_err().to_string();
    assert!(error.starts_with("linux.resources.unified.memory.oom.group"), "{error}");
    for key in ["cgroup.procs", "../x", "a/b.c", "memory", ".", "memory..max"] {
        let mut limits = LinuxResources::default();
        limits.unified.insert(key.into(), "1".into());
        assert!(values(&limits, &v2()).is_err(), "{key}");
    }
}

#[test]
fn huge_pages_without_a_controller() {
    let limit = |limit| LinuxResources {
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit }],
        ..LinuxResources::default()
    };
    for layout in [v1(), v2()] {
        assert!(text(&limit(0), &layout).is_empty());
        assert!(values(&limit(1), &layout).unwrap_err().to_string().contains("hugetlb"));
    }
    assert_eq!(text(&limit(5), &CgroupLayout::v2(&["hugetlb"])), ["hugetlb.2MB.max=5"]);
    let mut bad = limit(0);
    bad.hugepage_limits[0].page_size = "../2MB".into();
    assert!(values(&bad, &v2()).is_err());
}

fn steps(list: &[bowline_launch_plan::CgroupStep]) -> Vec<String> {
    list.iter()
        .map(|step| match step.writes.first() {
            Some(write) => {
                format!("{}={}", write.file.to_str().unwrap(), String::from_utf8_lossy(&write.value.0))
            }
            None => "-".into(),
        })
        .collect()
}

#[test]
fn updates_write_only_what_differs() {
    let old = LinuxResources { pids: Some(PidsResources { limit: Some(7) }), ..memory(100, 200) };
    let new = LinuxResources { pids: Some(PidsResources { limit: Some(7) }), ..memory(50, 200) };
    let change = update(&old, &new, &v1(), "/p/c").unwrap();
    assert_eq!(steps(&change.apply), ["memory.limit_in_bytes=50"]);
    assert_eq!(steps(&change.rollback), ["memory.limit_in_bytes=100"]);
    assert_eq!(change.apply[0].path.to_str(), Ok("p/c"));
    // On v2 the same request moves swap.
    let change = update(&old, &new, &v2(), "/p/c").unwrap();
    assert_eq!(steps(&change.apply), ["memory.swap.max=150", "memory.max=50"]);
    assert_eq!(update(&old, &old, &v2(), "p/c"), Ok(Default::default()));
    // A limit that was not there, and one that goes.
    let change = update(&LinuxResources::default(), &memory(50, 0), &v2(), "p/c").unwrap();
    assert_eq!(
        (steps(&change.apply), steps(&change.rollback)),
        (vec!["memory.max=50".into()], vec!["memory.max=max".into()])
    );
    let change = update(&memory(50, 0), &LinuxResources::default(), &v2(), "p/c").unwrap();
    assert_eq!(
        (steps(&change.apply), steps(&change.rollback)),
        (vec!["memory.max=max".into()], vec!["memory.max=50".into()])
    );
    assert!(update(&old, &new, &v2(), "/").is_err());
}

/// What the kernel refuses at any moment, and what it starts from.
#[derive(Clone)]
struct Kernel {
    limit: i64,
    sum: i64,
    quota: i64,
    period: i64,
    /// The highest share that the parent grants, in millionths.
    parent: i64,
}

impl Kernel {
    fn write(&mut self, line: &str) -> bool {
        let (file, value) = line.split_once('=').unwrap();
        let number = value.parse::<i64>().unwrap();
        let unlimited = if number < 0 { i64::MAX } else { number };
        match file {
            "memory.limit_in_bytes" => self.limit = unlimited,
            "memory.memsw.limit_in_bytes" => self.sum = unlimited,
            "cpu.cfs_quota_us" => self.quota = unlimited,
            _ => self.period = number,
        }
        let share = if self.quota == i64::MAX { 0 } else { self.quota * 1_000_000 / self.period };
        self.limit <= self.sum && share <= self.parent
    }
}

fn any_limits() -> impl Strategy<Value = LinuxResources> {
    let quota = prop_oneof![Just(-1i64), 1000i64..1_000_000];
    (1i64..50, prop::option::of(0i64..50), quota, 1000u64..1_000_000).prop_map(
        |(limit, more, quota, period)| LinuxResources {
            cpu: Some(CpuResources { quota: Some(quota), period: Some(period), ..CpuResources::default() }),
            ..memory(limit, more.map_or(-1, |more| limit + more))
        },
    )
}

proptest! {
    #[test]
    fn no_step_of_an_update_is_refused(old in any_limits(), new in any_limits()) {
        let share = |limits: &LinuxResources| {
            let cpu = limits.cpu.clone().unwrap();
            match cpu.quota.unwrap() { -1 => 0, quota => quota * 1_000_000 / cpu.period.unwrap() as i64 }
        };
        let mut kernel = Kernel { limit: i64::MAX, sum: i64::MAX, quota: i64::MAX, period: 100_000, parent: i64::MAX };
        for line in text(&old, &v1()) {
            prop_assert!(kernel.write(&line), "{}", line);
        }
        kernel.parent = share(&old).max(share(&new));
        let change = update(&old, &new, &v1(), "c").unwrap();
        let before = kernel.clone();
        for (at, line) in steps(&change.apply).iter().enumerate() {
            // The way back from here works as well, step by step.
            let mut back = kernel.clone();
            for line in steps(&change.rollback[..at]).iter().rev() {
                prop_assert!(back.write(line), "back {}", line);
            }
            prop_assert_eq!((back.limit, back.sum, back.quota, back.period), (before.limit, before.sum, before.quota, before.period));
            prop_assert!(kernel.write(line), "{}", line);
        }
    }
}
