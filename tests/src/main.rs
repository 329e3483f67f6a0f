//! Long runs by hand: `cargo run --release -p annulus-tests -- load --keys 200000`.
//!
//! The same program is the node under test where [`harness::AS_ANNULUS`] says so: tests then
//! never run a binary that is older than they are.

use std::process::ExitCode;
use std::time::Duration;

use annulus_tests::growth::grow_and_shrink;
use annulus_tests::harness;
use annulus_tests::load::Settings;
use clap::Parser;

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
}

fn main() -> ExitCode {
    if std::env::var_os(harness::AS_ANNULUS).is_some() {
        return annulus::cli::main();
    }
    let Run::Load { keys, seconds, clients, seed } = Run::parse();
    let settings = Settings { keys, clients, seed, ..Settings::default() };
    // Four calm stretches.
    let report = grow_and_shrink(settings, Duration::from_secs(seconds) / 4);
    println!("{report}");
    let flawless = report.is_sound() && report.failed_requests() == 0 && report.complete == report.coverages;
    if flawless { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
