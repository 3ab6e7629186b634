//! Programs that are started with the daemon.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::NriConfig;
use crate::plugin::{check_index, check_name};

/// The longest drop-in that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// The most programs that are looked at.
const MAX_PROGRAMS: usize = 64;

/// A program to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launched {
    index: String,
    base: String,
    program: PathBuf,
    /// Its drop-in.
    pub(crate) config: String,
}

impl Launched {
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.index, self.base)
    }

    /// (index, name).
    pub(crate) fn identity(&self) -> (String, String) {
        (self.index.clone(), self.base.clone())
    }

    /// Starts it, its end of the connection as standard input: the one descriptor that a child can be given a number
    /// for without code between fork and exec. Plugins take the number from their environment.
    pub(crate) fn start(&self) -> io::Result<(UnixStream, Child)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new(&self.program)
            .env_clear()
            .env("NRI_PLUGIN_NAME", &self.base)
            .env("NRI_PLUGIN_IDX", &self.index)
            .env("NRI_PLUGIN_SOCKET", "0")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok((UnixStream::from_std(ours)?, child))
    }
}

/// The programs of the folder, by name. One that cannot be used is in the log, and no reason not to use others.
pub(crate) fn discover(config: &NriConfig) -> Vec<Launched> {
    let folder = &config.plugin_folder;
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(folder = %folder.display(), %error, "the folder of NRI plugins cannot be read");
            return Vec::new();
        }
    };
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let mut programs: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_program).take(MAX_PROGRAMS).collect();
    programs.sort();
    let usable = |program: PathBuf| match launched(&program, &config.config_folder) {
        Ok(launched) => Some(launched),
        Err(error) => {
            tracing::error!(program = %program.display(), error, "an NRI plugin is passed over");
            None
        }
    };
    programs.into_iter().filter_map(usable).collect()
}

fn launched(program: &Path, configs: &Path) -> Result<Launched, String> {
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (index, base) = name.split_once('-').ok_or("its name does not read NN-name")?;
    check_index(index)?;
    check_name(base)?;
    let mut config = String::new();
    for file in [format!("{name}.conf"), format!("{base}.conf")] {
        let path = configs.join(file);
        let read = |error: io::Error| format!("could not read {}: {error}", path.display());
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(read(error)),
            Ok(meta) if meta.len() > MAX_CONFIG => {
                return Err(format!("{} is longer than {MAX_CONFIG} bytes", path.display()));
            }
            Ok(_) => config = fs::read_to_string(&path).map_err(read)?,
        }
        break;
    }
    Ok(Launched { index: index.to_owned(), base: base.to_owned(), program: program.to_owned(), config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_with_their_drop_ins() {
        let folder = tempfile::tempdir().unwrap();
        let (plugins, configs) = (folder.path().join("plugins"), folder.path().join("conf.d"));
        for path in [&plugins, &configs] {
            fs::create_dir(path).unwrap();
        }
        for (name, mode) in
            [("20-b", 0o755), ("10-a", 0o755), ("30-c", 0o644), ("nothing", 0o755), ("x1-d", 0o755)]
        {
            let path = plugins.join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(configs.join("a.conf"), "by name").unwrap();
        fs::write(configs.join("b.conf"), "by name").unwrap();
        fs::write(configs.join("20-b.conf"), "by index").unwrap();
        let config = NriConfig { plugin_folder: plugins, config_folder: configs, ..NriConfig::new("1") };
        let found = discover(&config);
        let shown: Vec<(String, &str)> =
            found.iter().map(|launched| (launched.name(), launched.config.as_str())).collect();
        assert_eq!(shown, [("10-a".to_owned(), "by name"), ("20-b".to_owned(), "by index")]);
        let missing = NriConfig { plugin_folder: "/does/not/exist".into(), ..config };
        assert!(discover(&missing).is_empty());
    }
}
