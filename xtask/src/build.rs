//! Building the programs that belong together.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::install::{self, STATIC_TARGET};
use crate::limit;

/// The folder with `bowline`, `bowline-monitor` and `bowline-check-helper`.
pub fn build(release: bool) -> Result<PathBuf> {
    install::for_build()?;
    let profile = if release { "release" } else { "debug" };
    let folder = target().join(profile);
    // What is shipped is built by itself. What is tested has the features of the whole workspace, as the tests have: with two
    // sets of features every dependency would be compiled twice.
    match release {
        true => cargo(&["build", "-p", "bowline"], true, &[])?,
        false => cargo(&["build", "--workspace", "--bin", "bowline"], false, &[])?,
    }
    // The monitor is small only when it is static, and optimised for size whatever the rest is; the helper must run in
    // an image that holds nothing else.
    for package in ["bowline-monitor", "bowline-check-helper"] {
        let built = build_static(package)?;
        let place = folder.join(package);
        // Beside `bowline`, under another name first: one that runs now keeps its file.
        let beside = folder.join(format!("{package}.new"));
        std::fs::copy(&built, &beside).with_context(|| format!("copy {}", built.display()))?;
        std::fs::rename(&beside, &place).with_context(|| format!("place {}", place.display()))?;
    }
    Ok(folder)
}

fn build_static(package: &str) -> Result<PathBuf> {
    if install::has_static_target() {
        cargo(&["build", "-p", package, "--target", STATIC_TARGET], true, &[])?;
        return Ok(target().join(STATIC_TARGET).join("release").join(package));
    }
    let native = "x86_64-unknown-linux-gnu";
    let flags = [(
        "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
        "-C target-feature=+crt-static -C relocation-model=static",
    )];
    cargo(&["build", "-p", package, "--target", native], true, &flags)?;
    Ok(target().join(native).join("release").join(package))
}

/// cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The root of the checkout.
pub fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}

/// The most that one run of cargo may take, tests included: a complete test run from scratch needs about half of it.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// cargo, in the checkout, as somebody would start it by hand: what cargo tells this program of its own package is an input of
/// the build of `ring`, and of all that uses it.
pub fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs cargo in the checkout.
pub fn cargo(args: &[&str], release: bool, env: &[(&str, &str)]) -> Result<()> {
    let mut command = cargo_command();
    command.args(args).envs(env.iter().copied());
    if release {
        command.arg("--release");
    }
    println!("xtask: cargo {}{}", args.join(" "), if release { " --release" } else { "" });
    let status = limit::status(&mut command, LIMIT)?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}
