//! The clients of several modules, and their accounts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use annulus_core::keyspace::{PartitionId, RingSize, hash_key};
use ciborium::Value;
use parking_lot::Mutex;

use super::account::Account;
use super::client::Client;
use super::report::Report;
use crate::client::{Operator, call_all};
use crate::harness::Node;
use crate::load;
use crate::load::caller::{Caller, Frozen};
use crate::load::crew::{Crew, Order, Whom};

/// Settings of a crowd.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of clients of each module.
    pub clients: u32,
    /// Number of keys of each module that are written at a time.
    pub slots: u32,
    /// Deadline of a request.
    pub limit: Duration,
    /// Time after the deadline within which an answer still counts, for a busy machine.
    pub grace: Duration,
    /// Pause of a client after each answer.
    pub rest: Duration,
    /// Number of partitions of the cluster.
    pub ring_size: u16,
    /// Seed for the choice of keys and commands.
    pub seed: u64,
    /// The time from which reports count.
    pub began: Instant,
}

/// A module under load.
pub(super) struct Module {
    pub(super) name: &'static str,
    pub(super) account: Mutex<Account>,
    pub(super) report: Mutex<Report>,
}

/// The bytes of keys on one node; `None` for a key without an item.
pub(crate) type Stored = BTreeMap<u32, Option<Vec<u8>>>;

/// Clients with their own threads; they end when it is dropped.
pub struct Crowd {
    settings: Settings,
    modules: Vec<Arc<Module>>,
    frozen: Frozen,
    clients: Whom,
    crew: Crew,
}

impl Crowd {
    /// Create clients of these modules that use these nodes in turn and are idle at first. The guest of the modules is
    /// `tests/guests/replicated`.
    ///
    /// # Panics
    /// If the runtime cannot be created.
    pub fn new(settings: Settings, modules: &[&'static str], nodes: &[&Node]) -> Self {
        let (crew, frozen) = (Crew::new(), Frozen::default());
        let (mut all, mut clients) = (Vec::new(), Whom::new());
        let Settings { limit, grace, .. } = settings;
        let calls = load::Settings { limit, grace, roam: true, ..load::Settings::default() };
        for name in modules {
            let account = Mutex::new(Account::new(settings.slots));
            let module = Arc::new(Module { name, account, report: Mutex::new(Report::new(name)) });
            for number in 0..settings.clients {
                let number = all.len() as u32 * settings.clients + number;
                let caller = Caller::new(frozen.clone(), &calls);
                let client = Client::new(number, &settings, module.clone(), caller);
                crew.hire(&mut clients, |told| client.run(told));
            }
            all.push(module);
        }
        let crowd = Self { settings, modules: all, frozen, clients, crew };
        crowd.enter(nodes);
        crowd
    }

    /// Send the clients to these nodes in turn.
    pub fn enter(&self, nodes: &[&Node]) {
        let nodes: Vec<PathBuf> = nodes.iter().map(|node| node.data.clone()).collect();
        self.tell(&Order::Enter(nodes));
    }

    /// Start the load.
    pub fn go(&self) {
        self.tell(&Order::Run(true));
    }

    /// Stop the load and wait for the requests in progress.
    pub fn pause(&self) {
        self.tell(&Order::Run(false));
    }

    /// Record that a node's process is killed or frozen, or that it runs again, as [`load::Load::freeze`].
    pub fn freeze(&self, node: &Node, frozen: bool) {
        self.frozen.set(&node.data, frozen);
    }

    /// Record that a frozen node's process has ended: requests in progress to it end now, with an unknown outcome.
    pub fn end_requests_to(&self, node: &Node) {
        self.frozen.dies(&node.data);
    }

    /// Read every key through one node and check it. Call it after [`Self::pause`]: what is missing now is lost.
    pub fn read_back(&self, node: &Node) {
        self.enter(&[node]);
        self.tell(&Order::ReadBack);
    }

    /// Return the reports so far, one for each module.
    pub fn reports(&self) -> Vec<Report> {
        let report = |module: &Arc<Module>| {
            let totals = module.account.lock().totals();
            module.report.lock().clone().with(totals)
        };
        self.modules.iter().map(report).collect()
    }

    /// Return the keys of a module, each with its partition.
    pub(crate) fn keys(&self, module: &str) -> Vec<(u32, PartitionId)> {
        let found = self.modules.iter().find(|found| found.name == module);
        let keys = found.map_or(0, |module| module.account.lock().keys());
        (0..keys).map(|key| (key, self.settings.partition_of(module, key))).collect()
    }

    /// Return the bytes that a node returns for these keys, each within `limit`, or the first reason why it does not.
    ///
    /// # Errors
    /// The node cannot be reached.
    pub(crate) fn stored(
        &self,
        node: &Node,
        module: &str,
        keys: &[u32],
        limit: Duration,
    ) -> Result<(Stored, Option<String>), String> {
        self.crew.block_on(async {
            let operator = Operator::connect(&node.data).await.map_err(|failure| failure.message)?;
            let requests = keys.iter().map(|key| (*key, "stored", args_of(*key)));
            let (mut stored, mut why) = (Stored::new(), None);
            for (key, answer) in call_all(&Arc::new(operator), module, requests, limit).await {
                match answer {
                    Ok(Value::Bytes(bytes)) => drop(stored.insert(key, Some(bytes))),
                    Ok(Value::Null) => drop(stored.insert(key, None)),
                    Ok(other) => drop(why.get_or_insert_with(|| format!("{} is {other:?}", key_name(key)))),
                    Err(failure) => drop(why.get_or_insert(failure.message)),
                }
            }
            Ok((stored, why))
        })
    }

    fn tell(&self, order: &Order) {
        self.crew.tell(&self.clients, order);
    }
}

impl Settings {
    /// Return the partition of a key.
    pub(super) fn partition_of(&self, module: &str, key: u32) -> PartitionId {
        let size = RingSize::try_from(u32::from(self.ring_size)).unwrap_or_else(|error| panic!("{error}"));
        size.partition_of(&hash_key(module.as_bytes(), key_name(key).as_bytes()))
    }
}

/// Return the name of a key.
pub(super) fn key_name(key: u32) -> String {
    format!("key{key}")
}

/// Return the arguments of a command that has only a key.
pub(super) fn args_of(key: u32) -> Vec<(Value, Value)> {
    vec![("key".into(), key_name(key).into())]
}
