//! Bowline: monitor.
