//! Bowline: pods.
