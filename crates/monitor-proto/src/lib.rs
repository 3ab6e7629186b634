//! What the daemon and a pod's monitor say to one another: both halves, versioned.
//!
//! Messages travel over a unix socket that keeps their borders (SOCK_SEQPACKET), at most [`MAX_MESSAGE`] bytes each,
//! with descriptors beside them (SCM_RIGHTS). The daemon sends [`Request`]s, each under an operation number of its
//! choice; the monitor answers each with one [`Message::Reply`] of the same number, in any order, and tells every
//! connected daemon of [`Event`]s. What must not be lost is in the exits file ([`slot`]), not in a message.
//!
//! Design, crash argument and versions: docs/design/monitor-protocol.md.

pub mod paths;
pub mod slot;

pub use bowline_launch_plan::wire::{DecodeError, decode, encode};
use bowline_launch_plan::{wire_enum, wire_struct};

/// The version of this protocol. A monitor may be older than its daemon; the daemon speaks the monitor's version.
pub const VERSION: u32 = 1;
/// The longest message, in bytes. Plans are longer and travel as sealed memfds.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Name of the takeover socket in the pod's state folder.
pub const SOCKET_NAME: &str = "monitor.sock";
/// Name of the exits file in the pod's state folder.
pub const EXITS_NAME: &str = "exits";

/// Exit code of a container whose program never ran, with a start time of 0.
pub const FAILED_START: i32 = 128;

/// A container's id, as bytes.
pub type Id = [u8; 32];

wire_struct! {
    /// A request under its operation number.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Call {
        /// Chosen by the daemon; comes back in the reply.
        pub operation: u64,
        /// What to do.
        pub request: Request,
    }
}

wire_enum! {
    /// What a daemon asks of a monitor.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Request {
        /// Who are you? Answered with [`Answer::Hello`].
        Hello = 0 {
            /// The daemon's version.
            version: u32,
        },
        /// Builds the pod's surroundings; once, first. Descriptors: see [`Setup`].
        Setup = 1 {
            /// How.
            setup: Setup,
        },
        /// From now on the monitor stays when its daemon goes.
        Commit = 2,
        /// Launches a container. Descriptors: plan, then the log file if `log`, then the plan's own.
        /// A repeat for a container that is known is answered with what became of it.
        Launch = 3 {
            /// What and how.
            launch: Launch,
        },
        /// Runs a process in a running container. Descriptors: plan, then standard input, output and error as far as
        /// flagged (none with a terminal), then the plan's own from the second on: the first, by which the plan joins the
        /// container, is the monitor's to give.
        Exec = 4 {
            /// What and how.
            exec: Exec,
        },
        /// Signals a container.
        Kill = 5 {
            /// Which.
            container: Id,
            /// Number of the signal.
            signal: i32,
            /// All its processes, by its cgroup; only with SIGKILL.
            everyone: bool,
        },
        /// Kills the process of an exec and its session.
        KillExec = 6 {
            /// The operation number of the exec.
            exec: u64,
        },
        /// Goes on with the log in another file. Descriptor: the file.
        ReopenLog = 7 {
            /// Whose.
            container: Id,
        },
        /// Answered with [`Answer::State`].
        State = 8,
        /// Forgets an ended container and frees its slot; ends one that is held.
        Forget = 9 {
            /// Which.
            container: Id,
        },
        /// Kills what is left and ends the monitor; the reply comes before the end.
        Shutdown = 10,
        /// Copies a running container's output to pipes and gives access to its input. Descriptors: the write ends of
        /// the life line, and of standard output and error as far as flagged. Answered with [`Answer::Attached`].
        Attach = 11 {
            /// What of which.
            attach: Attach,
        },
        /// Answered with [`Answer::Done`] and two descriptors: the pod's user namespace and the network namespace that it
        /// owns. Refused for pods without one.
        Namespaces = 12,
        /// Ends a container's standard input: the monitor's end of its pipe is closed. Nothing with a terminal.
        CloseStdin = 13 {
            /// Which.
            container: Id,
        },
        /// Runs a program of the host's beside the containers, in the monitor's namespaces but for mounts. Descriptors: plan,
        /// then standard input, output and error, then the plan's own. Answered with [`Answer::Launched`]; known by its
        /// operation as an exec is.
        Run = 14,
        /// Has a container brought back by criu. Descriptors: plan, then the log file if `launch.log`, then a mount namespace,
        /// criu's socket, a file for what it prints, then the plan's own. Answered with [`Answer::Restoring`] once criu runs.
        Restore = 15 {
            /// How.
            restore: Restore,
        },
        /// The first process of a container that criu brings back, before it is let go. Answered with [`Answer::Launched`].
        /// Said again once it was looked at; until then the container ends with the connection.
        Restored = 16 {
            /// Which.
            container: Id,
            /// Its process, a child of the monitor.
            pid: i32,
        },
        /// As `Launch`, with hooks on the way (docs/design/hooks.md). Descriptors: plan, then the log file if `launch.log`, then
        /// the hooks (sealed memory), the gate, the states for createContainer and for startContainer hooks, a file for
        /// their output; then, if there are `surroundings`, the host's mounts and the bundle's folder; then the plan's own.
        /// [`Event::Waiting`] comes before the answer.
        LaunchHooked = 18 {
            /// What and how.
            hooked: Hooked,
        },
        // 17 was a container's root alone, made in advance.
        /// As `Launch`, but only as far as the hold point; answered with [`Answer::Done`] once it is reached. The program runs
        /// with [`Request::Release`], or with a `Launch`, whose descriptors are not needed then.
        Hold = 19 {
            /// What and how.
            launch: Launch,
        },
        /// Ends the hold of a container, and is answered as a `Launch`; refused as unknown if none is held or running.
        Release = 20 {
            /// Which.
            container: Id,
        },
    }
}

wire_struct! {
    /// The surroundings of a pod.
    ///
    /// Descriptors, in this order: base mount namespace; exits file; takeover socket (bound, listening); /dev/null;
    /// network namespace if `network`; the root folders of the cgroup hierarchies, `hierarchies` of them.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Setup {
        /// The sandbox id in hex; names the process.
        pub sandbox: String,
        /// Path of the folder of layers in the base mount namespace: the working directory of launches.
        pub layers: std::ffi::CString,
        /// Size of /dev/shm in bytes; 0: none of its own (host IPC).
        pub shm_size: u64,
        /// A network namespace comes along.
        pub network: bool,
        /// Make an IPC namespace.
        pub own_ipc: bool,
        /// Make a UTS namespace with this name.
        pub hostname: Option<std::ffi::CString>,
        /// Make a PID namespace that all containers share, with a tiny init.
        pub shared_pids: bool,
        /// Kernel parameters: path below /proc/sys and value.
        pub sysctls: Vec<(std::ffi::CString, std::ffi::CString)>,
        /// How many cgroup hierarchies come along.
        pub hierarchies: u8,
        /// Which of them is cgroup v2.
        pub unified: Option<u8>,
        /// Which of them has the memory controller.
        pub memory: Option<u8>,
        /// cgroups that the monitor itself joins: hierarchy and path.
        pub cgroups: Vec<MonitorCgroup>,
        /// The pod's own cgroup, to be made in every hierarchy once `Commit` is answered; empty: it is there.
        pub group: std::ffi::CString,
        /// Make a user namespace, and in it the network, IPC and UTS namespace.
        pub user: Option<UserSetup>,
        /// SELinux labels of the pod.
        pub labels: Option<PodLabels>,
    }
}

wire_struct! {
    /// The SELinux labels of a pod.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct PodLabels {
        /// Of /dev/shm and of the init's root.
        pub mount: std::ffi::CString,
        /// Of the init, where the policy lets the monitor give it; empty: the monitor's.
        pub process: std::ffi::CString,
    }
}

wire_struct! {
    /// The user namespace of a pod.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct UserSetup {
        /// Its uids.
        pub uids: IdRange,
        /// Its gids.
        pub gids: IdRange,
    }
}

wire_struct! {
    /// A range of ids.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct IdRange {
        /// The first one inside; always 0.
        pub inside: u32,
        /// The first one on the host.
        pub outside: u32,
        /// How many.
        pub length: u32,
    }
}

wire_struct! {
    /// A cgroup that the monitor joins.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct MonitorCgroup {
        /// Position of the hierarchy.
        pub hierarchy: u8,
        /// Path below its root, which exists.
        pub path: std::ffi::CString,
    }
}

wire_struct! {
    /// A container to launch.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Launch {
        /// Which.
        pub container: Id,
        /// Its slot in the exits file.
        pub slot: u16,
        /// A log file comes along.
        pub log: bool,
        /// Keep standard input open.
        pub stdin: bool,
        /// Where its PID namespace comes from.
        pub pids: Pids,
    }
}

wire_struct! {
    /// A container to bring back.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Restore {
        /// What and how; the plan's program is not run.
        pub launch: Launch,
        /// criu and its arguments; the first is an absolute path in the mount namespace that comes along.
        pub criu: Vec<std::ffi::CString>,
        /// A folder in that namespace, on which criu finds the container's mounts.
        pub place: std::ffi::CString,
        /// Paths of mounts in the container's root that criu binds.
        pub parts: Vec<std::ffi::CString>,
    }
}

wire_struct! {
    /// A container to launch with hooks on the way.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Hooked {
        /// What and how.
        pub launch: Launch,
        /// Path of the bundle on the host.
        pub bundle: std::ffi::CString,
        /// What createContainer hooks see, if there are such.
        pub surroundings: Option<Surroundings>,
        /// The cgroup of hooks that the daemon runs, in the hierarchy of cgroup v2: killed with a launch that fails.
        pub group: std::ffi::CString,
    }
}

wire_struct! {
    /// What is changed in the host's mounts for hooks.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Surroundings {
        /// A folder that is covered with an empty file system.
        pub cover: std::ffi::CString,
        /// Where the bundle's folder belongs, below it.
        pub below: std::ffi::CString,
    }
}

wire_enum! {
    /// Where a container's PID namespace comes from.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Pids {
        /// As the plan says: new, or the monitor's own.
        Plan = 0,
        /// The pod's shared one.
        Pod = 1,
        /// That of another container of the pod.
        Of = 2 {
            /// Which.
            container: Id,
        },
    }
}

wire_struct! {
    /// A process to run in a container.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Exec {
        /// Which container.
        pub container: Id,
        /// Standard input comes along.
        pub stdin: bool,
        /// Standard output comes along.
        pub stdout: bool,
        /// Standard error comes along.
        pub stderr: bool,
    }
}

wire_struct! {
    /// Somebody who watches a container.
    ///
    /// The life line is a pipe that carries nothing. Its end tells the daemon that the container has ended; one byte
    /// before it, that the attachment was dropped because its pipes were not read. When the daemon closes it, the
    /// attachment is over.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Attach {
        /// Which container.
        pub container: Id,
        /// Access to its input is wanted.
        pub stdin: bool,
        /// Standard output (or what is on the terminal) is to be copied.
        pub stdout: bool,
        /// Standard error is to be copied.
        pub stderr: bool,
        /// With `stdin` and no terminal: nobody else gets the input, and it ends with this attachment.
        pub once: bool,
    }
}

wire_enum! {
    /// What a monitor says.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Message {
        /// The answer to a request.
        Reply = 0 {
            /// The request's number.
            operation: u64,
            /// The answer.
            answer: Answer,
        },
        /// Something happened.
        Event = 1 {
            /// What.
            event: Event,
        },
    }
}

wire_enum! {
    /// Answers to requests.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Answer {
        /// It is done.
        Done = 0,
        /// To [`Request::Hello`].
        Hello = 1 {
            /// The monitor's version.
            version: u32,
            /// Its process.
            pid: i32,
        },
        /// To [`Request::Launch`] and [`Request::Exec`]: the program runs. With a terminal, an exec's comes along.
        Launched = 2 {
            /// Its process, in the monitor's PID namespace.
            pid: i32,
            /// When, nanoseconds since the epoch.
            started_at: i64,
        },
        /// The program does not run.
        Failed = 3 {
            /// Which step ([`bowline_launch_plan`]'s launcher numbers them); 255: before the process was made.
            stage: u8,
            /// Position in the plan's list.
            detail: u16,
            /// Error number; 0: see the text.
            errno: i32,
            /// More, where there is more.
            text: String,
        },
        /// To [`Request::State`].
        State = 4 {
            /// All containers that are not forgotten.
            containers: Vec<ContainerState>,
        },
        /// The request makes no sense now.
        Refused = 5 {
            /// Why.
            why: Refusal,
        },
        /// To [`Request::Attach`]: from here on output is copied. Descriptor, if there is one: the container's
        /// terminal, or the write end of its standard input.
        Attached = 6 {
            /// A descriptor comes along, to write input to.
            input: bool,
            /// It is a terminal.
            terminal: bool,
        },
        /// To [`Request::Restore`]: criu runs, and waits for its request.
        Restoring = 7 {
            /// criu.
            pid: i32,
            /// Under which numbers criu has what becomes the container's standard input.
            stdin: i32,
            /// The same for standard output.
            stdout: i32,
            /// The same for standard error.
            stderr: i32,
        },
    }
}

wire_enum! {
    /// Why a request was not even tried.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Refusal {
        /// No such container or exec.
        Unknown = 0,
        /// It is not running.
        NotRunning = 1,
        /// Not before setup, or not twice.
        Order = 2,
        /// The message or its descriptors are not what they should be.
        Malformed = 3,
        /// A limit is reached.
        Full = 4,
        /// The kernel said no.
        Kernel = 5,
    }
}

wire_struct! {
    /// A container as its monitor knows it.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ContainerState {
        /// Which.
        pub container: Id,
        /// Its slot.
        pub slot: u16,
        /// Its process.
        pub pid: i32,
        /// When it started, nanoseconds since the epoch.
        pub started_at: i64,
        /// How it ended, once its log is complete.
        pub exit: Option<Exit>,
    }
}

wire_struct! {
    /// How a container ended.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Exit {
        /// Exit code, or 128 and the number of the signal.
        pub code: i32,
        /// The signal; 0: none.
        pub signal: i32,
        /// The kernel killed one of its processes for want of memory.
        pub oom: bool,
        /// When, nanoseconds since the epoch.
        pub finished_at: i64,
    }
}

wire_enum! {
    /// What a monitor tells unasked.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub enum Event {
        /// A container ended, its exit is in its slot and its log is complete.
        ContainerExited = 0 {
            /// Which.
            container: Id,
            /// When it had started, nanoseconds since the epoch.
            started_at: i64,
            /// How.
            exit: Exit,
        },
        /// The process of an exec ended and was reaped.
        ExecExited = 1 {
            /// The operation number of the exec.
            exec: u64,
            /// Exit code, or 128 and the number of the signal.
            code: i32,
        },
        /// To the daemon that asked alone: a container's root is assembled, and its process waits at the gate.
        Waiting = 2 {
            /// The operation number of the launch.
            operation: u64,
            /// The process, in the monitor's PID namespace.
            pid: i32,
        },
    }
}
