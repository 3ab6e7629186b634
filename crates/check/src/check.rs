//! `bowline check`: the cases, who runs them, and what is said about it.

mod case;
mod judge;
mod print;

mod apparmor;
mod checkpoint;
mod codes;
mod config;
mod container;
mod devices;
mod events;
mod exec_sync;
mod identity;
mod image;
mod image_volume;
mod info;
mod leftovers;
mod list;
mod log;
mod metrics;
mod mounts;
mod names;
mod namespaces;
mod network;
mod nri;
mod oom;
mod privilege;
mod pull;
mod race;
mod resources;
mod restart;
mod rro;
mod sandbox;
mod seccomp;
mod selinux;
mod stats;
mod stop;
mod stream_attach;
mod stream_exec;
mod stream_ports;
mod stream_url;
mod sysctls;
mod userns;
mod verbose;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures_util::future::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};

use crate::node::Node;
use crate::run::{Run, Setup};
use case::Case;
use judge::{Outcome, Verdict};

/// How long one case may take.
const CASE_LIMIT: Duration = Duration::from_secs(100);

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Table,
    /// One JSON document.
    Json,
    /// JUnit XML.
    Junit,
}

/// What `bowline check` can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    /// The runtime service.
    #[arg(long, default_value = "unix:///run/bowline/bowline.sock")]
    pub endpoint: String,
    /// The image service, if it is served elsewhere.
    #[arg(long)]
    pub image_endpoint: Option<String>,
    /// The runtime handler of our pods; the default one if nothing is said.
    #[arg(long, default_value = "")]
    pub handler: String,
    /// Only these groups.
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Only these cases, as group/case.
    #[arg(long = "case", value_name = "GROUP/CASE")]
    pub cases: Vec<String>,
    /// Name the cases and stop.
    #[arg(long)]
    pub list: bool,
    /// One to three cases of each group.
    #[arg(long)]
    pub quick: bool,
    /// Promises beyond CRI count as well.
    #[arg(long)]
    pub strict: bool,
    /// Take the common images from PREFIX/NAME:1, not from the registry in this process.
    #[arg(long, value_name = "PREFIX")]
    pub images: Option<String>,
    /// Where the registry in this process listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub registry_listen: SocketAddr,
    /// The static program that the images are built around.
    #[arg(long, value_name = "PATH")]
    pub helper: Option<PathBuf>,
    /// Restarts the daemon and returns; without it the restart cases are skipped.
    #[arg(long, value_name = "COMMAND")]
    pub restart_cmd: Option<String>,
    /// Where the runtime takes NRI plugins; without it the cases of plugins are skipped.
    #[arg(long, value_name = "PATH")]
    pub nri_socket: Option<PathBuf>,
    /// How results are printed.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table")]
    pub output: Format,
    /// Factor for all limits of time in the cases, for machines that are slow (an emulated one, say).
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub patience: u32,
    /// How many cases run at a time.
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
}

/// Every case, in the order of the groups.
fn cases() -> Vec<&'static Case> {
    let groups: &[&[Case]] = &[
        info::CASES,
        sandbox::CASES,
        network::CASES,
        names::CASES,
        namespaces::CASES,
        sysctls::CASES,
        container::CASES,
        config::CASES,
        list::CASES,
        race::CASES,
        exec_sync::CASES,
        log::CASES,
        stop::CASES,
        mounts::CASES,
        rro::CASES,
        image_volume::CASES,
        pull::CASES,
        image::CASES,
        identity::CASES,
        privilege::CASES,
        seccomp::CASES,
        userns::CASES,
        apparmor::CASES,
        selinux::CASES,
        checkpoint::CASES,
        resources::CASES,
        oom::CASES,
        devices::CASES,
        stats::CASES,
        metrics::CASES,
        events::CASES,
        stream_exec::CASES,
        stream_url::CASES,
        stream_attach::CASES,
        stream_ports::CASES,
        nri::CASES,
        verbose::CASES,
        codes::CASES,
        restart::CASES,
        leftovers::CASES,
    ];
    groups.iter().flat_map(|cases| cases.iter()).collect()
}

/// Runs the cases: 0 if nothing failed, 1 if something did, 2 if they could not be run.
pub fn run_check(args: CheckArgs) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => match runtime.block_on(check(&args)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(error) => {
                eprintln!("bowline check could not run: {error:#}");
                ExitCode::from(2)
            }
        },
        Err(error) => {
            eprintln!("bowline check could not run: {error}");
            ExitCode::from(2)
        }
    }
}

async fn check(args: &CheckArgs) -> Result<bool> {
    crate::patience::set(args.patience);
    let chosen = choose(args)?;
    if args.list {
        print!("{}", print::list(&chosen));
        return Ok(true);
    }
    let started = Instant::now();
    let run = Rc::new(prepare(args).await?);
    let (serial, parallel): (Vec<&Case>, Vec<&Case>) = chosen.into_iter().partition(|case| case.serial);
    let jobs = args.jobs.unwrap_or_else(default_jobs).max(1);
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut running =
        stream::iter(parallel).map(|case| perform(run.clone(), case, args.strict)).buffer_unordered(jobs);
    while let Some(outcome) = running.next().await {
        print::progress(args.output, &outcome);
        outcomes.push(outcome);
    }
    drop(running);
    for case in serial {
        let outcome = perform(run.clone(), case, args.strict).await;
        print::progress(args.output, &outcome);
        outcomes.push(outcome);
    }
    run.close().await;
    outcomes.sort_by_key(|outcome| outcome.case.order());
    print::summary(args.output, &args.endpoint, &outcomes, started.elapsed());
    Ok(!outcomes.iter().any(|outcome| outcome.verdict.is_failure()))
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(4, |cpus| cpus.get() * 2).clamp(4, 16)
}

fn choose(args: &CheckArgs) -> Result<Vec<&'static Case>> {
    let all = cases();
    for group in &args.groups {
        if !all.iter().any(|case| case.group() == group) {
            bail!("there is no group `{group}`; `--list` names all");
        }
    }
    for name in &args.cases {
        if !all.iter().any(|case| case.name == name) {
            bail!("there is no case `{name}`; `--list` names all");
        }
    }
    let anything = args.groups.is_empty() && args.cases.is_empty();
    let named = |case: &Case| {
        anything
            || args.groups.iter().any(|group| group == case.group())
            || args.cases.iter().any(|n| n == case.name)
    };
    Ok(all.into_iter().filter(|case| named(case) && (!args.quick || case.quick)).collect())
}

async fn prepare(args: &CheckArgs) -> Result<Run> {
    Run::open(Setup {
        endpoint: &args.endpoint,
        image_endpoint: args.image_endpoint.as_deref(),
        handler: &args.handler,
        images: args.images.clone(),
        registry_listen: args.registry_listen,
        helper: args.helper.as_deref(),
        restart: args.restart_cmd.clone(),
        nri_socket: args.nri_socket.clone(),
    })
    .await
}

async fn perform(run: Rc<Run>, case: &'static Case, strict: bool) -> Outcome {
    let started = Instant::now();
    let node = Node::new(run, case.name);
    let work = std::panic::AssertUnwindSafe((case.run)(node.clone())).catch_unwind();
    let limit = crate::patience::at_most(CASE_LIMIT);
    let result = match tokio::time::timeout(limit, work).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(anyhow::anyhow!("the case itself panicked")),
        Err(_) => Err(anyhow::anyhow!("took longer than {limit:?}")),
    };
    let cleaned = match tokio::time::timeout(limit, node.clean()).await {
        Ok(cleaned) => cleaned,
        Err(_) => Err(anyhow::anyhow!("cleaning up took longer than {limit:?}")),
    };
    Outcome { case, verdict: Verdict::of(case, result, cleaned, strict), took: started.elapsed() }
}
