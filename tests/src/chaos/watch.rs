//! Polls every expected member to find out whether the cluster has settled.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use annulus::admin::AdminRequest;
use annulus::admin::rows::{RingRow, TransferRow};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use crate::client::{Failure, Operator};

/// Pause between two rounds over all nodes.
const REST: Duration = Duration::from_millis(150);
/// Longest time for one node to answer.
const LIMIT: Duration = Duration::from_secs(2);

/// The expected members: names and data directories.
pub type Expected = BTreeMap<String, PathBuf>;

/// The result of one round over all nodes.
#[derive(Clone, Debug)]
pub struct Look {
    /// Differences from a settled cluster; empty if it has settled.
    pub amiss: Vec<String>,
    /// Number of partitions with a pending transfer, according to the first node that answered.
    pub pending: usize,
}

/// A thread that polls the nodes until it is dropped.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    expected: Mutex<Expected>,
    latest: Mutex<Option<Look>>,
    /// Start times of all rounds that saw a settled cluster.
    settled: Mutex<Vec<Instant>>,
    /// Number of pairs of nodes compared at the same epoch, and the pairs that differed.
    compared: AtomicU64,
    contradictions: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Watch {
    /// Start to poll these nodes.
    ///
    /// # Panics
    /// If no runtime or thread can be created.
    pub fn new(expected: Expected) -> Self {
        let shared = Arc::new(Shared {
            expected: Mutex::new(expected),
            latest: Mutex::default(),
            settled: Mutex::default(),
            compared: AtomicU64::new(0),
            contradictions: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no runtime to watch from: {error}"));
        let watched = shared.clone();
        let thread = std::thread::spawn(move || runtime.block_on(look_on(&watched)));
        Self { shared, thread: Some(thread) }
    }

    /// Change the set of expected members.
    pub fn expect(&self, change: impl FnOnce(&mut Expected)) {
        change(&mut self.shared.expected.lock());
    }

    /// Return the result of the last round.
    pub fn latest(&self) -> Option<Look> {
        self.shared.latest.lock().clone()
    }

    /// Return the start of the first round at or after `moment` that saw a settled cluster.
    pub fn settled_after(&self, moment: Instant) -> Option<Instant> {
        self.shared.settled.lock().iter().find(|settled| **settled >= moment).copied()
    }
}

impl Watch {
    /// Check that all nodes have always shown the same ring in the same epoch.
    ///
    /// # Errors
    /// The pairs of nodes that differed.
    pub fn one_truth(&self) -> Result<String, String> {
        let contradictions = self.shared.contradictions.lock();
        if contradictions.is_empty() {
            return Ok(format!("{} pairs compared", self.shared.compared.load(Ordering::Relaxed)));
        }
        Err(contradictions.join("; "))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The thread's own panic would only hide the panic that drops this value.
            drop(thread.join());
        }
    }
}

async fn look_on(shared: &Shared) {
    let mut operators = BTreeMap::new();
    while !shared.over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let expected = shared.expected.lock().clone();
        let (amiss, pending) = look(shared, &expected, &mut operators).await;
        // Discard the round if the expected members changed during it.
        if *shared.expected.lock() == expected {
            if amiss.is_empty() {
                shared.settled.lock().push(began);
            }
            *shared.latest.lock() = Some(Look { amiss, pending });
        }
        sleep(REST).await;
    }
}

async fn look(
    shared: &Shared,
    expected: &Expected,
    operators: &mut BTreeMap<PathBuf, Operator>,
) -> (Vec<String>, usize) {
    let mut amiss = Vec::new();
    let mut rings: Vec<(&String, RingRow)> = Vec::new();
    for (name, data) in expected {
        let looked = timeout(LIMIT, look_at(data, operators)).await;
        match looked {
            Ok(Ok((ring, transfers))) => {
                if let Some(row) = transfers.first() {
                    let (from, to) = (&row.from, &row.to);
                    amiss.push(format!(
                        "{name} has {} transfers, partition {} from {from} to {to} {} among them",
                        transfers.len(),
                        row.partition,
                        row.state
                    ));
                }
                rings.push((name, ring));
            }
            Ok(Err(failure)) => {
                operators.remove(data);
                amiss.push(format!("{name}: {}", failure.message));
            }
            Err(_) => {
                operators.remove(data);
                amiss.push(format!("{name} does not answer"));
            }
        }
    }
    let pending = rings.first().map_or(0, |(_, ring)| {
        ring.partitions.iter().filter(|partition| !partition.pending.is_empty()).count()
    });
    if let Some((first, ring)) = rings.first() {
        for (name, other) in &rings[1..] {
            if other.epoch != ring.epoch {
                amiss.push(format!("{first} is at epoch {}, {name} at {}", ring.epoch, other.epoch));
                continue;
            }
            shared.compared.fetch_add(1, Ordering::Relaxed);
            if other.partitions != ring.partitions {
                let what = format!("{first} and {name} differ in epoch {}", ring.epoch);
                shared.contradictions.lock().push(what.clone());
                amiss.push(what);
            }
        }
        amiss.extend(balance(ring, expected));
    }
    (amiss, pending)
}

async fn look_at(
    data: &PathBuf,
    operators: &mut BTreeMap<PathBuf, Operator>,
) -> Result<(RingRow, Vec<TransferRow>), Failure> {
    if !operators.contains_key(data) {
        let operator = Operator::connect(data).await?;
        operators.insert(data.clone(), operator);
    }
    let operator = &operators[data];
    Ok((operator.ask(&AdminRequest::Ring).await?, operator.ask(&AdminRequest::Transfers).await?))
}

/// Return the faults of a ring's balance: pending partitions, foreign owners, uneven shares.
pub fn balance(ring: &RingRow, expected: &Expected) -> Vec<String> {
    let mut amiss = Vec::new();
    let pending = ring.partitions.iter().filter(|partition| !partition.pending.is_empty()).count();
    if pending > 0 {
        amiss.push(format!("{pending} partitions change hands"));
    }
    let mut owned: BTreeMap<&str, usize> = expected.keys().map(|name| (name.as_str(), 0)).collect();
    for partition in &ring.partitions {
        let Some(owner) = partition.replicas.first() else {
            amiss.push(format!("partition {} has no owner", partition.id));
            continue;
        };
        match owned.get_mut(owner.as_str()) {
            Some(count) => *count += 1,
            None => amiss.push(format!("{owner} owns partition {}", partition.id)),
        }
    }
    let (least, most) = (owned.values().min().copied(), owned.values().max().copied());
    if most.unwrap_or_default() > least.unwrap_or_default() + 1 {
        amiss.push(format!("shares are uneven: {owned:?}"));
    }
    amiss
}

#[cfg(test)]
mod tests {
    use annulus::admin::rows::PartitionRow;

    use super::*;

    fn ring(owners: &[&str]) -> RingRow {
        let row = |(id, owner): (u16, &&str)| PartitionRow {
            id,
            replicas: vec![(*owner).to_owned()],
            pending: Vec::new(),
        };
        RingRow { ring_size: 8, epoch: 1, partitions: (0..).zip(owners).map(row).collect() }
    }

    #[test]
    fn uneven_shares_foreign_owners_and_pending_partitions_are_reported() {
        let expected: Expected = ["a", "b"].map(|name| (name.to_owned(), PathBuf::new())).into();
        assert!(balance(&ring(&["a", "b", "a"]), &expected).is_empty());
        assert_eq!(balance(&ring(&["a", "a", "a", "b"]), &expected).len(), 1);
        assert_eq!(balance(&ring(&["a", "b", "c"]), &expected), ["c owns partition 2"]);
        let mut moving = ring(&["a", "b"]);
        moving.partitions[0].pending = vec!["b".to_owned()];
        assert_eq!(balance(&moving, &expected), ["1 partitions change hands"]);
    }
}
