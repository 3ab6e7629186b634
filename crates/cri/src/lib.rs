//! Bowline: cri.
