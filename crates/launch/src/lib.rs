//! Bowline: launch.
