//! CDI devices: the node's files, read anew whenever a container asks for a device, so that a device that its vendor's
//! tool has just announced is there. A file that cannot be read costs its own devices, never others'.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bowline_model::runtime_spec::Spec;
use bowline_oci::{CdiDevices, CdiError, parse_cdi};

use crate::PodError;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// The most files of a folder.
const MAX_FILES: usize = 1024;

/// Gives a container its devices. What comes back are nodes that the host has at another path: (in the container, on
/// the host).
pub(crate) fn apply(
    folders: &[PathBuf],
    names: &[String],
    spec: &mut Spec,
) -> Result<Vec<(String, String)>, PodError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let (devices, problems) = read(folders);
    devices.apply(names, spec, &crate::devices::host_device).map_err(|error| {
        let unresolved = matches!(error, CdiError::Unresolved { .. });
        let text = match problems.first() {
            // The device may well be in the file that could not be read.
            Some(problem) if unresolved => format!("CDI_devices: {error}; beside, {problem}"),
            _ => format!("CDI_devices: {error}"),
        };
        PodError::Invalid(text)
    })
}

fn read(folders: &[PathBuf]) -> (CdiDevices, Vec<String>) {
    let mut devices = CdiDevices::default();
    let mut problems = Vec::new();
    for folder in folders {
        devices.folder(&folder.to_string_lossy());
        for path in files(folder, &mut problems) {
            let place = path.to_string_lossy();
            let text = match text(&path) {
                Ok(text) => text,
                Err(error) => {
                    problems.push(format!("{place} could not be read: {error}"));
                    continue;
                }
            };
            match parse_cdi(&place, &text) {
                Ok(file) => devices.file(&place, file),
                Err(error) => problems.push(error.to_string()),
            }
        }
    }
    for problem in &problems {
        tracing::warn!(problem, "a CDI file is passed over");
    }
    (devices, problems)
}

/// Files of a folder, by name; one that is not there has none.
fn files(folder: &Path, problems: &mut Vec<String>) -> Vec<PathBuf> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.push(format!("{} could not be read: {error}", folder.display()));
            return Vec::new();
        }
    };
    let is_ours = |path: &PathBuf| {
        path.extension().is_some_and(|ending| ending == "json" || ending == "yaml" || ending == "yml")
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_ours).take(MAX_FILES).collect();
    found.sort();
    found
}

fn text(path: &Path) -> io::Result<String> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(io::Error::other(format!("it is no file of at most {MAX_FILE} bytes")));
    }
    fs::read_to_string(path)
}
