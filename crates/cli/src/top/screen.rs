//! What is on the screen, as text.

use std::cmp::Reverse;
use std::collections::HashMap;

use bowline_cri_proto::v1;

use super::Look;
use crate::args::SortBy;
use crate::ops::{seconds, stages};
use crate::render::{Table, binary_size, short};

/// A row: a pod, or a container below it.
struct Row {
    id: String,
    name: String,
    of_pod: bool,
    /// Percent of one core.
    cpu: Option<f64>,
    memory: u64,
    limit: Option<u64>,
    /// Percent of the last ten seconds in which some process waited for a CPU, memory, a disk.
    waits: [Option<f64>; 3],
    processes: Option<u64>,
    /// Bytes in a second, received and sent.
    network: Option<(u64, u64)>,
}

/// The screen. `size` is rows and columns; without one everything is printed.
pub(super) fn screen(before: &Look, after: &Look, sort: SortBy, size: Option<(usize, usize)>) -> String {
    let mut text = heading(after, sort);
    text.push_str(&operations(after));
    let mut groups: Vec<(Row, Vec<Row>)> = rows(before, after);
    order(&mut groups, sort);
    let mut table = Table::new(&[
        "ID",
        "POD / CONTAINER",
        "CPU %",
        "MEMORY",
        "OF",
        "WAITS c/m/i %",
        "PROCS",
        "IN/s",
        "OUT/s",
    ]);
    for (pod, containers) in &groups {
        table.row(cells(pod));
        containers.iter().for_each(|row| table.row(cells(row)));
    }
    text.push_str(&table.text());
    match size {
        Some((rows, columns)) => cut(&text, rows, columns),
        None => text,
    }
}

fn heading(look: &Look, sort: SortBy) -> String {
    let containers: usize = look.pods.iter().map(|pod| linux(pod).containers.len()).sum();
    let by = match sort {
        SortBy::Cpu => "cpu",
        SortBy::Memory => "memory",
        SortBy::Name => "name",
    };
    format!("{} pods, {containers} containers; sorted by {by} (c, m, n; q ends)\n", look.pods.len())
}

fn operations(look: &Look) -> String {
    let Some(operations) = look.operations.as_ref().filter(|list| !list.is_empty()) else {
        return "\n".into();
    };
    let shown = operations.iter().take(5).map(|operation| {
        let line = format!(
            "{} {} {}: {}",
            seconds(operation.age_ms),
            operation.kind,
            operation.name,
            stages(operation)
        );
        line.replace(|c: char| c.is_control(), "?") + "\n"
    });
    let more = operations.len().saturating_sub(5);
    let rest = if more > 0 { format!("and {more} operations more\n\n") } else { "\n".to_owned() };
    shown.collect::<String>() + &rest
}

fn linux(pod: &v1::PodSandboxStats) -> v1::LinuxPodSandboxStats {
    pod.linux.clone().unwrap_or_default()
}

fn rows(before: &Look, after: &Look) -> Vec<(Row, Vec<Row>)> {
    let earlier: HashMap<String, v1::LinuxPodSandboxStats> =
        before.pods.iter().map(|pod| (pod_id(pod), linux(pod))).collect();
    let of = |pod: &v1::PodSandboxStats| {
        let (id, now) = (pod_id(pod), linux(pod));
        let then = earlier.get(&id);
        let metadata = pod.attributes.clone().unwrap_or_default().metadata.unwrap_or_default();
        let row = Row {
            name: format!("{}/{}", metadata.namespace, metadata.name),
            of_pod: true,
            cpu: percent(then.and_then(|then| then.cpu.as_ref()), now.cpu.as_ref()),
            memory: working_set(now.memory.as_ref()),
            limit: limit(now.memory.as_ref()),
            waits: waits(now.cpu.as_ref(), now.memory.as_ref(), now.io.as_ref()),
            processes: now.process.and_then(|process| process.process_count).map(|count| count.value),
            network: then.and_then(|then| traffic(then.network.as_ref()?, now.network.as_ref()?)),
            id,
        };
        let inside = now.containers.iter().map(|one| container(then, one)).collect();
        (row, inside)
    };
    after.pods.iter().map(of).collect()
}

fn container(then: Option<&v1::LinuxPodSandboxStats>, now: &v1::ContainerStats) -> Row {
    let attributes = now.attributes.clone().unwrap_or_default();
    let same = |one: &&v1::ContainerStats| one.attributes.as_ref().is_some_and(|own| own.id == attributes.id);
    let then = then.and_then(|then| then.containers.iter().find(same));
    Row {
        name: attributes.metadata.clone().unwrap_or_default().name,
        of_pod: false,
        cpu: percent(then.and_then(|then| then.cpu.as_ref()), now.cpu.as_ref()),
        memory: working_set(now.memory.as_ref()),
        limit: limit(now.memory.as_ref()),
        waits: waits(now.cpu.as_ref(), now.memory.as_ref(), now.io.as_ref()),
        processes: None,
        network: None,
        id: attributes.id,
    }
}

fn pod_id(pod: &v1::PodSandboxStats) -> String {
    pod.attributes.as_ref().map_or(String::new(), |own| own.id.clone())
}

fn percent(before: Option<&v1::CpuUsage>, after: Option<&v1::CpuUsage>) -> Option<f64> {
    let (before, after) = (before?, after?);
    let time = after.timestamp.checked_sub(before.timestamp).filter(|time| *time > 0)?;
    let used = after.usage_core_nano_seconds?.value.checked_sub(before.usage_core_nano_seconds?.value)?;
    Some(used as f64 / time as f64 * 100.0)
}

fn working_set(memory: Option<&v1::MemoryUsage>) -> u64 {
    memory.and_then(|memory| memory.working_set_bytes).map_or(0, |bytes| bytes.value)
}

fn limit(memory: Option<&v1::MemoryUsage>) -> Option<u64> {
    let available = memory?.available_bytes?.value;
    Some(available + working_set(memory))
}

fn waits(
    cpu: Option<&v1::CpuUsage>,
    memory: Option<&v1::MemoryUsage>,
    io: Option<&v1::IoUsage>,
) -> [Option<f64>; 3] {
    let some = |psi: Option<&v1::PsiStats>| psi.and_then(|psi| psi.some.as_ref()).map(|line| line.avg10);
    [
        some(cpu.and_then(|cpu| cpu.psi.as_ref())),
        some(memory.and_then(|memory| memory.psi.as_ref())),
        some(io.and_then(|io| io.psi.as_ref())),
    ]
}

fn traffic(before: &v1::NetworkUsage, after: &v1::NetworkUsage) -> Option<(u64, u64)> {
    let time = after.timestamp.checked_sub(before.timestamp).filter(|time| *time > 0)? as f64 / 1e9;
    let sum =
        |usage: &v1::NetworkUsage, of: fn(&v1::NetworkInterfaceUsage) -> Option<v1::UInt64Value>| -> u64 {
            let all = usage.default_interface.iter().chain(&usage.interfaces);
            all.filter_map(of).map(|bytes| bytes.value).sum()
        };
    let rate = |of| Some((sum(after, of).checked_sub(sum(before, of))? as f64 / time) as u64);
    Some((rate(|one| one.rx_bytes)?, rate(|one| one.tx_bytes)?))
}

fn order(groups: &mut [(Row, Vec<Row>)], sort: SortBy) {
    let thousandths = |row: &Row| row.cpu.map_or(0, |cpu| (cpu * 1000.0) as u64);
    let arrange = |rows: &mut [Row]| match sort {
        SortBy::Cpu => rows.sort_by_key(|row| (Reverse(thousandths(row)), row.name.clone())),
        SortBy::Memory => rows.sort_by_key(|row| (Reverse(row.memory), row.name.clone())),
        SortBy::Name => rows.sort_by_key(|row| row.name.clone()),
    };
    groups.iter_mut().for_each(|(_, containers)| arrange(containers));
    match sort {
        SortBy::Cpu => groups.sort_by_key(|(row, _)| (Reverse(thousandths(row)), row.name.clone())),
        SortBy::Memory => groups.sort_by_key(|(row, _)| (Reverse(row.memory), row.name.clone())),
        SortBy::Name => groups.sort_by_key(|(row, _)| row.name.clone()),
    }
}

fn cells(row: &Row) -> [String; 9] {
    let known = |value: Option<u64>, show: fn(u64) -> String| value.map_or("-".to_owned(), show);
    let wait = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0}"));
    [
        short(&row.id, false).to_owned(),
        if row.of_pod { row.name.clone() } else { format!("  {}", row.name) },
        row.cpu.map_or("-".to_owned(), |cpu| format!("{cpu:.1}")),
        binary_size(row.memory),
        known(row.limit, binary_size),
        row.waits.map(wait).join("/"),
        known(row.processes, |count| count.to_string()),
        known(row.network.map(|(received, _)| received), binary_size),
        known(row.network.map(|(_, sent)| sent), binary_size),
    ]
}

/// As much as fits.
fn cut(text: &str, rows: usize, columns: usize) -> String {
    let lines = text.lines().take(rows).map(|line| line.chars().take(columns).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use bowline_cri_proto::admin;

    use super::*;

    fn value(value: u64) -> Option<v1::UInt64Value> {
        Some(v1::UInt64Value { value })
    }

    fn pod(name: &str, timestamp: i64, cpu_ns: u64, memory: u64) -> v1::PodSandboxStats {
        let metadata =
            v1::PodSandboxMetadata { name: name.into(), namespace: "n".into(), ..Default::default() };
        let cpu =
            Some(v1::CpuUsage { timestamp, usage_core_nano_seconds: value(cpu_ns), ..Default::default() });
        let memory = Some(v1::MemoryUsage {
            working_set_bytes: value(memory),
            available_bytes: value(1 << 20),
            ..Default::default()
        });
        let eth0 = v1::NetworkInterfaceUsage {
            name: "eth0".into(),
            rx_bytes: value(cpu_ns / 1000),
            tx_bytes: value(0),
            ..Default::default()
        };
        let own = v1::ContainerAttributes {
            id: format!("{name}-ctr"),
            metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt: 0 }),
            ..Default::default()
        };
        let inside = v1::ContainerStats { attributes: Some(own), cpu, memory, ..Default::default() };
        v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: format!("{name}-pod"),
                metadata: Some(metadata),
                ..Default::default()
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu,
                memory,
                network: Some(v1::NetworkUsage {
                    timestamp,
                    default_interface: Some(eth0),
                    ..Default::default()
                }),
                process: Some(v1::ProcessUsage { timestamp, process_count: value(2) }),
                containers: vec![inside],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn looks() -> (Look, Look) {
        let second = 1_000_000_000;
        let operation = admin::Operation {
            kind: "RunPodSandbox".into(),
            name: "new".into(),
            age_ms: 2_000,
            ..Default::default()
        };
        let before = Look { pods: vec![pod("a", second, 0, 0), pod("b", second, 0, 0)], operations: None };
        let after = Look {
            pods: vec![pod("a", 2 * second, 10_000_000, 5 << 20), pod("b", 2 * second, 500_000_000, 1 << 20)],
            operations: Some(vec![operation]),
        };
        (before, after)
    }

    #[test]
    fn the_busiest_pod_is_first() {
        let (before, after) = looks();
        let expected = "\
2 pods, 2 containers; sorted by cpu (c, m, n; q ends)
2.0s RunPodSandbox new: -

ID      POD / CONTAINER   CPU %   MEMORY   OF     WAITS c/m/i %   PROCS   IN/s     OUT/s
b-pod   n/b               50.0    1MiB     2MiB   -/-/-           2       488KiB   0B
b-ctr     main            50.0    1MiB     2MiB   -/-/-           -       -        -
a-pod   n/a               1.0     5MiB     6MiB   -/-/-           2       9.77KiB  0B
a-ctr     main            1.0     5MiB     6MiB   -/-/-           -       -        -
";
        let squeeze = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        assert_eq!(squeeze(&screen(&before, &after, SortBy::Cpu, None)), squeeze(expected));
    }

    #[test]
    fn other_orders_and_small_screens() {
        let (before, after) = looks();
        let first = |sort| {
            let text = screen(&before, &after, sort, None);
            text.lines().nth(4).unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
        };
        assert_eq!((first(SortBy::Memory).as_str(), first(SortBy::Name).as_str()), ("a-pod", "a-pod"));
        let small = screen(&before, &after, SortBy::Cpu, Some((2, 10)));
        assert_eq!(small, "2 pods, 2 \n2.0s RunPo");
    }
}
