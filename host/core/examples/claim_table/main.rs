//! Compares the moves and repetitions of the claim with those of riak_core's on the same changes:
//!
//! ```sh
//! cargo run --release -p annulus-core --example claim_table [-- --steps]
//! ```
//!
//! `riak.rs` describes riak_core's rules, and where the public descriptions are incomplete. The columns:
//! owners and replicas that moved, over all steps; sets that repeat a node or a location although there are
//! enough, summed over the steps; and the largest difference between two nodes in partitions owned and in
//! replicas held.

mod riak;
mod scenarios;

use scenarios::{Score, WAYS, run, scenarios, sum};

fn main() {
    let steps = std::env::args().any(|arg| arg == "--steps");
    for (q, n) in [(64, 3), (64, 4), (256, 3), (256, 4)] {
        println!("ring {q}, {n} replicas");
        println!(
            "  {:<25} {:<8} {:>7} {:>9} {:>6} {:>9} {:>7} {:>9}",
            "", "", "owners", "replicas", "nodes", "locations", "owner", "replica"
        );
        println!(
            "  {:<25} {:<8} {:>7} {:>9} {:>6} {:>9} {:>7} {:>9}",
            "", "", "moved", "moved", "twice", "twice", "spread", "spread"
        );
        for scenario in scenarios() {
            for (name, way) in WAYS {
                let scores = run(&scenario, way, q, n);
                print(scenario.name, name, &sum(&scores));
                if steps {
                    let said = scenario.steps.iter().map(|step| format!("  {step:?}"));
                    said.zip(&scores).for_each(|(step, score)| print(&step, name, score));
                }
            }
        }
        println!();
    }
}

fn print(what: &str, way: &str, score: &Score) {
    println!(
        "  {what:<25} {way:<8} {:>7} {:>9} {:>6} {:>9} {:>7} {:>9}",
        score.owners,
        score.replicas,
        score.repeated_nodes,
        score.repeated_locations,
        score.owner_spread,
        score.replica_spread
    );
}
