//! `bowline bench`: how long things take, and what they weigh, several endpoints side by side.
//!
//! Each round visits every endpoint in turn, so that what else the machine does falls on all alike.

mod density;
mod figures;
mod images;
mod pods;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;

use crate::node::Node;
use crate::run::{Run, Setup};
use figures::Figures;

/// How figures are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchFormat {
    /// Lines for people.
    Table,
    /// One JSON document.
    Json,
}

/// One kind of measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// A pod up and down, one call after the other, and ExecSync.
    Pod,
    /// Fifty pods, ten at a time.
    Burst,
    /// Memory of many pods.
    Density,
    /// Lists and statuses with twenty pods.
    List,
    /// Pulling three kinds of images.
    Pull,
}

/// What `bowline bench` can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// The endpoints to compare.
    #[arg(long = "endpoint", default_value = "unix:///run/bowline/bowline.sock")]
    pub endpoints: Vec<String>,
    /// Milliseconds of rest before each call; they are not counted. For `pod` alone.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub gap: u64,
    /// How many pods: rounds of up and down, and pods at once for density.
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub pods: usize,
    /// Only these measures.
    #[arg(long = "measure", value_enum)]
    pub measures: Vec<Measure>,
    /// The static program that the images are built around.
    #[arg(long, value_name = "PATH")]
    pub helper: Option<PathBuf>,
    /// How figures are printed.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table")]
    pub output: BenchFormat,
}

/// Measures: 0 if all of it could be measured, 2 otherwise.
pub fn run_bench(args: BenchArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("bowline bench could not run: {error}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(bench(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bowline bench could not run: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn bench(args: &BenchArgs) -> Result<()> {
    let mut nodes = Vec::new();
    for endpoint in &args.endpoints {
        let run = Run::open(Setup {
            endpoint,
            image_endpoint: None,
            handler: "",
            images: None,
            registry_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            helper: args.helper.as_deref(),
            restart: None,
            nri_socket: None,
        });
        nodes.push(Node::new(Rc::new(run.await?), "bench"));
    }
    let mut figures = Figures::default();
    let measured = measure(args, &nodes, &mut figures).await;
    for node in &nodes {
        if let Err(error) = node.clean().await {
            eprintln!("{}: {error:#}", node.run.endpoint);
        }
        node.run.close().await;
    }
    measured?;
    match args.output {
        BenchFormat::Table => print!("{}", figures.table()),
        BenchFormat::Json => println!("{}", figures.json()),
    }
    Ok(())
}

async fn measure(args: &BenchArgs, nodes: &[Node], figures: &mut Figures) -> Result<()> {
    let wanted = |measure| args.measures.is_empty() || args.measures.contains(&measure);
    let gap = Duration::from_millis(args.gap);
    if wanted(Measure::Pod) {
        eprintln!("pod up and down, {} rounds", args.pods);
        for _ in 0..args.pods {
            for node in nodes {
                pods::round(node, gap, figures).await?;
            }
        }
    }
    if wanted(Measure::Burst) {
        eprintln!("burst");
        for node in nodes {
            pods::burst(node, figures).await?;
        }
    }
    if wanted(Measure::Density) {
        eprintln!("density with {} pods", args.pods);
        for node in nodes {
            density::measure(node, args.pods, figures).await?;
        }
    }
    if wanted(Measure::List) {
        eprintln!("lists and statuses");
        for node in nodes {
            pods::lists(node, figures).await?;
        }
    }
    if wanted(Measure::Pull) {
        eprintln!("pulls");
        images::measure(nodes, figures).await?;
    }
    Ok(())
}
