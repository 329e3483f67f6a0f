//! A mixed load that is checked against a model: no acknowledged write is lost, no deleted key comes back,
//! every request is answered, and the replies of `keys` are right while the writes continue.
//!
//! Each key has one writer with one request in progress at a time, so the model of a key is exact. A write
//! with an unknown outcome may have been applied or may be applied later; either is accepted.

pub(crate) mod belief;
mod board;
pub(crate) mod caller;
pub(crate) mod crew;
mod report;
mod surveyor;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::keyspace::{RingSize, hash_key};
use parking_lot::Mutex;

use crate::harness::Node;
use board::Board;
use caller::Frozen;
use crew::{Crew, Order, Whom};
pub use report::{Failed, Phase, Report};

/// Settings of a load.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the module under load: that of `guests/kv` or of `guests/memkv`.
    pub module: &'static str,
    /// Number of clients.
    pub clients: u32,
    /// Number of keys, divided among the clients.
    pub keys: u32,
    /// Deadline of a request.
    pub limit: Duration,
    /// Time after the deadline within which an answer still counts, for a busy machine.
    pub grace: Duration,
    /// Pause of a client after each answer; none by default. It gets longer on a busy machine.
    pub rest: Duration,
    /// Bytes added to each value.
    pub pad: usize,
    /// Bytes added to one value in sixteen, instead of `pad`; 0 for no such values.
    pub long_pad: usize,
    /// Whether to run the coverage command `keys` repeatedly.
    pub surveys: bool,
    /// Whether a client goes to the next node when its own does not answer. Otherwise it stays.
    pub roam: bool,
    /// Number of partitions of the cluster.
    pub ring_size: u16,
    /// Seed for the choice of keys and commands.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            module: "kv",
            clients: 16,
            keys: 20_000,
            limit: Duration::from_secs(10),
            grace: Duration::from_secs(5),
            rest: Duration::ZERO,
            pad: 0,
            long_pad: 0,
            surveys: true,
            roam: false,
            ring_size: 64,
            seed: 1,
        }
    }
}

struct Shared {
    settings: Settings,
    board: Board,
    report: Mutex<Report>,
    /// Nodes whose process is dead or frozen, so that a request to them gets no answer.
    frozen: Frozen,
}

/// A load with its own threads; it ends when it is dropped.
pub struct Load {
    shared: Arc<Shared>,
    workers: Whom,
    surveyor: Whom,
    crew: Crew,
}

impl Load {
    /// Create clients that use these nodes in turn and are idle at first.
    ///
    /// # Panics
    /// If there are more clients than keys or none, or the runtime cannot be created.
    pub fn new(settings: Settings, nodes: &[&Node]) -> Self {
        let crew = Crew::new();
        let (clients, keys) = (settings.clients, settings.keys);
        assert!(keys >= clients && clients > 0, "each client needs a key");
        let report = Mutex::new(Report::new(clients));
        let shared =
            Arc::new(Shared { settings, board: Board::new(keys), report, frozen: Frozen::default() });
        let (mut workers, mut surveyor) = (Whom::new(), Whom::new());
        for number in 0..clients {
            crew.hire(&mut workers, |told| worker::Worker::new(number, shared.clone()).run(told));
        }
        crew.hire(&mut surveyor, |told| surveyor::Surveyor::new(shared.clone()).run(told));
        let load = Self { shared, workers, surveyor, crew };
        load.enter(nodes);
        load
    }

    /// Send the clients to these nodes in turn; `keys` goes to the first.
    pub fn enter(&self, nodes: &[&Node]) {
        self.tell(&Order::Enter(nodes.iter().map(|node| node.data.clone()).collect()));
    }

    /// Put every key once, as the phase `fill`.
    pub fn fill(&self) {
        self.phase("fill");
        self.tell(&Order::Fill);
    }

    /// Start the mixed load.
    pub fn go(&self) {
        self.tell(&Order::Run(true));
    }

    /// Stop the mixed load and wait for the requests in progress.
    pub fn pause(&self) {
        self.tell(&Order::Run(false));
    }

    /// Start a phase: later requests are counted under this name.
    pub fn phase(&self, name: &str) {
        self.shared.report.lock().begin(name);
    }

    /// Expect that the items of these partitions may be lost with their memory. Must be called while the
    /// partitions do not answer.
    pub fn doubt(&self, partitions: HashSet<u16>) {
        self.tell(&Order::Doubt(Arc::new(partitions)));
    }

    /// Record that a node's process is killed or frozen, or that it runs again. Requests that get no answer
    /// from it until then are counted separately, because a process that does not run cannot answer.
    pub fn freeze(&self, node: &Node, frozen: bool) {
        self.shared.frozen.set(&node.data, frozen);
    }

    /// Record that a frozen node's process has ended: requests in progress to it end now, with an unknown outcome.
    pub fn end_requests_to(&self, node: &Node) {
        self.shared.frozen.dies(&node.data);
    }

    /// Return the set of frozen nodes maintained by [`freeze`](Self::freeze), to share it with other clients.
    pub(crate) fn frozen(&self) -> Frozen {
        self.shared.frozen.clone()
    }

    /// Stop the load, read every key back and compare a last reply of `keys` with the model.
    pub fn verify(&self) -> Report {
        self.phase("read back");
        self.read_back();
        self.report()
    }

    /// Stop the load, read every key and compare it with the model, without a phase of its own.
    pub fn read_back(&self) {
        self.pause();
        self.tell(&Order::ReadBack);
    }

    /// Return the report so far.
    pub fn report(&self) -> Report {
        self.shared.report.lock().clone()
    }

    /// Send an order to the writers first, then to the surveyor, whose `keys` is compared with their result.
    fn tell(&self, order: &Order) {
        self.crew.tell(&self.workers, order);
        self.crew.tell(&self.surveyor, order);
    }
}

/// Return the name of a key.
/// Return the pause of a client whose request took `took`, if it would pause for `rest` on an idle machine.
///
/// On a machine that is busy, requests take longer, and clients that ask again at once keep all of it busy: whatever
/// runs with a lower priority, such as a node's compiler, then gets no time at all.
pub(crate) fn rest_after(rest: Duration, took: Duration) -> Duration {
    const MOST: Duration = Duration::from_millis(200);
    if rest.is_zero() { rest } else { rest.max((took * 3).min(MOST)) }
}

fn key_name(key: u32) -> String {
    format!("key{key}")
}

fn key_number(name: &str) -> Option<u32> {
    name.strip_prefix("key")?.parse().ok()
}

impl Settings {
    /// Return the partition of a key.
    fn partition_of(&self, key: u32) -> u16 {
        let size = RingSize::try_from(u32::from(self.ring_size)).unwrap_or_else(|error| panic!("{error}"));
        size.partition_of(&hash_key(self.module.as_bytes(), key_name(key).as_bytes())).0
    }
}
