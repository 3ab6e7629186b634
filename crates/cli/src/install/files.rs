//! Which files an installation consists of.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Below the prefix: what was written.
pub(super) const RECORD: &str = "share/bowline/installed.json";

const SERVICE: &str = include_str!("../../../../packaging/systemd/bowline.service");
const SOCKET: &str = include_str!("../../../../packaging/systemd/bowline.socket");
const CONFIG: &str = include_str!("../../../../packaging/config.toml");
const CRICTL: &str = include_str!("../../../../packaging/crictl.yaml");

/// What becomes of a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Replaced.
    Program,
    /// Replaced; systemd has to be told.
    Unit,
    /// Replaced only if it is as we wrote it.
    Settings,
}

/// One file.
pub(super) struct Item {
    pub path: PathBuf,
    pub kind: Kind,
    pub mode: u32,
    content: Content,
}

enum Content {
    Copy(PathBuf),
    Text(String),
}

impl Item {
    /// What the file shall hold.
    pub fn bytes(&self) -> Result<Vec<u8>, Failure> {
        match &self.content {
            Content::Text(text) => Ok(text.clone().into_bytes()),
            Content::Copy(from) => {
                std::fs::read(from).map_err(|error| Failure::io(&format!("read {}", from.display()), error))
            }
        }
    }
}

/// All files, for this prefix. A package brings no file that another one may have.
pub(super) fn items(own: &Path, prefix: &Path, package: bool) -> Result<Vec<Item>, Failure> {
    let mut items = programs(own, prefix)?;
    let program = prefix.join("bin/bowline");
    let text = |path: PathBuf, kind, text: &str| Item {
        path,
        kind,
        mode: 0o644,
        content: Content::Text(text.to_owned()),
    };
    let units = prefix.join("lib/systemd/system");
    let service = SERVICE.replace("/usr/bin/bowline", &program.to_string_lossy());
    items.push(text(units.join("bowline.service"), Kind::Unit, &service));
    items.push(text(units.join("bowline.socket"), Kind::Unit, SOCKET));
    items.push(text("/etc/bowline/config.toml".into(), Kind::Settings, CONFIG));
    if !package {
        items.push(text("/etc/crictl.yaml".into(), Kind::Settings, CRICTL));
    }
    Ok(items)
}

/// This program, and those that belong to it, from where this one finds them.
fn programs(own: &Path, prefix: &Path) -> Result<Vec<Item>, Failure> {
    let item = |path: PathBuf, from: PathBuf| Item {
        path,
        kind: Kind::Program,
        mode: 0o755,
        content: Content::Copy(from),
    };
    let mut items = vec![item(prefix.join("bin/bowline"), own.to_owned())];
    for (name, is_needed) in [("bowline-monitor", true), ("bowline-check-helper", false)] {
        let places = [own.with_file_name(name), libexec(own).join(name)];
        match places.into_iter().find(|place| place.is_file()) {
            Some(place) => items.push(item(prefix.join("libexec/bowline").join(name), place)),
            None if is_needed => {
                return Err(Failure::hint(
                    format!("{name} is not beside {}", own.display()),
                    "`cargo xtask build --release`, and the `bowline` that it makes",
                ));
            }
            None => {}
        }
    }
    Ok(items)
}

/// Where programs that nobody calls by hand are, from a program in `bin`.
fn libexec(own: &Path) -> PathBuf {
    let prefix = own.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    prefix.join("libexec/bowline")
}

/// Folders that are ours if nothing is left in them.
pub(super) fn folders(prefix: &Path) -> Vec<PathBuf> {
    vec![prefix.join("libexec/bowline"), prefix.join("share/bowline"), "/etc/bowline".into()]
}
