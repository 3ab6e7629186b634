//! The rules of the house that the compiler does not know.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::build::root;

/// Crates and their ranks: a crate may use only crates of a lower rank (ARCHITECTURE.md).
const RANKS: [(&str, u32); 26] = [
    ("linux", 0),
    ("model", 0),
    ("cri-proto", 0),
    ("nri-proto", 0),
    ("launch-plan", 0),
    ("monitor-proto", 1),
    ("store", 1),
    ("oci", 1),
    ("plan", 1),
    ("criu", 1),
    ("launch", 1),
    ("cni", 1),
    ("nri", 1),
    ("systemd", 1),
    ("resctrl", 1),
    ("image", 2),
    ("monitor", 2),
    ("pods", 3),
    ("streaming", 4),
    ("cri", 5),
    ("cli", 6),
    ("oci-cli", 6),
    ("check", 6),
    ("bowline", 7),
    ("check-helper", 7),
    ("testkit", 8),
];
/// Tools that people run by hand may use test images; they are no part of the daemon.
const MAY_USE_TESTKIT: [&str; 1] = ["check"];
/// Interfaces that are not ours are messages of protobuf, whatever carries them: CRI (gRPC) and NRI (ttrpc).
const MAY_USE_PROST: [&str; 3] = ["cri-proto", "nri-proto", "nri"];
/// Below this rank nobody has heard of gRPC.
const GRPC_FROM: u32 = 5;
/// Longer files are named, not refused: a place to look.
const LONG: usize = 600;

/// Checks everything, and names all that is wrong.
pub fn tidy() -> Result<()> {
    let mut wrong = Vec::new();
    let ranks: BTreeMap<&str, u32> = RANKS.into_iter().collect();
    for entry in fs::read_dir(root().join("crates")).context("list crates/")? {
        let folder = entry?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(rank) = ranks.get(name.as_str()) else {
            wrong.push(format!("crates/{name} has no rank in xtask/src/tidy.rs and ARCHITECTURE.md"));
            continue;
        };
        check_manifest(&folder, &name, *rank, &ranks, &mut wrong)?;
    }
    for file in sources(&root())? {
        check_source(&file, &mut wrong)?;
    }
    for line in &wrong {
        eprintln!("tidy: {line}");
    }
    if wrong.is_empty() {
        println!("tidy: all in order");
        Ok(())
    } else {
        bail!("{} things are not in order", wrong.len())
    }
}

fn check_manifest(
    folder: &Path,
    name: &str,
    rank: u32,
    ranks: &BTreeMap<&str, u32>,
    wrong: &mut Vec<String>,
) -> Result<()> {
    let text = fs::read_to_string(folder.join("Cargo.toml"))
        .with_context(|| format!("read the manifest of {name}"))?;
    let mut section = "";
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
        }
        if section != "dependencies" {
            continue;
        }
        let dependency = line.split(['=', '.', ' ']).next().unwrap_or_default();
        let grpc = dependency == "tonic" || dependency == "tonic-prost";
        let allowed = if grpc { name == "cri-proto" } else { MAY_USE_PROST.contains(&name) };
        if (grpc || dependency == "prost") && rank < GRPC_FROM && !allowed {
            wrong.push(format!("crates/{name} uses {dependency}: below `cri` nobody has heard of gRPC"));
        }
        let Some(other) = dependency.strip_prefix("bowline-") else { continue };
        let allowed = other == "testkit" && MAY_USE_TESTKIT.contains(&name);
        match ranks.get(other) {
            Some(below) if *below < rank || allowed => {}
            Some(_) => wrong.push(format!("crates/{name} uses {other}, which is not of a lower rank")),
            None => wrong.push(format!("crates/{name} uses the unknown crate {other}")),
        }
    }
    let workspace_lints = text.contains("[lints]\nworkspace = true");
    if name != "linux" && !workspace_lints {
        wrong.push(format!("crates/{name} does not take the lints of the workspace (forbid unsafe_code)"));
    }
    Ok(())
}

fn check_source(file: &Path, wrong: &mut Vec<String>) -> Result<()> {
    let shown = file.strip_prefix(root()).unwrap_or(file).display().to_string();
    let text = fs::read_to_string(file).with_context(|| format!("read {shown}"))?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    if ["utils", "util", "helpers", "common"].contains(&stem.as_ref()) {
        wrong.push(format!("{shown}: a home named after nothing collects everything"));
    }
    let is_test = shown.starts_with("tests/") || shown.contains("/tests/") || shown.contains("/examples/");
    let sleeps = |line: &str| line.contains("thread::sleep(") || line.contains("time::sleep(");
    // The pause of a loop that looks for a condition says so.
    if is_test && text.lines().any(|line| sleeps(line) && !line.ends_with("// between looks")) {
        wrong.push(format!("{shown}: tests wait for conditions, they do not sleep"));
    }
    if !text.starts_with("//!") && !is_test && !shown.ends_with("/tests.rs") {
        wrong.push(format!("{shown}: does not say at its top what it is (//!)"));
    }
    let lines = text.lines().count();
    if lines > LONG && !is_test {
        println!("tidy: {shown} has {lines} lines: think again");
    }
    Ok(())
}

/// All Rust files of the checkout but what is built.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["crates", "tests", "xtask"].iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
