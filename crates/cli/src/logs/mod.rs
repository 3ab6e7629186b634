//! `logs`: what a container wrote, read from its log file.

mod follow;
mod line;
mod tail;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bowline_cri_proto::v1;

use crate::args::LogsArgs;
use crate::client::Client;
use crate::containers::status;
use crate::failure::{Done, Failure};
use crate::render::{now, short};
use crate::select::{all_containers, pick};

pub(crate) use follow::Follower;
pub(crate) use line::Printer;

/// Between two looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(100);
/// How many looks lie between two questions after the container.
const LOOKS_PER_QUESTION: u32 = 10;

pub(crate) async fn logs(client: &Client, args: &LogsArgs) -> Done {
    let all = all_containers(client).await?;
    let mut container = pick(&all, &args.container)?;
    if args.previous {
        container = previous(&all, container)?;
    }
    let answer = status(client, &container.id, false).await?.status.unwrap_or_default();
    if answer.log_path.is_empty() {
        let text = format!("container {} has no log", short(&container.id, false));
        return Err(Failure::hint(text, "a pod with a log_directory and a container with a log_path"));
    }
    let since = args.since.as_deref().map(|text| line::since(text, now())).transpose()?;
    let path = PathBuf::from(&answer.log_path);
    let is_new = answer.state() == v1::ContainerState::ContainerCreated;
    if !args.follow && !is_new && !path.exists() {
        let text = format!("there is no {} on this machine", path.display());
        return Err(Failure::hint(
            text,
            "the machine of the runtime, as root; a log may also have been deleted",
        ));
    }
    let start = match args.tail.filter(|_| path.exists()) {
        Some(lines) => tail::start_of_last(&path, lines),
        None => Ok(0),
    };
    let broken = |error| Failure::io(&format!("read the log {}", path.display()), error);
    let start = start.map_err(broken)?;
    let mut follower = Follower::new(path.clone(), start);
    let mut printer = Printer::new(since, args.timestamps);
    let mut look = 0;
    loop {
        // Asked first, read then: what was written before the end is seen.
        let ended = !args.follow || (look % LOOKS_PER_QUESTION == 0 && ended(client, &container.id).await?);
        drain(&mut follower, &mut printer).map_err(|error| match error {
            Broken::Log(error) => broken(error),
            Broken::Output(error) => Failure::from(error),
        })?;
        if ended {
            return Ok(0);
        }
        look += 1;
        tokio::time::sleep(LOOK).await;
    }
}

/// What could not be done with a log.
pub(crate) enum Broken {
    /// Reading it.
    Log(std::io::Error),
    /// Writing it out.
    Output(std::io::Error),
}

/// Prints what is new.
pub(crate) fn drain(follower: &mut Follower, printer: &mut Printer) -> Result<(), Broken> {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
    while let Some(line) = follower.next_line().map_err(Broken::Log)? {
        printer.print(&line, &mut out, &mut err).map_err(Broken::Output)?;
    }
    out.flush().map_err(Broken::Output)
}

async fn ended(client: &Client, id: &str) -> Result<bool, Failure> {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    match client.runtime().container_status(client.request(request)).await {
        Ok(answer) => {
            let state = answer.into_inner().status.unwrap_or_default().state();
            Ok(state == v1::ContainerState::ContainerExited)
        }
        // Removed meanwhile.
        Err(status) if status.code() == tonic::Code::NotFound => Ok(true),
        Err(status) => Err(Failure::status("ask after the container", &status)),
    }
}

/// The newest container of the same name in the same pod that is older.
fn previous<'a>(all: &'a [v1::Container], this: &v1::Container) -> Result<&'a v1::Container, Failure> {
    let name = |container: &v1::Container| container.metadata.clone().unwrap_or_default().name;
    let older = all.iter().filter(|other| {
        other.pod_sandbox_id == this.pod_sandbox_id
            && name(other) == name(this)
            && other.created_at < this.created_at
    });
    older.max_by_key(|other| other.created_at).ok_or_else(|| {
        let text = format!("container {} is the first of its name in its pod", short(&this.id, false));
        Failure::hint(text, "without --previous")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_before() {
        let container = |id: &str, created_at: i64| v1::Container {
            id: id.into(),
            created_at,
            metadata: Some(v1::ContainerMetadata { name: "web".into(), attempt: 0 }),
            ..Default::default()
        };
        let all = [container("a", 1), container("c", 3), container("b", 2)];
        assert_eq!(previous(&all, &all[1]).unwrap().id, "b");
        assert!(previous(&all, &all[0]).is_err());
    }
}
