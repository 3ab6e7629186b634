//! What Bowline talks about: ids, names, specs, and the lives of pods and containers.
//!
//! Pure: no I/O, no async, no clock. Everything here can be tested by calling it.

pub mod capability;
pub mod cgroup;
pub mod container;
pub mod id;
pub mod runtime_spec;
pub mod signal;
pub mod spec;

pub use id::{ContainerId, IdError, SandboxId};
pub use signal::Signal;
