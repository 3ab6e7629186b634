//! From what the kubelet asked for to an OCI runtime spec: (container, image defaults, user, node facts) -> spec.
//!
//! Pure: no I/O, no environment, no clock. Files of the image (`/etc/passwd`), host devices and paths come in as
//! arguments, already read. The same inputs always give the same spec, which golden files hold.
//!
//! Two sources meet here and are kept apart: what an image says may fill gaps in the process (command, environment,
//! user, working directory, folders of volumes) and nothing else; it never reaches mounts, devices, hooks, cgroup
//! values or annotations.

mod capabilities;
mod cdi;
mod default_seccomp;
mod error;
mod inputs;
mod labels;
mod mounts;
mod process;
mod resources;
mod security;
mod spec;
mod user;

pub use cdi::{
    CdiDevice, CdiDevices, CdiEdits, CdiError, CdiFile, CdiHook, CdiMount, CdiNetDevice, CdiNode, parse_cdi,
    parse_cdi_name,
};
pub use default_seccomp::{SeccompArch, default_seccomp};
pub use error::{Note, SpecError};
pub use inputs::{
    ContainerInputs, HostDevice, ImageDefaults, LocalhostSeccomp, NamespacePaths, NodeFacts, PodFiles,
    SelinuxLabels,
};
pub use labels::{
    ContainerContexts, Label, category_pair, check_selinux_options, container_labels,
    is_empty as selinux_is_empty, pod_labels,
};
pub use mounts::clean_path;
pub use resources::{linux_resources, merged_resources};
pub use spec::{Built, container_spec};
pub use user::{MAX_DATABASE, ResolvedUser, UserError, resolve_user};
