//! Long runs by hand: `cargo run --release -p annulus-tests -- load --keys 200000`.
//!
//! The same program is the node under test where [`harness::AS_ANNULUS`] says so: tests then
//! never run a binary that is older than they are.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use annulus::cli::{CliError, Format, Output};
use annulus_core::version::Speaks;
use annulus_tests::chaos;
use annulus_tests::growth::grow_and_shrink;
use annulus_tests::harness;
use annulus_tests::load::Settings;
use annulus_tests::sim;
use clap::Parser;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// Long runs of what the tests run briefly.
#[derive(Parser)]
enum Run {
    /// One node is filled, two join, a changed module is deployed and one node leaves, all under
    /// a mixed load that a model checks.
    Load {
        /// How many keys.
        #[arg(long, default_value_t = 200_000)]
        keys: u32,
        /// How many seconds of load beside what joining, deploying and leaving take.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// How many clients.
        #[arg(long, default_value_t = 16)]
        clients: u32,
        /// Of the choice of keys and commands.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Seeded histories of a cluster of whole nodes, each in one thread: exit 0 if every rule holds in all of
    /// them.
    Sim(Simulation),
    /// Members come and go, nodes die, freeze and are cut off, and three modules are deployed and rolled back,
    /// one of which traps and one of which has items of 1 to 8 MiB, under a mixed load that a model checks.
    /// The last lines are its verdict, one for each module.
    Chaos {
        /// What happens.
        scenario: Scenario,
        /// How many seconds it lasts, without what it takes to begin and to settle.
        #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(20..=86_400))]
        seconds: u64,
        /// Of the schedule, the victims and the load.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How many members there are at the beginning.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(3..=20))]
        nodes: u64,
        /// How many seconds there are between two releases of a module.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        release_every: u64,
    },
}

/// What is asked of the simulation.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Simulation {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// One seed, or a file of one that was shrunk, with all that happens in it.
    #[arg(long, value_name = "SEED|FILE")]
    replay: Option<sim::Which>,
    /// Breaks a rule on purpose; tests/sim/README.md lists them.
    #[arg(long)]
    mutant: Option<annulus_sim::Mutant>,
    /// Leaves seeds that break a rule as they are. Otherwise the first few are shrunk.
    #[arg(long)]
    no_shrink: bool,
    /// Where what is left of them is kept, each in a file that `--replay` takes.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Text for people or JSON for programs.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(subcommand)]
    what: Option<Simulated>,
}

/// More that is simulated.
#[derive(clap::Subcommand)]
enum Simulated {
    /// What large clusters cost: messages and bytes per node and second, at rest and while a
    /// node joins, and how long that takes.
    Scale {
        /// How many nodes.
        #[arg(long, value_delimiter = ',', default_values_t = [5, 10, 30])]
        nodes: Vec<usize>,
        /// How many partitions.
        #[arg(long, default_value_t = 1024)]
        ring: u32,
    },
}

fn simulate(simulation: &Simulation) -> ExitCode {
    let Simulation { seeds, from, replay, mutant, no_shrink, out, format, what } = simulation;
    if let Some(Simulated::Scale { nodes, ring }) = what {
        return match sim::table(nodes, *ring, |line| println!("{line}")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    if replay.is_some()
        && let Some(targets) =
            std::env::var("RUST_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok())
    {
        // What the nodes of the one seed log, in the order in which they do.
        let lines = tracing_subscriber::fmt::layer().without_time().with_filter(targets);
        tracing_subscriber::registry().with(lines).init();
    }
    let output = Output::new(*format);
    let holds = || -> Result<bool, CliError> {
        if let Some(which) = replay {
            return sim::replay(which, *mutant, &output);
        }
        let stop = Arc::new(AtomicBool::new(false));
        stop_when_told(&stop);
        let mut verdict = sim::many(*from, *seeds, *mutant, &output, &stop);
        if !no_shrink {
            sim::shrink_first(&mut verdict, *mutant, out, &output, &stop);
        }
        output.show(&verdict.to_json(), || verdict.to_string())?;
        Ok(verdict.broken.is_empty())
    };
    exit_code(holds().unwrap_or_else(|error| {
        output.error(&error);
        false
    }))
}

/// A scenario of chaos.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Scenario {
    /// Joins, a leave, a replacement, and every fault once.
    Membership,
}

fn main() -> ExitCode {
    match std::env::var_os(harness::AS_ANNULUS) {
        Some(role) if role == harness::OLDER => return annulus::cli::main_speaking(Speaks::FIRST),
        Some(_) => return annulus::cli::main(),
        None => {}
    }
    match Run::parse() {
        Run::Load { keys, seconds, clients, seed } => {
            let settings = Settings { keys, clients, seed, ..Settings::default() };
            // Four calm stretches.
            let report = grow_and_shrink(settings, Duration::from_secs(seconds) / 4);
            println!("{report}");
            let flawless =
                report.is_sound() && report.failed_requests() == 0 && report.complete == report.coverages;
            exit_code(flawless)
        }
        Run::Sim(simulation) => simulate(&simulation),
        Run::Chaos { scenario: Scenario::Membership, seconds, seed, nodes, release_every } => {
            let mut settings = chaos::Settings::new(Duration::from_secs(seconds), seed);
            settings.nodes = usize::try_from(nodes).unwrap_or(usize::MAX);
            settings.release_every = settings.release_every.min(Duration::from_secs(release_every));
            stop_when_told(&settings.stop);
            println!("chaos membership: {nodes} nodes, {seconds} s, seed {seed}");
            let outcome = chaos::membership(&settings);
            println!("\n{outcome}");
            exit_code(outcome.holds())
        }
    }
}

fn exit_code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ctrl-C and SIGTERM end a run in order: its processes end with it, also those that are frozen.
fn stop_when_told(stop: &Arc<AtomicBool>) {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = stop.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no runtime for signals: {error}"));
        runtime.block_on(async {
            let told = |kind| signal(kind).unwrap_or_else(|error| panic!("no signals: {error}"));
            let (mut interrupt, mut end) = (told(SignalKind::interrupt()), told(SignalKind::terminate()));
            tokio::select! { _ = interrupt.recv() => {}, _ = end.recv() => {} }
            stop.store(true, Ordering::Relaxed);
            // Once is enough: what is under way ends within its limits. The handlers stay.
            std::future::pending::<()>().await;
        });
    });
}
