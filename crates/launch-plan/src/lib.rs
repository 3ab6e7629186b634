//! Bowline: launch-plan.
