//! Bowline: monitor-proto.
