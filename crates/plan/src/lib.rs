//! Bowline: plan.
