//! What the daemon and a worker that opens paths for it say to one another.
//!
//! Over the same kind of socket as with a monitor; one answer for each request, in order, with the descriptor beside
//! it.

use std::ffi::CString;

use bowline_launch_plan::wire::Blob;
use bowline_launch_plan::{wire_enum, wire_struct};

/// What is the system's and never a volume of a container alone, as container runtimes agree: its labels stay as they are.
pub const SYSTEM: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Whether a path without symlinks is one of [`SYSTEM`].
pub fn is_system(path: &std::path::Path) -> bool {
    SYSTEM.iter().any(|known| std::path::Path::new(known) == path)
}

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
            /// SELinux label for all that is in it, without following symlinks.
            label: Option<CString>,
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
        /// The path without symlinks, where it was asked for. With an error: more about it, for people, where there is.
        pub real: Blob,
    }
}
