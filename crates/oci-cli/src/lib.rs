//! `bowline oci`: standard OCI bundles on our own planner and launcher, with the command line of runc.
//!
//! ```text
//!   create ─► bundle (spec, plan) ─► launch ─► parked at the hold point ─► hooks ─► state.json
//!   start  ─► a byte into the FIFO ─► the child's report ─► hooks
//!   exec   ─► the stored plan, in the namespaces of the container's process
//!   delete ─► kill what is left, remove cgroups ─► hooks ─► remove the folder
//! ```
//!
//! There is no daemon: what one call leaves for the next is a folder per container (`store`) and the process itself.
//! A process is known by its number and its start time (`process`), so one that only has the number of a container
//! that ended is never signalled.
//!
//! Errors go to stderr and end with exit code 1; `run` and `exec` end as their program did.

mod args;
mod bundle;
mod create;
mod delete;
mod exec;
mod features;
mod groups;
mod hierarchies;
mod hooks;
mod kill;
mod launching;
mod list;
mod process;
mod run;
mod start;
mod store;
mod wait;

use std::process::ExitCode;

pub use args::OciArgs;

use args::Command;
use store::Store;

/// Runs one command and tells how it went: errors on stderr and as exit code 1.
pub fn run(args: OciArgs) -> ExitCode {
    match dispatch(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("bowline oci: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: OciArgs) -> anyhow::Result<u8> {
    let store = Store::new(args.root);
    match args.command {
        Command::Create(wish) => create::create(&store, &wish).map(|()| 0),
        Command::Start { id } => start::start(&store, &id).map(|()| 0),
        Command::State { id } => list::state(&store, &id).map(|()| 0),
        Command::Kill { all, id, signal } => kill::kill(&store, &id, &signal, all).map(|()| 0),
        Command::Delete { force, id } => delete::delete(&store, &id, force).map(|()| 0),
        Command::Exec(wish) => exec::exec(&store, &wish),
        Command::Run(wish) => run::run(&store, &wish),
        Command::List { format, quiet } => list::list(&store, format, quiet).map(|()| 0),
        Command::Features => features::features().map(|()| 0),
    }
}
