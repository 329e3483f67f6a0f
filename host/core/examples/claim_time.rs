//! Measures the time that the claim takes: `cargo run --release -p annulus-core --example claim_time`.
//!
//! The ring has 1024 partitions over 100 nodes. It is founded by one node and grown at once; then one node
//! joins, one leaves, one is replaced, and one joins while every other partition is in transfer. Each case
//! runs with plain nodes, in zones and with weights. The output is the best and the worst of several runs.

use std::time::{Duration, Instant};

use annulus_core::claim::{ClaimNode, claim};
use annulus_core::ids::{NodeId, TransferId};
use annulus_core::keyspace::RingSize;
use annulus_core::ring::{Partition, RingTable, Transfer};

const PARTITIONS: u32 = 1024;
const NODES: u64 = 100;
const RUNS: usize = 5;

fn ring(table: &[Vec<NodeId>], pending: bool) -> RingTable {
    let partition = |set: &Vec<NodeId>, pending: bool| Partition {
        pending: pending.then(|| Transfer::new(TransferId(2), set.clone())),
        ..Partition::held_by(set.clone(), 1)
    };
    RingTable {
        size: RingSize::try_from(PARTITIONS).expect("a power of two"),
        epoch: 1,
        partitions: table
            .iter()
            .enumerate()
            .map(|(at, set)| partition(set, pending && at % 2 == 0))
            .collect(),
    }
}

/// The table, and the shortest and the longest time of its runs as text.
type Timed = (Vec<Vec<NodeId>>, String);

fn timed(ring: &RingTable, nodes: &[ClaimNode], width: u8) -> Timed {
    let once = |_| {
        let started = Instant::now();
        (claim(ring, nodes, width), started.elapsed())
    };
    let mut runs: Vec<(Vec<Vec<NodeId>>, Duration)> = (0..RUNS).map(once).collect();
    runs.sort_by_key(|(_, took)| *took);
    let ms = |at: usize| runs[at].1.as_secs_f64() * 1e3;
    let range = format!("{:.1}..{:.1}", ms(0), ms(RUNS - 1));
    (runs.swap_remove(0).0, range)
}

fn main() {
    println!("{PARTITIONS} partitions, {NODES} nodes; milliseconds, best..worst of {RUNS}\n");
    println!(
        "{:<10} {:>5} {:>14} {:>14} {:>14} {:>14} {:>14}",
        "nodes", "width", "1 -> 100", "join", "leave", "replace", "join during"
    );
    type Kind = fn(u64) -> ClaimNode;
    let plain: Kind = |id| ClaimNode { id: NodeId(id), weight: 1, zone: None };
    let zones: Kind = |id| ClaimNode { id: NodeId(id), weight: 1, zone: Some(format!("z{}", id % 10)) };
    let three: Kind = |id| ClaimNode { id: NodeId(id), weight: 1, zone: Some(format!("z{}", id % 3)) };
    let weights: Kind = |id| ClaimNode { id: NodeId(id), weight: 1 + (id % 4) as u32, zone: None };
    let both: Kind =
        |id| ClaimNode { id: NodeId(id), weight: 1 + (id % 4) as u32, zone: Some(format!("z{}", id % 10)) };
    let kinds =
        [("plain", plain), ("10 zones", zones), ("3 zones", three), ("weights", weights), ("both", both)];
    for (name, kind) in kinds {
        for width in [3, 7] {
            let nodes = |from: u64, to: u64| (from..to).map(kind).collect::<Vec<_>>();
            let founded = ring(&vec![vec![NodeId(0)]; PARTITIONS as usize], false);
            let (table, grown) = timed(&founded, &nodes(0, NODES), width);
            let at_rest = ring(&table, false);
            let (_, join) = timed(&at_rest, &nodes(0, NODES + 1), width);
            let (_, leave) = timed(&at_rest, &nodes(1, NODES), width);
            let (_, replace) = timed(&at_rest, &nodes(1, NODES + 1), width);
            let (_, during) = timed(&ring(&table, true), &nodes(0, NODES + 1), width);
            println!("{name:<10} {width:>5} {grown:>14} {join:>14} {leave:>14} {replace:>14} {during:>14}");
        }
    }
}
