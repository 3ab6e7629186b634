//! The official conformance suite, taken from PATH: it is in no registry, so nothing here fetches or builds it.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{build, install};

/// Specs that need what is not built yet, or what the host lacks; see docs/operate/conformance.md.
const SKIP: &str = "AppArmor|benchmark";

/// Runs critest against a daemon of ours.
pub fn critest(args: &[String]) -> Result<()> {
    let Some(critest) = install::find("critest") else {
        bail!(
            "there is no critest on PATH. Build it from kubernetes-sigs/cri-tools (`make critest`), put it on PATH, \
             and serve the images that it names from a registry of yours (--registry-config DIR, a hosts.toml tree)"
        );
    };
    install::for_pods()?;
    let programs = build::build(false)?;
    build::cargo(&["build", "-p", "bowline-tests", "--bin", "with-daemon"], false, &[])?;
    let mut command = Command::new(build::target().join("debug/with-daemon"));
    command.env("BOWLINE_PROGRAMS", programs);
    let (own, passed) = split(args);
    command.args(own).arg("--").arg(critest);
    command.args(["-runtime-endpoint", "{endpoint}", "-image-endpoint", "{endpoint}", "-ginkgo.no-color"]);
    command.args(["-nri-socket", "{nri}"]);
    command.arg("-ginkgo.skip").arg(SKIP).args(passed);
    let status = command.status().context("run critest")?;
    if status.success() { Ok(()) } else { bail!("critest failed") }
}

/// Our own options (`--registry-config DIR`) and critest's.
fn split(args: &[String]) -> (Vec<&str>, Vec<&str>) {
    match args {
        [flag, folder, rest @ ..] if flag == "--registry-config" => {
            (vec![flag, folder], rest.iter().map(String::as_str).collect())
        }
        all => (Vec::new(), all.iter().map(String::as_str).collect()),
    }
}
