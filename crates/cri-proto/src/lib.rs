//! Bowline: cri-proto.
