//! Network splits: a cluster's nodes are cut into sides or killed, operators run `recover --force` on sides
//! without a majority, and then all sides meet again.
//!
//! One module keeps one key in every partition. The acknowledged writes of each side are known, and
//! [`World::check`] checks every answer against them: an acknowledged value, a documented refusal, or a loss
//! that the side reports. A key that is missing without such a report is always an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use annulus_core::keyspace::{RingSize, hash_key};
use ciborium::Value;
use serde_json::Value as Json;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::chaos::possible_losses;
use crate::client::{Applied, Failure, Operator};
use crate::harness::{Cluster, pending, ring, until};
use crate::relay::{Relay, Way};

/// Ring size: small, so that reading every partition is quick, and every node has some.
pub const RING: u16 = 32;
/// The module under test: items in memory, the newest version of a key wins.
const MODULE: &str = "kv";
/// Deadline of a command.
const CALL: Duration = Duration::from_secs(5);
/// Error codes of expected refusals: the owner cannot be reached, or the asked node or the owner does not serve
/// at the moment.
const REFUSALS: [&str; 3] = ["not-enough-replicas", "not-ready", "deadline-exceeded"];

/// The acknowledged value of each partition's key.
pub type Account = BTreeMap<u16, String>;

/// Nodes that reach each other and no other node.
#[derive(Clone, Debug)]
pub struct Side {
    /// Indexes of the nodes.
    pub nodes: Vec<usize>,
    /// Expected answer to a read of each partition on this side.
    pub account: Account,
    /// Partitions with a write acknowledged on this side since the split.
    pub written: BTreeSet<u16>,
    /// Whether the cluster was recovered on this side.
    pub recovered: bool,
}

/// The results of reading every partition on every node of a side. A partition may be in several sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Partitions that returned the acknowledged value.
    pub served: BTreeSet<u16>,
    /// Partitions that were refused with an expected error.
    pub refused: BTreeSet<u16>,
    /// Partitions that returned another value or none, and that a node reports as a possible loss.
    pub lost: BTreeSet<u16>,
}

/// A cluster behind a relay, and its acknowledged writes.
pub struct World {
    /// The nodes.
    pub cluster: Cluster,
    /// Expected answer to a read of each partition while all nodes are connected.
    pub account: Account,
    runtime: Runtime,
    keys: BTreeMap<u16, String>,
    round: usize,
}

impl World {
    /// Create one cluster of this number of nodes, and write a key in every partition.
    ///
    /// # Panics
    /// If a node does not do what is requested; this holds for all functions here.
    pub fn begin(nodes: usize) -> Self {
        let cluster = Cluster::relayed(Relay::new(1), nodes, &["--ring-size", &RING.to_string()]);
        for node in &cluster.nodes()[1..] {
            node.join(&cluster[0]);
        }
        cluster.deploy("guests/kv");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no threads for calls: {error}"));
        let mut world = Self { cluster, account: Account::new(), runtime, keys: one_key_each(), round: 0 };
        world.together();
        let all = world.everybody();
        let mut side = world.side(&all);
        world.write(&mut side);
        assert_eq!(side.written.len(), usize::from(RING));
        world.account = side.account;
        world
    }

    /// Return the indexes of the nodes whose process runs.
    pub fn everybody(&mut self) -> Vec<usize> {
        let nodes = self.cluster.nodes_mut().iter_mut().enumerate();
        nodes.filter_map(|(number, node)| node.is_running().then_some(number)).collect()
    }

    fn side(&self, nodes: &[usize]) -> Side {
        let account = self.account.clone();
        Side { nodes: nodes.to_vec(), account, written: BTreeSet::new(), recovered: false }
    }

    /// Cut the connections between these sides, and wait until every node has noticed.
    pub fn part(&self, sides: &[&[usize]]) -> Vec<Side> {
        self.cut(sides);
        for side in sides {
            self.until_alive(side);
        }
        sides.iter().map(|side| self.side(side)).collect()
    }

    /// Cut the connections between these sides.
    pub fn cut(&self, sides: &[&[usize]]) {
        self.between(sides, Way { cut: true, ..Way::default() });
    }

    /// Restore the connections between these sides.
    pub fn heal(&self, sides: &[&[usize]]) {
        self.between(sides, Way::default());
    }

    fn between(&self, sides: &[&[usize]], way: Way) {
        for (number, side) in sides.iter().enumerate() {
            for other in sides.iter().enumerate().filter(|(other, _)| *other != number).flat_map(|(_, o)| *o)
            {
                side.iter().for_each(|node| self.cluster.relay().set(*node, *other, way));
            }
        }
    }

    /// Wait until each of these nodes sees exactly these nodes alive.
    pub fn until_alive(&self, nodes: &[usize]) {
        until(&format!("{nodes:?} see exactly each other alive"), || {
            nodes.iter().all(|node| self.status(*node)["alive"] == nodes.len()).then_some(())
        });
    }

    /// Return the `status` of a node.
    pub fn status(&self, node: usize) -> Json {
        self.cluster[node].json(&["status"]).json()
    }

    /// Run `recover --force` on the side's first node. It must succeed if the side has no majority of the
    /// voters, and must be refused otherwise.
    pub fn recover(&self, side: &mut Side) {
        let node = &self.cluster[side.nodes[0]];
        // Right after a split, nodes may still count a silent peer as present. Whether a change is committed
        // (here, a token) decides if there is a majority.
        side.recovered = until("it is certain whether there is a majority", || {
            let needed = node.json(&["recover"]).json()["needed"] == true;
            (needed || node.json(&["token"]).code == 0).then_some(needed)
        });
        let forced = node.json(&["recover", "--force"]);
        if !side.recovered {
            assert_eq!(
                (forced.code, &forced.json()["error"]["code"]),
                (1, &Json::from("not-allowed")),
                "{forced:?}"
            );
            return;
        }
        assert_eq!(forced.code, 0, "{forced:?}");
        let row = forced.json();
        let adopted: BTreeSet<&str> =
            row["adopted"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
        let names = side.nodes.iter().map(|node| self.cluster[*node].name.as_str());
        assert_eq!(adopted, names.collect(), "{forced:?}");
        let again = node.json(&["recover", "--force"]);
        assert_eq!(again.code, 1, "a second recovery must be refused: {again:?}");
    }

    /// Write to every partition through the side's nodes in turn. A refused write must not have been applied.
    pub fn write(&mut self, side: &mut Side) {
        self.round += 1;
        let mut calls = JoinSet::new();
        let operators = self.operators(&side.nodes);
        for (number, (partition, key)) in self.keys.iter().enumerate() {
            let operator = operators[number % operators.len()].clone();
            let (partition, value) = (*partition, format!("{}.{}", self.round, partition));
            let args = vec![text("key", key), text("value", &value)];
            let call = async move { (partition, value, operator.call(MODULE, "put", args, CALL).await) };
            calls.spawn_on(call, self.runtime.handle());
        }
        for (partition, value, answer) in self.runtime.block_on(calls.join_all()) {
            match answer {
                Ok(_) => {
                    side.account.insert(partition, value);
                    side.written.insert(partition);
                }
                Err(failure) => {
                    assert!(is_refusal(&failure), "a write to partition {partition}: {failure:?}")
                }
            }
        }
    }

    /// Read every partition on every node of a side. Panics if an answer is not as acknowledged and no node of
    /// the side reports a possible loss of the partition.
    pub fn check(&self, side: &Side) -> Found {
        let (found, unnamed) = self.look(side);
        assert!(unnamed.is_empty(), "not as acknowledged, and not reported as a possible loss: {unnamed:#?}");
        found
    }

    fn look(&self, side: &Side) -> (Found, Vec<String>) {
        let reads = self.read(&side.nodes);
        // Compute this after the reads: a loss must be reported no later than a read shows it.
        let named: BTreeSet<u16> = side.nodes.iter().flat_map(|node| self.named(*node)).collect();
        let (mut found, mut unnamed) = (Found::default(), Vec::new());
        for (node, partition, answer) in reads {
            let acknowledged = side.account.get(&partition);
            match answer {
                Ok(value) if value.as_ref() == acknowledged => drop(found.served.insert(partition)),
                Ok(_) if named.contains(&partition) => drop(found.lost.insert(partition)),
                Err(failure) if is_refusal(&failure) => drop(found.refused.insert(partition)),
                other => {
                    let name = &self.cluster[node].name;
                    unnamed.push(format!(
                        "{name}, partition {partition}: {other:?} instead of {acknowledged:?}"
                    ));
                }
            }
        }
        (found, unnamed)
    }

    fn read(&self, nodes: &[usize]) -> Vec<(usize, u16, Result<Option<String>, Failure>)> {
        let mut calls = JoinSet::new();
        for (node, operator) in nodes.iter().copied().zip(self.operators(nodes)) {
            for (partition, key) in &self.keys {
                let (partition, operator, args) = (*partition, operator.clone(), vec![text("key", key)]);
                let call = async move {
                    let answer = operator.call(MODULE, "get", args, CALL).await;
                    (node, partition, answer.map(|value| value.into_text().ok()))
                };
                calls.spawn_on(call, self.runtime.handle());
            }
        }
        self.runtime.block_on(calls.join_all())
    }

    fn operators(&self, nodes: &[usize]) -> Vec<Arc<Operator>> {
        let connect = |node: &usize| {
            let connected = self.runtime.block_on(Operator::connect(&self.cluster[*node].data));
            Arc::new(connected.unwrap_or_else(|failure| panic!("{}: {failure:?}", self.cluster[*node].name)))
        };
        nodes.iter().map(connect).collect()
    }

    /// Return the partitions that a node reports as a possible loss.
    pub fn named(&self, node: usize) -> BTreeSet<u16> {
        let status = self.status(node);
        let rows = status["possible_loss"].as_array().into_iter().flatten();
        let listed = rows.flat_map(|row| row["partitions"].as_array().into_iter().flatten());
        let listed = listed.filter_map(Json::as_u64).filter_map(|id| u16::try_from(id).ok());
        listed.chain(possible_losses(&status, MODULE)).collect()
    }

    /// Return the number of vnodes that these nodes keep aside.
    pub fn aside(&self, nodes: &[usize]) -> u64 {
        nodes.iter().filter_map(|node| self.status(*node)["aside"].as_u64()).sum()
    }

    /// Restore the connections between these sides, and wait until they are one cluster.
    pub fn meet(&mut self, sides: &[&[usize]]) {
        self.heal(sides);
        self.one(&sides.concat());
    }

    /// Return true if all of these nodes report a loss of these partitions by the node `by`.
    pub fn all_name(&self, nodes: &[usize], by: &str, partitions: &BTreeSet<u16>) -> bool {
        nodes.iter().all(|node| {
            let status = self.status(*node);
            let rows =
                status["possible_loss"].as_array().into_iter().flatten().filter(|row| row["node"] == by);
            let named = rows.flat_map(|row| row["partitions"].as_array().into_iter().flatten());
            let named: BTreeSet<u16> =
                named.filter_map(Json::as_u64).filter_map(|id| id.try_into().ok()).collect();
            partitions.is_subset(&named)
        })
    }

    /// Wait until all running nodes are one cluster and no transfer is pending.
    pub fn together(&mut self) {
        let all = self.everybody();
        self.one(&all);
    }

    /// Wait until each of these nodes has an alert that starts with `kind`, and return one of them.
    pub fn alerted(&self, nodes: &[usize], kind: &str) -> String {
        let mut seen = String::new();
        until(&format!("{nodes:?} alert: {kind}"), || {
            nodes
                .iter()
                .all(|node| {
                    let status = self.status(*node);
                    let alerts = status["alerts"].as_array().into_iter().flatten().filter_map(Json::as_str);
                    let told = alerts.filter(|line| line.starts_with(kind)).map(str::to_owned).next();
                    told.inspect(|line| seen.clone_from(line)).is_some()
                })
                .then_some(())
        });
        seen
    }

    /// Wait until these nodes are one cluster and no transfer is pending.
    pub fn one(&self, nodes: &[usize]) {
        until(&format!("{nodes:?} are one cluster, and nothing moves"), || {
            let rings: BTreeSet<String> =
                nodes.iter().map(|node| self.cluster[*node].json(&["ring"]).stdout).collect();
            let led = |node: &usize| {
                let status = self.status(*node);
                status["quorum"] == true && status["alive"] == nodes.len()
            };
            (rings.len() == 1 && nodes.iter().all(led) && pending(&self.cluster[nodes[0]]).is_empty())
                .then_some(())
        });
    }

    /// Check the reunited cluster against the acknowledged writes of its former sides, adopt its values as the
    /// expected ones, and acknowledge the reported losses.
    pub fn settle(&mut self, sides: &[Side]) -> Found {
        let all = self.everybody();
        let mut side = self.side(&all);
        let mut torn = BTreeSet::new();
        for partition in self.keys.keys() {
            let mut writers = sides.iter().filter(|side| side.written.contains(partition));
            if let Some(value) = writers.next().and_then(|writer| writer.account.get(partition)) {
                side.account.insert(*partition, value.clone());
            }
            // Two sides have acknowledged a write: one of the two is lost, whichever value is read.
            if writers.next().is_some() {
                torn.insert(*partition);
            }
        }
        let found = until("everything is served", || {
            let found = self.check(&side);
            let gone: BTreeSet<String> = self.away(&all);
            let expected = |id: &u16| gone.contains(&ring(&self.cluster[all[0]])[usize::from(*id)].0);
            found.refused.iter().all(expected).then_some(found)
        });
        let named: BTreeSet<u16> = all.iter().flat_map(|node| self.named(*node)).collect();
        assert!(
            torn.is_subset(&named),
            "written on two sides and not reported as a possible loss: {:?}",
            torn.difference(&named)
        );
        for (node, partition, answer) in self.read(&all[..1]) {
            match answer {
                Ok(Some(value)) => drop(self.account.insert(partition, value)),
                Ok(None) => drop(self.account.remove(&partition)),
                Err(failure) => assert!(is_refusal(&failure), "{node}: {failure:?}"),
            }
        }
        // Acknowledge repeatedly, because nodes report what they keep aside at different times.
        until("no possible loss is reported", || {
            all.iter().for_each(|node| drop(self.cluster[*node].json(&["status", "--acknowledge"])));
            all.iter().all(|node| self.named(*node).is_empty()).then_some(())
        });
        found
    }

    /// Return the names of the members that do not run.
    fn away(&self, running: &[usize]) -> BTreeSet<String> {
        let nodes = self.cluster.nodes().iter().enumerate();
        nodes.filter(|(number, _)| !running.contains(number)).map(|(_, node)| node.name.clone()).collect()
    }

    /// Return the partitions with a pending transfer, as a node knows the ring.
    pub fn pending(&self, node: usize) -> BTreeSet<u16> {
        pending(&self.cluster[node]).into_iter().collect()
    }

    /// Return the partitions owned by these nodes, as the first of them knows the ring.
    pub fn owned(&self, nodes: &[usize]) -> BTreeSet<u16> {
        let names: BTreeSet<&str> = nodes.iter().map(|node| self.cluster[*node].name.as_str()).collect();
        let ring = (0..).zip(ring(&self.cluster[nodes[0]]));
        ring.filter(|(_, (owner, _))| names.contains(owner.as_str())).map(|(id, _)| id).collect()
    }
}

/// Return one key for each partition.
fn one_key_each() -> BTreeMap<u16, String> {
    let size = RingSize::try_from(u32::from(RING)).unwrap_or_default();
    let mut keys = BTreeMap::new();
    for key in (0..).map(|n| format!("k{n}")) {
        let at = size.partition_of(&hash_key(MODULE.as_bytes(), key.as_bytes()));
        keys.entry(at.0).or_insert(key);
        if keys.len() == usize::from(RING) {
            break;
        }
    }
    keys
}

fn text(name: &str, value: &str) -> (Value, Value) {
    (Value::Text(name.to_owned()), Value::Text(value.to_owned()))
}

fn is_refusal(failure: &Failure) -> bool {
    failure.applied == Applied::No && REFUSALS.contains(&failure.code.as_str())
}
