//! Bowline: testkit.
