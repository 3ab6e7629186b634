//! Debian packages of a release that need not be this machine's, from the mirror that this machine's apt uses.
//!
//! apt is given a state of its own below the cache: nothing is installed here, and the machine's lists stay as they are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Debian's keys, as the package debian-archive-keyring (Ubuntu has it too) installs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt of our own.
pub struct Packages {
    folder: PathBuf,
    mirror: String,
}

impl Packages {
    /// Reads the lists, once: they are kept with what was made of them.
    pub fn open(cache: &Path) -> Result<Packages> {
        let packages = Packages { folder: cache.join("apt"), mirror: mirror()? };
        let lists = packages.folder.join("lists-are-read");
        if lists.exists() {
            return Ok(packages);
        }
        for part in ["state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(packages.folder.join(part)).context("make apt's folders")?;
        }
        let line = |suite: &str| format!("deb [signed-by={KEYRING}] {} {suite} main\n", packages.mirror);
        let sources = line("bookworm") + &line("bookworm-updates") + &line("bookworm-backports");
        std::fs::write(packages.folder.join("sources.list"), sources).context("write apt's sources")?;
        std::fs::write(packages.folder.join("status"), "").context("write apt's status")?;
        packages.output("apt-get", &["-q", "update"])?;
        std::fs::write(&lists, "").context("note that the lists are read")?;
        Ok(packages)
    }

    /// Where packages come from.
    pub fn mirror(&self) -> &str {
        &self.mirror
    }

    /// The package that a suite's `linux-image-cloud-amd64` stands for.
    pub fn kernel(&self, suite: &str) -> Result<String> {
        let name = format!("linux-image-cloud-amd64/{suite}");
        let text = self.output("apt-cache", &["depends", &name])?;
        let found = text.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
        found
            .map(|rest| format!("linux-image-{rest}"))
            .with_context(|| format!("{name} names no kernel on {}", self.mirror))
    }

    /// Downloads a package and unpacks its files; nothing of it is run.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        println!("xtask: fetching {package}");
        let downloads = self.folder.join("downloads");
        let _ = std::fs::remove_dir_all(&downloads);
        std::fs::create_dir_all(&downloads).context("make a folder for downloads")?;
        let mut command = self.apt("apt-get");
        command.args(["-q", "download", package]).current_dir(&downloads);
        said(&mut command)?;
        for entry in std::fs::read_dir(&downloads).context("list the downloads")? {
            said(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(into))?;
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = self.folder.display();
        for option in [
            format!("Dir::State={folder}/state"),
            format!("Dir::State::status={folder}/status"),
            format!("Dir::Cache={folder}/cache"),
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            // The user `_apt` may not reach a checkout.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        said(self.apt(program).args(args))
    }
}

/// The Debian mirror: `BOWLINE_DEBIAN_MIRROR`, else the one in this machine's apt sources.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("BOWLINE_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]);
    let text = said(&mut command)?;
    // Security updates have the label `Debian-Security`, and a mirror of their own.
    let found = text.lines().find_map(|line| line.strip_prefix("Debian "));
    match found {
        Some(mirror) => Ok(mirror.trim_end_matches('/').to_owned()),
        None => bail!("this machine's apt knows no Debian mirror; name one in BOWLINE_DEBIAN_MIRROR"),
    }
}

/// What a program says, if it succeeds.
pub fn said(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed ({}): {}", args.join(" "), output.status, error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
