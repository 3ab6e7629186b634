//! From an OCI runtime spec to a launch plan: docs/design/launch-plan.md.
//!
//! Pure: no I/O, no environment. What the plan needs of this machine (hierarchies, highest capability, machine type)
//! comes in; what it needs opened goes out as a list of descriptors, which the daemon opens when the container
//! starts and sends beside the plan. Any spec is accepted, not only ours; a field that asks for something we do not
//! do is an error that names it, never silently dropped.

mod bytes;
mod compile;
mod credentials;
pub mod devices;
mod error;
mod exec;
mod hooks;
mod mounts;
mod namespaces;
mod options;
pub mod resources;
mod scheduling;
pub mod seccomp;
mod sysctls;
mod update;

pub use compile::{Compiled, Descriptor, IdmapText, PlanInputs, RootfsSource, compile};
pub use error::PlanError;
pub use exec::{EXEC_PIDFD, ExecRequest, ExecUser, exec_plan};
pub use hooks::{hook_program, hook_programs};
pub use update::{Update, update};
