//! The part of a guest that is made once: kernel, initial ramdisk, root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::packages::{Packages, said};
use super::{Guest, Kernel};

/// Changes with what this file makes, so that older bases are not used.
const LAYOUT: u32 = 2;
/// What the ramdisk loads to see the disks. Those that are built in are not found, and not missed.
const DISK_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// What a root with systemd holds beside Debian's smallest set.
const DEBIAN: &str = "systemd,systemd-sysv,dbus,kmod,udev,procps,iproute2,apparmor,busybox-static";
const RAMDISK_INIT: &str = include_str!("guest/ramdisk-init.sh");
const UNIT: &str = include_str!("guest/command.service");

/// Files for QEMU.
pub struct Base {
    pub kernel: PathBuf,
    pub ramdisk: PathBuf,
    pub root: PathBuf,
}

/// The base of a guest, made unless it is there.
pub fn base(cache: &Path, guest: Guest) -> Result<Base> {
    let flavour = if guest.systemd { "systemd" } else { "bare" };
    let folder = cache.join(format!("base-{LAYOUT}-{}", guest.kernel.name()));
    let base = Base {
        kernel: folder.join("vmlinuz"),
        ramdisk: folder.join("ramdisk"),
        root: folder.join(format!("{flavour}.img")),
    };
    if !base.ramdisk.exists() {
        make_kernel(cache, &folder, guest.kernel)?;
    }
    if !base.root.exists() {
        make_root(cache, &folder, &base.root, guest.systemd)?;
    }
    Ok(base)
}

/// Kernel, modules and ramdisk into the folder. The ramdisk is the last: with it the folder is complete.
fn make_kernel(cache: &Path, folder: &Path, kernel: Kernel) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    let unpacked = folder.join("unpacked");
    fs::create_dir_all(&unpacked).with_context(|| format!("make {}", unpacked.display()))?;
    let packages = Packages::open(cache)?;
    packages.unpack(&packages.kernel(kernel.suite())?, &unpacked)?;
    packages.unpack("busybox-static", &unpacked)?;
    let version = only_entry(&unpacked.join("lib/modules"))?;
    fs::copy(unpacked.join(format!("boot/vmlinuz-{version}")), folder.join("vmlinuz"))
        .context("copy the kernel")?;
    let modules = unpacked.join("lib/modules").join(&version);
    // busybox loads modules that are not compressed.
    let compressed = files(&modules)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "xz"));
    let compressed: Vec<PathBuf> = compressed.collect();
    if !compressed.is_empty() {
        said(Command::new("xz").arg("-d").args(compressed))?;
    }
    let busybox = unpacked.join("bin/busybox");
    said(Command::new(&busybox).args(["depmod", "-b"]).arg(&unpacked).arg(&version))?;
    let ramdisk = ramdisk(&busybox, &modules)?;
    let new = folder.join("ramdisk.new");
    fs::write(&new, ramdisk).context("write the ramdisk")?;
    fs::rename(&new, folder.join("ramdisk")).context("place the ramdisk")
}

/// A cpio archive ("newc", Documentation/driver-api/early-userspace/buffer-format.rst of the kernel) of what mounts the disks.
fn ramdisk(busybox: &Path, modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    for folder in ["bin", "modules", "root", "dev", "proc"] {
        cpio_entry(&mut archive, folder, 0o040_755, &[]);
    }
    cpio_entry(&mut archive, "bin/busybox", 0o100_755, &fs::read(busybox).context("read busybox")?);
    cpio_entry(&mut archive, "bin/sh", 0o120_777, b"busybox");
    cpio_entry(&mut archive, "init", 0o100_755, RAMDISK_INIT.as_bytes());
    for (number, file) in load_order(modules)?.iter().enumerate() {
        let bytes = fs::read(modules.join(file)).with_context(|| format!("read {file}"))?;
        // The init loads them in the order of their names.
        cpio_entry(&mut archive, &format!("modules/{number:02}.ko"), 0o100_644, &bytes);
    }
    cpio_entry(&mut archive, "TRAILER!!!", 0, &[]);
    Ok(archive)
}

fn cpio_entry(archive: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) {
    let inode = archive.len();
    let (name_size, size) = (name.len() + 1, bytes.len());
    // Inode, mode, owner, group, links, time, size, device (2), special device (2), size of the name, no checksum.
    let header = format!(
        "070701{inode:08X}{mode:08X}{0:08X}{0:08X}{1:08X}{0:08X}{size:08X}{0:08X}{0:08X}{0:08X}{0:08X}{name_size:08X}{0:08X}",
        0, 1,
    );
    archive.extend(header.as_bytes());
    archive.extend(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(bytes);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// The disk modules and what they need, each after what it needs.
fn load_order(modules: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(modules.join("modules.dep")).context("read modules.dep")?;
    let needs: BTreeMap<&str, Vec<&str>> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(module, needs)| (module, needs.split_whitespace().collect()))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for wanted in DISK_MODULES {
        let file = needs.keys().find(|file| file.ends_with(&format!("/{wanted}.ko")));
        let Some(file) = file else { continue };
        // modules.dep is closed, and names the nearest need first.
        let all = needs.get(file).into_iter().flatten().rev().chain([file]);
        for module in all {
            if !order.iter().any(|known| known == module) {
                order.push((*module).to_owned());
            }
        }
    }
    Ok(order)
}

fn make_root(cache: &Path, folder: &Path, image: &Path, systemd: bool) -> Result<()> {
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    let unpacked = folder.join("unpacked");
    if systemd {
        debian(cache, &root)?;
    } else {
        bare(&unpacked, &root)?;
    }
    fs::create_dir_all(root.join("programs")).context("make the mount point of the programs")?;
    let lib = fs::canonicalize(root.join("lib")).context("find the folder of the modules")?;
    said(Command::new("cp").arg("-a").arg(unpacked.join("lib/modules")).arg(lib))?;
    if systemd {
        // kmod wants indices in its own format; busybox, which read the modules first, knows only text.
        let version = only_entry(&unpacked.join("lib/modules"))?;
        said(Command::new("chroot").arg(&root).args(["/sbin/depmod", &version]))?;
    }
    disk(&root, image, "6G")?;
    fs::remove_dir_all(&root).context("remove what became the image")
}

/// A root of busybox alone. Libraries come with the programs that need them.
fn bare(unpacked: &Path, root: &Path) -> Result<()> {
    for name in [
        "bin", "dev", "etc", "lib", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/lib",
        "var/lib", "var/log", "var/tmp",
    ] {
        fs::create_dir_all(root.join(name)).with_context(|| format!("make {name}"))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).context("open /tmp")?;
    let busybox = root.join("bin/busybox");
    fs::copy(unpacked.join("bin/busybox"), &busybox).context("copy busybox")?;
    for applet in said(Command::new(&busybox).arg("--list"))?.lines() {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("/bin/busybox", &link).with_context(|| format!("link {applet}"))?;
        }
    }
    // The kernel loads modules with this.
    link("/bin/busybox", &root.join("sbin/modprobe"))?;
    // Where the loaders of the distributions look for libraries.
    for name in ["lib64", "usr/lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
        link("/programs/lib64", &root.join(name))?;
    }
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
        ("hosts", "127.0.0.1 localhost guest\n"),
        ("resolv.conf", ""),
        ("hostname", "guest\n"),
    ] {
        fs::write(root.join("etc").join(name), text).with_context(|| format!("write /etc/{name}"))?;
    }
    Ok(())
}

/// Debian with systemd, which starts the command as its last unit.
fn debian(cache: &Path, root: &Path) -> Result<()> {
    println!("xtask: making a Debian root (debootstrap)");
    let packages = Packages::open(cache)?;
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", "--arch=amd64"]).arg(format!("--include={DEBIAN}"));
    said(command.arg("bookworm").arg(root).arg(packages.mirror()))?;
    let units = root.join("etc/systemd/system");
    fs::write(units.join("guest-command.service"), UNIT).context("write the command's unit")?;
    fs::create_dir_all(units.join("multi-user.target.wants")).context("make the target's folder")?;
    link("../guest-command.service", &units.join("multi-user.target.wants/guest-command.service"))?;
    // Nobody logs in, and the console is read by nobody.
    for unit in [
        "serial-getty@ttyS0.service",
        "getty@tty1.service",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "systemd-logind.service",
    ] {
        link("/dev/null", &units.join(unit))?;
    }
    link("/lib/systemd/system/multi-user.target", &units.join("default.target"))?;
    // Compiling the profiles of programs that are not here takes half a minute in emulation.
    let profiles = root.join("etc/apparmor.d");
    for entry in fs::read_dir(&profiles).context("list the AppArmor profiles")? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::remove_file(entry.path()).context("remove an AppArmor profile")?;
        }
    }
    fs::write(root.join("etc/hostname"), "guest\n").context("write the host's name")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost guest\n").context("write the host's names")
}

fn link(target: &str, link: &Path) -> Result<()> {
    std::os::unix::fs::symlink(target, link).with_context(|| format!("link {}", link.display()))
}

/// Makes the image of a file system from a folder. Needs no rights and no mount.
pub fn disk(folder: &Path, image: &Path, size: &str) -> Result<()> {
    let new = image.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut command = Command::new("mke2fs");
    command.env("PATH", format!("{}:/sbin:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
    // Whoever unpacked the packages, the files are root's.
    command.args(["-q", "-t", "ext4", "-E", "root_owner=0:0,lazy_itable_init=1", "-d"]).arg(folder);
    said(command.arg(&new).arg(size))?;
    fs::rename(&new, image).with_context(|| format!("place {}", image.display()))
}

fn only_entry(folder: &Path) -> Result<String> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry?.file_name().to_string_lossy().into_owned()),
        _ => bail!("{} should hold exactly one folder", folder.display()),
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}
