//! Whole pods: a folder of the caller's with an archive for each container.
//!
//! ```text
//!   <output>/pod.options         version, and which archive is whose
//!   <output>/pod.dump            what the pod was, for people
//!   <output>/container-0.tar     as CheckpointContainer writes it
//! ```
//!
//! The layout is nobody else's business (CRI calls it opaque).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bowline_model::spec::{ContainerSpec, PodSpec};
use bowline_model::{ContainerId, SandboxId};
use bowline_store::PodRecord;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::facts::Unpacked;
use super::{archive, may_restore};
use crate::PodError;
use crate::error::doing;

const OPTIONS: &str = "pod.options";
const DUMP: &str = "pod.dump";
const VERSION: u32 = 1;
/// As many as a pod may have.
const MAX_CONTAINERS: usize = 512;

/// `pod.options`.
#[derive(Debug, Serialize, Deserialize)]
struct Options {
    version: u32,
    /// Name of a container -> name of its archive.
    containers: BTreeMap<String, String>,
}

/// A pod to bring back.
#[derive(Debug)]
pub struct PodRestore {
    /// The folder that it was written to.
    pub checkpoint: PathBuf,
    /// What it is to be.
    pub pod: PodSpec,
    /// What its containers are to be.
    pub containers: Vec<ContainerSpec>,
}

/// A pod that was brought back: its containers go on when they are started.
#[derive(Debug, PartialEq, Eq)]
pub struct Restored {
    /// The pod.
    pub pod: SandboxId,
    /// Its containers, with their names.
    pub containers: Vec<(String, ContainerId)>,
}

/// Whether a folder may be written to: there, a folder, empty. The call's rules about it, before anything is frozen.
pub(crate) fn check_output(output: &Path) -> Result<(), PodError> {
    let invalid = |why: &str| Err(PodError::Invalid(format!("output_path: {} {why}", output.display())));
    match fs::symlink_metadata(output) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return invalid("is not there; the caller makes it");
        }
        Err(error) => return Err(doing(format!("look at {}", output.display()))(error)),
        Ok(meta) if !meta.is_dir() => return invalid("is no folder"),
        Ok(_) => {}
    }
    let mut entries = fs::read_dir(output).map_err(doing(format!("look at {}", output.display())))?;
    if entries.next().is_some() { invalid("is not empty") } else { Ok(()) }
}

/// Writes the containers' archives. On failure the folder is empty again, and still there.
pub(super) fn write(
    work: &Path,
    output: &Path,
    pod: &PodRecord,
    names: &[String],
    deadline: Option<Instant>,
) -> Result<(), PodError> {
    check_output(output)?;
    let containers: BTreeMap<String, String> = names
        .iter()
        .enumerate()
        .map(|(number, name)| (name.clone(), format!("container-{number}.tar")))
        .collect();
    let fill = || -> Result<(), PodError> {
        for number in 0..names.len() {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(PodError::Deadline(
                    "the pod was not written within the call's deadline; it goes on".into(),
                ));
            }
            archive::write(&work.join(number.to_string()), &output.join(format!("container-{number}.tar")))?;
        }
        let metadata = &pod.spec.metadata;
        let dump = json!({
            "id": pod.id.to_string(), "name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid,
            "runtime": "bowline", "boot": pod.boot,
        });
        let write = |name: &str, text: String| {
            fs::write(output.join(name), text).map_err(doing(format!("write {name}")))
        };
        write(DUMP, dump.to_string())?;
        // Last: a folder without it is no checkpoint.
        let options = Options { version: VERSION, containers: containers.clone() };
        write(OPTIONS, serde_json::to_string(&options).map_err(doing("write pod.options"))?)
    };
    fill().inspect_err(|_| {
        for name in containers.values().map(String::as_str).chain([DUMP, OPTIONS]) {
            let _ = fs::remove_file(output.join(name));
        }
    })
}

/// Which archive is for which container of a request; the names are the same on both sides.
pub(crate) fn read_pod(
    config: &super::CheckpointConfig,
    folder: &Path,
    wanted: &[ContainerSpec],
) -> Result<Vec<PathBuf>, PodError> {
    may_restore(config, &format!("{} is a checkpoint", folder.display()))?;
    if !folder.join(OPTIONS).exists() {
        return Err(PodError::Invalid(format!(
            "checkpoint_path: {} holds no checkpoint of a pod",
            folder.display()
        )));
    }
    let options: Options = Unpacked(folder).read(OPTIONS)?;
    if options.version != VERSION {
        let text = format!("checkpoint_path: version {} of the checkpoint is not known", options.version);
        return Err(PodError::Invalid(text));
    }
    let names: Vec<&str> = wanted.iter().map(|spec| spec.name.as_str()).collect();
    let missing = options.containers.keys().find(|name| !names.contains(&name.as_str()));
    if let Some(name) = missing {
        let text =
            format!("container_configs: the checkpoint has container `{name}`, and the request has not");
        return Err(PodError::Invalid(text));
    }
    if wanted.len() > MAX_CONTAINERS {
        return Err(PodError::Full(format!("a pod has at most {MAX_CONTAINERS} containers")));
    }
    let archive = |name: &&str| {
        let file = options.containers.get(*name).ok_or_else(|| {
            PodError::Invalid(format!("container_configs: `{name}` is not in the checkpoint"))
        })?;
        let number = file.strip_prefix("container-").and_then(|rest| rest.strip_suffix(".tar"));
        match number.map(str::parse::<u16>) {
            Some(Ok(number)) => Ok(folder.join(format!("container-{number}.tar"))),
            _ => Err(PodError::Invalid("checkpoint_path: the checkpoint names archives elsewhere".into())),
        }
    };
    names.iter().map(archive).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::CheckpointConfig;

    fn folder(options: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(OPTIONS), options).unwrap();
        folder
    }

    fn spec(name: &str) -> ContainerSpec {
        ContainerSpec { name: name.into(), ..ContainerSpec::default() }
    }

    #[test]
    fn restoring_is_off_unless_the_node_wants_it() {
        let folder = folder(r#"{"version":1,"containers":{}}"#);
        let error = read_pod(&CheckpointConfig::default(), folder.path(), &[]).unwrap_err();
        assert!(matches!(&error, PodError::Unsupported(text) if text.contains("[checkpoint]")), "{error}");
    }

    #[test]
    fn a_pod_s_containers_are_those_of_the_request() {
        let config = CheckpointConfig { restore: true, ..CheckpointConfig::default() };
        let table = [
            (r#"{"version":2,"containers":{}}"#, "version 2"),
            (r#"{"version":1,"containers":{"a":"container-0.tar","b":"container-1.tar"}}"#, "container `b`"),
            (r#"{"version":1,"containers":{}}"#, "`a` is not in the checkpoint"),
            (r#"{"version":1,"containers":{"a":"../../etc/shadow"}}"#, "archives elsewhere"),
            (r#"{"version":1,"containers":{"a":"container-0.tar/../../x"}}"#, "archives elsewhere"),
            ("{", "makes no sense"),
        ];
        for (options, part) in table {
            let folder = folder(options);
            let error = read_pod(&config, folder.path(), &[spec("a")]).unwrap_err();
            assert!(error.to_string().contains(part), "{options}: {error}");
        }
        let folder = folder(r#"{"version":1,"containers":{"a":"container-7.tar"}}"#);
        let found = read_pod(&config, folder.path(), &[spec("a")]).unwrap();
        assert_eq!(found, [folder.path().join("container-7.tar")]);
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let config = CheckpointConfig { restore: true, ..CheckpointConfig::default() };
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join(OPTIONS)).unwrap();
        let error = read_pod(&config, folder.path(), &[]).unwrap_err();
        assert!(matches!(error, PodError::Failed { .. } | PodError::Invalid(_)), "{error}");
    }

    #[test]
    fn a_folder_to_write_to_is_there_and_empty() {
        let folder = tempfile::tempdir().unwrap();
        check_output(folder.path()).unwrap();
        let error = check_output(&folder.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("the caller makes it"), "{error}");
        fs::write(folder.path().join("x"), "").unwrap();
        assert!(check_output(folder.path()).unwrap_err().to_string().contains("not empty"));
        assert!(check_output(&folder.path().join("x")).unwrap_err().to_string().contains("no folder"));
    }
}
