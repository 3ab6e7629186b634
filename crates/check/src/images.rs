//! The images of a run: built in memory around the helper program, served on loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bowline_testkit::{BuiltImage, ImageBuilder, Layer, Registry};

/// The name of the helper program beside our own executable.
const HELPER: &str = "bowline-check-helper";
/// Says where it is otherwise.
const VARIABLE: &str = "BOWLINE_CHECK_HELPER";
/// Where the images have it.
pub(crate) const PROGRAM: &str = "/bin/helper";
/// A copy with the set-user-id bit, owned by root.
pub(crate) const SETUID_PROGRAM: &str = "/bin/suid";

/// What images are made of in this run.
pub(crate) struct Workshop {
    registry: Registry,
    prefix: Option<String>,
    base: Layer,
    helper: Vec<u8>,
    run: String,
}

/// Where the helper program is: what was said, else the variable, else beside our executable.
pub(crate) fn find_helper(said: Option<&Path>) -> Result<PathBuf> {
    let said = said.map(Path::to_owned).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    if let Some(path) = said {
        return path
            .is_file()
            .then(|| path.clone())
            .with_context(|| format!("{} is not a file", path.display()));
    }
    let own = std::env::current_exe().context("could not find our own executable")?;
    let beside = own.with_file_name(HELPER);
    // Where `bowline install` and packages put it.
    let below = own.parent().and_then(Path::parent).map(|prefix| prefix.join("libexec/bowline").join(HELPER));
    if let Some(below) = below.filter(|below| below.is_file() && !beside.is_file()) {
        return Ok(below);
    }
    if !beside.is_file() {
        bail!(
            "{} is missing: the images are built around this static program. Put it there, or say where it is with \
             --helper PATH or {VARIABLE}",
            beside.display()
        );
    }
    Ok(beside)
}

impl Workshop {
    /// Reads the helper and starts the registry. `run` goes into a label of each image, so that two runs share no id.
    pub(crate) fn open(
        helper: &Path,
        listen: SocketAddr,
        prefix: Option<String>,
        run: &str,
    ) -> Result<Workshop> {
        let helper = std::fs::read(helper).with_context(|| format!("could not read {}", helper.display()))?;
        if !is_static(&helper) {
            bail!("the helper program is not a static executable; build it for a musl target");
        }
        let registry = Registry::builder().listen(listen).start();
        Ok(Workshop { registry, prefix, base: base_layer(&helper), helper, run: run.to_owned() })
    }

    /// The registry, for faults and for what it was asked.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether images come from somewhere else.
    pub(crate) fn elsewhere(&self) -> bool {
        self.prefix.is_some()
    }

    /// The layer with the helper, users and folders.
    pub(crate) fn base(&self) -> Layer {
        self.base.clone()
    }

    /// The helper itself.
    pub(crate) fn helper(&self) -> &[u8] {
        &self.helper
    }

    /// The start of an image: no layer yet, an id of its own by its label.
    pub(crate) fn blank(&self, name: &str) -> ImageBuilder {
        ImageBuilder::new().labels(&[("check.run", &self.run), ("check.name", name)])
    }

    /// The start of an image that holds the helper.
    pub(crate) fn image(&self, name: &str) -> ImageBuilder {
        self.blank(name).layer(self.base())
    }

    /// Serves an image and gives its reference. Repositories carry the run's name.
    pub(crate) fn serve(&self, name: &str, tag: &str, image: &BuiltImage) -> String {
        self.registry.push(&self.repository(name), tag, image)
    }

    /// The repository behind a name.
    pub(crate) fn repository(&self, name: &str) -> String {
        format!("check-{}/{name}", self.run)
    }

    /// The image that most cases use.
    pub(crate) fn main(&self) -> String {
        if let Some(prefix) = &self.prefix {
            return format!("{prefix}/main:1");
        }
        let image =
            self.image("main").entrypoint(&[PROGRAM]).cmd(&["pause"]).env(&["FROM_IMAGE=yes"]).build();
        self.serve("main", "1", &image)
    }
}

/// Whether an ELF file of 64 bits asks for no interpreter: an image from scratch has none.
fn is_static(file: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, width: usize| {
        let bytes = file.get(at..at + width)?;
        Some(bytes.iter().rev().fold(0usize, |value, byte| value << 8 | usize::from(*byte)))
    };
    let segments = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count).map(|index| number(start + index * size, 4)).collect::<Option<Vec<_>>>()
    };
    file.starts_with(b"\x7fELF\x02") && segments().is_some_and(|kinds| !kinds.contains(&(PT_INTERP as usize)))
}

fn base_layer(helper: &[u8]) -> Layer {
    let passwd = "root:x:0:0:root:/root:/bin/helper\n\
                  user:x:1000:1000:user:/home/user:/bin/helper\n\
                  grouped:x:1001:1002:grouped:/:/bin/helper\n\
                  nobody:x:65534:65534:nobody:/:/bin/helper\n";
    let group = "root:x:0:\nuser:x:1000:\nmain:x:1002:\nextra:x:50000:user,grouped\nnogroup:x:65534:\n";
    Layer::new()
        .dir("bin", 0o755)
        .file("bin/helper", 0o755, helper)
        .file("bin/suid", 0o4755, helper)
        .dir("dev", 0o755)
        .dir("etc", 0o755)
        .file("etc/passwd", 0o644, passwd)
        .file("etc/group", 0o644, group)
        .file("etc/plain", 0o644, "not a program\n")
        .dir("home", 0o755)
        .dir("proc", 0o555)
        .dir("sys", 0o555)
        .dir("tmp", 0o1777)
        .dir("data", 0o755)
        .file("data/shipped", 0o644, "from the image\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_no_static_program() {
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF\x02"));
    }

    #[test]
    fn the_kind_of_each_segment_counts() {
        let with = |kind: u8| {
            let mut file = vec![0u8; 64 + 56];
            file[..5].copy_from_slice(b"\x7fELF\x02");
            (file[32], file[54], file[56], file[64]) = (64, 56, 1, kind);
            file
        };
        assert!(is_static(&with(1)));
        assert!(!is_static(&with(3)));
    }
}
