//! Long test runs, started by hand: `cargo run --release -p annulus-tests -- load --keys 200000`.
//!
//! The same program runs as the node under test if [`harness::AS_ANNULUS`] is set, so a test never runs a
//! binary that is older than the test itself.

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

/// Long versions of the load, the chaos runs and the simulation that the tests run briefly.
#[derive(Parser)]
enum Run {
    /// Fill one node, join two more, deploy a changed module and let one node leave, all under a mixed load
    /// that is checked against a model.
    Load {
        /// Number of keys.
        #[arg(long, default_value_t = 200_000)]
        keys: u32,
        /// Seconds of load, in addition to the time that the joins, the deploy and the leave take.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Number of concurrent clients.
        #[arg(long, default_value_t = 16)]
        clients: u32,
        /// Seed for the choice of keys and commands.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Simulate a cluster of whole nodes, one seed after another, each in a single thread. Exits with 0 if
    /// every rule holds for every seed.
    Sim(Simulation),
    /// Run a cluster with real processes under faults and a mixed load that is checked against a model.
    #[command(subcommand)]
    Chaos(Scenario),
}

/// A chaos scenario.
#[derive(clap::Subcommand)]
enum Scenario {
    /// Members join and leave; nodes are killed, frozen and cut off; three modules are deployed and rolled back,
    /// one of which traps and one of which has items of 1 to 8 MiB. The last lines are the verdict, one line for
    /// each module.
    Membership {
        /// Seconds that the scenario lasts, without the time to start and to settle.
        #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(20..=86_400))]
        seconds: u64,
        /// Seed for the schedule, the victims and the load.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of members at the start.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(3..=20))]
        nodes: u64,
        /// Seconds between two releases of a module.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        release_every: u64,
    },
    /// Modules with three replicas, on disk and in memory. Members join and leave; one after another nodes are killed,
    /// lose their items, freeze, and are cut off. The last lines are the verdict, one line for each module.
    Durability {
        /// Seconds that the scenario lasts, without the time to start and to settle.
        #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(20..=86_400))]
        seconds: u64,
        /// Seed for the schedule, the victims and the load.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of members at the start.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(4..=20))]
        nodes: u64,
        /// Seconds between two releases of a module.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
        release_every: u64,
        /// Use a guest that keeps the newer of two versions instead of merging them. The run then reports losses.
        #[arg(long)]
        newest_wins: bool,
    },
    /// Nodes with a durable module are killed again and again. After each restart every key is compared with its
    /// acknowledged writes. The last line is the verdict.
    Crash {
        /// Number of crashes.
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
        cycles: u32,
        /// Seed for the victims, the moments and the load.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of nodes.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=9))]
        nodes: u64,
        /// Lose power instead of a process: each node is on a disk image, which is copied while the process is
        /// stopped. Needs the privilege to mount.
        #[arg(long)]
        power: bool,
    },
}

/// Arguments of the `sim` command.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Simulation {
    /// Number of seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Replay one seed, or the file of a shrunk seed, and print every event.
    #[arg(long, value_name = "SEED|FILE")]
    replay: Option<sim::Which>,
    /// Break one rule on purpose; tests/sim/README.md lists the mutants.
    #[arg(long)]
    mutant: Option<annulus_sim::Mutant>,
    /// Do not shrink seeds that break a rule. Without this flag, the first few are shrunk.
    #[arg(long)]
    no_shrink: bool,
    /// Directory for the shrunk seeds, each in a file that `--replay` accepts.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Output format: text for people or JSON for programs.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(subcommand)]
    what: Option<Simulated>,
}

/// Other simulations than the seeded histories.
#[derive(clap::Subcommand)]
enum Simulated {
    /// Measure the cost of large clusters: messages and bytes per node and second, at rest and while a node
    /// joins, and the time that a join takes.
    Scale {
        /// Cluster sizes to measure.
        #[arg(long, value_delimiter = ',', default_values_t = [5, 10, 30])]
        nodes: Vec<usize>,
        /// Number of partitions.
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
        // Print the log of the replayed seed's nodes, in order and without wall-clock times.
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

fn main() -> ExitCode {
    if let Some(code) = annulus_tests::compiled::answer() {
        return code;
    }
    match std::env::var_os(harness::AS_ANNULUS) {
        Some(role) if role == harness::OLDER => return annulus::cli::main_speaking(Speaks::FIRST),
        Some(_) => return annulus::cli::main(),
        None => {}
    }
    match Run::parse() {
        Run::Load { keys, seconds, clients, seed } => {
            let settings = Settings { keys, clients, seed, ..Settings::default() };
            // The run has four stretches of steady load.
            let report = grow_and_shrink(settings, Duration::from_secs(seconds) / 4);
            println!("{report}");
            let flawless =
                report.is_sound() && report.failed_requests() == 0 && report.complete == report.coverages;
            exit_code(flawless)
        }
        Run::Sim(simulation) => simulate(&simulation),
        Run::Chaos(Scenario::Membership { seconds, seed, nodes, release_every }) => {
            let mut settings = chaos::Settings::new(Duration::from_secs(seconds), seed);
            settings.nodes = usize::try_from(nodes).unwrap_or(usize::MAX);
            settings.release_every = settings.release_every.min(Duration::from_secs(release_every));
            stop_when_told(&settings.stop);
            println!("chaos membership: {nodes} nodes, {seconds} s, seed {seed}");
            let outcome = chaos::membership(&settings);
            println!("\n{outcome}");
            exit_code(outcome.holds())
        }
        Run::Chaos(Scenario::Durability { seconds, seed, nodes, release_every, newest_wins }) => {
            let mut settings = chaos::durability::Settings::new(Duration::from_secs(seconds), seed);
            settings.nodes = usize::try_from(nodes).unwrap_or(usize::MAX);
            settings.release_every = settings.release_every.min(Duration::from_secs(release_every));
            settings.newest_wins = newest_wins;
            stop_when_told(&settings.stop);
            println!("chaos durability: {nodes} nodes, {seconds} s, seed {seed}, newest wins {newest_wins}");
            let outcome = chaos::durability::durability(&settings);
            println!("\n{outcome}");
            exit_code(outcome.holds())
        }
        Run::Chaos(Scenario::Crash { cycles, seed, nodes, power }) => {
            let mut settings = chaos::crash::Settings::new(cycles, seed);
            (settings.nodes, settings.power) = (usize::try_from(nodes).unwrap_or(usize::MAX), power);
            stop_when_told(&settings.stop);
            println!("chaos crash: {nodes} nodes, {cycles} cycles, seed {seed}, power {power}");
            match chaos::crash::crash(&settings) {
                Ok(outcome) => {
                    println!("\n{outcome}");
                    exit_code(outcome.holds())
                }
                Err(why) => {
                    eprintln!("SKIPPED: {why}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

fn exit_code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// End the run in order on Ctrl-C or SIGTERM, so that its processes end too, including the frozen ones.
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
            // One signal is enough: the run ends within its own limits. Keep the handlers installed.
            std::future::pending::<()>().await;
        });
    });
}
