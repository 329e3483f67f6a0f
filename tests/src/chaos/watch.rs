//! Looks at every node that should be there, again and again: has the cluster settled?

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

/// Between two looks at all nodes.
const REST: Duration = Duration::from_millis(150);
/// Longest that a node may take to be looked at.
const LIMIT: Duration = Duration::from_secs(2);

/// The nodes that should be members: their names and data directories.
pub type Expected = BTreeMap<String, PathBuf>;

/// One look at all nodes.
#[derive(Clone, Debug)]
pub struct Look {
    /// What is not as it should be in the end; empty if the cluster has settled.
    pub amiss: Vec<String>,
    /// Partitions that change hands, as the first node that answered knows.
    pub pending: usize,
}

/// Looks until it is dropped.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    expected: Mutex<Expected>,
    latest: Mutex<Option<Look>>,
    /// When a settled look began, each time after an unsettled one, and the last.
    settled: Mutex<Vec<Instant>>,
    /// Looks at two or more nodes, and where two of them contradicted each other.
    compared: AtomicU64,
    contradictions: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Watch {
    /// Looks at these nodes from now on.
    ///
    /// # Panics
    /// If the system gives no thread.
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

    /// These nodes should be members from now on.
    pub fn expect(&self, change: impl FnOnce(&mut Expected)) {
        change(&mut self.shared.expected.lock());
    }

    /// The last look.
    pub fn latest(&self) -> Option<Look> {
        self.shared.latest.lock().clone()
    }

    /// When the cluster was first seen settled after this.
    pub fn settled_after(&self, moment: Instant) -> Option<Instant> {
        self.shared.settled.lock().iter().find(|settled| **settled >= moment).copied()
    }
}

impl Watch {
    /// Have all nodes always said the same of one epoch?
    ///
    /// # Errors
    /// Where they did not.
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
            // Its panic would only hide the one that drops us.
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
        // What was expected may have changed while we looked.
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

/// What is wrong with who owns how much.
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
    fn shares_are_even_and_nobody_else_owns_anything() {
        let expected: Expected = ["a", "b"].map(|name| (name.to_owned(), PathBuf::new())).into();
        assert!(balance(&ring(&["a", "b", "a"]), &expected).is_empty());
        assert_eq!(balance(&ring(&["a", "a", "a", "b"]), &expected).len(), 1);
        assert_eq!(balance(&ring(&["a", "b", "c"]), &expected), ["c owns partition 2"]);
        let mut moving = ring(&["a", "b"]);
        moving.partitions[0].pending = vec!["b".to_owned()];
        assert_eq!(balance(&moving, &expected), ["1 partitions change hands"]);
    }
}
