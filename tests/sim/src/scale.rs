//! Measures the control traffic of large clusters: messages and bytes per node, at rest and while a node joins, and
//! the time that a join takes to converge.
//!
//! The nodes are whole nodes without faults. Their partitions are empty, so that only control traffic is counted. A
//! message is a piece of a stream or a datagram of the network in memory; QUIC's own headers, acknowledgements and
//! keep-alives are not simulated and not counted.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::keyspace::RingSize;
use annulus_core::ring::RingTable;
use annulus_harness::{Sent, Simulation};
use tokio::time::{Instant, sleep};

use crate::run::{self, Run};
use crate::{Nature, Settings, fleet, operators, rest};

/// Longest time until a cluster without faults, of any size, is at rest.
const LIMIT: Duration = Duration::from_secs(600);

/// Time for which the traffic of a cluster at rest is measured.
const REST: Duration = Duration::from_secs(20);

/// Messages and bytes per node and second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Messages that a node sends per second, on average.
    pub messages: f64,
    /// Bytes that a node sends per second, on average.
    pub bytes: f64,
    /// The part of `bytes` that the failure detector sends.
    pub liveness: f64,
    /// Bytes per second of the node that sends most.
    pub busiest: f64,
}

/// The measurements of one cluster size.
#[derive(Clone, Debug)]
pub struct Row {
    /// Number of nodes before the join.
    pub nodes: usize,
    /// Number of partitions.
    pub ring: u32,
    /// Traffic of the cluster at rest.
    pub rest: Traffic,
    /// Traffic during the join.
    pub join: Traffic,
    /// Number of partitions whose owner the join changes.
    pub moved: usize,
    /// Seconds from the request to join until all partitions have moved and every node knows it.
    pub converged: f64,
    /// Number of log entries that the join took.
    pub entries: u64,
}

type Count = BTreeMap<IpAddr, Sent>;

fn traffic(before: &Count, after: &Count, time: Duration) -> Traffic {
    let (seconds, nodes) = (time.as_secs_f64(), after.len().max(1) as f64);
    let mut all = Sent::default();
    let mut busiest = 0;
    for (node, sent) in after {
        let old = before.get(node).copied().unwrap_or_default();
        all.pieces += sent.pieces - old.pieces;
        all.bytes += sent.bytes - old.bytes;
        all.datagrams += sent.datagrams - old.datagrams;
        all.datagram_bytes += sent.datagram_bytes - old.datagram_bytes;
        busiest = busiest.max(sent.bytes - old.bytes + sent.datagram_bytes - old.datagram_bytes);
    }
    Traffic {
        messages: (all.pieces + all.datagrams) as f64 / nodes / seconds,
        bytes: (all.bytes + all.datagram_bytes) as f64 / nodes / seconds,
        liveness: all.datagram_bytes as f64 / nodes / seconds,
        busiest: busiest as f64 / seconds,
    }
}

async fn comes_to_rest(run: &Run) -> Result<(), String> {
    let began = Instant::now();
    while let Some(why) = rest::unrest(run) {
        if began.elapsed() > LIMIT {
            return Err(format!("not at rest after {LIMIT:?}: {why}"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn shown(run: &Run) -> Option<(RingTable, u64)> {
    run.ledger(|ledger| ledger.newest().map(|state| (state.ring.clone(), state.applied)))
}

/// Measure a cluster of `nodes` nodes and `ring` partitions at rest, and while one more node joins.
///
/// # Errors
/// Returns the rule that broke, the reason for which the cluster did not settle, or the reason why the ring
/// size is invalid.
pub fn scale(nodes: usize, ring: u32) -> Result<Row, String> {
    let size = RingSize::try_from(ring).map_err(|error| error.to_string())?;
    let simulation = Simulation::new(1, annulus_harness::Settings::default());
    let world = simulation.world().clone();
    simulation.run(async {
        let fleet = vec![fleet::draw(&mut world.stream("fleet"), Some(1)).remove(0)];
        let run: Arc<Run> =
            Run::new(&world, Settings { keys: 0, ..Settings::default() }, Nature::default(), fleet, size);
        run::begin(&run, nodes, 0).await;
        comes_to_rest(&run).await?;
        let before = run.weather.sent();
        sleep(REST).await;
        let rest = traffic(&before, &run.weather.sent(), REST);
        let (old, entries) = shown(&run).ok_or("no node shows a state")?;
        let (before, began) = (run.weather.sent(), Instant::now());
        operators::join_one_more(&run, 7).await;
        comes_to_rest(&run).await?;
        let time = began.elapsed();
        if let Some(broken) = run.broken() {
            return Err(broken.to_string());
        }
        let (new, applied) = shown(&run).ok_or("no node shows a state")?;
        let moved = new.iter().filter(|(id, _)| new.owner(*id) != old.owner(*id)).count();
        Ok(Row {
            nodes,
            ring,
            rest,
            join: traffic(&before, &run.weather.sent(), time),
            moved,
            converged: time.as_secs_f64(),
            entries: applied - entries,
        })
    })
}
