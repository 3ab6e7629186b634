//! criu: asking it to freeze process trees into files and to bring them back, and reading what its files claim.
//!
//! criu is a program of its own, run as `criu swrk`: requests and answers are protocol buffers over one socket that keeps
//! message borders ([`Service`]). Its image files are read only as far as they must be judged before criu, which has all
//! privileges, acts on them ([`images`]), and rewritten as far as another runtime had criu write them otherwise ([`adopt`]). Of protocol buffers both use so little that it is written here (`wire`).
//!
//! Who starts criu, where, and what an archive may say: docs/design/checkpoint.md.

mod adopt;
pub mod images;
mod service;
mod wire;

pub use adopt::adopt;
pub use service::{Dump, Failure, Notice, Restore, Service};
