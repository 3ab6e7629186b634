//! The kernel calls that Bowline makes and `rustix` does not offer, as safe functions.
//!
//! This is the only crate of the workspace that may hold `unsafe`. Each module is one part of the kernel's
//! interface; callers see borrowed descriptors, owned descriptors and `io::Result`, never a raw number.

pub mod bpf;
pub mod clone;
pub mod exec;
pub mod inherited;
pub mod memory;
pub mod message;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod process;
pub mod scheduling;
pub mod seccomp;
pub mod spawn;
pub mod terminal;
