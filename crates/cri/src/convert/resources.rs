//! Limits, both ways.

use bowline_cri_proto::v1;
use bowline_model::spec::Resources;

use super::{Refused, check, invalid};

/// The limits of a container; zero and empty mean "not set" to both sides.
pub(crate) fn resources(field: &str, asked: v1::LinuxContainerResources) -> Result<Resources, Refused> {
    for (name, value, least) in [
        ("cpu_period", asked.cpu_period, 0),
        ("cpu_shares", asked.cpu_shares, 0),
        // -1: no quota, no limit.
        ("cpu_quota", asked.cpu_quota, -1),
        ("memory_limit_in_bytes", asked.memory_limit_in_bytes, -1),
        ("memory_swap_limit_in_bytes", asked.memory_swap_limit_in_bytes, -1),
    ] {
        if value < least {
            return Err(invalid(format!("{field}.{name}"), format!("{value} is below {least}")));
        }
    }
    if !(-1000..=1000).contains(&asked.oom_score_adj) {
        let reason = format!("{} is not within -1000 and 1000", asked.oom_score_adj);
        return Err(invalid(format!("{field}.oom_score_adj"), reason));
    }
    check::one_line(&format!("{field}.cpuset_cpus"), &asked.cpuset_cpus)?;
    check::one_line(&format!("{field}.cpuset_mems"), &asked.cpuset_mems)?;
    for key in asked.unified.keys() {
        // A key is the name of a file in the container's own cgroup folder, of no other.
        let field = format!("{field}.unified");
        check::name(&field, key)?;
        if key.contains('/') || key == "." || key == ".." {
            return Err(invalid(field, format!("`{}` is no name of a file", check::brief(key))));
        }
    }
    Ok(Resources {
        cpu_period: asked.cpu_period,
        cpu_quota: asked.cpu_quota,
        cpu_shares: asked.cpu_shares,
        memory_limit: asked.memory_limit_in_bytes,
        memory_swap_limit: asked.memory_swap_limit_in_bytes,
        oom_score_adj: asked.oom_score_adj,
        cpuset_cpus: asked.cpuset_cpus,
        cpuset_mems: asked.cpuset_mems,
        hugepage_limits: asked.hugepage_limits.into_iter().map(|huge| (huge.page_size, huge.limit)).collect(),
        unified: asked.unified,
    })
}

/// The limits in force. The kubelet compares them with what it wants.
pub(crate) fn to_cri(resources: &Resources) -> v1::LinuxContainerResources {
    let huge = |(page_size, limit): &(String, u64)| v1::HugepageLimit {
        page_size: page_size.clone(),
        limit: *limit,
    };
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources.hugepage_limits.iter().map(huge).collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_there_and_back() {
        let asked = v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 2,
            memory_limit_in_bytes: 1 << 30,
            oom_score_adj: -997,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            memory_swap_limit_in_bytes: 2 << 30,
        };
        assert_eq!(to_cri(&resources("r", asked.clone()).unwrap()), asked);
    }

    #[test]
    fn nonsense_is_named() {
        let none = v1::LinuxContainerResources::default;
        let key = |key: &str| [(key.to_owned(), "1".to_owned())].into();
        for (bad, named) in [
            (v1::LinuxContainerResources { cpu_shares: -1, ..none() }, "r.cpu_shares"),
            (v1::LinuxContainerResources { cpu_quota: -2, ..none() }, "r.cpu_quota"),
            (v1::LinuxContainerResources { oom_score_adj: 1001, ..none() }, "r.oom_score_adj"),
            (v1::LinuxContainerResources { unified: key("../memory.max"), ..none() }, "r.unified"),
            (v1::LinuxContainerResources { unified: key(""), ..none() }, "r.unified"),
            (v1::LinuxContainerResources { cpuset_cpus: "0\n1".into(), ..none() }, "r.cpuset_cpus"),
        ] {
            match resources("r", bad) {
                Err(Refused::Invalid { field, .. }) => assert_eq!(field, named),
                other => panic!("{named}: {other:?}"),
            }
        }
    }
}
