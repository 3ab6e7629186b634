//! systemd as far as pods need it: names of slices, and one transient scope per pod.
//!
//! A scope is systemd's word for processes that somebody else has started. A pod's monitor is put into one; the groups
//! below it are delegated, so that no container needs another word with systemd.
//!
//! - [`slice`](mod@slice): pure; what a cgroup parent names, and where that is below the root of the tree
//! - [`client`]: the calls, over the system bus
//!
//! Absent here: cgroup files, pods, records. systemd may be away for moments (`daemon-reexec`, an update): every call
//! is repeated until it is answered or its time is over.

pub mod client;
pub mod slice;

pub use client::{Scope, Systemd, SystemdError, Unit, available, booted};
pub use slice::{SliceError, place};
