//! How long the claim takes: `cargo run --release -p annulus-core --example claim_time`.
//!
//! A ring of 1024 partitions over 100 nodes: founded by one and grown at once, one more joins, one
//! leaves, one is replaced; plain, in zones and with weights. The best and the worst of some runs.

use std::time::{Duration, Instant};

use annulus_core::claim::{ClaimNode, claim};
use annulus_core::ids::NodeId;
use annulus_core::keyspace::RingSize;
use annulus_core::ring::{Partition, RingTable};

const PARTITIONS: u32 = 1024;
const NODES: u64 = 100;
const RUNS: usize = 5;

fn ring(table: &[Vec<NodeId>]) -> RingTable {
    RingTable {
        size: RingSize::try_from(PARTITIONS).expect("a power of two"),
        epoch: 1,
        partitions: table.iter().map(|set| Partition::held_by(set.clone(), 1)).collect(),
    }
}

fn timed(from: &[Vec<NodeId>], nodes: &[ClaimNode], width: u8) -> (Vec<Vec<NodeId>>, Duration, Duration) {
    let ring = ring(from);
    let once = |_| {
        let started = Instant::now();
        (claim(&ring, nodes, width), started.elapsed())
    };
    let runs: Vec<_> = (0..RUNS).map(once).collect();
    let took = || runs.iter().map(|(_, took)| *took);
    let (best, worst) = (took().min().unwrap_or_default(), took().max().unwrap_or_default());
    (runs.into_iter().next().map(|(table, _)| table).unwrap_or_default(), best, worst)
}

fn main() {
    println!("{PARTITIONS} partitions, {NODES} nodes; milliseconds, best..worst of {RUNS}\n");
    println!(
        "{:<14} {:>5}  {:>14} {:>14} {:>14} {:>14}",
        "nodes", "width", "1 -> 100", "join", "leave", "replace"
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
            let nodes = |ids: &mut dyn Iterator<Item = u64>| ids.map(kind).collect::<Vec<_>>();
            let founding = vec![vec![NodeId(0)]; PARTITIONS as usize];
            let (table, grow_best, grow_worst) = timed(&founding, &nodes(&mut (0..NODES)), width);
            let (_, join_best, join_worst) = timed(&table, &nodes(&mut (0..=NODES)), width);
            let (_, leave_best, leave_worst) =
                timed(&table, &nodes(&mut (0..NODES).filter(|id| *id != 7)), width);
            let (_, best, worst) = timed(&table, &nodes(&mut (1..=NODES)), width);
            let range = |best: Duration, worst: Duration| {
                format!("{:.1}..{:.1}", best.as_secs_f64() * 1e3, worst.as_secs_f64() * 1e3)
            };
            println!(
                "{name:<14} {width:>5}  {:>14} {:>14} {:>14} {:>14}",
                range(grow_best, grow_worst),
                range(join_best, join_worst),
                range(leave_best, leave_worst),
                range(best, worst)
            );
        }
    }
}
