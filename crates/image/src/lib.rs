//! Bowline: image.
