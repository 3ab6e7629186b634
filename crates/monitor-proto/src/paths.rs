//! What the daemon and a worker that opens paths for it say to one another.
//!
//! Over the same kind of socket as with a monitor; one answer for each request, in order, with the descriptor beside
//! it.

use std::ffi::CString;

use bowline_launch_plan::wire::Blob;
use bowline_launch_plan::{wire_enum, wire_struct};

/// The name by which the monitor's program is told to be such a worker.
pub const PATHS_NAME: &str = "bowline-paths";

wire_struct! {
    /// A path to open.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct PathRequest {
        /// How.
        pub wish: Wish,
    }
}

wire_enum! {
    /// What to do with a path of the host. All are absolute.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Wish {
        /// A detached copy of the mount tree at it. A missing one is made as a folder.
        Tree = 0 {
            /// The path.
            path: CString,
            /// With the mounts below it.
            recursive: bool,
            /// A symlink at its end is followed.
            follow: bool,
        },
        /// A file to append to; made if it is missing, with its folders.
        Log = 1 {
            /// The path.
            path: CString,
        },
        /// Makes a folder unless something is there, and tells its path without symlinks. No descriptor.
        Folder = 2 {
            /// The path.
            path: CString,
        },
    }
}

wire_struct! {
    /// The answer.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Opened {
        /// Error number; 0: it worked.
        pub errno: i32,
        /// The path without symlinks, where it was asked for.
        pub real: Blob,
    }
}
