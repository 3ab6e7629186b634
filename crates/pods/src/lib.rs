//! Pods and containers: one task per pod owns its state, everyone else asks.
//!
//! ```text
//!   caller --> Pods (names, ids) --command--> actor of the pod --effects--> cni, monitor, store, images
//!                                               ^    |
//!                        exits, lost monitors --+    +--> views (what lists and statuses are answered from)
//! ```
//!
//! An operation lives in the pod's actor: a caller that goes away cancels nothing, a caller that asks again joins what
//! is under way and gets its result. Steps that wait (network, launch, clean-up) run as tasks of the actor, so one
//! container's stop never holds up another's start; only the actor changes the pod's state.
//!
//! - [`run_pod`]: bringing a pod up, each step beside its undo
//! - [`driver`], [`scope`]: where a pod's cgroup is, and systemd's part in that
//! - [`actor`]: the loop, and the life of containers
//! - [`create`], [`start`]: from a spec to a plan to a launch
//! - [`hooks`]: programs that run on the way
//! - [`checkpoint`]: containers as files, and back
//! - [`stop_pod`]: taking everything down again
//! - [`recover`]: what a new daemon does with the pods of the one before
//! - [`nri`]: plugins that watch and change pods
//! - [`apparmor`]: the profile of containers that name none
//! - [`selinux`]: labels, and the categories that are a pod's own
//!
//! Absent here: gRPC and its codes; the wire format of the log; the compilation of specs.

mod actor;
mod apparmor;
mod attach;
mod base;
mod cdi;
mod checkpoint;
mod config;
mod connect;
mod create;
mod devices;
mod driver;
mod error;
mod events;
mod exec;
mod files;
mod handle;
mod hold;
mod hooks;
mod host;
pub mod kernel;
mod monitor;
mod mount_table;
mod net_devices;
mod netns;
mod nri;
mod operations;
mod paths;
mod recover;
mod run_pod;
mod scope;
mod selinux;
mod shared;
mod spare;
mod start;
mod stats;
mod stop_pod;
mod upkeep;
mod user;
mod view;
mod volumes;

pub use bowline_nri::{NRI_VERSION, PluginState};
pub use bowline_store::SelinuxRecord;

pub use apparmor::{ApparmorConfig, ApparmorState, DEFAULT_PROFILE, look as look_at_apparmor};
pub use attach::{AttachCall, Attached, InputCloser, Parting};
pub use checkpoint::{Ability, CheckpointConfig, Criu, PodRestore, Restored};
pub use config::PodsConfig;
pub use connect::Connection;
pub use driver::{CgroupDriver, ChosenDriver, DriverWish};
pub use error::{PodError, chain};
pub use events::{NextEvent, PodEvent, PodEventKind, Subscription};
pub use exec::{ExecCall, ExecOutput, Running, Streams};
pub use handle::Pods;
pub use host::{Host, cgroups};
pub use operations::{BOUNDS_MS, Operation, SPANS, Timing};
pub use selinux::{Relabel, SelinuxConfig, SelinuxState, look as look_at_selinux};
pub use stats::{
    BlockIo, ContainerFigures, Disk, Figures, GroupStats, HugePages, InterfaceStats, MemoryStats, PodFigures,
    PodStats, Pressure, Psi, PsiLine, Sources, Stats, SwapStats, WritableStats,
};
pub use view::{ContainerView, PodView, Views};
