//! What the build and the tests need of the machine, installed if it is missing.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The target of the static programs: the monitor (small) and the check helper (runs in images from scratch).
pub const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";

/// Installs what building needs.
pub fn for_build() -> Result<()> {
    let mut packages = Vec::new();
    if !on_path("cc") {
        packages.extend(["gcc", "libc6-dev"]);
    }
    apt(&packages)?;
    if !has_static_target() && on_path("rustup") {
        // Not having it is no failure: the static programs are then linked with glibc.
        let _ = Command::new("rustup").args(["target", "add", STATIC_TARGET]).stdin(Stdio::null()).status();
    }
    Ok(())
}

/// Installs what running pods for tests and the demo needs.
pub fn for_pods() -> Result<()> {
    let mut packages = Vec::new();
    if !["/bin/busybox", "/usr/bin/busybox"].iter().any(|path| is_static(Path::new(path))) {
        packages.push("busybox-static");
    }
    // Tests of the network delete links behind our back.
    if !on_path("ip") {
        packages.push("iproute2");
    }
    // A test holds a process at a place that it passes too quickly otherwise.
    if !on_path("strace") {
        packages.push("strace");
    }
    apt(&packages)?;
    if rustix_is_not_root() {
        bail!("running pods takes root: try `sudo -E cargo xtask ...`");
    }
    Ok(())
}

/// Installs what guests need: QEMU, and what makes their disks.
pub fn for_vm(systemd: bool) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("guests are x86-64, and this machine is not");
    }
    let mut packages = Vec::new();
    let needs = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("mke2fs", "e2fsprogs"),
        ("xz", "xz-utils"),
        ("debootstrap", "debootstrap"),
    ];
    for (program, package) in needs {
        if !on_path(program)
            && !Path::new("/sbin").join(program).exists()
            && (systemd || program != "debootstrap")
        {
            packages.push(package);
        }
    }
    if !Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists() {
        packages.push("debian-archive-keyring");
    }
    apt(&packages)
}

/// Whether a program needs no loader: one that names it is linked dynamically.
fn is_static(program: &Path) -> bool {
    std::fs::read(program).is_ok_and(|bytes| !bytes.windows(9).any(|window| window == b"/ld-linux"))
}

/// Whether the target is installed, by asking the compiler for one of its files.
pub fn has_static_target() -> bool {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", STATIC_TARGET]).output();
    output.is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success() && Path::new(&folder).join("self-contained").exists()
    })
}

fn rustix_is_not_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.and_then(|line| line.split_whitespace().nth(1)) != Some("0")
}

/// Whether a program is on PATH.
pub fn on_path(program: &str) -> bool {
    find(program).is_some()
}

/// Where a program is on PATH.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn apt(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !on_path("apt-get") {
        bail!("missing: {}; install them with this machine's package manager", packages.join(", "));
    }
    println!("xtask: installing {}", packages.join(", "));
    let run = |args: &[&str]| -> Result<bool> {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args).stdin(Stdio::null());
        Ok(command.status().context("run apt-get")?.success())
    };
    let install = || {
        let mut args = vec!["install", "-y", "--no-install-recommends"];
        args.extend(packages);
        run(&args)
    };
    // The lists may be old, or never read.
    let installed = install()? || run(&["update"])? && install()?;
    if !installed {
        bail!("apt-get could not install {}", packages.join(", "));
    }
    Ok(())
}
