//! A mixed load that a model checks: no acknowledged write may be lost, no deleted key may come
//! back, every request is answered, and `keys` tells the truth while all that goes on.
//!
//! Each key has one writer, which has one request under way at a time, so the model of a key is
//! exact. A write whose outcome is unknown may have happened or happen later, and is held
//! neither against the cluster nor for it.

mod belief;
mod board;
mod report;
mod surveyor;
mod worker;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use annulus_core::keyspace::{RingSize, hash_key};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::harness::Node;
use board::Board;
pub use report::{Failed, Phase, Report};

/// The module under load.
pub const MODULE: &str = "kv";
/// Longest that the clients may take to do what they are told, a fill or a read-back of all.
const ORDER_LIMIT: Duration = Duration::from_secs(600);

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

/// What clients are told; each answers when it has done it.
#[derive(Clone)]
enum Order {
    /// Use these nodes (their data directories) from now on.
    Enter(Vec<PathBuf>),
    /// Put every key once.
    Fill,
    /// Send requests, or do not.
    Run(bool),
    /// What these partitions held may be gone.
    Doubt(Arc<HashSet<u16>>),
    /// Read every key, and hold it against the model.
    ReadBack,
}

type Orders = mpsc::UnboundedReceiver<(Order, oneshot::Sender<()>)>;

struct Shared {
    settings: Settings,
    board: Board,
    report: Mutex<Report>,
    /// Nodes whose process is dead or stopped: who asks one of them is answered by nobody.
    frozen: Mutex<HashSet<PathBuf>>,
}

/// A load with threads of its own. It ends when it is dropped.
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<mpsc::UnboundedSender<(Order, oneshot::Sender<()>)>>,
    surveyor: mpsc::UnboundedSender<(Order, oneshot::Sender<()>)>,
    runtime: Runtime,
}

impl Load {
    /// Clients that enter the cluster by these nodes, in turn. They do nothing yet.
    ///
    /// # Panics
    /// If the system gives no threads.
    pub fn new(settings: Settings, nodes: &[&Node]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no threads for a load: {error}"));
        let (clients, keys) = (settings.clients, settings.keys);
        assert!(keys >= clients && clients > 0, "each client has a key");
        let report = Mutex::new(Report::new(clients));
        let shared = Arc::new(Shared { settings, board: Board::new(keys), report, frozen: Mutex::default() });
        let worker = |number| {
            let (orders, told) = mpsc::unbounded_channel();
            runtime.spawn(worker::Worker::new(number, shared.clone()).run(told));
            orders
        };
        let workers = (0..clients).map(worker).collect();
        let (surveyor, told) = mpsc::unbounded_channel();
        runtime.spawn(surveyor::Surveyor::new(shared.clone()).run(told));
        let load = Self { shared, workers, surveyor, runtime };
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
        self.tell_these(&self.workers, order);
        self.tell_these(std::slice::from_ref(&self.surveyor), order);
    }

    fn tell_these(&self, whom: &[mpsc::UnboundedSender<(Order, oneshot::Sender<()>)>], order: &Order) {
        let send = |to: &mpsc::UnboundedSender<_>| {
            let (done, heard) = oneshot::channel();
            // One that is gone panicked, which shows below.
            let _ = to.send((order.clone(), done));
            heard
        };
        let heard: Vec<_> = whom.iter().map(send).collect();
        self.runtime.block_on(async {
            for heard in heard {
                let done = timeout(ORDER_LIMIT, heard).await;
                assert!(matches!(done, Ok(Ok(()))), "a client did not do what it was told in time");
            }
        });
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
