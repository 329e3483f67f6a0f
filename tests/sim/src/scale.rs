//! What a cluster of many nodes costs: messages and bytes of each node, at rest and while a node joins, and how
//! long that takes until everything is where it belongs.
//!
//! Whole nodes without faults and with empty partitions, so that it is the control that is counted. A message is a
//! piece of a stream or a datagram of the network in memory; QUIC's own headers, acknowledgements and keep-alives
//! are not there.

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

/// A cluster without faults comes to rest within this time, however large it is.
const LIMIT: Duration = Duration::from_secs(600);

/// For how long a cluster at rest is watched.
const REST: Duration = Duration::from_secs(20);

/// Messages and bytes per node and second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Messages that a node sends in a second, on average.
    pub messages: f64,
    /// Their bytes.
    pub bytes: f64,
    /// Bytes of them that are the failure detector's.
    pub liveness: f64,
    /// Bytes of the node that sends most.
    pub busiest: f64,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Nodes before the join.
    pub nodes: usize,
    /// Partitions.
    pub ring: u32,
    /// When nothing happens.
    pub rest: Traffic,
    /// Until the join is over.
    pub join: Traffic,
    /// Partitions whose owner changes.
    pub moved: usize,
    /// From the request to join until all is moved and everybody knows, in seconds.
    pub converged: f64,
    /// Entries of the log that it took.
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

/// One row: a cluster of so many nodes that owns a ring of so many partitions rests, then one more node joins.
///
/// # Errors
/// The rule that broke, or the reason why it did not come to rest.
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
        let (old, entries) = shown(&run).ok_or("nobody shows a state")?;
        let (before, began) = (run.weather.sent(), Instant::now());
        operators::join_one_more(&run, 7).await;
        comes_to_rest(&run).await?;
        let time = began.elapsed();
        if let Some(broken) = run.broken() {
            return Err(broken.to_string());
        }
        let (new, applied) = shown(&run).ok_or("nobody shows a state")?;
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
