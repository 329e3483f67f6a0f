//! Splits of a cluster: its nodes are cut into sides or killed, operators say `recover --force` on sides
//! that have no majority, and then all meet again.
//!
//! One module keeps one key in every partition. What was acknowledged is known for each side, and
//! [`World::check`] holds every answer against it: a value, a refusal in words, or a loss that the
//! side names. A key that is silently not there is what must never be.

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

/// Small, so that a look at every partition is quick, and every node has some.
pub const RING: u16 = 32;
/// The module: items in memory, the newest version of a key wins.
const MODULE: &str = "kv";
/// Longest that a command may take.
const CALL: Duration = Duration::from_secs(5);
/// How a command may be refused: nobody can be reached who holds the partition, or the node asked, or
/// the one that holds it, does not serve now.
const REFUSALS: [&str; 3] = ["not-enough-replicas", "not-ready", "deadline-exceeded"];

/// What was acknowledged, by partition.
pub type Account = BTreeMap<u16, String>;

/// Nodes that reach each other and nobody else.
#[derive(Clone, Debug)]
pub struct Side {
    /// By number.
    pub nodes: Vec<usize>,
    /// What a read of each partition should answer here.
    pub account: Account,
    /// Partitions that were written to here since the sides parted.
    pub written: BTreeSet<u16>,
    /// Was the cluster recovered here?
    pub recovered: bool,
}

/// What reads of every partition on every node of a side gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Partitions that answered what was acknowledged.
    pub served: BTreeSet<u16>,
    /// Those that were refused, in words.
    pub refused: BTreeSet<u16>,
    /// Those that answered something else, or nothing, and are named as a possible loss.
    pub lost: BTreeSet<u16>,
}

/// A cluster behind a relay, and what it has acknowledged.
pub struct World {
    /// The nodes.
    pub cluster: Cluster,
    /// What a read of each partition should answer while all are together.
    pub account: Account,
    runtime: Runtime,
    keys: BTreeMap<u16, String>,
    round: usize,
}

impl World {
    /// So many nodes of one cluster, and a key in every partition.
    ///
    /// # Panics
    /// If a node does not do what it is told. So do all functions here.
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

    /// The numbers of the nodes that run.
    pub fn everybody(&mut self) -> Vec<usize> {
        let nodes = self.cluster.nodes_mut().iter_mut().enumerate();
        nodes.filter_map(|(number, node)| node.is_running().then_some(number)).collect()
    }

    fn side(&self, nodes: &[usize]) -> Side {
        let account = self.account.clone();
        Side { nodes: nodes.to_vec(), account, written: BTreeSet::new(), recovered: false }
    }

    /// Nothing passes between these sides any more, and everybody has noticed.
    pub fn part(&self, sides: &[&[usize]]) -> Vec<Side> {
        self.cut(sides);
        for side in sides {
            self.until_alive(side);
        }
        sides.iter().map(|side| self.side(side)).collect()
    }

    /// Nothing passes between these sides any more.
    pub fn cut(&self, sides: &[&[usize]]) {
        self.between(sides, Way { cut: true, ..Way::default() });
    }

    /// Everything passes again between these sides.
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

    /// Each of these hears from all of these, and from nobody else.
    pub fn until_alive(&self, nodes: &[usize]) {
        until(&format!("{nodes:?} hear from each other alone"), || {
            nodes.iter().all(|node| self.status(*node)["alive"] == nodes.len()).then_some(())
        });
    }

    /// What a node says of itself and the cluster.
    pub fn status(&self, node: usize) -> Json {
        self.cluster[node].json(&["status"]).json()
    }

    /// An operator says `recover --force` to the first of them: the cluster goes on there if no majority
    /// of the voters is among them, and is refused if one is.
    pub fn recover(&self, side: &mut Side) {
        let node = &self.cluster[side.nodes[0]];
        // A majority that fell silent a moment ago may still be there, as far as anybody knows: what a change says
        // is certain.
        side.recovered = until("it is certain whether a majority is there", || {
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
        assert_eq!(again.code, 1, "there is nothing to recover any more: {again:?}");
    }

    /// Writes to every partition, by each node of the side in turn; what is refused was not applied.
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

    /// Reads every partition on every node of a side.
    pub fn check(&self, side: &Side) -> Found {
        let (found, unnamed) = self.look(side);
        assert!(unnamed.is_empty(), "not as acknowledged, and not named as a possible loss: {unnamed:#?}");
        found
    }

    fn look(&self, side: &Side) -> (Found, Vec<String>) {
        let reads = self.read(&side.nodes);
        // After the reads: who reads something that is not there can look it up from then on.
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

    /// Partitions that a node names as a possible loss.
    pub fn named(&self, node: usize) -> BTreeSet<u16> {
        let status = self.status(node);
        let rows = status["possible_loss"].as_array().into_iter().flatten();
        let listed = rows.flat_map(|row| row["partitions"].as_array().into_iter().flatten());
        let listed = listed.filter_map(Json::as_u64).filter_map(|id| u16::try_from(id).ok());
        listed.chain(possible_losses(&status, MODULE)).collect()
    }

    /// Vnodes that these nodes keep aside.
    pub fn aside(&self, nodes: &[usize]) -> u64 {
        nodes.iter().filter_map(|node| self.status(*node)["aside"].as_u64()).sum()
    }

    /// Everything passes again between these sides, and they are one cluster.
    pub fn meet(&mut self, sides: &[&[usize]]) {
        self.heal(sides);
        self.one(&sides.concat());
    }

    /// Do all of these name a loss by that node of these partitions?
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

    /// Waits until all nodes that run are one cluster, and nothing moves.
    pub fn together(&mut self) {
        let all = self.everybody();
        self.one(&all);
    }

    /// Waits until each of these nodes has an alert that begins so, and shows one.
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

    /// Waits until these nodes are one cluster, and nothing moves.
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

    /// All are one cluster again after they were these sides: holds what it serves against what each side has
    /// acknowledged, takes that for true from now on, and has an operator see to the losses.
    pub fn settle(&mut self, sides: &[Side]) -> Found {
        let all = self.everybody();
        let mut side = self.side(&all);
        let mut torn = BTreeSet::new();
        for partition in self.keys.keys() {
            let mut writers = sides.iter().filter(|side| side.written.contains(partition));
            if let Some(value) = writers.next().and_then(|writer| writer.account.get(partition)) {
                side.account.insert(*partition, value.clone());
            }
            // Two have acknowledged something else: whatever is read, one of them is lost.
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
        assert!(torn.is_subset(&named), "written on two sides and not named: {:?}", torn.difference(&named));
        for (node, partition, answer) in self.read(&all[..1]) {
            match answer {
                Ok(Some(value)) => drop(self.account.insert(partition, value)),
                Ok(None) => drop(self.account.remove(&partition)),
                Err(failure) => assert!(is_refusal(&failure), "{node}: {failure:?}"),
            }
        }
        // Again and again: what a node keeps aside it tells in its own time.
        until("nothing is named any more", || {
            all.iter().for_each(|node| drop(self.cluster[*node].json(&["status", "--acknowledge"])));
            all.iter().all(|node| self.named(*node).is_empty()).then_some(())
        });
        found
    }

    /// The names of members that do not run.
    fn away(&self, running: &[usize]) -> BTreeSet<String> {
        let nodes = self.cluster.nodes().iter().enumerate();
        nodes.filter(|(number, _)| !running.contains(number)).map(|(_, node)| node.name.clone()).collect()
    }

    /// The partitions that are to change hands, as a node knows.
    pub fn pending(&self, node: usize) -> BTreeSet<u16> {
        pending(&self.cluster[node]).into_iter().collect()
    }

    /// The partitions of which these nodes are the owners, as the first of them knows.
    pub fn owned(&self, nodes: &[usize]) -> BTreeSet<u16> {
        let names: BTreeSet<&str> = nodes.iter().map(|node| self.cluster[*node].name.as_str()).collect();
        let ring = (0..).zip(ring(&self.cluster[nodes[0]]));
        ring.filter(|(_, (owner, _))| names.contains(owner.as_str())).map(|(id, _)| id).collect()
    }
}

/// A key for every partition.
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
