//! `demo` and `test`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{build, install, limit, tidy, vm};

/// Builds, and shows a pod's whole life.
pub fn demo(args: &[String]) -> Result<()> {
    install::for_pods()?;
    let programs = build::build(args.iter().any(|arg| arg == "--release"))?;
    build::cargo(&["build", "--workspace", "--bin", "demo"], false, &[])?;
    let demo = build::target().join("debug/demo");
    let status = Command::new(demo).env("BOWLINE_PROGRAMS", programs).status().context("run the demo")?;
    if status.success() { Ok(()) } else { bail!("the demo failed") }
}

/// Runs everything.
pub fn test(args: &[String]) -> Result<()> {
    let quick = args.iter().any(|arg| arg == "--quick");
    install::for_pods()?;
    tidy::tidy()?;
    let programs = build::build(false)?;
    let programs = programs.to_str().context("the target folder has a strange name")?;
    let env = [("BOWLINE_PROGRAMS", programs)];
    // Kernel tests share bridges, cgroups and ports with nobody, but two cores with everybody: two at a time.
    build::cargo(&["test", "--workspace", "--no-fail-fast", "--", "--test-threads=2"], false, &env)?;
    // What is closest to the machine is tested as it is shipped too: a register that only an optimised build used for
    // something else has cost us every pod of a release.
    build::cargo(&["test", "--release", "-p", "bowline-linux", "-p", "bowline-launch"], false, &env)?;
    check(programs, quick)?;
    vm::smoke()
}

/// `bowline check` against a daemon of our own.
fn check(programs: &str, quick: bool) -> Result<()> {
    build::cargo(&["build", "--workspace", "--bin", "check-own"], false, &[])?;
    let mut command = Command::new(build::target().join("debug/check-own"));
    // Limits of time tell hanging from working; a busy machine is not to fail them.
    command.args(["--patience", "4"]).env("BOWLINE_PROGRAMS", programs);
    if quick {
        command.arg("--quick");
    }
    let status = limit::status(&mut command, Duration::from_secs(15 * 60))?;
    if status.success() { Ok(()) } else { bail!("`bowline check` failed") }
}
