//! A bundle: its spec, read and checked, its plan, and the descriptors that the plan counts on.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bowline_linux::mount::{Change, change, propagation};
use bowline_model::cgroup::CgroupLayout;
use bowline_model::runtime_spec::{NamespaceType, Spec};
use bowline_plan::seccomp::{Arch, SeccompCache};
use bowline_plan::{Compiled, Descriptor, PlanInputs, RootfsSource, compile};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::groups;

/// A folder with config.json, checked as far as the spec alone goes.
pub(crate) struct Bundle {
    pub(crate) path: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) spec: Spec,
}

impl Bundle {
    /// Reads a bundle.
    pub(crate) fn load(path: &Path) -> Result<Bundle> {
        let path = fs::canonicalize(path).with_context(|| format!("find the bundle {}", path.display()))?;
        let config = path.join("config.json");
        let text = fs::read(&config).with_context(|| format!("read {}", config.display()))?;
        let mut spec =
            Spec::from_json(&text).with_context(|| format!("{} is no runtime spec", config.display()))?;
        check_version(&spec.oci_version)?;
        let root =
            spec.root.as_ref().filter(|root| !root.path.is_empty()).context("root.path: is missing")?;
        let rootfs = path.join(&root.path);
        let rootfs = fs::canonicalize(&rootfs).with_context(|| format!("root.path: {}", rootfs.display()))?;
        if !rootfs.is_dir() {
            bail!("root.path: {} is no folder", rootfs.display());
        }
        check_namespaces(&spec)?;
        find_sources(&mut spec, &path)?;
        Ok(Bundle { path, rootfs, spec })
    }

    /// The program wants a terminal.
    pub(crate) fn terminal(&self) -> bool {
        self.spec.process.as_ref().is_some_and(|process| process.terminal)
    }

    /// Compiles the plan.
    pub(crate) fn compile(&self, id: &str, cgroups: &CgroupLayout) -> Result<Compiled> {
        check_labels(&self.spec, Path::new("/sys/fs/selinux/enforce").exists())?;
        let path = self.rootfs.to_str().context("root.path: is not UTF-8")?.to_owned();
        let named = self.spec.linux.as_ref().is_some_and(|linux| !linux.cgroups_path.is_empty());
        let default = groups::default_path(id);
        let compiled = compile(&PlanInputs {
            spec: &self.spec,
            rootfs: &RootfsSource::Tree { path },
            directories: &[],
            cgroups,
            cgroup_path: (!named).then_some(default.as_str()),
            inherited: 0,
            last_cap: last_cap()?,
            arch: native_arch()?,
            seccomp: &SeccompCache::default(),
        })?;
        check_net_devices(&self.spec, &compiled.net_devices)?;
        if let Some(rdt) = &compiled.intel_rdt {
            bowline_resctrl::check(rdt)?;
            bowline_resctrl::require(Path::new(bowline_resctrl::ROOT))?;
        }
        let idmapped = |descriptor: &Descriptor| match descriptor {
            Descriptor::HostTree { idmap: Some(_), field, .. } => Some(field.clone()),
            _ => None,
        };
        match compiled.descriptors.iter().find_map(idmapped) {
            Some(field) => bail!("{field}: idmapped mounts are not supported"),
            None => Ok(compiled),
        }
    }
}

/// The highest capability of this kernel.
pub(crate) fn last_cap() -> Result<u32> {
    let path = "/proc/sys/kernel/cap_last_cap";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} holds {text:?}"))
}

/// This machine, for filters.
pub(crate) fn native_arch() -> Result<Arch> {
    let name = match std::env::consts::ARCH {
        "x86_64" => "SCMP_ARCH_X86_64",
        "aarch64" => "SCMP_ARCH_AARCH64",
        other => bail!("there are no seccomp tables for {other}"),
    };
    Ok(Arch::parse(name)?)
}

fn check_version(version: &str) -> Result<()> {
    let mut parts = version.split(['.', '-', '+']);
    match (parts.next(), parts.next(), parts.next()) {
        (Some("1"), Some(minor), Some(patch))
            if minor.parse::<u32>().is_ok() && patch.parse::<u32>().is_ok() =>
        {
            Ok(())
        }
        _ if version.is_empty() => bail!("ociVersion: is missing"),
        _ => bail!("ociVersion: {version:?} is not supported; 1.x.y is"),
    }
}

/// The kernel would say only "invalid argument".
fn check_labels(spec: &Spec, selinux: bool) -> Result<()> {
    let process = spec.process.as_ref().is_some_and(|process| !process.selinux_label.is_empty());
    let mounts = spec.linux.as_ref().is_some_and(|linux| !linux.mount_label.is_empty());
    let asked = [("process.selinuxLabel", process), ("linux.mountLabel", mounts)];
    match asked.iter().find(|(_, asked)| *asked && !selinux) {
        Some((field, _)) => bail!("{field}: this host has no SELinux; leave it out"),
        None => Ok(()),
    }
}

/// On the host's network they would be where they are already.
fn check_net_devices(spec: &Spec, devices: &[(String, String)]) -> Result<()> {
    let mut namespaces = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    if !devices.is_empty() && !namespaces.any(|namespace| namespace.kind == NamespaceType::Network) {
        bail!("linux.netDevices: the container has the host's network; give it a network namespace");
    }
    bowline_cni::check_names(devices).map_err(anyhow::Error::msg)
}

fn check_namespaces(spec: &Spec) -> Result<()> {
    let list = spec.linux.as_ref().map(|linux| linux.namespaces.as_slice()).unwrap_or_default();
    match list.iter().position(|namespace| namespace.kind == NamespaceType::User) {
        Some(index) => bail!("linux.namespaces[{index}]: user namespaces are not supported yet"),
        None => Ok(()),
    }
}

/// Sources of bind mounts may be relative to the bundle; and have to be there.
fn find_sources(spec: &mut Spec, bundle: &Path) -> Result<()> {
    for (index, mount) in spec.mounts.iter_mut().enumerate() {
        let bound = mount.options.iter().any(|option| option == "bind" || option == "rbind");
        if (!bound && mount.kind != "bind") || mount.source.is_empty() {
            continue;
        }
        let source = bundle.join(&mount.source);
        if let Err(error) = fs::metadata(&source) {
            return Err(error).with_context(|| format!("mounts[{index}].source: {}", source.display()));
        }
        mount.source =
            source.to_str().with_context(|| format!("mounts[{index}].source: is not UTF-8"))?.to_owned();
    }
    Ok(())
}

/// Opens what a plan counts on, in order.
pub(crate) fn open_all(descriptors: &[Descriptor]) -> Result<Vec<OwnedFd>> {
    descriptors.iter().map(open).collect()
}

fn open(descriptor: &Descriptor) -> Result<OwnedFd> {
    match descriptor {
        Descriptor::HostTree { path, recursive, follow, field, .. } => {
            clone_tree(path, *recursive, *follow).with_context(|| format!("{field}: open {path}"))
        }
        Descriptor::Namespace { path, .. } => {
            let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            opened.with_context(|| format!("linux.namespaces: open {path}"))
        }
        Descriptor::Rootfs { path } => {
            let tree = clone_tree(path, true, true).with_context(|| format!("root.path: open {path}"))?;
            // A copy of a shared mount is its peer: what the container mounts below would show up on the host.
            let private = Change { propagation: propagation::PRIVATE, recursive: true, ..Change::default() };
            change(tree.as_fd(), &private).context("root.path: make its mounts private")?;
            Ok(tree)
        }
    }
}

/// A detached copy of a mount tree of the host.
fn clone_tree(path: &str, recursive: bool, follow: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !follow {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    Ok(open_tree(CWD, path, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_needs_a_host_that_has_labels() {
        let spec = |json: &str| serde_json::from_str::<Spec>(json).unwrap();
        let bare = spec(r#"{"ociVersion":"1.2.0","process":{"cwd":"/"},"linux":{}}"#);
        check_labels(&bare, false).unwrap();
        for (json, field) in [
            (
                r#"{"ociVersion":"1.2.0","process":{"cwd":"/","selinuxLabel":"a:b:c:s0"}}"#,
                "process.selinuxLabel",
            ),
            (r#"{"ociVersion":"1.2.0","linux":{"mountLabel":"a:b:c:s0"}}"#, "linux.mountLabel"),
        ] {
            let error = check_labels(&spec(json), false).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
            check_labels(&spec(json), true).unwrap();
        }
    }
}
