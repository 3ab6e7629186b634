//! `run`: a command in a new pod of one container, from its image to its exit code.

mod config;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bowline_cri_proto::v1;

use crate::client::Client;
use crate::containers::{start_one, status, stop_one};
use crate::create::{create_with, read_pod_config, run_pod_with};
use crate::exec::exit_code;
use crate::failure::{Done, Failure};
use crate::logs::{Broken, Follower, Printer, drain};
use crate::pods::{remove_one, stop_one as stop_pod};
use crate::render::{print_line, say};

pub(crate) use config::LOG_FOLDER;
pub use config::RunArgs;
use config::{LOG_NAME, Pull};

/// What the names of our log folders start with.
const LOG_PREFIX: &str = "bowline-run-";
/// After Ctrl-C.
const GRACE: i64 = 10;

pub(crate) async fn run(client: &Client, args: RunArgs) -> Done {
    if args.interactive {
        let text = "-i needs streaming, which this client does not have yet";
        return Err(Failure::hint(text, "without it; `bowline logs -f` shows what a container writes"));
    }
    let random = random_hex(8)?;
    let mut pod = match &args.pod_config {
        Some(path) => read_pod_config(path)?,
        None => v1::PodSandboxConfig::default(),
    };
    config::complete_pod(&mut pod, &args, &random)?;
    let container = config::container(&args, &random)?;
    bring_image(client, &args).await?;
    // A pod from a file may have a place for its logs already.
    let made = if pod.log_directory.is_empty() { Some(make_log_folder(&random)?) } else { None };
    if let Some(folder) = &made {
        pod.log_directory = folder.to_string_lossy().into_owned();
        pod.annotations.insert(LOG_FOLDER.to_owned(), pod.log_directory.clone());
    }
    let log = Path::new(&pod.log_directory).join(LOG_NAME);
    run_pod(client, &args, pod, container, &log, made.as_deref()).await
}

async fn bring_image(client: &Client, args: &RunArgs) -> Result<(), Failure> {
    let wanted = match args.pull {
        Pull::Always => true,
        Pull::Never => false,
        Pull::Missing => crate::images::present(client, &args.image).await?.is_none(),
    };
    if wanted {
        let auth = crate::pull::auth(&args.credentials)?;
        crate::pull::pull(client, &args.image, auth, args.quiet, None).await?;
    }
    Ok(())
}

async fn run_pod(
    client: &Client,
    args: &RunArgs,
    pod_config: v1::PodSandboxConfig,
    config: v1::ContainerConfig,
    log: &Path,
    made: Option<&Path>,
) -> Done {
    let brought_up = run_pod_with(client, pod_config.clone(), &args.runtime).await;
    let pod = brought_up.inspect_err(|_| made.iter().for_each(|folder| remove_log_folder(folder)))?;
    let started = async {
        let container = create_with(client, &pod, config, pod_config).await?;
        start_one(client, &container).await?;
        Ok(container)
    };
    let container = match started.await {
        Ok(container) => container,
        Err(failure) => {
            // Nothing stays behind of what did not come up.
            take_down(client, &pod, made).await;
            return Err(failure);
        }
    };
    if args.detach {
        say(&format!("pod {pod}"));
        print_line(&container)?;
        return Ok(0);
    }
    let result = watch(client, &container, log).await;
    if args.remove {
        take_down(client, &pod, made).await;
    } else if let Err(failure) = stop_pod(client, &pod).await {
        // Its container has ended, or nobody watches it any more: addresses and processes are given back.
        say(&failure.text().unwrap_or_default());
    }
    result
}

async fn take_down(client: &Client, pod: &str, made: Option<&Path>) {
    let down = async {
        stop_pod(client, pod).await?;
        remove_one(client, pod).await
    };
    match down.await {
        Ok(()) => made.iter().for_each(|folder| remove_log_folder(folder)),
        Err(failure) => say(&failure.text().unwrap_or_default()),
    }
}

/// Shows what the container writes until it ends, and gives its exit code. The first Ctrl-C stops it, the second
/// kills it.
async fn watch(client: &Client, container: &str, log: &Path) -> Done {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|error| Failure::io("listen for signals", error));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut follower = Follower::new(log.to_owned(), 0);
    let mut printer = Printer::new(None, false);
    let mut wait = Duration::from_millis(5);
    let mut stopping = false;
    loop {
        // Asked first, read then: what was written before the end is seen.
        let now = status(client, container, false).await?.status.unwrap_or_default();
        match drain(&mut follower, &mut printer) {
            Ok(()) => {}
            Err(Broken::Log(error)) => return Err(Failure::io(&format!("read {}", log.display()), error)),
            Err(Broken::Output(error)) => return Err(Failure::from(error)),
        }
        if now.state() == v1::ContainerState::ContainerExited {
            if !now.message.is_empty() {
                say(&format!("{}: {}", now.reason, now.message));
            }
            return Ok(exit_code(now.exit_code));
        }
        let asked = tokio::select! {
            () = tokio::time::sleep(wait) => false,
            _ = interrupt.recv() => true,
            _ = terminate.recv() => true,
        };
        if asked {
            let grace = if stopping { 0 } else { GRACE };
            stopping = true;
            tokio::select! {
                stopped = stop_one(client, container, grace) => stopped?,
                _ = interrupt.recv() => stop_one(client, container, 0).await?,
            }
        }
        // Short commands are answered at once, long ones cost nothing.
        wait = (wait * 2).min(Duration::from_millis(100));
    }
}

fn make_log_folder(random: &str) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    let folder = std::env::temp_dir().join(format!("{LOG_PREFIX}{random}"));
    let made = std::fs::DirBuilder::new().mode(0o700).create(&folder);
    made.map_err(|error| Failure::io(&format!("make {}", folder.display()), error))?;
    Ok(folder)
}

/// Removes a folder that [`run`] made. The name comes from a pod's annotation, which anybody may have written: only
/// plain files of a folder that is called as ours are, owned by us, in the place where we make them.
pub(crate) fn remove_log_folder(folder: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let ours = folder.parent() == Some(std::env::temp_dir().as_path())
        && folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LOG_PREFIX));
    let is_folder = std::fs::symlink_metadata(folder)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw());
    if !ours || !is_folder {
        return;
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(LOG_NAME) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

/// So many random bytes in hexadecimal.
pub(crate) fn random_hex(bytes: usize) -> Result<String, Failure> {
    let mut buffer = vec![0u8; bytes];
    let filled = rustix::rand::getrandom(&mut buffer, rustix::rand::GetRandomFlags::empty());
    match filled {
        Ok(len) if len == bytes => Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect()),
        Ok(_) => Err(Failure::new("the kernel has no random bytes")),
        Err(errno) => Err(Failure::io("get random bytes", errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{ClientArgs, ClientCommand};
    use crate::fake::{Fake, Script};

    async fn play(flags: &str, script: Script) -> (Done, Vec<String>, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::new(script);
        let client = fake.serve(folder.path()).await;
        let line = ["bowline", "run", "-q", "--name", "web"].into_iter().chain(flags.split_whitespace());
        let ClientCommand::Run(args) = ClientArgs::try_parse_from(line).unwrap().command else {
            panic!("another command");
        };
        let done = run(&client, *args).await;
        let script = fake.script();
        (done, script.calls.clone(), script.folder.clone())
    }

    #[tokio::test]
    async fn a_pod_in_one_command() {
        let log = "2026-01-01T00:00:01Z stderr F said the container\n".to_owned();
        let (done, calls, folder) =
            play("--rm busybox sh -x", Script { log, exit_code: 7, ..Script::default() }).await;
        assert_eq!(done.unwrap(), 7);
        assert_eq!(
            calls,
            ["pull busybox", "run pod web", "create sh -x in p0d", "start", "stop pod", "remove pod"]
        );
        assert!(!folder.exists(), "{}", folder.display());
    }

    #[tokio::test]
    async fn what_did_not_start_is_taken_down() {
        let script = Script { fails_to_start: true, images: vec!["x".into()], ..Script::default() };
        let (done, calls, folder) = play("x", script).await;
        assert!(done.unwrap_err().text().unwrap().contains("no such program"));
        assert_eq!(calls, ["run pod web", "create  in p0d", "start", "stop pod", "remove pod"]);
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn without_rm_the_log_stays() {
        let script = Script { images: vec!["x".into()], ..Script::default() };
        let (done, calls, folder) = play("x", script).await;
        assert_eq!(done.unwrap(), 0);
        assert_eq!(calls.last().unwrap(), "stop pod");
        assert!(folder.join(LOG_NAME).exists());
        remove_log_folder(&folder);
    }

    #[test]
    fn only_our_own_folder_is_removed() {
        let folder = make_log_folder(&format!("test-{}", random_hex(8).unwrap())).unwrap();
        std::fs::write(folder.join(LOG_NAME), "x").unwrap();
        std::fs::write(folder.join(format!("{LOG_NAME}.1")), "x").unwrap();
        remove_log_folder(&folder);
        assert!(!folder.exists());
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join(LOG_NAME), "x").unwrap();
        remove_log_folder(other.path());
        assert!(other.path().join(LOG_NAME).exists());
    }
}
