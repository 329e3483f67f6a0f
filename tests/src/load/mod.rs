//! A mixed load that a model checks: no acknowledged write may be lost, no deleted key may come
//! back, every request is answered, and `keys` tells the truth while all that goes on.
//!
//! Each key has one writer, which has one request under way at a time, so the model of a key is
//! exact. A write whose outcome is unknown may have happened or happen later, and is held
//! neither against the cluster nor for it.

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

/// The module under load.
pub const MODULE: &str = "kv";

/// How a load is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many clients.
    pub clients: u32,
    /// How many keys they share among them.
    pub keys: u32,
    /// Deadline of a request.
    pub limit: Duration,
    /// How much later than its deadline an answer may come on a busy machine, not to count as none.
    pub grace: Duration,
    /// Of a client after each answer; none by default.
    pub rest: Duration,
    /// Bytes that each value carries beside its number.
    pub pad: usize,
    /// Ask for all keys again and again.
    pub surveys: bool,
    /// A client whose node lets it down goes to the next one. Else it stays where it was sent.
    pub roam: bool,
    /// The cluster's.
    pub ring_size: u16,
    /// Of the choice of keys and commands.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clients: 16,
            keys: 20_000,
            limit: Duration::from_secs(10),
            grace: Duration::from_secs(5),
            rest: Duration::ZERO,
            pad: 0,
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
    /// Nodes whose process is dead or stopped: who asks one of them is answered by nobody.
    frozen: Frozen,
}

/// A load with threads of its own. It ends when it is dropped.
pub struct Load {
    shared: Arc<Shared>,
    workers: Whom,
    surveyor: Whom,
    crew: Crew,
}

impl Load {
    /// Clients that enter the cluster by these nodes, in turn. They do nothing yet.
    ///
    /// # Panics
    /// If the system gives no threads.
    pub fn new(settings: Settings, nodes: &[&Node]) -> Self {
        let crew = Crew::new();
        let (clients, keys) = (settings.clients, settings.keys);
        assert!(keys >= clients && clients > 0, "each client has a key");
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

    /// Sends the clients to these nodes, in turn; `keys` is asked of the first.
    pub fn enter(&self, nodes: &[&Node]) {
        self.tell(&Order::Enter(nodes.iter().map(|node| node.data.clone()).collect()));
    }

    /// Puts every key once.
    pub fn fill(&self) {
        self.phase("fill");
        self.tell(&Order::Fill);
    }

    /// Begins the mixed load.
    pub fn go(&self) {
        self.tell(&Order::Run(true));
    }

    /// Ends the mixed load; nothing is under way any more.
    pub fn pause(&self) {
        self.tell(&Order::Run(false));
    }

    /// Counts by another name from now on.
    pub fn phase(&self, name: &str) {
        self.shared.report.lock().begin(name);
    }

    /// What these partitions held may be gone: the memory that held it has died. To be said
    /// while they do not answer.
    pub fn doubt(&self, partitions: HashSet<u16>) {
        self.tell(&Order::Doubt(Arc::new(partitions)));
    }

    /// This node's process is killed or stopped, or runs again. A request that was sent to it meanwhile
    /// and gets no answer is counted apart: a process that does not run cannot give one.
    pub fn freeze(&self, node: &Node, frozen: bool) {
        let mut all = self.shared.frozen.lock();
        if frozen {
            all.insert(node.data.clone())
        } else {
            all.remove(&node.data)
        };
    }

    /// The nodes that [`freeze`](Self::freeze) was told of, for others who ask them.
    pub(crate) fn frozen(&self) -> Frozen {
        self.shared.frozen.clone()
    }

    /// Ends the load, reads everything back and compares `keys` with the model exactly.
    pub fn verify(&self) -> Report {
        self.pause();
        self.phase("read back");
        self.tell(&Order::ReadBack);
        self.report()
    }

    /// What it saw so far.
    pub fn report(&self) -> Report {
        self.shared.report.lock().clone()
    }

    /// The clients first, then `keys`, which then is compared with what they left.
    fn tell(&self, order: &Order) {
        self.crew.tell(&self.workers, order);
        self.crew.tell(&self.surveyor, order);
    }
}

/// What a key is called.
fn key_name(key: u32) -> String {
    format!("key{key}")
}

fn key_number(name: &str) -> Option<u32> {
    name.strip_prefix("key")?.parse().ok()
}

/// Where a key lives.
fn partition_of(key: u32, ring_size: u16) -> u16 {
    let size = RingSize::try_from(u32::from(ring_size)).unwrap_or_else(|error| panic!("{error}"));
    size.partition_of(&hash_key(MODULE.as_bytes(), key_name(key).as_bytes())).0
}
