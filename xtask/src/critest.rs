//! The official conformance suite, taken from PATH: it is in no registry, so nothing here fetches or builds it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{build, install};

/// Specs that measure; see docs/operate/conformance.md. Those that the host cannot run skip themselves.
const SKIP: &str = "benchmark";

/// Runs critest against a daemon of ours.
pub fn critest(args: &[String]) -> Result<()> {
    let critest = program()?;
    install::for_pods()?;
    let programs = build::build(false)?;
    build::cargo(&["build", "--workspace", "--bin", "with-daemon"], false, &[])?;
    let (own, passed) = split(args);
    let critest = critest.to_str().context("the path of critest is strange")?;
    let mut command = Command::new(build::target().join("debug/with-daemon"));
    command.env("BOWLINE_PROGRAMS", programs).args(words(&own, critest, &passed));
    let status = command.status().context("run critest")?;
    if status.success() { Ok(()) } else { bail!("critest failed") }
}

/// Where critest is.
pub fn program() -> Result<PathBuf> {
    install::find("critest").context(
        "there is no critest on PATH. Build it from kubernetes-sigs/cri-tools (`make critest`), put it on PATH, \
         and have the images that it names in an OCI layout (--images DIR) or in a registry of yours \
         (--registry-config DIR, a hosts.toml tree)",
    )
}

/// The arguments for `with-daemon`: its own, critest, critest's.
pub fn words(own: &[String], critest: &str, passed: &[String]) -> Vec<String> {
    let fixed = [
        "--",
        critest,
        "-runtime-endpoint",
        "{endpoint}",
        "-image-endpoint",
        "{endpoint}",
        "-ginkgo.no-color",
        "-nri-socket",
        "{nri}",
        "-ginkgo.skip",
        SKIP,
    ];
    own.iter().cloned().chain(fixed.map(str::to_owned)).chain(passed.iter().cloned()).collect()
}

/// Our own options (`--registry-config DIR` or `--images DIR`) and critest's.
pub fn split(args: &[String]) -> (Vec<String>, Vec<String>) {
    match args {
        [flag, _, rest @ ..] if flag == "--registry-config" || flag == "--images" => {
            (args[..2].to_vec(), rest.to_vec())
        }
        all => (Vec::new(), all.to_vec()),
    }
}
