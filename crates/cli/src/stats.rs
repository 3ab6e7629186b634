//! `stats`: what containers use. CPU% comes from two looks.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use bowline_cri_proto::v1;

use crate::args::{Output, StatsArgs};
use crate::client::Client;
use crate::failure::{Done, Failure, doing};
use crate::reflect::to_json;
use crate::render::{Table, binary_size, print, print_value, short, size};
use crate::select::{all_containers, pick};

pub(crate) async fn stats(client: &Client, args: &StatsArgs) -> Done {
    let containers = all_containers(client).await?;
    let mut wanted = Vec::new();
    for name in &args.containers {
        wanted.push(pick(&containers, name)?.id.clone());
    }
    let mut before = look(client, &wanted).await?;
    loop {
        tokio::time::sleep(Duration::from_secs_f64(args.seconds)).await;
        let after = look(client, &wanted).await?;
        show(client, args, &before, &after).await?;
        if !args.watch {
            return Ok(0);
        }
        before = after;
    }
}

async fn look(client: &Client, wanted: &[String]) -> Result<Vec<v1::ContainerStats>, Failure> {
    let request = client.request(v1::ListContainerStatsRequest::default());
    let answer =
        client.runtime().list_container_stats(request).await.map_err(doing("read the statistics"))?;
    let mut stats = answer.into_inner().stats;
    stats.retain(|stats| wanted.is_empty() || wanted.iter().any(|id| id == id_of(stats)));
    Ok(stats)
}

async fn show(
    client: &Client,
    args: &StatsArgs,
    before: &[v1::ContainerStats],
    after: &[v1::ContainerStats],
) -> Result<(), Failure> {
    // Runtimes differ in whether they list what has ended.
    let containers = all_containers(client).await?;
    let runs = |id: &str| {
        let running = v1::ContainerState::ContainerRunning;
        containers.iter().any(|container| container.id == id && container.state() == running)
    };
    let shown: Vec<v1::ContainerStats> =
        after.iter().filter(|stats| args.all || runs(id_of(stats))).cloned().collect();
    if args.output != Output::Table {
        let response = v1::ListContainerStatsResponse { stats: shown };
        return print_value(args.output, &to_json("ListContainerStatsResponse", &response)?);
    }
    let text = table(before, &shown);
    match args.watch && std::io::stdout().is_terminal() {
        // Home, and clear what was below.
        true => print(&format!("\x1b[H\x1b[2J{text}")),
        false => print(&text),
    }
}

fn id_of(stats: &v1::ContainerStats) -> &str {
    stats.attributes.as_ref().map_or("", |attributes| &attributes.id)
}

fn table(before: &[v1::ContainerStats], after: &[v1::ContainerStats]) -> String {
    let earlier: HashMap<&str, &v1::ContainerStats> =
        before.iter().map(|stats| (id_of(stats), stats)).collect();
    let mut table = Table::new(&["CONTAINER", "NAME", "CPU %", "MEMORY", "DISK", "INODES"]);
    let known = |value: Option<u64>, show: fn(u64) -> String| value.map_or("-".to_owned(), show);
    for stats in after {
        let metadata = stats.attributes.as_ref().and_then(|attributes| attributes.metadata.as_ref());
        let memory = stats.memory.as_ref().and_then(|memory| memory.working_set_bytes);
        let disk = stats.writable_layer.as_ref();
        let percent = earlier.get(id_of(stats)).and_then(|earlier| percent(earlier, stats));
        table.row([
            short(id_of(stats), false).to_owned(),
            metadata.map_or("", |metadata| &metadata.name).to_owned(),
            percent.map_or("-".to_owned(), |percent| format!("{percent:.2}")),
            known(memory.map(|v| v.value), binary_size),
            known(disk.and_then(|disk| disk.used_bytes).map(|v| v.value), size),
            known(disk.and_then(|disk| disk.inodes_used).map(|v| v.value), |count| count.to_string()),
        ]);
    }
    table.text()
}

/// Percent of one core. `None` where the two looks saw the same sample.
fn percent(before: &v1::ContainerStats, after: &v1::ContainerStats) -> Option<f64> {
    let (before, after) = (before.cpu.as_ref()?, after.cpu.as_ref()?);
    let time = after.timestamp.checked_sub(before.timestamp).filter(|time| *time > 0)?;
    let used = after.usage_core_nano_seconds?.value.checked_sub(before.usage_core_nano_seconds?.value)?;
    Some(used as f64 / time as f64 * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(timestamp: i64, used: u64) -> v1::ContainerStats {
        let value = |value| Some(v1::UInt64Value { value });
        let cpu = v1::CpuUsage { timestamp, usage_core_nano_seconds: value(used), ..Default::default() };
        let memory = v1::MemoryUsage { working_set_bytes: value(3 << 20), ..Default::default() };
        let attributes = v1::ContainerAttributes {
            id: "0123456789abcdef".into(),
            metadata: Some(v1::ContainerMetadata { name: "web".into(), attempt: 0 }),
            ..Default::default()
        };
        v1::ContainerStats {
            attributes: Some(attributes),
            cpu: Some(cpu),
            memory: Some(memory),
            ..Default::default()
        }
    }

    #[test]
    fn two_looks_make_a_percentage() {
        let text = table(&[sample(1_000, 500)], &[sample(2_000, 750)]);
        let expected = "\
CONTAINER       NAME   CPU %   MEMORY   DISK   INODES
0123456789abc   web    25.00   3MiB     -      -
";
        assert_eq!(text, expected);
    }

    #[test]
    fn one_sample_makes_none() {
        assert_eq!(percent(&sample(1_000, 500), &sample(1_000, 500)), None);
        assert_eq!(percent(&sample(1_000, 500), &sample(2_000, 400)), None, "a counter that began anew");
    }
}
