//! `bowline check` and `bowline bench`: our conformance run and measures, against any CRI endpoint.
//!
//! Both speak plain CRI to a unix socket, bring their own images (one static program, `bowline-check-helper`, served by
//! an in-process registry on loopback) and clean up what they make. Neither knows anything about Bowline's insides.
//!
//! ```text
//!  check / bench ── Node ── endpoint   the two gRPC clients
//!                    │ ├─── images     what is in the images, and the registry that serves them
//!                    │ ├─── host       /proc, mounts and cgroups as the node shows them
//!                    │ └─── ledger     what a case made, and how it goes away again
//!                    └─ Pod ── Ctr     builders, so that a case reads like what it asserts
//! ```

pub mod bench;
pub mod check;
mod container;
mod endpoint;
mod host;
mod images;
mod node;
mod output;
mod patience;
mod pattern;
mod pod;
mod run;

pub use bench::{BenchArgs, run_bench};
pub use check::{CheckArgs, run_check};
