//! Bowline: model.
