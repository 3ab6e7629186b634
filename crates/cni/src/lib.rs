//! Bowline: cni.
