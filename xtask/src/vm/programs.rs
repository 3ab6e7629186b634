//! The part of a guest that is new each time: our programs, the libraries that they need, the command.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::Options;
use super::base;
use super::packages::{Packages, said};
use super::selinux;
use crate::{build, deb};

const INIT: &str = include_str!("guest/init.sh");
const RUN: &str = include_str!("guest/run.sh");
const SUDO: &str = include_str!("guest/sudo.sh");
/// criu and what it links that few machines have installed.
const CRIU: [&str; 20] = [
    "criu",
    "libprotobuf-c1",
    "libnet1",
    "libnl-3-200",
    "libbsd0",
    "libmd0",
    "libnftables1",
    "libnftnl11",
    "libmnl0",
    "libjansson4",
    "libxtables12",
    "libgmp10",
    "libgnutls30",
    "libnettle8",
    "libhogweed6",
    "libp11-kit0",
    "libidn2-0",
    "libtasn1-6",
    "libunistring2",
    "libffi8",
];

/// The second number of bookworm's C library, which is that of the guest with systemd.
const GUEST_LIBC: u32 = 36;

/// A disk image that goes when it is dropped.
pub struct ProgramsDisk {
    folder: PathBuf,
}

impl ProgramsDisk {
    /// The image.
    pub fn image(&self) -> PathBuf {
        self.folder.join("programs.img")
    }

    /// A folder that lives as long.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for ProgramsDisk {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Builds what is old and makes the disk.
pub fn disk(cache: &Path, options: &Options) -> Result<ProgramsDisk> {
    let folder = build::build(options.release)?;
    let mut programs: Vec<PathBuf> =
        ["bowline", "bowline-monitor", "bowline-check-helper"].map(|name| folder.join(name)).into();
    let own = ["check-own", "with-daemon", "without-syscall", "demo"];
    // By name: all would be the monitor and the helper as well, which are here as static programs.
    let mut arguments = vec!["build", "--workspace"];
    arguments.extend(own.iter().flat_map(|name| ["--bin", *name]));
    build::cargo(&arguments, false, &[])?;
    programs.extend(own.map(|name| build::target().join("debug").join(name)));
    let tests = tests()?;
    if options.guest.systemd {
        fits(&programs[0])?;
    }

    let made = ProgramsDisk { folder: cache.join(format!("run-{}", std::process::id())) };
    let root = made.folder.join("programs");
    let bin = root.join("bin");
    for name in ["bin", "lib", "lib64"] {
        fs::create_dir_all(root.join(name)).context("make the folder of the programs")?;
    }
    let named = programs.iter().chain(&options.with).map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name, path.clone())
    });
    for (name, path) in named.chain(tests) {
        libraries(&path, &root, None)?;
        fs::copy(&path, bin.join(name)).with_context(|| format!("copy {}", path.display()))?;
    }
    criu(cache, &root, options.guest.systemd)?;
    apparmor(cache, &root)?;
    if options.guest.selinux {
        selinux::files(cache, &root)?;
    }
    script(&bin.join("sudo"), SUDO)?;
    if let Some(images) = &options.images {
        said(Command::new("cp").args(["-rL", "--"]).arg(images).arg(root.join("images")))?;
    }
    script(&root.join("init"), INIT)?;
    script(&root.join("run"), RUN)?;
    let words: Vec<String> = options.command.iter().map(|word| quoted(word)).collect();
    script(&root.join("command"), &format!("#!/bin/sh\nexec {}\n", words.join(" ")))?;
    base::disk(&root, &made.image(), "1500M")?;
    fs::remove_dir_all(&root).context("remove what became the image")?;
    Ok(made)
}

/// Says before the guest starts that nothing of ours could start in it.
fn fits(program: &Path) -> Result<()> {
    let needed = deb::newest_libc(&fs::read(program).with_context(|| format!("read {}", program.display()))?);
    if needed > GUEST_LIBC {
        bail!(
            "{} wants glibc 2.{needed}, and Debian 12 has 2.{GUEST_LIBC}: build on Debian 12 (a container or chroot will do), or \
             leave out --systemd, since the bare guest takes this machine's libraries",
            program.display()
        );
    }
    Ok(())
}

/// The test programs of `tests/`, with their names.
fn tests() -> Result<Vec<(String, PathBuf)>> {
    let folder = build::root().join("tests/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    let mut command = build::cargo_command();
    command.stderr(Stdio::inherit());
    // By name: a guest needs no other package's tests. Of the whole workspace for its features, as in `disk`.
    command.args(["test", "--workspace", "--no-run", "--message-format=json"]);
    let text = said(command.args(names.iter().flat_map(|name| ["--test", name])))?;
    // Other packages may have tests of these names.
    let own = text.lines().filter(|line| line.contains("/tests/Cargo.toml\""));
    let executables = own.filter_map(|line| line.split_once("\"executable\":\""));
    let paths = executables.filter_map(|(_, rest)| rest.split_once('"')).map(|(path, _)| PathBuf::from(path));
    // Cargo adds a hash: `takeover-0123456789abcdef`.
    let named = paths.filter_map(|path| {
        let name = path.file_name()?.to_str()?.rsplit_once('-')?.0.to_owned();
        names.contains(&name).then_some((name, path))
    });
    Ok(named.collect())
}

/// bookworm's criu. The bare guest has this machine's C library, which is bookworm's or a newer one; a root of Debian gets the
/// libraries that it has not installed in a folder that only criu looks into.
fn criu(cache: &Path, root: &Path, is_debian: bool) -> Result<()> {
    let folder = unpacked(cache, "criu-1", &CRIU)?;
    let program = folder.join("usr/sbin/criu");
    if !is_debian {
        libraries(&program, root, Some(&folder))?;
        return fs::copy(&program, root.join("bin/criu")).map(drop).context("copy criu");
    }
    let own = root.join("criu");
    fs::create_dir_all(&own).context("make a folder for criu")?;
    fs::copy(&program, own.join("criu")).context("copy criu")?;
    for place in ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"] {
        for entry in fs::read_dir(folder.join(place)).into_iter().flatten() {
            let path = entry.context("list criu's libraries")?.path();
            let name = path.file_name().unwrap_or_default();
            if path.is_file() && name.to_string_lossy().contains(".so") {
                fs::copy(&path, own.join(name)).with_context(|| format!("copy {}", path.display()))?;
            }
        }
    }
    script(
        &root.join("bin/criu"),
        "#!/bin/sh\nLD_LIBRARY_PATH=/programs/criu exec /programs/criu/criu \"$@\"\n",
    )
}

/// bookworm's parser of AppArmor profiles, with what it reads. A root of Debian has them, one of busybox takes them from here.
fn apparmor(cache: &Path, root: &Path) -> Result<()> {
    let folder = unpacked(cache, "apparmor-1", &["apparmor"])?;
    let program = folder.join("sbin/apparmor_parser");
    libraries(&program, root, None)?;
    fs::copy(&program, root.join("bin/apparmor_parser")).context("copy apparmor_parser")?;
    for name in ["etc/apparmor", "etc/apparmor.d", "usr/share/apparmor-features"] {
        let place = root.join("apparmor").join(name);
        let above = place.parent().context("name a folder")?;
        fs::create_dir_all(above).context("make a folder for AppArmor")?;
        said(Command::new("cp").arg("-a").arg(folder.join(name)).arg(above))?;
    }
    Ok(())
}

/// Packages of bookworm, unpacked into a folder that is kept.
pub fn unpacked(cache: &Path, name: &str, all: &[&str]) -> Result<PathBuf> {
    let folder = cache.join(name);
    if folder.exists() {
        return Ok(folder);
    }
    let new = cache.join(format!("{name}.new"));
    let _ = fs::remove_dir_all(&new);
    fs::create_dir_all(&new).with_context(|| format!("make a folder for {name}"))?;
    let packages = Packages::open(cache)?;
    for package in all {
        packages.unpack(&format!("{package}/bookworm"), &new)?;
    }
    fs::rename(&new, &folder).with_context(|| format!("keep {name}"))?;
    Ok(folder)
}

/// Copies what a program links dynamically. All were built on this machine, so one set of libraries fits them all.
fn libraries(program: &Path, root: &Path, more: Option<&Path>) -> Result<()> {
    let mut command = Command::new("ldd");
    if let Some(more) = more {
        let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|name| more.join(name));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(folders).context("name the libraries' folders")?);
    }
    // A static program is no failure: ldd says so, and ends with 1.
    let output = command.arg(program).output().context("run ldd")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        let Some(path) = path.map(Path::new) else { continue };
        let name = path.file_name().unwrap_or_default();
        // The loader's path is in the programs. It looks for the rest in /lib64, on every distribution.
        let copy = root.join("lib64").join(name);
        if !copy.exists() {
            fs::copy(path, copy).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).context("make a script executable")
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
