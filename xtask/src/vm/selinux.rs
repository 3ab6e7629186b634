//! SELinux for a guest: Debian's policy, and what it lacks for containers.
//!
//! The policy is put together here, from the modules of the package, by the programs that do it on a Debian machine; the guest
//! only loads it, so it needs neither these programs nor their libraries.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::packages::said;
use super::programs;

const CONTAINERS: &str = include_str!("guest/container.cil");
const CONFIG: &str = "SELINUX=enforcing\nSELINUXTYPE=default\n";
/// Policy, its modules' translator, the compiler, and their library.
const PACKAGES: [&str; 4] = ["selinux-policy-default", "policycoreutils", "secilc", "libsepol2"];
/// The newest format that the oldest guest's kernel reads.
const FORMAT: &str = "33";

/// Puts `selinux/policy` and `selinux/etc` into the folder of the programs.
pub fn files(cache: &Path, root: &Path) -> Result<()> {
    let folder = programs::unpacked(cache, "selinux-1", &PACKAGES)?;
    let policy = folder.join("policy");
    let made = folder.join("made-from");
    if fs::read_to_string(&made).ok().as_deref() != Some(CONTAINERS) {
        compile(&folder, &policy)?;
        fs::write(&made, CONTAINERS).context("note what the policy is made from")?;
    }
    let place = root.join("selinux");
    fs::create_dir_all(place.join("etc")).context("make SELinux' folder")?;
    fs::copy(policy, place.join("policy")).context("copy the policy")?;
    said(Command::new("cp").arg("-a").arg(folder.join("etc/selinux")).arg(place.join("etc")))?;
    fs::write(place.join("etc/selinux/config"), CONFIG).context("write SELinux' configuration")
}

fn compile(folder: &Path, policy: &Path) -> Result<()> {
    println!("xtask: making an SELinux policy");
    let work = folder.join("cil");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).context("make a folder for the modules")?;
    let mut sources = Vec::new();
    let modules = folder.join("usr/share/selinux/default");
    for entry in fs::read_dir(&modules).context("list the policy's modules")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".pp.bz2") else { continue };
        let source = work.join(format!("{name}.cil"));
        let module = work.join("module.pp");
        let unpacked = fs::File::create(&module).context("make a module's file")?;
        let status = Command::new("bzip2").arg("-dc").arg(&path).stdout(Stdio::from(unpacked)).status();
        if !status.context("run bzip2")?.success() {
            bail!("bzip2 could not unpack {}", path.display());
        }
        said(with_library(folder, "usr/libexec/selinux/hll/pp").arg(&module).arg(&source))?;
        sources.push(source);
    }
    let base = fs::read_to_string(work.join("base.cil")).context("read the base module")?;
    let containers = work.join("guest-container.cil");
    fs::write(&containers, format!("{CONTAINERS}{}", rules(&base))).context("write the container module")?;
    sources.push(containers);
    let mut command = with_library(folder, "usr/bin/secilc");
    // Rules about everything break the policy's promises about what is never allowed.
    command.args([
        "--mls",
        "true",
        "--policyvers",
        FORMAT,
        "--disable-neverallow",
        "--filecontext",
        "/dev/null",
    ]);
    said(command.arg("--output").arg(policy).args(&sources)).map(drop)
}

/// A rule for every class of objects.
fn rules(base: &str) -> String {
    let classes = base.lines().filter_map(|line| line.strip_prefix("(class ")?.split(' ').next());
    classes.map(|class| format!("(allow guest_domain guest_any ({class} (all)))\n")).collect()
}

fn with_library(folder: &Path, program: &str) -> Command {
    let mut command = Command::new(folder.join(program));
    command.env("LD_LIBRARY_PATH", folder.join("usr/lib/x86_64-linux-gnu"));
    command
}
