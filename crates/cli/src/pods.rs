//! Pods: list, stop, remove, inspect.

use std::collections::BTreeMap;
use std::path::Path;

use bowline_cri_proto::v1;
use serde_json::{Value, json};

use crate::args::{InspectArgs, Output, PodNamesArgs, PodState, PodsArgs, RmpArgs};
use crate::client::Client;
use crate::failure::{Done, Failure, doing, each};
use crate::info::lift_info;
use crate::reflect::to_json;
use crate::render::{Table, age, now, print, print_line, print_value, rfc3339, short};
use crate::run::{LOG_FOLDER, remove_log_folder};
use crate::select::{all_pods, pick};

/// Stopping a pod ends its containers, each in its grace period.
pub(crate) const STOP_EXTRA: std::time::Duration = std::time::Duration::from_secs(120);

pub(crate) async fn list(client: &Client, args: &PodsArgs) -> Done {
    let filter = v1::PodSandboxFilter {
        id: args.id.clone().unwrap_or_default(),
        state: args.state.map(|state| v1::PodSandboxStateValue { state: wire_state(state) as i32 }),
        label_selector: args.label.iter().cloned().collect::<BTreeMap<_, _>>(),
    };
    let request = client.request(v1::ListPodSandboxRequest { filter: Some(filter) });
    let answer = client.runtime().list_pod_sandbox(request).await.map_err(doing("list pods"))?;
    let mut pods = answer.into_inner().items;
    choose(&mut pods, args);
    match args.list.output {
        _ if args.list.quiet => {
            print(&pods.iter().map(|pod| format!("{}\n", pod.id)).collect::<String>())?;
        }
        Output::Table => print(&table(&pods, now(), args.list.no_trunc))?,
        output => {
            let response = v1::ListPodSandboxResponse { items: pods };
            print_value(output, &to_json("ListPodSandboxResponse", &response)?)?;
        }
    }
    Ok(0)
}

fn wire_state(state: PodState) -> v1::PodSandboxState {
    match state {
        PodState::Ready => v1::PodSandboxState::SandboxReady,
        PodState::Notready => v1::PodSandboxState::SandboxNotready,
    }
}

/// What the runtime cannot filter; newest first.
fn choose(pods: &mut Vec<v1::PodSandbox>, args: &PodsArgs) {
    pods.retain(|pod| {
        let metadata = pod.metadata.clone().unwrap_or_default();
        args.name.as_ref().is_none_or(|name| metadata.name.contains(name.as_str()))
            && args.namespace.as_ref().is_none_or(|namespace| metadata.namespace == *namespace)
    });
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    let most = if args.latest { Some(1) } else { args.last };
    pods.truncate(most.unwrap_or(usize::MAX));
}

fn table(pods: &[v1::PodSandbox], now: i64, whole: bool) -> String {
    let heading = ["POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"];
    let mut table = Table::new(&heading);
    for pod in pods {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let state = match pod.state() {
            v1::PodSandboxState::SandboxReady => "Ready",
            v1::PodSandboxState::SandboxNotready => "NotReady",
        };
        let runtime = if pod.runtime_handler.is_empty() { "(default)" } else { &pod.runtime_handler };
        table.row([
            short(&pod.id, whole),
            &age(pod.created_at, now),
            state,
            &metadata.name,
            &metadata.namespace,
            &metadata.attempt.to_string(),
            runtime,
        ]);
    }
    table.text()
}

pub(crate) async fn stop(client: &Client, args: &PodNamesArgs) -> Done {
    let all = all_pods(client).await?;
    let all = &all;
    each(&args.pods, |at| async move {
        let pod = pick(all, &args.pods[at])?;
        stop_one(client, &pod.id).await?;
        print_line(&pod.id)
    })
    .await
}

/// Stops one pod.
pub(crate) async fn stop_one(client: &Client, id: &str) -> Result<(), Failure> {
    let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    let request = client.request_within(request, STOP_EXTRA);
    let stopped = client.runtime().stop_pod_sandbox(request).await;
    stopped.map(|_| ()).map_err(doing(format!("stop pod {}", short(id, false))))
}

/// Removes one pod that is down.
pub(crate) async fn remove_one(client: &Client, id: &str) -> Result<(), Failure> {
    let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    let request = client.request_within(request, STOP_EXTRA);
    let removed = client.runtime().remove_pod_sandbox(request).await;
    removed.map(|_| ()).map_err(doing(format!("remove pod {}", short(id, false))))
}

pub(crate) async fn remove(client: &Client, args: &RmpArgs) -> Done {
    let all = all_pods(client).await?;
    let ready = |pod: &v1::PodSandbox| pod.state() == v1::PodSandboxState::SandboxReady;
    let ids: Vec<String> =
        all.iter().filter(|pod| args.force || !ready(pod)).map(|pod| pod.id.clone()).collect();
    let (all, names) = (&all, if args.all { &ids } else { &args.pods });
    each(names, |at| async move {
        let pod = pick(all, &names[at])?;
        if ready(pod) {
            if !args.force {
                let text = format!("pod {} is up", short(&pod.id, false));
                return Err(Failure::hint(text, "`bowline stopp` first, or --force"));
            }
            stop_one(client, &pod.id).await?;
        }
        remove_one(client, &pod.id).await?;
        if let Some(folder) = pod.annotations.get(LOG_FOLDER) {
            remove_log_folder(Path::new(folder));
        }
        print_line(&pod.id)
    })
    .await
}

pub(crate) async fn inspect(client: &Client, args: &InspectArgs) -> Done {
    let all = all_pods(client).await?;
    let mut found = Vec::new();
    for name in &args.names {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: pick(&all, name)?.id.clone(),
            verbose: !args.quiet,
        };
        let answer = client.runtime().pod_sandbox_status(client.request(request)).await;
        found.push(answer.map_err(doing(format!("inspect pod {name}")))?.into_inner());
    }
    if args.output == Output::Table {
        print(&details(&found))?;
        return Ok(0);
    }
    let values = found.iter().map(|answer| {
        let mut value = to_json("PodSandboxStatusResponse", answer)?;
        lift_info(&mut value);
        let status = answer.status.clone().unwrap_or_default();
        value["status"]["createdAt"] = json!(rfc3339(status.created_at));
        Ok(value)
    });
    print_inspected(args.output, values.collect::<Result<_, Failure>>()?)
}

/// One as it is, several as a list.
pub(crate) fn print_inspected(output: Output, mut values: Vec<Value>) -> Done {
    let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
    print_value(output, &value)?;
    Ok(0)
}

fn details(pods: &[v1::PodSandboxStatusResponse]) -> String {
    let mut table = Table::new(&["POD ID", "NAME", "NAMESPACE", "UID", "STATE", "CREATED", "ADDRESSES"]);
    for answer in pods {
        let status = answer.status.clone().unwrap_or_default();
        let metadata = status.metadata.clone().unwrap_or_default();
        let network = status.network.clone().unwrap_or_default();
        let more = network.additional_ips.iter().map(|ip| ip.ip.clone());
        let addresses: Vec<String> = std::iter::once(network.ip.clone()).chain(more).collect();
        let state = status.state().as_str_name().trim_start_matches("SANDBOX_").to_owned();
        let created = rfc3339(status.created_at);
        table.row([
            short(&status.id, false).to_owned(),
            metadata.name,
            metadata.namespace,
            metadata.uid,
            state,
            created,
            addresses.join(","),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{ClientArgs, ClientCommand};
    use clap::Parser as _;

    fn pod(id: &str, name: &str, created_at: i64) -> v1::PodSandbox {
        let metadata =
            v1::PodSandboxMetadata { name: name.into(), namespace: "default".into(), ..Default::default() };
        v1::PodSandbox { id: id.into(), metadata: Some(metadata), created_at, ..Default::default() }
    }

    #[test]
    fn pods_in_a_table() {
        let now = 1_000_000_000_000;
        let mut down = pod("fedcba9876543210", "db", now - 125_000_000_000);
        down.state = v1::PodSandboxState::SandboxNotready as i32;
        down.runtime_handler = "kata".into();
        let text = table(&[pod("0123456789abcdef", "web", now), down], now, false);
        let expected = "\
POD ID          CREATED                  STATE      NAME   NAMESPACE   ATTEMPT   RUNTIME
0123456789abc   less than a second ago   Ready      web    default     0         (default)
fedcba9876543   2 minutes ago            NotReady   db     default     0         kata
";
        assert_eq!(text, expected);
    }

    #[test]
    fn filters_that_we_apply() {
        let check = |flags: &[&str], expected: &[&str]| {
            let line = ["bowline", "pods"].iter().chain(flags);
            let ClientCommand::Pods(args) = ClientArgs::try_parse_from(line).unwrap().command else {
                panic!("another command");
            };
            let mut pods = vec![pod("1", "web-1", 10), pod("2", "db", 30), pod("3", "web-2", 20)];
            choose(&mut pods, &args);
            assert_eq!(pods.iter().map(|pod| pod.id.as_str()).collect::<Vec<_>>(), expected, "{flags:?}");
        };
        check(&[], &["2", "3", "1"]);
        check(&["--name", "web"], &["3", "1"]);
        check(&["--latest"], &["2"]);
        check(&["-n", "2"], &["2", "3"]);
        check(&["--namespace", "other"], &[]);
    }
}
