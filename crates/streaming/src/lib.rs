//! Bowline: streaming.
