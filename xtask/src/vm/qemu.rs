//! QEMU without KVM: slow, the same everywhere.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Options;
use super::base::Base;
use super::programs::ProgramsDisk;

/// Starts the guest and waits for its end; the result is the command's exit code.
pub fn run(cache: &Path, base: &Base, programs: &ProgramsDisk, options: &Options) -> Result<u8> {
    let flavour = if options.guest.systemd { "systemd" } else { "bare" };
    let console = cache.join(format!("console-{}-{flavour}.log", options.guest.kernel.name()));
    let code = programs.folder().join("code");
    let init = if options.guest.systemd { "/lib/systemd/systemd" } else { "/programs/init" };
    let mut command = Command::new("qemu-system-x86_64");
    // In QEMU 7.2 cmpxchg16b without a lock leaves garbage in the flags, and Linux from 6.5 on uses it where it is there.
    // One thread for both CPUs: with one each, a CPU may run an instruction that the kernel has just patched, and dies.
    command.args(["-accel", "tcg,thread=single", "-cpu", "max,cx16=off", "-smp", "2", "-m", "3072"]);
    command.args(["-nodefaults", "-no-reboot", "-display", "none", "-nic", "none"]);
    command.arg("-kernel").arg(&base.kernel).arg("-initrd").arg(&base.ramdisk);
    let module = if options.guest.selinux { " security=selinux" } else { "" };
    // norandmaps: with a program at another address in each process, memory that had held a monitor's code took minutes to clear,
    // and a CPU stood still meanwhile (docs/decisions/0010).
    command.arg("-append").arg(format!(
        "console=ttyS0 loglevel=5 panic=-1 net.ifnames=0 mitigations=off norandmaps guest_init={init}{module}"
    ));
    // What the guest writes goes to a file without a name, in TMPDIR.
    command.env("TMPDIR", programs.folder());
    command.arg("-drive").arg(drive(&base.root, "snapshot=on"));
    command.arg("-drive").arg(drive(&programs.image(), "readonly=on"));
    for (id, place) in
        [("console", file(&console)), ("output", "stdio,signal=off".to_owned()), ("code", file(&code))]
    {
        let (kind, rest) = place.split_once(',').unwrap_or((&place, ""));
        command.arg("-chardev").arg(format!("{kind},id={id},{rest}"));
        command.arg("-device").arg(format!("isa-serial,chardev={id}"));
    }
    let mut child = command.stdin(Stdio::null()).spawn().context("start qemu-system-x86_64")?;
    let deadline = Instant::now() + options.timeout;
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for QEMU")? {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the guest took longer than {:?}; its console: {}", options.timeout, console.display());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let said = fs::read_to_string(&code).unwrap_or_default();
    if said.trim() != "0" && fs::read(&console).is_ok_and(|text| contains(&text, b"soft lockup")) {
        println!(
            "xtask: this machine was too busy for the guest: its kernel says that a CPU stood still for seconds ({}). Run it \
             again with less beside it before you look for another cause",
            console.display()
        );
    }
    match said.trim().parse() {
        Ok(code) if status.success() => Ok(code),
        _ => {
            bail!("the guest ended without an exit code (QEMU: {status}); its console: {}", console.display())
        }
    }
}

fn contains(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

fn drive(image: &Path, more: &str) -> String {
    // QEMU reads a double comma in a path as one comma.
    format!("file={},format=raw,if=virtio,{more}", image.display().to_string().replace(',', ",,"))
}

fn file(path: &Path) -> String {
    format!("file,path={}", path.display().to_string().replace(',', ",,"))
}
