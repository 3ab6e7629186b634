//! Containers: list, start, stop, remove, inspect.

use std::collections::BTreeMap;
use std::time::Duration;

use bowline_cri_proto::v1;
use serde_json::json;

use crate::args::{CheckpointArgs, ContainersArgs, InspectArgs, Output, PsArgs, RmArgs, State, StopArgs};
use crate::client::Client;
use crate::failure::{Done, Failure, doing, each};
use crate::info::lift_info;
use crate::pods::print_inspected;
use crate::reflect::to_json;
use crate::render::{Table, age, now, print, print_line, print_value, rfc3339, short};
use crate::select::{self, all_containers, all_pods, pick};

/// How long `rm --force` lets a container end by itself.
const FORCE_GRACE: i64 = 10;

pub(crate) async fn list(client: &Client, args: &PsArgs) -> Done {
    let pod_sandbox_id = match &args.pod {
        Some(pod) => select::pod(client, pod).await?.id,
        None => String::new(),
    };
    let state = wanted_state(args).map(|state| v1::ContainerStateValue { state: state as i32 });
    let filter = v1::ContainerFilter {
        id: args.id.clone().unwrap_or_default(),
        state,
        pod_sandbox_id,
        label_selector: args.label.iter().cloned().collect::<BTreeMap<_, _>>(),
    };
    let request = client.request(v1::ListContainersRequest { filter: Some(filter) });
    let answer = client.runtime().list_containers(request).await.map_err(doing("list containers"))?;
    let mut containers = answer.into_inner().containers;
    let image = match &args.image {
        Some(image) => Some(crate::images::find(client, image).await?),
        None => None,
    };
    choose(&mut containers, args, image.as_ref());
    match args.list.output {
        _ if args.list.quiet => {
            print(&containers.iter().map(|container| format!("{}\n", container.id)).collect::<String>())?;
        }
        Output::Table => {
            let pods = all_pods(client).await?;
            print(&table(&containers, &pods, now(), args.list.no_trunc))?;
        }
        output => {
            let response = v1::ListContainersResponse { containers };
            print_value(output, &to_json("ListContainersResponse", &response)?)?;
        }
    }
    Ok(0)
}

/// Whoever asks for the newest means the newest.
fn wanted_state(args: &PsArgs) -> Option<v1::ContainerState> {
    match args.state {
        Some(State::Created) => Some(v1::ContainerState::ContainerCreated),
        Some(State::Running) => Some(v1::ContainerState::ContainerRunning),
        Some(State::Exited) => Some(v1::ContainerState::ContainerExited),
        Some(State::Unknown) => Some(v1::ContainerState::ContainerUnknown),
        None if args.all || args.latest || args.last.is_some() => None,
        None => Some(v1::ContainerState::ContainerRunning),
    }
}

/// What the runtime cannot filter; newest first.
fn choose(containers: &mut Vec<v1::Container>, args: &PsArgs, image: Option<&v1::Image>) {
    containers.retain(|container| {
        let name = container.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        args.name.as_ref().is_none_or(|wanted| name.contains(wanted.as_str()))
            && image.is_none_or(|image| crate::images::is_used_by(image, container))
    });
    containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    let most = if args.latest { Some(1) } else { args.last };
    containers.truncate(most.unwrap_or(usize::MAX));
}

fn table(containers: &[v1::Container], pods: &[v1::PodSandbox], now: i64, whole: bool) -> String {
    let heading = ["CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD"];
    let mut table = Table::new(&heading);
    for container in containers {
        let metadata = container.metadata.clone().unwrap_or_default();
        let pod = pods.iter().find(|pod| pod.id == container.pod_sandbox_id);
        let pod = pod.and_then(|pod| pod.metadata.as_ref()).map_or("unknown", |metadata| &metadata.name);
        table.row([
            short(&container.id, whole),
            image_name(container, whole),
            &age(container.created_at, now),
            state_name(container.state()),
            &metadata.name,
            &metadata.attempt.to_string(),
            short(&container.pod_sandbox_id, whole),
            pod,
        ]);
    }
    table.text()
}

/// The name that people gave the image, where the runtime still knows it.
fn image_name(container: &v1::Container, whole: bool) -> &str {
    let spec = container.image.as_ref();
    let given = spec.map(|spec| spec.user_specified_image.as_str()).filter(|name| !name.is_empty());
    let image = given.or(spec.map(|spec| spec.image.as_str())).unwrap_or_default();
    let is_id = image.trim_start_matches("sha256:").bytes().all(|b| b.is_ascii_hexdigit());
    if is_id { short(image, whole) } else { image }
}

fn state_name(state: v1::ContainerState) -> &'static str {
    match state {
        v1::ContainerState::ContainerCreated => "Created",
        v1::ContainerState::ContainerRunning => "Running",
        v1::ContainerState::ContainerExited => "Exited",
        v1::ContainerState::ContainerUnknown => "Unknown",
    }
}

pub(crate) async fn start(client: &Client, args: &ContainersArgs) -> Done {
    let all = all_containers(client).await?;
    let all = &all;
    each(&args.containers, |at| async move {
        let container = pick(all, &args.containers[at])?;
        start_one(client, &container.id).await?;
        print_line(&container.id)
    })
    .await
}

/// Starts one container.
pub(crate) async fn start_one(client: &Client, id: &str) -> Result<(), Failure> {
    let request = v1::StartContainerRequest { container_id: id.to_owned() };
    let started = client.runtime().start_container(client.request(request)).await;
    started.map(|_| ()).map_err(doing(format!("start container {}", short(id, false))))
}

pub(crate) async fn stop(client: &Client, args: &StopArgs) -> Done {
    let all = all_containers(client).await?;
    let all = &all;
    each(&args.containers, |at| async move {
        let container = pick(all, &args.containers[at])?;
        stop_one(client, &container.id, args.time).await?;
        print_line(&container.id)
    })
    .await
}

/// Stops one container; it is killed after so many seconds.
pub(crate) async fn stop_one(client: &Client, id: &str, grace: i64) -> Result<(), Failure> {
    let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
    let request = client.request_within(request, Duration::from_secs(grace.max(0) as u64));
    let stopped = client.runtime().stop_container(request).await;
    stopped.map(|_| ()).map_err(doing(format!("stop container {}", short(id, false))))
}

/// The daemon writes the file, so its path is made absolute here.
pub(crate) async fn checkpoint(client: &Client, args: &CheckpointArgs) -> Done {
    let all = all_containers(client).await?;
    let container = pick(&all, &args.container)?;
    let location = std::path::absolute(&args.archive);
    let location = location.map_err(|error| Failure::new(format!("{}: {error}", args.archive.display())))?;
    let location = location.to_string_lossy().into_owned();
    let request =
        v1::CheckpointContainerRequest { container_id: container.id.clone(), location, timeout: args.time };
    let limit = Duration::from_secs(args.time.max(0) as u64);
    let written = client.runtime().checkpoint_container(client.request_within(request, limit)).await;
    written.map_err(doing(format!("checkpoint container {}", short(&container.id, false))))?;
    print_line(&container.id)?;
    Ok(0)
}

pub(crate) async fn remove(client: &Client, args: &RmArgs) -> Done {
    let all = all_containers(client).await?;
    let runs = |container: &v1::Container| container.state() == v1::ContainerState::ContainerRunning;
    let chosen = all.iter().filter(|container| args.force || !runs(container));
    let ids: Vec<String> = chosen.map(|container| container.id.clone()).collect();
    let (all, names) = (&all, if args.all { &ids } else { &args.containers });
    each(names, |at| async move {
        let container = pick(all, &names[at])?;
        if runs(container) {
            if !args.force {
                let text = format!("container {} runs", short(&container.id, false));
                return Err(Failure::hint(text, "`bowline stop` first, or --force"));
            }
            stop_one(client, &container.id, FORCE_GRACE).await?;
        }
        let request = v1::RemoveContainerRequest { container_id: container.id.clone() };
        let removed = client.runtime().remove_container(client.request(request)).await;
        removed.map_err(doing(format!("remove container {}", short(&container.id, false))))?;
        print_line(&container.id)
    })
    .await
}

/// What the runtime says of a container.
pub(crate) async fn status(
    client: &Client,
    id: &str,
    verbose: bool,
) -> Result<v1::ContainerStatusResponse, Failure> {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose };
    let answer = client.runtime().container_status(client.request(request)).await;
    Ok(answer.map_err(doing(format!("inspect container {}", short(id, false))))?.into_inner())
}

pub(crate) async fn inspect(client: &Client, args: &InspectArgs) -> Done {
    let all = all_containers(client).await?;
    let mut found = Vec::new();
    for name in &args.names {
        found.push(status(client, &pick(&all, name)?.id, !args.quiet).await?);
    }
    if args.output == Output::Table {
        print(&details(&found))?;
        return Ok(0);
    }
    let values = found.iter().map(|answer| {
        let mut value = to_json("ContainerStatusResponse", answer)?;
        lift_info(&mut value);
        let status = answer.status.clone().unwrap_or_default();
        let times = [
            ("createdAt", status.created_at),
            ("startedAt", status.started_at),
            ("finishedAt", status.finished_at),
        ];
        for (key, time) in times {
            value["status"][key] = json!(rfc3339(time));
        }
        Ok(value)
    });
    print_inspected(args.output, values.collect::<Result<_, Failure>>()?)
}

fn details(found: &[v1::ContainerStatusResponse]) -> String {
    let mut table =
        Table::new(&["CONTAINER", "NAME", "STATE", "CODE", "REASON", "STARTED", "FINISHED", "LOG"]);
    let time = |at: i64| if at == 0 { "-".to_owned() } else { rfc3339(at) };
    for answer in found {
        let status = answer.status.clone().unwrap_or_default();
        let name = status.metadata.as_ref().map_or("", |metadata| &metadata.name);
        table.row([
            short(&status.id, false),
            name,
            state_name(status.state()),
            &status.exit_code.to_string(),
            &status.reason,
            &time(status.started_at),
            &time(status.finished_at),
            &status.log_path,
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{ClientArgs, ClientCommand};
    use clap::Parser as _;

    fn ps(flags: &[&str]) -> PsArgs {
        let line = ["bowline", "ps"].iter().chain(flags);
        match ClientArgs::try_parse_from(line).unwrap().command {
            ClientCommand::Ps(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn container(id: &str, name: &str, image: &str) -> v1::Container {
        v1::Container {
            id: id.into(),
            pod_sandbox_id: "0123456789abcdef".into(),
            metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 1 }),
            image: Some(v1::ImageSpec { image: image.into(), ..Default::default() }),
            state: v1::ContainerState::ContainerRunning as i32,
            created_at: 1_000_000_000,
            ..Default::default()
        }
    }

    #[test]
    fn containers_in_a_table() {
        let metadata = v1::PodSandboxMetadata { name: "shop".into(), ..Default::default() };
        let pod =
            v1::PodSandbox { id: "0123456789abcdef".into(), metadata: Some(metadata), ..Default::default() };
        let mut strange = container("fedcba9876543210", "db", &format!("sha256:{}", "ab".repeat(32)));
        strange.pod_sandbox_id = "gone".into();
        let rows = [container("aaaaaaaaaaaaaaaa", "web", "example.org/web:1"), strange];
        let expected = "\
CONTAINER       IMAGE               CREATED        STATE     NAME   ATTEMPT   POD ID          POD
aaaaaaaaaaaaa   example.org/web:1   1 second ago   Running   web    1         0123456789abc   shop
fedcba9876543   ababababababa       1 second ago   Running   db     1         gone            unknown
";
        assert_eq!(table(&rows, &[pod], 2_000_000_000, false), expected);
    }

    #[test]
    fn states_that_are_asked_for() {
        assert_eq!(wanted_state(&ps(&[])), Some(v1::ContainerState::ContainerRunning));
        assert_eq!(wanted_state(&ps(&["-a"])), None);
        assert_eq!(wanted_state(&ps(&["--latest"])), None);
        assert_eq!(wanted_state(&ps(&["--state", "exited"])), Some(v1::ContainerState::ContainerExited));
    }

    #[test]
    fn filters_that_we_apply() {
        let mut all = vec![container("1", "web", "a"), container("2", "db", "b")];
        all[1].image_id = "sha256:22".into();
        let image = v1::Image { id: "sha256:22".into(), ..Default::default() };
        let mut by_image = all.clone();
        choose(&mut by_image, &ps(&[]), Some(&image));
        assert_eq!(by_image.len(), 1);
        choose(&mut all, &ps(&["--name", "we"]), None);
        assert_eq!(all[0].id, "1");
    }
}
