//! `cargo xtask deb`: a package for Debian and its kin, by dpkg-deb alone.
//!
//! The files are what `bowline install --package` writes. The same commit gives the same bytes: times are those of the
//! commit, and dpkg-deb sorts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{build, install};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const SCRIPTS: [(&str, &str); 3] = [
    ("postinst", include_str!("../../packaging/deb/postinst")),
    ("prerm", include_str!("../../packaging/deb/prerm")),
    ("postrm", include_str!("../../packaging/deb/postrm")),
];
const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: bowline

Files: *
Copyright: the authors of Bowline
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
";

/// Builds the package and says where it is.
pub fn deb(args: &[String]) -> Result<()> {
    let debug = match args {
        [] => false,
        [flag] if flag == "--debug" => true,
        _ => bail!("cargo xtask deb [--debug]"),
    };
    for program in ["dpkg-deb", "dpkg", "gzip"] {
        if !install::on_path(program) {
            bail!(
                "{program} is missing; packages are made on Debian and its kin (apt-get install dpkg gzip)"
            );
        }
    }
    let programs = build::build(!debug)?;
    let folder = build::target().join("deb");
    let stage = folder.join("stage");
    let _ = fs::remove_dir_all(&stage);
    fs::create_dir_all(&stage).with_context(|| format!("make {}", stage.display()))?;
    run(Command::new(programs.join("bowline"))
        .args(["install", "--package", "--prefix", "/usr", "--root-dir"])
        .arg(&stage))?;
    if debug {
        strip(&stage)?;
    }
    documents(&stage)?;
    let architecture = said(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    control(&stage, architecture)?;
    open_folders(&stage)?;
    let package = folder.join(format!("bowline_{VERSION}_{architecture}.deb"));
    let new = package.with_extension("deb.new");
    let mut command = Command::new("dpkg-deb");
    // dpkg-deb takes this time for the archive, and for files that are newer.
    command.env("SOURCE_DATE_EPOCH", commit_time()).arg("--root-owner-group");
    command.args(if debug { ["-Zgzip", "-z1"] } else { ["-Zxz", "-z6"] });
    run(command.arg("--build").arg(&stage).arg(&new))?;
    fs::rename(&new, &package).with_context(|| format!("place {}", package.display()))?;
    fs::remove_dir_all(&stage).context("remove what became the package")?;
    println!("xtask: {}", package.display());
    Ok(())
}

/// Programs of a debug build are mostly symbols.
fn strip(stage: &Path) -> Result<()> {
    let programs = ["bin/bowline", "libexec/bowline/bowline-monitor", "libexec/bowline/bowline-check-helper"];
    run(Command::new("strip").args(programs.map(|name| stage.join("usr").join(name))))
}

fn documents(stage: &Path) -> Result<()> {
    let folder = stage.join("usr/share/doc/bowline");
    fs::create_dir_all(&folder).context("make the folder of documents")?;
    write(&folder.join("copyright"), COPYRIGHT, 0o644)?;
    let changes = folder.join("changelog");
    fs::copy(build::root().join("CHANGELOG.md"), &changes).context("copy the changelog")?;
    // Without a time and a name in it.
    run(Command::new("gzip").args(["-9", "-n", "-f"]).arg(&changes))
}

fn control(stage: &Path, architecture: &str) -> Result<()> {
    let folder = stage.join("DEBIAN");
    fs::create_dir_all(&folder).context("make the folder DEBIAN")?;
    let size = size(stage)? / 1024;
    let libc = newest_libc(&fs::read(stage.join("usr/bin/bowline")).context("read bowline")?);
    let control = format!(
        "Package: bowline\nVersion: {VERSION}\nArchitecture: {architecture}\nSection: admin\nPriority: optional\n\
         Maintainer: The authors of Bowline <bowline@invalid.invalid>\nInstalled-Size: {size}\n\
         Depends: libc6 (>= 2.{libc}), init-system-helpers\nRecommends: apparmor\nSuggests: criu, cri-tools\n\
         Description: container runtime for Kubernetes nodes\n \
         Serves the Container Runtime Interface (CRI v1) on a unix socket and starts\n \
         containers itself, with one small monitor process per pod.\n"
    );
    write(&folder.join("control"), &control, 0o644)?;
    write(&folder.join("conffiles"), "/etc/bowline/config.toml\n", 0o644)?;
    for (name, text) in SCRIPTS {
        write(&folder.join(name), text, 0o755)?;
    }
    Ok(())
}

/// The newest version of the C library that a program names, as `GLIBC_2.36` in its table of symbol versions; here 36.
pub fn newest_libc(program: &[u8]) -> u32 {
    let mark = b"GLIBC_2.";
    let starts = program.windows(mark.len()).enumerate().filter(|(_, window)| window == mark);
    let minors = starts.filter_map(|(at, _)| {
        let rest = &program[at + mark.len()..];
        let digits: String =
            rest.iter().take_while(|byte| byte.is_ascii_digit()).map(|byte| *byte as char).collect();
        digits.parse::<u32>().ok()
    });
    // A static program names none; this is the oldest libc that our toolchain links.
    minors.max().unwrap_or(17)
}

/// Whatever the umask was.
fn open_folders(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).context("open a folder")?;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_folders(&entry.path())?;
        }
    }
    Ok(())
}

fn size(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

/// `SOURCE_DATE_EPOCH`, else the time of the commit, else a fixed one.
fn commit_time() -> String {
    if let Ok(time) = std::env::var("SOURCE_DATE_EPOCH") {
        return time;
    }
    let mut command = Command::new("git");
    command.current_dir(build::root()).args(["log", "-1", "--format=%ct"]);
    said(&mut command).map_or_else(|_| "1".to_owned(), |text| text.trim().to_owned())
}

fn write(path: &PathBuf, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).context("set a mode")
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("run {program}"))?;
    if status.success() { Ok(()) } else { bail!("{program} failed ({status})") }
}

fn said(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed ({})", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_newest_libc_is_found() {
        let program = b"..GLIBC_2.4\0GLIBC_2.36\0GLIBC_2.2.5\0GLIBC_PRIVATE..";
        assert_eq!(super::newest_libc(program), 36);
        assert_eq!(super::newest_libc(b"static"), 17);
    }
}
