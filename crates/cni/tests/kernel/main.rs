//! The network against a real kernel. Each test has a network namespace of its own that stands for the node, so the
//! machine's own stays as it is. Needs root; without it each test says so and passes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod node;

mod bridge;
mod crash;
mod device;
mod external;
mod host_ports;
mod sharing;
mod spare;
mod speed;
