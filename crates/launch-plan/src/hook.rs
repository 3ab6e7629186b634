//! Hooks that the launcher's child runs on its way. They travel beside a plan, in bytes of their own: plans of containers without any stay as
//! they are.

use std::ffi::CString;

use crate::wire_struct;

/// The most bytes of encoded hooks.
pub const MAX_HOOKS_LEN: usize = 2 << 20;

wire_struct! {
    /// A program.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct HookProgram {
        /// Absolute path.
        pub path: CString,
        /// Arguments, its own name first.
        pub argv: Vec<CString>,
        /// `NAME=value` lines; there are no others.
        pub envp: Vec<CString>,
        /// Seconds until it is killed; 0: never.
        pub limit: u32,
    }
}

wire_struct! {
    /// The hooks of a container that run in it, each list in its order.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    pub struct HookPrograms {
        /// Before pivot_root; paths are those of the surroundings.
        pub create: Vec<HookProgram>,
        /// Before execve; paths are the container's.
        pub start: Vec<HookProgram>,
    }
}
