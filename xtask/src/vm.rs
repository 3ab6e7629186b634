//! `cargo xtask vm`: a command in a guest with a stock kernel, cgroup v2 and nothing of this machine but our programs.
//!
//! The story of one run:
//! 1. The base, made once and kept in `target/vm`: a Debian kernel with its modules, an initial ramdisk that mounts
//!    the disks, and the image of a root (`base.rs`; packages come from this machine's Debian mirror, `packages.rs`).
//! 2. The programs, new each time: what cargo built, the libraries that it needs, the command (`programs.rs`).
//! 3. QEMU, all in software, so that it runs anywhere (`qemu.rs`). Nothing that the guest writes is kept.
//!
//! The guest has three serial ports: the kernel's console (a file, named when something goes wrong), the command's
//! output (ours), and one on which it says the exit code last.

mod base;
mod packages;
mod programs;
mod qemu;
mod selinux;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{build, critest, install};

const HELP: &str = "\
cargo xtask vm [--kernel 6.1|6.12] [--systemd | --selinux] [--release] [--timeout SECONDS] [--with FILE].. COMMAND..
cargo xtask vm [OPTIONS] critest --images LAYOUT [ARGS]
cargo xtask vm smoke

Runs COMMAND as root in a guest with a Debian kernel and cgroup v2, and ends with its exit code.
`critest` is taken from PATH, and runs with ARGS against a daemon of ours; the images that it names come from LAYOUT, an OCI
layout whose names are `repository:tag`.
`smoke` alone runs the part of `bowline check` that `cargo xtask test` runs in both kernels' guests.
On the guest's PATH: bowline, check-own, with-daemon, demo, criu, and the tests of tests/ by their names (takeover, ..).

  --kernel    6.1 (bookworm, default) or 6.12 (its backports)
  --systemd   Debian with systemd as PID 1; else a bare init
  --selinux   SELinux, enforcing for containers, instead of AppArmor; with the bare init
  --release   programs as they are shipped: long to build, and a quarter quicker in a guest
  --timeout   how long the guest may take, 3600 unless told
  --with      another file to put on the guest's PATH
";

/// Cases of `bowline check` that say in minutes whether pods work on cgroup v2.
const SMOKE: [&str; 13] = [
    "info/runtime-config",
    "sandbox/run",
    "container/exit-facts",
    "exec-sync/output",
    "resources/create-echo",
    "resources/update",
    "resources/unified",
    "resources/cgroup-place",
    "oom/killed",
    "oom/child-killed",
    "stats/container",
    "userns/pod-mapping",
    "leftovers/log-and-volume",
];
/// How much slower than a machine a guest is allowed to be.
const PATIENCE: &str = "10";

/// Which guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Guest {
    kernel: Kernel,
    systemd: bool,
    /// SELinux instead of AppArmor.
    selinux: bool,
}

/// Which of Debian's kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kernel {
    V6_1,
    V6_12,
}

impl Kernel {
    /// The suite whose newest cloud kernel is meant.
    fn suite(self) -> &'static str {
        match self {
            Kernel::V6_1 => "bookworm",
            Kernel::V6_12 => "bookworm-backports",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
        }
    }
}

/// What was asked for.
struct Options {
    guest: Guest,
    /// Programs as they are shipped.
    release: bool,
    timeout: Duration,
    with: Vec<PathBuf>,
    /// An OCI layout for /programs/images.
    images: Option<PathBuf>,
    command: Vec<String>,
}

/// Runs a command in a guest; the result is its exit code.
pub fn vm(args: &[String]) -> Result<u8> {
    if args == ["smoke"] {
        return smoke().map(|()| 0);
    }
    let Some(options) = parse(args)? else {
        print!("{HELP}");
        return Ok(0);
    };
    install::for_vm(options.guest.systemd)?;
    run(&options)
}

fn run(options: &Options) -> Result<u8> {
    let base = base::base(&cache()?, options.guest)?;
    let programs = programs::disk(&cache()?, options)?;
    qemu::run(&cache()?, &base, &programs, options)
}

/// Runs the smoke set in both kernels' guests. A machine on which QEMU cannot be installed is told so, and passes.
pub fn smoke() -> Result<()> {
    if let Err(error) = install::for_vm(false) {
        println!("xtask: NOT TESTED: cgroup v2 and stock kernels, for want of QEMU: {error:#}");
        return Ok(());
    }
    for kernel in [Kernel::V6_1, Kernel::V6_12] {
        let mut command = ["check-own", "--patience", PATIENCE].map(str::to_owned).to_vec();
        command.extend(SMOKE.iter().flat_map(|case| ["--case".to_owned(), (*case).to_owned()]));
        let guest = Guest { kernel, systemd: false, selinux: false };
        let options = Options {
            guest,
            release: false,
            timeout: Duration::from_secs(600),
            with: Vec::new(),
            images: None,
            command,
        };
        println!("xtask: the smoke set on cgroup v2, kernel {}", kernel.name());
        let code = run(&options)?;
        if code != 0 {
            bail!("the smoke set failed with exit code {code} in the guest with kernel {}", kernel.name());
        }
    }
    Ok(())
}

fn parse(args: &[String]) -> Result<Option<Options>> {
    let mut guest = Guest { kernel: Kernel::V6_1, systemd: false, selinux: false };
    let mut release = false;
    let mut timeout = Duration::from_secs(3600);
    let mut with = Vec::new();
    let mut words = args.iter();
    let mut command: Vec<String> = Vec::new();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--kernel" => {
                guest.kernel = match value()?.as_str() {
                    "6.1" => Kernel::V6_1,
                    "6.12" => Kernel::V6_12,
                    other => bail!("--kernel: {other} is not one of 6.1, 6.12"),
                }
            }
            "--systemd" => guest.systemd = true,
            "--selinux" => guest.selinux = true,
            "--release" => release = true,
            "--timeout" => {
                let seconds = value()?.parse().context("--timeout wants a number of seconds")?;
                timeout = Duration::from_secs(seconds);
            }
            "--with" => with.push(PathBuf::from(value()?)),
            "--help" => return Ok(None),
            flag if flag.starts_with('-') => bail!("unknown option {flag}; `cargo xtask vm --help`"),
            _ => {
                command.push(word.clone());
                command.extend(words.by_ref().cloned());
            }
        }
    }
    if guest.selinux && guest.systemd {
        bail!("--selinux: only the bare init loads a policy; leave out --systemd");
    }
    if command.is_empty() {
        bail!("what shall run in the guest? `cargo xtask vm --help`");
    }
    let mut options = Options { guest, release, timeout, with, images: None, command };
    if options.command.first().is_some_and(|word| word == "critest") {
        in_guest(&mut options)?;
    }
    Ok(Some(options))
}

/// The official suite's command becomes the one that runs it against a daemon of ours.
fn in_guest(options: &mut Options) -> Result<()> {
    let (own, passed) = critest::split(&options.command[1..]);
    let [flag, images] = &own[..] else {
        bail!("critest in a guest wants --images LAYOUT; `cargo xtask vm --help`");
    };
    if flag != "--images" {
        bail!("{flag}: a guest reaches no registry; give it --images LAYOUT");
    }
    options.images = Some(PathBuf::from(images));
    options.with.push(critest::program()?);
    // One spec makes a queue with it.
    options.with.extend(install::find("ipcmk"));
    let own = ["--images", "/programs/images"].map(str::to_owned);
    options.command = vec!["with-daemon".to_owned()];
    options.command.extend(critest::words(&own, "/programs/bin/critest", &passed));
    Ok(())
}

/// Where everything that is made for guests is kept.
fn cache() -> Result<PathBuf> {
    let folder = build::target().join("vm");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}
