//! What the claim moves and repeats beside what riak_core's would on the same changes:
//! `cargo run --release -p annulus-core --example claim_table [-- --steps]`.
//!
//! `riak.rs` says which of riak_core's rules these are, and where they are not told in full.
//! Owners and replicas are those that moved in all steps together; repeated nodes and locations are
//! sets that have one twice though there are enough, summed over the steps; the spreads are
//! the most that one node had more than another, of partitions owned and of replicas held.

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
