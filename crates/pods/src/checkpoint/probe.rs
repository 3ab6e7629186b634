//! Whether this host has a criu that works: asked once, of the program itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;

/// How long criu may take to look at the kernel.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most that is kept of what it says.
const MAX_TEXT: usize = 500;

/// A criu that says that it works here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    /// The program.
    pub path: PathBuf,
    /// `3.17.1`
    pub version: String,
}

/// What this node can do about checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ability {
    /// criu is still being asked.
    Unknown,
    /// Nothing, for this reason.
    None(String),
    /// Checkpoints.
    Checkpoint(Criu),
    /// Checkpoints, and restoring them.
    Restore(Criu),
}

/// Looks for criu, and has it check the kernel.
pub(super) async fn probe(wanted: Option<PathBuf>) -> Result<Arc<Criu>, String> {
    let path = match wanted {
        Some(path) => path,
        None => find().ok_or(
            "there is no `criu` in the daemon's PATH; install it, or name it with `criu` below [checkpoint]",
        )?,
    };
    let said = ask(&path, "--version").await?;
    let version = version(&said).ok_or_else(|| format!("{} tells no version", path.display()))?;
    ask(&path, "check").await?;
    Ok(Arc::new(Criu { path, version }))
}

fn find() -> Option<PathBuf> {
    let folders =
        std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin".into());
    std::env::split_paths(&folders)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("criu"))
        .find(|path| path.is_file())
}

/// Runs it; what it says if it succeeds, else why not.
async fn ask(path: &Path, word: &str) -> Result<String, String> {
    let name = format!("`{} {word}`", path.display());
    let mut command = Command::new(path);
    command.arg(word).current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => return Err(format!("{name} took longer than {PATIENCE:?}")),
        Ok(Err(error)) => return Err(format!("{name} could not be run: {error}")),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{name} failed ({}){}", output.status, last_words(&String::from_utf8_lossy(&said))))
}

/// The last line that tells of an error, else the last line.
fn last_words(text: &str) -> String {
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| line.contains("Error")).or_else(|| lines().next_back());
    line.map(|line| format!(": {}", line.chars().take(MAX_TEXT).collect::<String>())).unwrap_or_default()
}

fn version(text: &str) -> Option<String> {
    let version = text.lines().find_map(|line| line.strip_prefix("Version:"))?.trim();
    (!version.is_empty() && version.len() < 64).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(folder: &Path, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.join("criu");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn a_criu_that_cannot_work_here_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let table = [
            ("exit 1", "failed (exit status: 1)"),
            (
                "[ $1 = check ] || { echo Version: 4.1; exit; }; echo 'Error (x.c:1): no such kernel'; exit 1",
                "no such kernel",
            ),
            ("[ $1 = check ] || { echo Version: 4.1; exit; }; kill -ABRT $$", "SIGABRT"),
            ("echo hello", "tells no version"),
        ];
        for (text, part) in table {
            let why = probe(Some(script(folder.path(), text))).await.unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
        let missing = probe(Some(folder.path().join("none"))).await.unwrap_err();
        assert!(missing.contains("could not be run"), "{missing}");
    }

    #[tokio::test]
    async fn a_criu_that_works_tells_its_version() {
        let folder = tempfile::tempdir().unwrap();
        let path = script(folder.path(), "[ $1 = check ] && exit 0; echo Version: 3.17.1; echo GitID: v3");
        let found = probe(Some(path.clone())).await.unwrap();
        assert_eq!(*found, Criu { path, version: "3.17.1".into() });
    }
}
