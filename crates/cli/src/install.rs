//! `install` and `uninstall`: our files on this machine, and off it again.
//!
//! ```text
//!   files.rs    which files, where, and from what
//!   record.rs   what was written, with digests: only what is still as it was written is ours to replace or to remove
//!   systemd.rs  the units
//! ```
//!
//! A file is written beside its place and renamed; the record comes last. Whoever is broken off in between runs it again.

mod files;
mod record;
mod systemd;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::{InstallArgs, ResetArgs, UninstallArgs};
use crate::client::Client;
use crate::failure::{Done, Failure};
use crate::render::{print_line, say};
use crate::reset::{self, Pods};
use files::Kind;
use record::Record;
use systemd::{SERVICE, SOCKET, systemctl};

/// Writes what is not there or not as it should be.
pub(crate) fn install(args: &InstallArgs) -> Done {
    let own = std::env::current_exe().map_err(|error| Failure::io("find the program that runs", error))?;
    install_from(&own, args)
}

/// The program itself comes from `own`, and those that belong to it from beside it.
fn install_from(own: &Path, args: &InstallArgs) -> Done {
    let places = Places::new(&args.prefix, args.root_dir.as_deref())?;
    let items = files::items(own, &args.prefix, args.package)?;
    let record = Record::read(&places.record())?;
    let mut written = Record::default();
    let mut units_changed = false;
    for item in &items {
        let place = places.of(&item.path);
        let wanted = item.bytes()?;
        let there = read_if_there(&place)?;
        let is_ours = there.as_ref().is_some_and(|bytes| record.wrote(&item.path, bytes));
        let name = place.display();
        match &there {
            Some(bytes) if *bytes == wanted => print_line(&format!("unchanged  {name}"))?,
            Some(_) if item.kind == Kind::Settings && !is_ours && !args.force => {
                print_line(&format!("kept       {name} (not as we wrote it; --force replaces it)"))?;
                continue;
            }
            _ => {
                if !args.dry_run {
                    write(&place, &wanted, item.mode)?;
                }
                units_changed |= item.kind == Kind::Unit;
                print_line(&format!("{}      {name}", said(args.dry_run, "wrote", "write")))?;
            }
        }
        // What was there before us, and is as we would have written it, is still not ours.
        if item.kind != Kind::Settings || there.is_none() || is_ours || there.as_deref() != Some(&wanted[..])
        {
            written.add(&item.path, &wanted);
        }
    }
    if args.dry_run || args.package {
        return Ok(0);
    }
    // What an older version wrote and this one does not is ours still.
    written.add_missing(&record);
    write(&places.record(), &written.bytes(), 0o644)?;
    if args.root_dir.is_some() {
        return Ok(0);
    }
    start(args, units_changed)
}

fn start(args: &InstallArgs, units_changed: bool) -> Done {
    let wants = args.enable || args.start;
    if !systemd::runs() {
        if wants {
            return Err(Failure::new(
                "everything is installed, but systemd does not run here: nothing was enabled or started",
            ));
        }
        say(&format!("start it with {}/bin/bowline serve", args.prefix.display()));
        return Ok(0);
    }
    if units_changed {
        systemctl(&["daemon-reload"])?;
    }
    if args.enable {
        systemctl(&["enable", SERVICE])?;
    }
    if args.start {
        // A daemon that runs becomes the new one; its pods go on.
        systemctl(&["restart", SERVICE])?;
    }
    match (wants, systemd::is_active()) {
        (false, true) => say(
            "the daemon that runs is the one from before; `systemctl restart bowline` replaces it, pods go on",
        ),
        (false, false) => say("start it with `systemctl enable --now bowline`"),
        (true, _) => {}
    }
    Ok(0)
}

/// Removes what `install` wrote and nobody has changed since; everything with `--purge`.
pub(crate) async fn uninstall(endpoint: &str, timeout: Duration, args: &UninstallArgs) -> Done {
    let places = Places::new(&args.prefix, args.root_dir.as_deref())?;
    let record = Record::read(&places.record())?;
    if record.is_empty() {
        return Err(Failure::hint(
            format!(
                "{} is not there: `bowline install` has installed nothing below {}",
                places.record().display(),
                args.prefix.display()
            ),
            "the --prefix that was installed to; a package is removed by its package manager",
        ));
    }
    let here = args.root_dir.is_none();
    if here {
        end_pods(endpoint, timeout, args).await?;
    }
    if here && !args.dry_run && systemd::runs() && record.has_unit() {
        for unit in [SOCKET, SERVICE] {
            if systemd::knows(unit) {
                systemctl(&["disable", "--now", unit])?;
            }
        }
    }
    let is_idle = here && !args.dry_run && reset::pods_in(&args.state) == 0;
    if is_idle {
        let reset = ResetArgs { root: args.root.clone(), state: args.state.clone(), all: args.purge };
        reset::reset(&reset)?;
    }
    let mut kept = 0;
    for path in record.paths() {
        let place = places.of(path);
        let Some(bytes) = read_if_there(&place)? else { continue };
        if !(record.wrote(path, &bytes) || args.force || args.purge) {
            print_line(&format!("kept       {} (changed since; --force removes it)", place.display()))?;
            kept += 1;
            continue;
        }
        if !args.dry_run {
            fs::remove_file(&place)
                .map_err(|error| Failure::io(&format!("remove {}", place.display()), error))?;
        }
        print_line(&format!("{}    {}", said(args.dry_run, "removed", "remove"), place.display()))?;
    }
    if args.dry_run {
        return Ok(0);
    }
    remove_if_there(&places.record())?;
    if args.purge {
        remove_tree(&places.of(Path::new("/etc/bowline")))?;
    }
    for folder in files::folders(&args.prefix) {
        // Only empty ones; others have something of somebody else's.
        let _ = fs::remove_dir(places.of(&folder));
    }
    if here && systemd::runs() {
        systemctl(&["daemon-reload"])?;
    }
    if kept > 0 {
        say("files that were changed are kept");
    }
    Ok(0)
}

/// Refuses while there are pods, or removes them.
async fn end_pods(endpoint: &str, timeout: Duration, args: &UninstallArgs) -> Result<(), Failure> {
    let client = Client::connect(endpoint, timeout).await.ok();
    let pods = reset::pods(client.as_ref(), &args.state).await?;
    match (&client, pods) {
        (_, Pods { count: 0, .. }) => Ok(()),
        (Some(client), _) if args.purge && !args.dry_run => reset::remove_pods(client).await,
        (_, Pods { count, .. }) if args.purge && !args.dry_run => Err(Failure::hint(
            format!("pods are left ({count}), and no daemon answers that could remove them"),
            "start the daemon, then the same again",
        )),
        (_, Pods { ready, .. }) if args.force || args.dry_run || ready == 0 => Ok(()),
        (_, Pods { ready, .. }) => Err(Failure::hint(
            format!("pods run ({ready}); without the daemon nobody could stop them"),
            "`bowline rmp --all --force` first; --purge does that and removes all data; --force leaves them running",
        )),
    }
}

/// Where files go: below a prefix, and all of it below another root for makers of packages.
struct Places {
    prefix: PathBuf,
    root: PathBuf,
}

impl Places {
    fn new(prefix: &Path, root: Option<&Path>) -> Result<Places, Failure> {
        if !prefix.is_absolute() {
            return Err(Failure::hint(
                format!("--prefix {} is no absolute path", prefix.display()),
                "/usr/local",
            ));
        }
        Ok(Places { prefix: prefix.to_owned(), root: root.unwrap_or(Path::new("/")).to_owned() })
    }

    fn of(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn record(&self) -> PathBuf {
        self.of(&self.prefix.join(files::RECORD))
    }
}

fn said(dry_run: bool, done: &'static str, wish: &'static str) -> String {
    if dry_run { format!("would {wish}") } else { done.to_owned() }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io(&format!("read {}", path.display()), error)),
    }
}

/// Beside its place first: programs that run keep their file, and nobody ever sees half of one.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    use std::io::Write as _;
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let failed = |error| Failure::io(&format!("write {}", path.display()), error);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".bowline-new");
    let new = path.with_file_name(name);
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(failed)?;
    let mut open = fs::OpenOptions::new();
    let file = open.write(true).create(true).truncate(true).mode(mode).open(&new);
    let place = || -> io::Result<()> {
        let mut file = file?;
        file.write_all(bytes)?;
        // Whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    place().map_err(|error| {
        let _ = fs::remove_file(&new);
        failed(error)
    })
}

fn remove_if_there(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::io(&format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Removes a folder with everything in it.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::io(&format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
