//! Bowline: store.
