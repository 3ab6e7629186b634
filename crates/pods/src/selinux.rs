//! SELinux: what the node has of it, and the labels of pods.
//!
//! Everything is files: the kernel's (selinuxfs), the policy's (`/etc/selinux`). No library and no program. Which label goes to
//! whom is decided in `bowline_oci`; `docs/design/security-modules.md` has the rules.

mod categories;

use std::fs;
use std::path::{Path, PathBuf};

use bowline_model::SandboxId;
use bowline_model::spec::{ContainerSecurity, NamespaceMode, PodSpec};
use bowline_oci::{ContainerContexts, NodeFacts, SelinuxLabels};
use bowline_store::{PodRecord, SelinuxRecord};

use crate::{PodError, Pods};
use categories::Categories;

/// Where selinuxfs is on every distribution.
const SELINUXFS: &str = "/sys/fs/selinux";
/// Its `f_type` (SELINUX_MAGIC of linux/magic.h).
const MAGIC: u32 = 0xf97c_ff8c;
/// Which policy is in force, in the words of libselinux.
const CONFIG: &str = "/etc/selinux/config";
const POLICIES: &str = "/etc/selinux";
/// The packagers' place for the defaults of containers, before the policy's own.
const SHARED_CONTEXTS: &str = "/usr/share/containers/selinux/contexts";

/// The attribute that holds a file's label.
pub(crate) const ATTRIBUTE: &str = "security.selinux";

/// What the node's owner wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelinuxConfig {
    /// Use it where the kernel has it.
    pub enable: bool,
    /// Categories of pods are below this number; 2 to 1024.
    pub category_range: u16,
    /// Who may use volumes that are relabelled.
    pub relabel: Relabel,
}

impl Default for SelinuxConfig {
    fn default() -> Self {
        SelinuxConfig { enable: true, category_range: 1024, relabel: Relabel::Pod }
    }
}

/// How volumes are labelled that a client wants relabelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relabel {
    /// Without the categories that we chose, so that all containers may use them. A level that somebody asked for is kept.
    Shared,
    /// With the categories of the container, so that only its pod may.
    Pod,
}

/// What this node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelinuxState {
    /// The kernel has none, or it is switched off; with the reason.
    Off(String),
    /// The kernel has it, but no label can be made; with the reason.
    NoDefaults(String),
    /// Containers get labels.
    On {
        /// What the policy forbids is refused, not just logged.
        enforcing: bool,
    },
}

/// SELinux for the daemon's life.
pub(crate) struct Selinux {
    state: SelinuxState,
    contexts: Option<ContainerContexts>,
    categories: Categories,
    relabel: Relabel,
}

impl Selinux {
    /// Looks at the node.
    pub(crate) fn set_up(config: &SelinuxConfig) -> Selinux {
        let (state, contexts) = find(config);
        match &state {
            SelinuxState::Off(why) => tracing::debug!(why, "no SELinux"),
            SelinuxState::NoDefaults(why) => tracing::warn!(why, "containers have no SELinux labels"),
            SelinuxState::On { enforcing } => tracing::debug!(enforcing, "containers have SELinux labels"),
        }
        Selinux {
            state,
            contexts,
            categories: Categories::new(config.category_range),
            relabel: config.relabel,
        }
    }

    /// As it is now: the mode may have changed.
    pub(crate) fn state(&self) -> SelinuxState {
        match &self.state {
            SelinuxState::On { .. } => SelinuxState::On { enforcing: enforcing() },
            other => other.clone(),
        }
    }

    /// What specs are made from.
    pub(crate) fn tell(&self, facts: &mut NodeFacts) {
        facts.selinux = !matches!(self.state, SelinuxState::Off(_));
    }

    /// The labels of a new pod. Its categories are its own until [`release`](Selinux::release).
    pub(crate) fn label_pod(
        &self,
        id: &SandboxId,
        spec: &PodSpec,
    ) -> Result<Option<SelinuxRecord>, PodError> {
        let Some(contexts) = &self.contexts else { return self.unlabelled(spec) };
        let field = "linux.security_context.selinux_options";
        let asked = spec.security.selinux.as_ref().map(|options| {
            bowline_oci::check_selinux_options(field, options).map(|()| options.level.as_str())
        });
        let asked = asked.transpose().map_err(|error| PodError::Invalid(error.to_string()))?;
        let level = match asked.filter(|level| !level.is_empty()) {
            Some(level) => {
                self.categories.reserve(id, level);
                level.to_owned()
            }
            None => contexts.level_with(self.categories.allocate(id)?).unwrap_or_default(),
        };
        let labels = bowline_oci::pod_labels(contexts, spec, &level);
        if let Err(error) = self.check(field, &labels) {
            self.release(id);
            return Err(error);
        }
        Ok(Some(SelinuxRecord { process: labels.process, mount: labels.mount, level }))
    }

    fn unlabelled(&self, spec: &PodSpec) -> Result<Option<SelinuxRecord>, PodError> {
        let asks =
            spec.security.selinux.as_ref().is_some_and(|options| !bowline_oci::selinux_is_empty(options));
        match &self.state {
            SelinuxState::NoDefaults(why) if asks => Err(PodError::Invalid(format!(
                "linux.security_context.selinux_options: no label can be made: {why}"
            ))),
            _ => Ok(None),
        }
    }

    /// A pod of before has its categories again.
    pub(crate) fn seen(&self, record: &PodRecord) {
        if let Some(labels) = &record.selinux {
            self.categories.reserve(&record.id, &labels.level);
        }
    }

    /// The pod is gone.
    pub(crate) fn release(&self, id: &SandboxId) {
        self.categories.release(id);
    }

    /// The labels of a container; `None`: no SELinux, or its pod was made without.
    pub(crate) fn label_container(
        &self,
        pod: &PodRecord,
        container: &ContainerSecurity,
        pids: NamespaceMode,
    ) -> Result<Option<SelinuxLabels>, PodError> {
        let (Some(contexts), Some(of_pod)) = (&self.contexts, &pod.selinux) else { return Ok(None) };
        let field = "linux.security_context.selinux_options";
        if let Some(options) = &container.selinux {
            bowline_oci::check_selinux_options(field, options)
                .map_err(|error| PodError::Invalid(error.to_string()))?;
        }
        let labels = bowline_oci::container_labels(contexts, &pod.spec, (container, pids), &of_pod.level);
        self.check(field, &labels)?;
        Ok(Some(labels))
    }

    /// The label of volumes that a container wants relabelled; `None`: they stay as they are, since it may use them anyhow.
    pub(crate) fn volume_label(
        &self,
        pod: &PodSpec,
        container: &ContainerSecurity,
        labels: &SelinuxLabels,
    ) -> Option<String> {
        let contexts = self.contexts.as_ref()?;
        if labels.process.is_empty() || labels.process.split(':').nth(2) == Some("spc_t") {
            return None;
        }
        let asked = [&container.selinux, &pod.security.selinux].into_iter().flatten();
        let has_level = asked.into_iter().any(|options| !options.level.is_empty());
        Some(match self.relabel {
            Relabel::Shared if !has_level => contexts.shared_file().to_string(),
            _ => labels.mount.clone(),
        })
    }

    /// The label of what the daemon writes for a pod and all its containers read.
    pub(crate) fn own_files(&self, record: &PodRecord) -> Option<String> {
        record.selinux.as_ref()?;
        Some(self.contexts.as_ref()?.shared_file().to_string())
    }

    /// The kernel knows whether its policy has such labels; it would say so only when the program starts.
    fn check(&self, field: &str, labels: &SelinuxLabels) -> Result<(), PodError> {
        for label in [&labels.process, &labels.mount].into_iter().filter(|label| !label.is_empty()) {
            is_valid(label).map_err(|error| {
                PodError::Invalid(format!("{field}: the node's policy has no label {label} ({error})"))
            })?;
        }
        Ok(())
    }
}

impl Pods {
    /// What the node has of SELinux.
    pub fn selinux(&self) -> SelinuxState {
        self.0.selinux.state()
    }
}

/// What a look at the node finds, for people.
pub fn look() -> SelinuxState {
    find(&SelinuxConfig::default()).0
}

fn find(config: &SelinuxConfig) -> (SelinuxState, Option<ContainerContexts>) {
    if !config.enable {
        return (SelinuxState::Off("selinux.enable is false".to_owned()), None);
    }
    let mounted = rustix::fs::statfs(SELINUXFS).is_ok_and(|stat| stat.f_type as u32 == MAGIC);
    if !mounted {
        return (SelinuxState::Off("the kernel has it not, or not enabled".to_owned()), None);
    }
    match defaults() {
        Ok(contexts) => (SelinuxState::On { enforcing: enforcing() }, Some(contexts)),
        Err(why) => (SelinuxState::NoDefaults(why), None),
    }
}

/// The policy's defaults, if the policy in force has what they name.
fn defaults() -> Result<ContainerContexts, String> {
    let config = fs::read_to_string(CONFIG).map_err(|error| format!("{CONFIG}: {error}"))?;
    let policy = policy_type(&config).ok_or_else(|| format!("{CONFIG} has no line SELINUXTYPE=.."))?;
    let own = Path::new(POLICIES).join(policy).join("contexts/lxc_contexts");
    let path = [PathBuf::from(SHARED_CONTEXTS), own.clone()].into_iter().find(|path| path.is_file());
    let path = path.ok_or_else(|| {
        format!(
            "{} is not there; install the policy's package for containers (container-selinux)",
            own.display()
        )
    })?;
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let contexts = ContainerContexts::parse(&text).map_err(|why| format!("{}: {why}", path.display()))?;
    for label in [&contexts.process, &contexts.file] {
        is_valid(&label.to_string()).map_err(|error| {
            format!(
                "{} names {label}, which the policy in force has not ({error}); install its package for containers \
                 (container-selinux)",
                path.display()
            )
        })?;
    }
    Ok(contexts)
}

/// The value of `SELINUXTYPE`, a folder's name.
fn policy_type(config: &str) -> Option<&str> {
    let lines = config.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let mut named = lines.filter_map(|line| line.split_once('='));
    let (_, value) = named.find(|(name, _)| name.trim() == "SELINUXTYPE")?;
    let value = value.trim().trim_matches('"');
    (!value.is_empty() && !value.contains('/') && value != "..").then_some(value)
}

fn enforcing() -> bool {
    fs::read_to_string(format!("{SELINUXFS}/enforce")).is_ok_and(|text| text.trim() == "1")
}

/// Has the kernel look at a label: writing one that its policy has not is EINVAL.
fn is_valid(label: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    // Without O_TRUNC: it is no file that has a length.
    fs::OpenOptions::new().write(true).open(format!("{SELINUXFS}/context"))?.write_all(label.as_bytes())
}

/// Labels a file of ours.
pub(crate) fn label_file(path: &Path, label: &str) -> std::io::Result<()> {
    let flags = rustix::fs::XattrFlags::empty();
    match rustix::fs::lsetxattr(path, ATTRIBUTE, label.as_bytes(), flags) {
        // A file system that keeps no labels has one for all its files.
        Err(rustix::io::Errno::NOTSUP) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policys_name() {
        let text = "# SELINUXTYPE=old\nSELINUX=enforcing\nSELINUXTYPE=targeted\n";
        assert_eq!(policy_type(text), Some("targeted"));
        assert_eq!(policy_type("SELINUXTYPE=\"mls\""), Some("mls"));
        for bad in ["", "SELINUX=enforcing", "SELINUXTYPE=", "SELINUXTYPE=../..", "SELINUXTYPE=.."] {
            assert_eq!(policy_type(bad), None, "{bad}");
        }
    }
}
