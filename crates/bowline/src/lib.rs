//! Bowline: bowline.
