//! The client commands of `bowline`, over plain CRI.
